//! The keys that tokens are signed with: made here, rotated with overlap, and never leaving this host.
//!
//! INVARIANT: a key signs only long after its public half was given to the relays, and is published until long after the
//! last token that it signed has ended; the first one of its kind alone signs at once, since nobody knows another.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use culvert_model::proof::{Algorithm, ProofKey};
use culvert_ops::state::StateDir;
use culvert_ops::task::{Task, spawn};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use zeroize::{Zeroize, Zeroizing};

use super::rsa;
use crate::names::Names;
use culvert_ops::runtime::now;

/// The file in the state directory.
const FILE: &str = "proof.key";
/// The age at which a key hands over to the next.
const ROTATE_AFTER: Duration = Duration::from_secs(30 * 86_400);
/// A key is published so long before it signs: verifiers keep what they fetched for a while.
const AHEAD: Duration = Duration::from_secs(86_400);
/// And so long after its last token was made: the longest life of a token, and room for clocks.
const LINGER: Duration = Duration::from_secs(2 * 3600);

/// Relays are told of a change by a message, which they have by then.
const HEARD: Duration = Duration::from_secs(1);

/// A connector's signing keys, and what tokens say of where to verify them. Clones share it.
#[derive(Clone, Default)]
pub struct Proofs(Arc<Inner>);

#[derive(Default)]
struct Inner {
    keys: RwLock<Vec<Arc<SigningKey>>>,
    issuer: RwLock<Option<Arc<str>>>,
    tunnel: RwLock<Option<Arc<str>>>,
    state: Mutex<Option<StateDir>>,
    changed: watch::Sender<u64>,
    changed_at: Mutex<Option<Instant>>,
    /// Makes an RSA key, which takes long.
    making: Mutex<Option<Task<()>>>,
    names: Names,
}

/// One key.
pub struct SigningKey {
    made: SystemTime,
    pkcs8: Zeroizing<Vec<u8>>,
    pair: Pair,
    /// Its public half.
    pub public: ProofKey,
    /// What it is called.
    pub kid: String,
}

enum Pair {
    Ed(Ed25519KeyPair),
    Es(EcdsaKeyPair),
    Rs(RsaKeyPair),
}

#[derive(Serialize, Deserialize)]
struct Kept {
    alg: Algorithm,
    made_seconds: u64,
    pkcs8: String,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.pkcs8.zeroize();
    }
}

impl Proofs {
    /// Without keys; endpoints are looked up by `names`.
    pub fn with_names(names: Names) -> Self {
        Self(Arc::new(Inner { names, ..Inner::default() }))
    }

    /// Who knows the addresses of those that a proof is asked of.
    pub fn names(&self) -> &Names {
        &self.0.names
    }

    /// Takes up the keys that a state directory holds, and keeps later ones there.
    ///
    /// # Errors
    /// It cannot be read, or holds something else.
    pub fn open(&self, state: StateDir) -> io::Result<()> {
        if let Some(text) = state.read_text(FILE).map_err(io::Error::other)? {
            let kept: Vec<Kept> = serde_json::from_str(&text).map_err(|_| damaged())?;
            let keys: Option<Vec<_>> = kept.iter().map(|one| SigningKey::kept(one).map(Arc::new)).collect();
            *self.0.keys.write().unwrap_or_else(PoisonError::into_inner) = keys.ok_or_else(damaged)?;
        }
        *self.0.state.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
        Ok(())
    }

    /// Makes what keys are missing or due, and forgets those whose tokens have ended. An RSA key comes some time later:
    /// making it takes too long to be waited for here.
    ///
    /// # Errors
    /// The keys cannot be kept: those before stay in use.
    pub fn need(&self, algorithms: &BTreeSet<Algorithm>, now: SystemTime) -> io::Result<()> {
        if !self.settle(algorithms, now, None)? {
            return Ok(());
        }
        if tokio::runtime::Handle::try_current().is_err() {
            let made = SigningKey::make(Algorithm::Rs256, now).ok_or_else(unmade)?;
            return self.settle(algorithms, now, Some(made)).map(drop);
        }
        let mut making = self.0.making.lock().unwrap_or_else(PoisonError::into_inner);
        if making.as_ref().is_none_or(Task::is_finished) {
            let (proofs, algorithms) = (self.clone(), algorithms.clone());
            *making = Some(spawn("connector.proof_key", async move {
                let made = tokio::task::spawn_blocking(move || SigningKey::make(Algorithm::Rs256, now)).await;
                let made = made.ok().flatten().ok_or_else(unmade);
                if let Err(error) = made.and_then(|made| proofs.settle(&algorithms, now, Some(made))) {
                    tracing::error!(%error, "signing keys cannot be kept");
                }
                // Who waits for a key learns that there is none.
                proofs.renew();
            }));
        }
        Ok(())
    }

