//! The keys that tokens are signed with: made here, rotated with overlap, and never leaving this host.
//!
//! INVARIANT: a key signs only long after its public half was given to the relays, and is published until long after the
//! last token that it signed has ended; the first one of its kind alone signs at once, since nobody knows another.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use culvert_model::proof::{Algorithm, ProofKey};
use culvert_ops::state::StateDir;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use zeroize::{Zeroize, Zeroizing};

/// The file in the state directory.
const FILE: &str = "proof.key";
/// The age at which a key hands over to the next.
const ROTATE_AFTER: Duration = Duration::from_secs(30 * 86_400);
/// A key is published so long before it signs: verifiers keep what they fetched for a while.
const AHEAD: Duration = Duration::from_secs(86_400);
/// And so long after its last token was made: the longest life of a token, and room for clocks.
const LINGER: Duration = Duration::from_secs(2 * 3600);

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

    /// Makes what keys are missing or due, and forgets those whose tokens have ended.
    ///
    /// # Errors
    /// The keys cannot be kept: those before stay in use.
    pub fn need(&self, algorithms: &BTreeSet<Algorithm>, now: SystemTime) -> io::Result<()> {
        let mut keys = self.0.keys.write().unwrap_or_else(PoisonError::into_inner);
        let next = settled(&keys, algorithms, now);
        let same = next.len() == keys.len() && next.iter().zip(keys.iter()).all(|(a, b)| Arc::ptr_eq(a, b));
        if same {
            return Ok(());
        }
        if let Some(state) = &*self.0.state.lock().unwrap_or_else(PoisonError::into_inner) {
            let kept: Vec<Kept> = next.iter().map(|key| key.to_keep()).collect();
            let text = Zeroizing::new(serde_json::to_vec(&kept).map_err(io::Error::other)?);
            state.write(FILE, &text).map_err(io::Error::other)?;
        }
        *keys = next;
        drop(keys);
        self.0.changed.send_modify(|version| *version += 1);
        Ok(())
    }

    /// The public halves that relays publish.
    pub fn published(&self) -> Vec<ProofKey> {
        self.0.keys.read().unwrap_or_else(PoisonError::into_inner).iter().map(|key| key.public.clone()).collect()
    }

    /// Told when [`Proofs::published`] changed, or what tokens say.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Has relays told again.
    pub fn renew(&self) {
        self.0.changed.send_modify(|version| *version += 1);
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
            self.0.changed.send_modify(|version| *version += 1);
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
fn settled(keys: &[Arc<SigningKey>], algorithms: &BTreeSet<Algorithm>, now: SystemTime) -> Vec<Arc<SigningKey>> {
    let mut next = Vec::new();
    for algorithm in [Algorithm::EdDsa, Algorithm::Es256] {
        let mut own: Vec<_> = keys.iter().filter(|key| key.public.alg == algorithm).cloned().collect();
        // Over when the next one has signed for so long that nothing of this one is valid.
        while own.get(1).is_some_and(|successor| successor.made + AHEAD + LINGER <= now) {
            own.remove(0);
        }
        let due = own.last().is_none_or(|newest| newest.made + (ROTATE_AFTER - AHEAD) <= now);
        if due && algorithms.contains(&algorithm) {
            own.extend(SigningKey::make(algorithm, now).map(Arc::new));
        }
        next.extend(own);
    }
    next
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
        let pkcs8 = match algorithm {
            Algorithm::EdDsa => Ed25519KeyPair::generate_pkcs8(&random),
            Algorithm::Es256 => EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random),
        };
        Self::of(algorithm, Zeroizing::new(pkcs8.ok()?.as_ref().to_vec()), now)
    }

    fn of(algorithm: Algorithm, pkcs8: Zeroizing<Vec<u8>>, made: SystemTime) -> Option<Self> {
        let pair = match algorithm {
            Algorithm::EdDsa => Pair::Ed(Ed25519KeyPair::from_pkcs8(&pkcs8).ok()?),
            Algorithm::Es256 => {
                let random = SystemRandom::new();
                Pair::Es(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8, &random).ok()?)
            }
        };
        let bytes = match &pair {
            Pair::Ed(pair) => pair.public_key().as_ref(),
            Pair::Es(pair) => pair.public_key().as_ref(),
        };
        let public = ProofKey::new(algorithm, bytes)?;
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
        let (now, both) = (SystemTime::now(), BTreeSet::from([Algorithm::EdDsa, Algorithm::Es256]));
        let first = Proofs::default();
        first.open(state()).unwrap();
        first.need(&both, now).unwrap();
        let again = Proofs::default();
        again.open(state()).unwrap();
        assert_eq!((kids(&again).len(), kids(&again)), (2, kids(&first)));
        again.need(&both, now).unwrap();
        assert_eq!(kids(&again), kids(&first), "nothing is missing");
        state().write(FILE, b"[{}]").unwrap();
        assert!(Proofs::default().open(state()).unwrap_err().to_string().contains("proof.key"));
    }
}
