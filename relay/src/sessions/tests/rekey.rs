//! A connector's keys that change under its live session: its own, and the pre-shared ones.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use culvert_engine::DropReason;
use culvert_model::control::{Rekey, Rekeyed};
use culvert_plane::PeerKey;

use super::*;

/// A connector's next key.
struct Next {
    key: PrivateKey,
    kem: KemKey,
}

impl Next {
    fn new() -> Self {
        Self { key: PrivateKey::generate(), kem: KemKey::generate() }
    }

    fn request(&self) -> ToRelay {
        let kem_key = STANDARD.encode(self.kem.encapsulation_key());
        ToRelay::Rekey(Rekey { public_key: self.key.public_key(), kem_key })
    }

    fn psk(&self, answer: &Rekeyed) -> PskEpoch {
        assert_eq!(answer.public_key, self.key.public_key());
        let ciphertext = STANDARD.decode(&answer.ciphertext).unwrap();
        let relay = answer.relay_key.unwrap();
        PskEpoch {
            epoch: answer.psk_epoch,
            psk: self.kem.decapsulate(&ciphertext, &relay, &self.key.public_key()).unwrap(),
        }
    }
}

impl Run {
    async fn answer(&mut self) -> ToConnector {
        tokio::time::timeout(SOON, self.answers.recv()).await.unwrap().unwrap()
    }

    async fn rekey(&mut self, next: &Next) -> PskEpoch {
        self.say(next.request());
        match self.answer().await {
            ToConnector::Rekeyed(answer) => next.psk(&answer),
            other => panic!("{other:?}"),
        }
    }

    /// Shakes hands under the next key, the session going on.
    fn use_next(&self, rig: &Rig, next: &Next, psk: PskEpoch) {
        let static_index = self.plane.add_static(&next.key);
        let key = PeerKey { public_key: rig.identity.public_key(), static_index, psks: vec![psk] };
        self.plane.add_key(self.peer, key, true).unwrap();
        self.plane.connect(self.peer, None);
    }
}

impl Rig {
    fn own(&self, joined: &Joined) -> PublicKey {
        self.sessions.shared.table().connectors.get(&joined.enrolled.id).unwrap().keys.own
    }

    fn stats(&self, joined: &Joined) -> culvert_engine::PeerStats {
        let peer = self.sessions.shared.table().connectors.get(&joined.enrolled.id).unwrap().peer;
        self.sessions.shared.plane.peer_stats(peer).unwrap()
    }
}

#[tokio::test]
async fn a_connector_changes_its_key_within_its_session_and_the_old_one_then_gets_silence() {
    let rig = Rig::new(&["orders"]).await;
    let a = rig.join("a").await;
    let mut run = a.come(&rig, &["orders"]).await;
    let (old, next) = (a.key.public_key(), Next::new());
    let new = next.key.public_key();
    run.rekey(&next).await;
    // The answer was lost, it asks again; and a word that nobody has proven changes nothing.
    run.say(ToRelay::Retire { public_key: new });
    let psk = run.rekey(&next).await;
    assert_eq!((psk.epoch, rig.own(&a), rig.stats(&a).public_key), (2, old, old));
    assert_eq!(rig.ask("orders").await, Ok("a".to_owned()), "the old key goes on");

    run.use_next(&rig, &next, psk);
    rig.until("the session hangs on the new key", || rig.stats(&a).public_key == new).await;
    assert_eq!(rig.own(&a), old, "both are answered until it says that it is done");
    assert_eq!(rig.ask("orders").await, Ok("a".to_owned()));
    run.say(ToRelay::Retire { public_key: new });
    rig.until("the old key is retired", || rig.own(&a) == new).await;
    let row = rig.registry.load().await.unwrap().connectors.remove(0);
    assert_eq!((row.public_key, row.next, &row.id), (new, None, &a.enrolled.id));

    // The same connection, all the while; and the old key is a stranger's.
    assert!(!run.connection.is_closed());
    assert_eq!(rig.ask("orders").await, Ok("a".to_owned()));
    let before = rig.sessions.shared.plane.stats().engine.dropped(DropReason::UnknownPeer);
    let mine = culvert_plane::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let (thief, _events) = plane(Role::Connector, a.key.clone(), a.enrolled.inner_address, mine);
    let peer = rig.peer(rig.identity.public_key(), a.enrolled.psk_epoch, a.psk.clone());
    let peer = thief.add_peer(peer).unwrap();
    thief.connect(peer, None);
    let dropped = || rig.sessions.shared.plane.stats().engine.dropped(DropReason::UnknownPeer);
    rig.until("the old key got silence", || dropped() > before).await;
}

#[tokio::test]
async fn a_key_that_another_connector_has_is_refused_and_changes_nothing() {
    let rig = Rig::new(&["orders"]).await;
    let (a, b) = (rig.join("a").await, rig.join("b").await);
    let mut run = a.come(&rig, &["orders"]).await;
    let stolen = Next { key: b.key.clone(), kem: KemKey::generate() };
    run.say(stolen.request());
    match run.answer().await {
        ToConnector::RekeyRefused { public_key, why } => {
            assert_eq!(public_key, b.key.public_key());
            assert!(why.contains("another connector"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    run.say(ToRelay::Rekey(Rekey { public_key: PrivateKey::generate().public_key(), kem_key: "AAAA".to_owned() }));
    assert!(matches!(run.answer().await, ToConnector::RekeyRefused { why, .. } if why.contains("malformed")));
    assert_eq!((rig.own(&a), rig.own(&b)), (a.key.public_key(), b.key.public_key()));
    assert_eq!(rig.ask("orders").await, Ok("a".to_owned()));
    let _b = b.come(&rig, &["orders"]).await;
}

#[tokio::test]
async fn a_pre_shared_key_is_renewed_within_a_session_and_the_old_one_is_answered_until_the_new_is_used() {
    let rig = Rig::new(&["orders"]).await;
    let a = rig.join("a").await;
    let mut run = a.come(&rig, &["orders"]).await;
    let mut known = PskEpoch { epoch: a.enrolled.psk_epoch, psk: a.psk.clone() };
    for round in 2..4u32 {
        let kem = KemKey::generate();
        run.say(ToRelay::Renew { kem_key: STANDARD.encode(kem.encapsulation_key()) });
        let ToConnector::Renewed { ciphertext, psk_epoch, relay_key, public_key } = run.answer().await else {
            panic!("not renewed")
        };
        assert_eq!((psk_epoch, public_key), (round, Some(a.key.public_key())));
        let ciphertext = STANDARD.decode(&ciphertext).unwrap();
        let psk = kem.decapsulate(&ciphertext, &relay_key.unwrap(), &a.key.public_key()).unwrap();
        assert_eq!(rig.ask("orders").await, Ok("a".to_owned()), "the one before goes on");
        let next = PskEpoch { epoch: psk_epoch, psk };
        run.plane.set_psks(run.peer, vec![known, next.clone()]).unwrap();
        run.plane.connect(run.peer, None);
        rig.until("the session hangs on the new one", || rig.stats(&a).psk_epoch == Some(round)).await;
        assert_eq!(rig.ask("orders").await, Ok("a".to_owned()));
        known = next;
    }
    assert!(!run.connection.is_closed());
    let row = rig.registry.load().await.unwrap().connectors.remove(0);
    assert_eq!(row.psks.iter().map(|psk| psk.epoch).collect::<Vec<_>>(), [2, 3]);
    assert!(row.safe_since.is_some());
}