    /// Puts the keys in force that there are to be; whether an RSA key is missing, because `made` is none.
    fn settle(
        &self,
        algorithms: &BTreeSet<Algorithm>,
        now: SystemTime,
        mut made: Option<SigningKey>,
    ) -> io::Result<bool> {
        let mut is_missing = false;
        let mut keys = self.0.keys.write().unwrap_or_else(PoisonError::into_inner);
        let next = settled(
            &keys,
            algorithms,
            |algorithm| match algorithm {
                Algorithm::EdDsa | Algorithm::Es256 => SigningKey::make(algorithm, now),
                Algorithm::Rs256 => {
                    is_missing |= made.is_none();
                    made.take()
                }
            },
            now,
        );
        let same = next.len() == keys.len() && next.iter().zip(keys.iter()).all(|(a, b)| Arc::ptr_eq(a, b));
        if same {
            return Ok(is_missing);
        }
        if let Some(state) = &*self.0.state.lock().unwrap_or_else(PoisonError::into_inner) {
            let kept: Vec<Kept> = next.iter().map(|key| key.to_keep()).collect();
            let text = Zeroizing::new(serde_json::to_vec(&kept).map_err(io::Error::other)?);
            state.write(FILE, &text).map_err(io::Error::other)?;
        }
        *keys = next;
        drop(keys);
        self.renew();
        Ok(is_missing)
    }

