//! The files of an identity: what each holds, and how one set takes the place of another.
//!
//! Must never leave a set of files that belong to two identities where a start would take them for one.

use std::fs::{self, File};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use culvert_model::kem::KemKey;
use culvert_model::key::{PrivateKey, Psk};
use culvert_ops::state::{StateDir, StateError};
use zeroize::Zeroizing;

use super::{IdentityError, Joined, Relay};
use crate::psks::Psks;

pub(super) const PRIVATE: &str = "private.key";
/// What `wg` users look for: the newest pre-shared key, as `wg genpsk` writes it. Written, and read only where an older
/// version left nothing else.
pub(super) const PRESHARED: &str = "preshared.key";
/// The pre-shared keys with a relay, with their epochs ([`Psks::to_text`]).
pub(super) const EPOCHS: &str = "epochs.key";
pub(super) const JOINED: &str = "joined.json";
pub(super) const JOINING: &str = "joining";
pub(super) const NEXT: &str = "next";
pub(super) const RELAYS: &str = "relays";

/// Moves what `joined.json` in a directory tells of into its place. Every step may be repeated.
pub(super) fn promote(state: &StateDir, from: &str) -> Result<(), IdentityError> {
    let Some(joined) = read_joined(state, &format!("{from}/{JOINED}"))? else { return Ok(()) };
    rename(state, &format!("{from}/{PRIVATE}"), PRIVATE)?;
    for relay in &joined.relays {
        state.create_dir(&format!("{RELAYS}/{}", relay.name))?;
        for name in [psk_name(&relay.name), epochs_name(&relay.name)] {
            if relay.psk_epoch.is_some() {
                rename(state, &format!("{from}/{name}"), &name)?;
            } else {
                state.remove(&name)?;
            }
        }
    }
    match joined.relays.as_slice() {
        // As `wg` users expect it, where there is only one.
        [relay] if relay.psk_epoch.is_some() => {
            if let Some(psk) = state.read(&psk_name(&relay.name))? {
                state.write(PRESHARED, &psk)?;
            }
        }
        _ => state.remove(PRESHARED)?,
    }
    rename(state, &format!("{from}/{JOINED}"), JOINED)?;
    let gone = |path: &Path| fs::remove_dir_all(path);
    if let Ok(entries) = fs::read_dir(state.path().join(RELAYS)) {
        for entry in entries.flatten() {
            if !joined.relays.iter().any(|relay| entry.file_name().to_str() == Some(&relay.name)) {
                let _ = gone(&entry.path());
            }
        }
    }
    for done in [JOINING, NEXT] {
        let _ = gone(&state.path().join(done));
    }
    Ok(())
}

pub(super) fn rename(state: &StateDir, from: &str, to: &str) -> Result<(), IdentityError> {
    let failed = |source| IdentityError::Move { what: "put in place", name: to.to_owned(), source };
    let target = state.join(to)?;
    match fs::rename(state.join(from)?, &target) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    }
    let directory = target.parent().unwrap_or_else(|| state.path());
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

pub(super) fn joining(name: &str) -> String {
    format!("{JOINING}/{name}")
}

pub(super) fn psk_name(relay: &str) -> String {
    format!("{RELAYS}/{relay}/{PRESHARED}")
}

pub(super) fn epochs_name(relay: &str) -> String {
    format!("{RELAYS}/{relay}/{EPOCHS}")
}

/// The keys first and the copy for `wg` users last: what a crash leaves between them is read by nobody.
pub(super) fn write_psks(state: &StateDir, under: &str, relay: &str, psks: &Psks) -> Result<(), IdentityError> {
    let place = |name: String| if under.is_empty() { name } else { format!("{under}/{name}") };
    state.create_dir(&place(format!("{RELAYS}/{relay}")))?;
    state.write(&place(epochs_name(relay)), psks.to_text().as_bytes())?;
    if let Some(key) = psks.newest_key() {
        write_line(state, &place(psk_name(relay)), &key.to_base64())?;
    }
    Ok(())
}

pub(super) fn read_psks(state: &StateDir, relay: &Relay, joined: &Joined) -> Result<Option<Psks>, IdentityError> {
    let name = epochs_name(&relay.name);
    if let Some(text) = state.read_text(&name)? {
        return Psks::read(&text).map(Some).ok_or(IdentityError::Damaged(name));
    }
    // As an earlier version wrote it.
    let psk = read_psk(state, &psk_name(&relay.name))?;
    Ok(psk.zip(relay.psk_epoch).map(|(psk, epoch)| Psks::new(epoch, psk, joined.key_made())))
}

pub(super) fn write_line(state: &StateDir, name: &str, text: &str) -> Result<(), StateError> {
    state.write(name, Zeroizing::new(format!("{text}\n")).as_bytes())
}

pub(super) fn write_joined(state: &StateDir, name: &str, joined: &Joined) -> Result<(), IdentityError> {
    let text = serde_json::to_string_pretty(joined).map_err(|_| IdentityError::Damaged(name.to_owned()))?;
    Ok(write_line(state, name, &text)?)
}

pub(super) fn read_joined(state: &StateDir, name: &str) -> Result<Option<Joined>, IdentityError> {
    let Some(bytes) = state.read(name)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|_| IdentityError::Damaged(name.to_owned()))
}

pub(super) fn read_key(state: &StateDir, name: &str) -> Result<Option<PrivateKey>, IdentityError> {
    read_parsed(state, name)
}

pub(super) fn read_psk(state: &StateDir, name: &str) -> Result<Option<Psk>, IdentityError> {
    read_parsed(state, name)
}

pub(super) fn read_parsed<T: std::str::FromStr>(state: &StateDir, name: &str) -> Result<Option<T>, IdentityError> {
    let Some(text) = state.read_text(name)? else { return Ok(None) };
    text.parse().map(Some).map_err(|_| IdentityError::Damaged(name.to_owned()))
}

pub(super) fn read_kem(state: &StateDir) -> Result<Option<KemKey>, IdentityError> {
    let name = joining("kem.seed");
    let Some(text) = state.read_text(&name)? else { return Ok(None) };
    let seed = STANDARD.decode(text.as_bytes()).map(Zeroizing::new).ok();
    let seed = seed.and_then(|seed| <[u8; 64]>::try_from(seed.as_slice()).ok());
    seed.map(|seed| Some(KemKey::from_seed(seed))).ok_or(IdentityError::Damaged(name))
}
