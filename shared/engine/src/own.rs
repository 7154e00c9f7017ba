//! Our own static keys, and what hangs on each: the mac1 that opens a handshake message and the key of cookie replies.
//!
//! Must never print a private key.

use std::sync::Arc;

use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use boringtun::noise::rate_limiter::RateLimiter;
use culvert_model::key::PrivateKey;
use x25519_dalek::{PublicKey, StaticSecret};

const LABEL_MAC1: &[u8] = b"mac1----";
const LABEL_COOKIE: &[u8] = b"cookie--";

/// One of our static keys.
pub(crate) struct Own {
    pub(crate) private: StaticSecret,
    pub(crate) public: PublicKey,
    mac1_key: [u8; 32],
    pub(crate) cookie_key: [u8; 32],
    /// Counts for nothing: every `Tunn` must have one, and ours stands in front of all of them.
    pub(crate) limiter: Arc<RateLimiter>,
}

impl Own {
    pub(crate) fn new(key: &PrivateKey) -> Self {
        let private = StaticSecret::from(*key.as_bytes());
        let public = PublicKey::from(&private);
        Self {
            mac1_key: hash(LABEL_MAC1, public.as_bytes()),
            cookie_key: hash(LABEL_COOKIE, public.as_bytes()),
            limiter: Arc::new(RateLimiter::new(&public, u64::MAX)),
            private,
            public,
        }
    }

    /// Tells whether a handshake message is meant for this key. `message` is longer than its two macs.
    pub(crate) fn fits(&self, message: &[u8]) -> bool {
        let Some((body, macs)) = message.len().checked_sub(32).and_then(|at| message.split_at_checked(at)) else {
            return false;
        };
        // mac1 is keyed by a public key: nothing secret can leak by the time that comparing takes.
        macs.get(..16) == Some(&mac(&self.mac1_key, &[body]))
    }
}

/// Keyed BLAKE2s with 16 bytes of output, over the parts in order.
pub(crate) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let mut mac =
        <Blake2sMac<blake2::digest::consts::U16> as KeyInit>::new_from_slice(key).expect("a key of 1 to 32 bytes");
    for part in parts {
        Update::update(&mut mac, part);
    }
    mac.finalize_fixed().into()
}

fn hash(label: &[u8], key: &[u8; 32]) -> [u8; 32] {
    let mut hash = Blake2s256::new();
    Digest::update(&mut hash, label);
    Digest::update(&mut hash, key);
    hash.finalize().into()
}