    /// Waits until there is a key of this kind, or none is being made.
    pub async fn key_is_made(&self, algorithm: Algorithm, now: SystemTime) {
        let mut news = self.news();
        while self.signing(algorithm, now).is_none() && self.is_making() {
            if news.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until a relay told who it answers as.
    pub async fn issuer_is_told(&self) {
        let mut news = self.news();
        while self.issuer().is_none() && news.changed().await.is_ok() {}
    }

    /// Whether a key is being made.
    pub fn is_making(&self) -> bool {
        let making = self.0.making.lock().unwrap_or_else(PoisonError::into_inner);
        making.as_ref().is_some_and(|task| !task.is_finished())
    }

    /// The public halves that relays publish.
    pub fn published(&self) -> Vec<ProofKey> {
        self.0.keys.read().unwrap_or_else(PoisonError::into_inner).iter().map(|key| key.public.clone()).collect()
    }

    /// Those of them that a relay may be told, which has said to know these beside what all do: over one that an older
    /// relay does not know it would end the session.
    pub fn published_to(&self, algorithms: &[Algorithm]) -> Vec<ProofKey> {
        let mut keys = self.published();
        keys.retain(|key| key.alg.is_known_to_all() || algorithms.contains(&key.alg));
        keys
    }

    /// Told when [`Proofs::published`] changed, or what tokens say.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Has relays told again.
    pub fn renew(&self) {
        *self.0.changed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(now());
        self.0.changed.send_modify(|version| *version += 1);
    }

    /// Waits until relays have heard of the last change: whoever verifies asks them at once, and may keep for long that a key
    /// is none.
    pub async fn is_heard(&self) {
        loop {
            let changed = *self.0.changed_at.lock().unwrap_or_else(PoisonError::into_inner);
            match changed.map(|changed| changed + HEARD).filter(|heard| *heard > now()) {
                Some(heard) => tokio::time::sleep_until(heard.into()).await,
                None => return,
            }
        }
    }

    /// How often anything changed.
    pub fn version(&self) -> u64 {
        *self.0.changed.borrow()
    }

    /// A relay told who it answers as to verifiers, for this connector's tunnel.
    pub fn told(&self, issuer: &str, tunnel: &str) {
        let set = |place: &RwLock<Option<Arc<str>>>, text: &str| {
            let mut place = place.write().unwrap_or_else(PoisonError::into_inner);
            let is_news = place.as_deref() != Some(text);
            *place = Some(text.into());
            is_news
        };
        let (issuer, tunnel) = (set(&self.0.issuer, issuer), set(&self.0.tunnel, tunnel));
        if issuer || tunnel {
            self.renew();
        }
    }

    /// Who a relay answers as.
    pub fn issuer(&self) -> Option<Arc<str>> {
        self.0.issuer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// This connector's tunnel.
    pub fn tunnel(&self) -> Option<Arc<str>> {
        self.0.tunnel.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The key that signs now.
    pub fn signing(&self, algorithm: Algorithm, now: SystemTime) -> Option<Arc<SigningKey>> {
        let keys = self.0.keys.read().unwrap_or_else(PoisonError::into_inner);
        let mut of_kind = keys.iter().filter(|key| key.public.alg == algorithm);
        // Oldest first: the last that was published long enough, else the first.
        let oldest = of_kind.next()?;
        Some(of_kind.rfind(|key| key.made + AHEAD <= now).unwrap_or(oldest).clone())
    }
}

/// The keys that there are to be, oldest first.
fn settled(
    keys: &[Arc<SigningKey>],
    algorithms: &BTreeSet<Algorithm>,
    mut make: impl FnMut(Algorithm) -> Option<SigningKey>,
    now: SystemTime,
) -> Vec<Arc<SigningKey>> {
    let mut next = Vec::new();
    for algorithm in Algorithm::ALL {
        let mut own: Vec<_> = keys.iter().filter(|key| key.public.alg == algorithm).cloned().collect();
        // Over when the next one has signed for so long that nothing of this one is valid.
        while own.get(1).is_some_and(|successor| successor.made + AHEAD + LINGER <= now) {
            own.remove(0);
        }
        let due = own.last().is_none_or(|newest| newest.made + (ROTATE_AFTER - AHEAD) <= now);
        if due && algorithms.contains(&algorithm) {
            own.extend(make(algorithm).map(Arc::new));
        }
        next.extend(own);
    }
    next
}

fn unmade() -> io::Error {
    io::Error::other("no RSA key could be made")
}

fn damaged() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{FILE} in the state directory is damaged: restore or delete it"),
    )
}

impl SigningKey {
    fn make(algorithm: Algorithm, now: SystemTime) -> Option<Self> {
        let random = SystemRandom::new();
        let bytes = |document: ring::pkcs8::Document| Zeroizing::new(document.as_ref().to_vec());
        let pkcs8 = match algorithm {
            Algorithm::EdDsa => Ed25519KeyPair::generate_pkcs8(&random).ok().map(bytes)?,
            Algorithm::Es256 => {
                EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).ok().map(bytes)?
            }
            Algorithm::Rs256 => rsa::generate()?,
        };
        Self::of(algorithm, pkcs8, now)
    }

    fn of(algorithm: Algorithm, pkcs8: Zeroizing<Vec<u8>>, made: SystemTime) -> Option<Self> {
        let pair = match algorithm {
            Algorithm::EdDsa => Pair::Ed(Ed25519KeyPair::from_pkcs8(&pkcs8).ok()?),
            Algorithm::Es256 => {
                let random = SystemRandom::new();
                Pair::Es(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8, &random).ok()?)
            }
            Algorithm::Rs256 => Pair::Rs(RsaKeyPair::from_pkcs8(&pkcs8).ok()?),
        };
        let public = match &pair {
            Pair::Ed(pair) => ProofKey::new(algorithm, pair.public_key().as_ref())?,
            Pair::Es(pair) => ProofKey::new(algorithm, pair.public_key().as_ref())?,
            Pair::Rs(pair) => ProofKey::new(algorithm, &rsa::modulus(pair))?,
        };
        let kid = public.kid();
        Some(Self { made, pkcs8, pair, public, kid })
    }

