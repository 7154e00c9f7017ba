//! Join tokens as their holders could write them: the same secret, other words around it.

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

const PREFIX: &str = "culvert_t1_";

/// The same token with its relays in the opposite order: who holds it asks the last one first.
///
/// # Errors
/// It is no token.
pub fn turned(token: &str) -> Result<String> {
    let bytes = URL_SAFE_NO_PAD.decode(token.strip_prefix(PREFIX).context("no token")?)?;
    let (content, _sum) = bytes.split_last_chunk::<4>().context("too short")?;
    let (&[version, count], mut rest) = content.split_first_chunk::<2>().context("too short")?;
    let mut relays = Vec::new();
    for _ in 0..count {
        // A key of 32 bytes, a length, and as many bytes of URL.
        let length = 33 + usize::from(*rest.get(32).context("too short")?);
        let (relay, after) = rest.split_at_checked(length).context("too short")?;
        relays.push(relay);
        rest = after;
    }
    ensure!(rest.len() == 32, "a secret of {} bytes", rest.len());
    relays.reverse();
    let mut turned = vec![version, count];
    relays.iter().for_each(|relay| turned.extend_from_slice(relay));
    turned.extend_from_slice(rest);
    let sum = Sha256::digest(&turned);
    turned.extend_from_slice(&sum[..4]);
    Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(turned)))
}
