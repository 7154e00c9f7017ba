//! Keys that end: the relay's own in a rotation, a connector's when it is revoked, one that is in two places.

use culvert_engine::DropReason;
use culvert_plane::PeerKey;

use super::*;

const GRACE: u64 = 3600;

impl Rig {
    fn rotation(&self) -> &crate::rotation::Rotation {
        self.identity.rotation()
    }

    async fn actions(&self) -> Vec<String> {
        let trail = self.registry.audit_since(SystemTime::UNIX_EPOCH).await.unwrap();
        trail.into_iter().map(|row| row.action).collect()
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.sessions.shared.plane.stats().engine.dropped(reason)
    }
}

impl Run {
    async fn next_relay_key(&mut self) -> PublicKey {
        tokio::time::timeout(SOON, self.relay_keys.recv()).await.unwrap().unwrap()
    }

    /// Goes over to the relay's new key, as a connector does that was told of it.
    fn follow(&self, joined: &Joined, relay: PublicKey) {
        let psks = vec![PskEpoch { epoch: joined.enrolled.psk_epoch, psk: joined.psk.clone() }];
        self.plane.add_key(self.peer, PeerKey { public_key: relay, static_index: 0, psks }, true).unwrap();
        self.plane.connect(self.peer, None);
    }
}

#[tokio::test]
async fn the_relays_key_is_rotated_and_no_session_ends_but_those_that_never_followed() {
    let rig = Rig::new(&["a", "b", "c"]).await;
    let (a, b) = (rig.join("a").await, rig.join("b").await);
    let (mut run_a, mut run_b) = (a.come(&rig, &["a"]).await, b.come(&rig, &["b"]).await);
    let old = rig.identity.public_key();
    rig.command(Command::KeyRotate { grace_seconds: GRACE, force: false }).await;
    let new = rig.identity.public_key();
    assert_ne!(new, old);
    assert_eq!((run_a.next_relay_key().await, run_b.next_relay_key().await), (new, new));
    run_a.follow(&a, new);
    let uses_old = |joined: &Joined| rig.rotation().uses_previous(&joined.enrolled.id, SystemTime::now());
    rig.until("a has used the new key", || !uses_old(&a)).await;
    assert!(uses_old(&b));
    let statics = |joined: &Joined| rig.sessions.shared.static_of(&joined.enrolled.id, SystemTime::now());
    assert_ne!(statics(&a), statics(&b), "each is called back under the key that it confirmed");
    for service in ["a", "b"] {
        assert_eq!(rig.ask(service).await, Ok(service.to_owned()));
    }
    assert!(!run_a.connection.is_closed() && !run_b.connection.is_closed());

    // Tokens of before are good for the grace, and who comes under the old key is told of the new one.
    let c = rig.join("c").await;
    let mut run_c = c.come_to(&rig, old, &["c"]).await;
    assert_eq!(run_c.next_relay_key().await, new);
    assert_eq!(rig.ask("c").await, Ok("c".to_owned()));
    run_c.follow(&c, new);
    rig.until("c has used the new key", || !uses_old(&c)).await;

    // A second rotation would lock b out.
    let facts = Facts::plain(&rig.identity);
    let command = Command::KeyRotate { grace_seconds: GRACE, force: false };
    let request = command::Request { actor: "test".to_owned(), command };
    let refused = command::carry_out(request, &*rig.registry, &Offline, &facts, SystemTime::now()).await;
    assert!(refused.unwrap_err().to_string().contains("1 connectors have not used the newest key"));

    // The grace is over: silence under the old key, and nothing noticed by those that followed.
    let before = rig.dropped(DropReason::BadMac);
    let mut tasks = JoinSet::new();
    statics::keep(&rig.sessions.shared, &mut tasks, SystemTime::now() + Duration::from_secs(GRACE));
    while tasks.join_next().await.is_some() {}
    let live = |joined: &Joined| {
        let peer = rig.sessions.shared.table().connectors.get(&joined.enrolled.id).unwrap().peer;
        rig.sessions.shared.plane.peer_stats(peer).unwrap().live
    };
    assert_eq!((live(&a), live(&b), live(&c)), (true, false, true));
    assert_eq!(run_b.closed().await.code, Some(CloseCode::Shutdown), "told, and not left to find out");
    run_b.plane.connect(run_b.peer, None);
    rig.until("b's handshake got silence", || rig.dropped(DropReason::BadMac) > before).await;
    for service in ["a", "c"] {
        assert_eq!(rig.ask(service).await, Ok(service.to_owned()));
    }
    assert!(!rig._state.path().join(crate::rotation::PREVIOUS_KEY).exists());
    let actions = rig.actions().await;
    assert!(actions.iter().any(|action| action == "key.rotate") && actions.iter().any(|action| action == "key.retire"));
}