    fn kept(kept: &Kept) -> Option<Self> {
        let pkcs8 = Zeroizing::new(STANDARD.decode(&kept.pkcs8).ok()?);
        Self::of(kept.alg, pkcs8, SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(kept.made_seconds))?)
    }

    fn to_keep(&self) -> Kept {
        let made_seconds = self.made.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Kept { alg: self.public.alg, made_seconds, pkcs8: STANDARD.encode(&*self.pkcs8) }
    }

    /// Signs; none when the system has no randomness.
    pub fn sign(&self, text: &[u8]) -> Option<Vec<u8>> {
        match &self.pair {
            Pair::Ed(pair) => Some(pair.sign(text).as_ref().to_vec()),
            Pair::Es(pair) => pair.sign(&SystemRandom::new(), text).ok().map(|signature| signature.as_ref().to_vec()),
            Pair::Rs(pair) => rsa::sign(pair, rsa::Padding::Pkcs1, text),
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kids(proofs: &Proofs) -> Vec<String> {
        proofs.published().iter().map(ProofKey::kid).collect()
    }

    #[test]
    fn a_key_is_published_a_day_before_it_signs_and_after_its_last_token() {
        let (proofs, both) = (Proofs::default(), BTreeSet::from([Algorithm::EdDsa]));
        let day = Duration::from_secs(86_400);
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30);
        let mut now = start;
        let mut seen: Vec<String> = Vec::new();
        while now < start + 100 * day {
            proofs.need(&both, now).unwrap();
            let signing = proofs.signing(Algorithm::EdDsa, now).unwrap();
            assert!(kids(&proofs).contains(&signing.kid));
            if seen.last() != Some(&signing.kid) {
                assert!(seen.is_empty() || now >= signing.made + AHEAD, "it was told long before");
                seen.push(signing.kid.clone());
            }
            // Whoever signed within the last hours is still published.
            let before = proofs.signing(Algorithm::EdDsa, now - Duration::from_secs(3600)).unwrap();
            assert!(kids(&proofs).contains(&before.kid));
            assert!(kids(&proofs).len() <= 2, "they are forgotten");
            now += Duration::from_secs(1800);
        }
        assert_eq!(seen.len(), 4, "each signs for about thirty days");
    }

    #[test]
    fn keys_survive_a_restart_and_damage_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let state = || StateDir::create(&directory.path().join("state")).unwrap();
        let (now, all) = (SystemTime::now(), BTreeSet::from(Algorithm::ALL));
        let first = Proofs::default();
        first.open(state()).unwrap();
        first.need(&all, now).unwrap();
        let again = Proofs::default();
        again.open(state()).unwrap();
        assert_eq!((kids(&again).len(), kids(&again)), (3, kids(&first)));
        again.need(&all, now).unwrap();
        assert_eq!(kids(&again), kids(&first), "nothing is missing");
        state().write(FILE, b"[{}]").unwrap();
        assert!(Proofs::default().open(state()).unwrap_err().to_string().contains("proof.key"));
    }

    #[test]
    fn an_older_relay_is_told_no_key_that_it_does_not_know() {
        let proofs = Proofs::default();
        proofs.need(&BTreeSet::from(Algorithm::ALL), SystemTime::now()).unwrap();
        let told = |known: &[Algorithm]| proofs.published_to(known).iter().map(|key| key.alg).collect::<Vec<_>>();
        assert_eq!(told(&[]), [Algorithm::EdDsa, Algorithm::Es256]);
        assert_eq!(told(&Algorithm::ALL), Algorithm::ALL);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_shown_to_others_only_when_relays_have_heard_of_it() {
        let (proofs, before) = (Proofs::default(), now());
        proofs.is_heard().await;
        assert_eq!(now(), before, "there is nothing to hear");
        proofs.told("https://id.example/shop", "shop");
        proofs.is_heard().await;
        assert!(now() - before >= HEARD);
    }

    #[tokio::test]
    async fn an_rsa_key_is_made_apart_and_who_needs_it_waits() {
        let (proofs, now) = (Proofs::default(), SystemTime::now());
        proofs.need(&BTreeSet::from([Algorithm::Rs256, Algorithm::EdDsa]), now).unwrap();
        assert!(proofs.signing(Algorithm::EdDsa, now).is_some(), "the others are there at once");
        assert!(proofs.signing(Algorithm::Rs256, now).is_none() && proofs.is_making());
        proofs.need(&BTreeSet::from([Algorithm::Rs256]), now).unwrap();
        proofs.key_is_made(Algorithm::Rs256, now).await;
        let key = proofs.signing(Algorithm::Rs256, now).unwrap();
        assert_eq!((kids(&proofs).len(), key.public.is_well_formed()), (2, true), "one, and asked for twice");
    }
}
