//! What stands inside a backup: named files one after the other, the first of them a manifest.
//!
//! For each: length of its name (2 bytes), name, length (8 bytes), content; a name of length 0 ends it. Must never take a name
//! that leads anywhere, nor believe a length.

use std::io::{self, Read, Write};
use std::time::SystemTime;

use culvert_model::key::PublicKey;
use culvert_ops::time::rfc3339;
use serde::{Deserialize, Serialize};

/// The name of the first entry.
pub(super) const MANIFEST: &str = "manifest.json";
/// The name of the registry's entry.
pub(super) const REGISTRY: &str = "registry.sqlite";
const VERSION: u32 = 1;
/// The longest manifest.
const MANIFEST_BYTES: u64 = 64 * 1024;

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// 1; a later one that this program cannot read has another number.
    version: u32,
    /// Which program made it.
    program: String,
    /// When.
    pub(super) created: String,
    /// The relay's public key.
    pub(super) public_key: PublicKey,
    /// Whether its registry is inside; it is not where that is PostgreSQL.
    pub(super) has_registry: bool,
}

/// An entry's head; its content is what the reader gives next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// A name without a directory.
    pub(super) name: String,
    /// Bytes of content.
    pub(super) length: u64,
}

impl Manifest {
    pub(super) fn new(public_key: PublicKey, has_registry: bool, now: SystemTime) -> Self {
        Self {
            version: VERSION,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            created: rfc3339(now),
            public_key,
            has_registry,
        }
    }
}

/// Writes one entry.
///
/// # Errors
/// What `out` or `content` says; [`io::ErrorKind::UnexpectedEof`] when the content is not as long as was said.
pub(super) fn write_entry(out: &mut impl Write, name: &str, length: u64, content: impl Read) -> io::Result<()> {
    let name_length = u16::try_from(name.len()).map_err(io::Error::other)?;
    out.write_all(&name_length.to_be_bytes())?;
    out.write_all(name.as_bytes())?;
    out.write_all(&length.to_be_bytes())?;
    let copied = io::copy(&mut content.take(length), out)?;
    if copied == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Writes the manifest, as the first entry.
///
/// # Errors
/// What `out` says.
pub(super) fn write_manifest(out: &mut impl Write, manifest: &Manifest) -> io::Result<()> {
    let text = serde_json::to_vec(manifest)?;
    write_entry(out, MANIFEST, text.len() as u64, text.as_slice())
}

/// Says that there are no more entries.
///
/// # Errors
/// What `out` says.
pub(super) fn write_end(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&0u16.to_be_bytes())
}

/// Reads the manifest.
///
/// # Errors
/// What `input` says, and [`io::ErrorKind::InvalidData`].
pub(super) fn read_manifest(input: &mut impl Read) -> io::Result<Manifest> {
    let entry = read_entry(input)?.filter(|entry| entry.name == MANIFEST && entry.length <= MANIFEST_BYTES);
    let entry = entry.ok_or_else(|| nonsense("no manifest"))?;
    let manifest: Manifest = serde_json::from_reader(input.take(entry.length)).map_err(io::Error::from)?;
    if manifest.version == VERSION { Ok(manifest) } else { Err(nonsense("a manifest of another version")) }
}

/// Reads the head of the next entry; none behind the last.
///
/// # Errors
/// What `input` says, and [`io::ErrorKind::InvalidData`] for a name that leads elsewhere.
pub(super) fn read_entry(input: &mut impl Read) -> io::Result<Option<Entry>> {
    let length = usize::from(u16::from_be_bytes(read_array(input)?));
    if length == 0 {
        return Ok(None);
    }
    let mut name = vec![0; length];
    input.read_exact(&mut name)?;
    let name = String::from_utf8(name).map_err(|_| nonsense("a name that is no text"))?;
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    if !plain || name.starts_with('.') {
        return Err(nonsense("a name that leads elsewhere"));
    }
    Ok(Some(Entry { name, length: u64::from_be_bytes(read_array(input)?) }))
}

fn read_array<const N: usize>(input: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn nonsense(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use culvert_model::key::PrivateKey;

    use super::*;

    #[test]
    fn entries_come_back_in_order_with_their_content() {
        let manifest = Manifest::new(PrivateKey::generate().public_key(), true, SystemTime::UNIX_EPOCH);
        let mut bytes = Vec::new();
        write_manifest(&mut bytes, &manifest).unwrap();
        write_entry(&mut bytes, "private.key", 3, &b"abc"[..]).unwrap();
        write_entry(&mut bytes, "empty.key", 0, io::empty()).unwrap();
        write_end(&mut bytes).unwrap();
        let mut input = bytes.as_slice();
        assert_eq!(read_manifest(&mut input).unwrap(), manifest);
        let entry = read_entry(&mut input).unwrap().unwrap();
        let mut content = String::new();
        input.by_ref().take(entry.length).read_to_string(&mut content).unwrap();
        assert_eq!((entry.name.as_str(), content.as_str()), ("private.key", "abc"));
        assert_eq!(read_entry(&mut input).unwrap().unwrap().length, 0);
        assert_eq!(read_entry(&mut input).unwrap(), None);
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        for name in ["../private.key", "/etc/passwd", "a/b", ".hidden", "..", "a\0b", "a b", "ä"] {
            let mut bytes = Vec::new();
            write_entry(&mut bytes, name, 0, io::empty()).unwrap();
            assert_eq!(read_entry(&mut bytes.as_slice()).unwrap_err().kind(), io::ErrorKind::InvalidData, "{name:?}");
        }
    }

    #[test]
    fn content_that_is_shorter_than_said_is_an_error() {
        let mut bytes = Vec::new();
        let short = write_entry(&mut bytes, "a", 4, &b"abc"[..]).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read_entry(&mut &b"\0\x05abc"[..]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