#[tokio::test]
async fn a_revoked_connectors_key_is_met_with_silence() {
    let rig = Rig::new(&["orders"]).await;
    let a = rig.join("a").await;
    let live = a.come(&rig, &["orders"]).await;
    let shared = &rig.sessions.shared;
    let peer = shared.table().connectors.get(&a.enrolled.id).unwrap().peer;
    rig.command(Command::ConnectorRevoke { connector: a.enrolled.id.to_string() }).await;
    assert_eq!(live.closed().await.code, Some(CloseCode::Revoked));
    assert!(shared.plane.peer_stats(peer).is_none(), "the engine has forgotten it");
    assert!(shared.table().by_peer(peer).is_none());
    let count = |rig: &Rig| {
        let stats = rig.sessions.shared.plane.stats();
        (stats.engine.responses, stats.plane.quic_received, stats.plane.hellos_received, stats.engine.cookies)
    };
    let (before, unknown) = (count(&rig), rig.dropped(DropReason::UnknownPeer));
    live.plane.connect(live.peer, None);
    rig.until("its handshake came", || rig.dropped(DropReason::UnknownPeer) > unknown).await;
    assert_eq!(count(&rig), before);
}

#[tokio::test]
async fn a_deleted_tunnel_takes_its_connectors_and_tokens_with_it_at_once() {
    let rig = Rig::new(&["orders"]).await;
    let (a, b) = (rig.join("a").await, rig.join("b").await);
    let (run_a, run_b) = (a.come(&rig, &["orders"]).await, b.come(&rig, &["orders"]).await);
    run_a.freeze();
    run_b.freeze();
    let delete = async {
        let requests = |run: &Run| run.requests.load(std::sync::atomic::Ordering::Relaxed);
        rig.until("the request is there", || requests(&run_a) + requests(&run_b) == 1).await;
        rig.command(Command::TunnelDelete { tunnel: "dc1".to_owned() }).await;
    };
    let (answer, ()) = tokio::join!(rig.ask("orders"), delete);
    assert_eq!(answer, Err(Reason::ConnectorLost));
    for run in [&run_a, &run_b] {
        assert_eq!(run.closed().await.code, Some(CloseCode::Revoked));
    }
    let stats = rig.sessions.shared.plane.stats().engine;
    assert_eq!(stats.peers, stats.bootstraps, "only joiners' sessions are left, which end by themselves");
    assert!(rig.sessions.shared.table().connectors.is_empty());
}

#[tokio::test]
async fn a_key_in_two_places_is_shown_and_written_down_once() {
    let rig = Rig::new(&["orders"]).await;
    let a = rig.join("a").await;
    let _live = a.come(&rig, &["orders"]).await;
    let peer = rig.sessions.shared.table().connectors.get(&a.enrolled.id).unwrap().peer;
    let path = |address: &str| Path { remote: address.parse().unwrap(), local: None, socket: 0 };
    let paths = [path("192.0.2.1:1"), path("198.51.100.1:2")];
    let mut tasks = JoinSet::new();
    rig.sessions.shared.take(Event::Flapping { peer, paths }, &mut tasks);
    while tasks.join_next().await.is_some() {}
    assert_eq!(rig.sessions.flapping()[&a.enrolled.id], paths.map(|path| path.remote));
    rig.sessions.shared.take(Event::Flapping { peer, paths }, &mut tasks);
    while tasks.join_next().await.is_some() {}
    assert_eq!(rig.actions().await.iter().filter(|action| *action == "connector.flapping").count(), 1);
}
