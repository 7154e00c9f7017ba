//! RSA: keys of our own, and signatures with these.
//!
//! ring signs, in constant time and with blinding, and looks at every key that it is given; but it makes none. The rsa crate
//! makes them. Must never use that one's own signatures.

use getrandom::SysRng;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rsa::PrivateKey;
use rsa::pkcs8::EncodePrivateKey as _;
use zeroize::Zeroizing;

/// Of our own keys. Each signs for a month.
const BITS: usize = 2048;

/// A new key as PKCS#8; it takes some tenths of a second.
pub(super) fn generate() -> Option<Zeroizing<Vec<u8>>> {
    let key = PrivateKey::new(&mut SysRng, BITS).ok()?;
    Some(Zeroizing::new(key.to_pkcs8_der().ok()?.as_bytes().to_vec()))
}

/// The public half, without the exponent, which is 65537.
pub(super) fn modulus(pair: &RsaKeyPair) -> Vec<u8> {
    PublicKeyComponents::<Vec<u8>>::from(pair.public()).n
}

/// Signs with SHA-256; none when the system has no randomness.
pub(super) fn sign(pair: &RsaKeyPair, text: &[u8]) -> Option<Vec<u8>> {
    let mut signature = vec![0; pair.public().modulus_len()];
    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text, &mut signature).ok()?;
    Some(signature)
}
