//! `genkey`, `pubkey`, `genpsk`: bytes in and out as `wg`'s.

use std::io::{self, Read as _};

use culvert_model::key::{PrivateKey, Psk};
use culvert_ops::exit::{self, Exit, OrQuit as _, Quit};
use zeroize::Zeroizing;

/// More than any key and the white space around it.
const LONGEST: u64 = 1024;

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
    let mut text = Zeroizing::new(String::new());
    io::stdin().lock().take(LONGEST).read_to_string(&mut text).or_failed("cannot read a private key from stdin")?;
    let key: PrivateKey = text.parse().or_failed("stdin")?;
    exit::print(key.public_key()).map(|()| Exit::Ok)
}

/// Prints a new pre-shared key.
///
/// # Errors
/// When stdout cannot be written.
pub(crate) fn genpsk() -> Result<Exit, Quit> {
    exit::print(Psk::generate().to_base64().as_str()).map(|()| Exit::Ok)
}
