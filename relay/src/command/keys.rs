//! `genkey`, `pubkey`, `genpsk`: bytes in and out as `wg`'s.

use std::io::{self, Read};

use culvert_model::key::{PrivateKey, Psk};
use culvert_ops::exit::{self, Exit, OrQuit as _, Quit};
use zeroize::Zeroizing;

/// A key as text.
const KEY: usize = 44;

/// Prints a new private key.
///
/// # Errors
/// When stdout cannot be written.
pub(crate) fn genkey() -> Result<Exit, Quit> {
    exit::print(PrivateKey::generate().to_base64().as_str()).map(|()| Exit::Ok)
}

/// Prints the public key of the private key on stdin.
///
/// # Errors
/// When stdin holds none.
pub(crate) fn pubkey() -> Result<Exit, Quit> {
    let key = read_key(io::stdin().lock())?;
    exit::print(key.public_key()).map(|()| Exit::Ok)
}

/// Prints a new pre-shared key.
///
/// # Errors
/// When stdout cannot be written.
pub(crate) fn genpsk() -> Result<Exit, Quit> {
    exit::print(Psk::generate().to_base64().as_str()).map(|()| Exit::Ok)
}

/// Reads what `wg pubkey` reads: 44 characters of base64 and any white space behind them, to the end. A key file with something
/// before the key or behind it is taken for damaged by both.
fn read_key(mut input: impl Read) -> Result<PrivateKey, Quit> {
    const READING: &str = "cannot read a private key from stdin";
    let mut text = Zeroizing::new([0; KEY]);
    input.read_exact(text.as_mut_slice()).or_failed(READING)?;
    let text = std::str::from_utf8(text.as_slice()).or_failed(READING)?;
    let key = if text.contains(|c: char| c.is_ascii_whitespace()) { None } else { text.parse().ok() };
    let mut rest = [0; 512];
    loop {
        match input.read(&mut rest).or_failed(READING)? {
            0 => break,
            more => {
                let is_white = |byte: &u8| byte.is_ascii_whitespace() || *byte == 0x0b;
                if !rest.iter().take(more).all(is_white) {
                    return Err(Quit::failed("stdin: something stands behind the key"));
                }
            }
        }
    }
    key.ok_or_else(|| Quit::failed(format!("stdin: {}", culvert_model::key::BadKey)))
}
