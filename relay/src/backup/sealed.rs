//! The encrypted file: a header, then pieces of 64 KiB, each sealed with its place and the header.
//!
//! Layout, numbers big-endian: magic (16 bytes), version 1, key derivation 1 (Argon2id, version 0x13), its memory in KiB (4),
//! passes (4) and lanes (4), salt (16), nonce prefix (19), check (16), the first 4 bytes of SHA-256 over all of that. Then
//! STREAM over XChaCha20-Poly1305 (Hoang, Reyhanitabar, Rogaway, Vizár 2015): every piece but the last is full, and the last
//! one says that it is, so that nothing can be cut off, left out or moved.
//!
//! Argon2id and the cipher that the relay links anyway, and not the format of `age`: that would be forty crates more for
//! recipients, armour and plugins that a backup does not need.
//!
//! Must never yield a byte that was not authenticated, nor hold more than two pieces in memory.

use std::io::{self, Read, Write};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use chacha20poly1305::aead::KeyInit as _;
use chacha20poly1305::aead::stream::{DecryptorBE32, EncryptorBE32};
use chacha20poly1305::{Key, XChaCha20Poly1305};
use culvert_model::key::random;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// What every backup starts with. The line end is damaged by transfers that take the file for text.
pub(super) const MAGIC: &[u8; 16] = b"culvert backup\r\n";
const VERSION: u8 = 1;
const ARGON2ID: u8 = 1;
const SALT: usize = 16;
const PREFIX: usize = 19;
const CHECK: usize = 16;
const SUM: usize = 4;
const HEADER: usize = MAGIC.len() + 2 + 12 + SALT + PREFIX + CHECK + SUM;
/// What one piece holds.
const PIECE: usize = 64 * 1024;
const TAG: usize = 16;

/// What deriving the key costs. RFC 9106 §4, second recommendation: 64 MiB, three passes, four lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// Why a backup cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unopened {
    /// It is something else.
    #[error("not a backup of a Culvert relay")]
    NotABackup,
    /// A later program made it.
    #[error("made by a newer program (format {0}, this one reads {VERSION})")]
    Newer(u8),
    /// Bytes are changed or missing.
    #[error("damaged or cut short")]
    Damaged,
    /// It opens with another passphrase.
    #[error("the passphrase is another one")]
    WrongPassphrase,
}

/// Seals what is written to it; [`Sealer::finish`] makes it whole.
pub(super) struct Sealer<W> {
    out: W,
    stream: EncryptorBE32<XChaCha20Poly1305>,
    header: [u8; HEADER],
    piece: Zeroizing<Vec<u8>>,
}

/// Gives back what a [`Sealer`] was given. Reading fails with [`Unopened::Damaged`] as the source of an
/// [`io::ErrorKind::InvalidData`].
pub(super) struct Opener<R> {
    input: R,
    /// None behind the last piece.
    stream: Option<DecryptorBE32<XChaCha20Poly1305>>,
    header: [u8; HEADER],
    ahead: Vec<u8>,
    piece: Zeroizing<Vec<u8>>,
    read: usize,
}

impl Default for Cost {
    fn default() -> Self {
        Self { memory_kib: 64 * 1024, passes: 3, lanes: 4 }
    }
}

impl Cost {
    #[cfg(test)]
    pub(super) const LEAST: Self = Self { memory_kib: 8, passes: 1, lanes: 1 };

    /// A file may not ask for more than a machine has: 1 GiB, 64 passes.
    fn is_bearable(self) -> bool {
        (8..=1 << 20).contains(&self.memory_kib) && (1..=64).contains(&self.passes) && (1..=64).contains(&self.lanes)
    }

    /// The key, and what tells a wrong passphrase from a damaged file.
    fn derive(self, passphrase: &[u8], salt: &[u8; SALT]) -> Option<(Zeroizing<[u8; 32]>, [u8; CHECK])> {
        let mut out = Zeroizing::new([0; 32 + CHECK]);
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(out.len())).ok()?;
        let mut memory = Zeroizing::new(vec![Block::default(); params.block_count()]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into_with_memory(passphrase, salt, out.as_mut_slice(), memory.as_mut_slice())
            .ok()?;
        let (key, check) = out.split_first_chunk::<32>()?;
        Some((Zeroizing::new(*key), check.try_into().ok()?))
    }
}

impl<W: Write> Sealer<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// What `out` says.
    pub(super) fn new(mut out: W, passphrase: &[u8], cost: Cost) -> io::Result<Self> {
        let (salt, prefix) = (random::<SALT>(), random::<PREFIX>());
        let (key, check) =
            cost.derive(passphrase, &salt).ok_or_else(|| io::Error::other("the key cannot be derived"))?;
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&[VERSION, ARGON2ID]);
        for number in [cost.memory_kib, cost.passes, cost.lanes] {
            header.extend_from_slice(&number.to_be_bytes());
        }
        header.extend_from_slice(&salt);
        header.extend_from_slice(&prefix);
        header.extend_from_slice(&check);
        header.extend_from_slice(&sum(&header));
        let header = <[u8; HEADER]>::try_from(header.as_slice()).map_err(io::Error::other)?;
        out.write_all(&header)?;
        let cipher = XChaCha20Poly1305::new(Key::from_slice(key.as_slice()));
        let stream = EncryptorBE32::from_aead(cipher, prefix.as_slice().into());
        Ok(Self { out, stream, header, piece: Zeroizing::new(Vec::with_capacity(PIECE + TAG)) })
    }

    /// Writes the last piece.
    ///
    /// # Errors
    /// What `out` says.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.stream.encrypt_last_in_place(&self.header, &mut *self.piece).map_err(|_| too_long())?;
        self.out.write_all(&self.piece)?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full piece waits for the byte that shows that it is not the last.
        if self.piece.len() == PIECE && !bytes.is_empty() {
            self.stream.encrypt_next_in_place(&self.header, &mut *self.piece).map_err(|_| too_long())?;
            self.out.write_all(&self.piece)?;
            self.piece.clear();
        }
        let taken = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<R: Read> Opener<R> {
    /// Reads the header and derives the key.
    ///
    /// # Errors
    /// What `input` says; [`Unopened`] inside when it is no backup for this passphrase.
    pub(super) fn new(mut input: R, passphrase: &[u8]) -> Result<Self, io::Error> {
        let found = up_to(&mut input, HEADER)?;
        let (header, [memory_kib, passes, lanes], salt, prefix, expected) = parse(&found).map_err(no_data)?;
        let cost = Cost { memory_kib, passes, lanes };
        if !cost.is_bearable() {
            return Err(no_data(Unopened::Damaged));
        }
        let (key, check) = cost.derive(passphrase, &salt).ok_or_else(|| no_data(Unopened::Damaged))?;
        if !bool::from(check.ct_eq(&expected)) {
            return Err(no_data(Unopened::WrongPassphrase));
        }
        let cipher = XChaCha20Poly1305::new(Key::from_slice(key.as_slice()));
        let stream = Some(DecryptorBE32::from_aead(cipher, prefix.as_slice().into()));
        let ahead = up_to(&mut input, PIECE + TAG)?;
        Ok(Self { input, stream, header, ahead, piece: Zeroizing::default(), read: 0 })
    }

    fn next_piece(&mut self) -> io::Result<()> {
        let Some(mut stream) = self.stream.take() else { return Ok(()) };
        let after = up_to(&mut self.input, PIECE + TAG)?;
        *self.piece = std::mem::replace(&mut self.ahead, after);
        self.read = 0;
        let opened = if self.ahead.is_empty() {
            stream.decrypt_last_in_place(&self.header, &mut *self.piece)
        } else {
            let opened = stream.decrypt_next_in_place(&self.header, &mut *self.piece);
            self.stream = Some(stream);
            opened
        };
        if opened.is_err() {
            // What failed is neither given out nor tried again.
            self.piece.clear();
            self.stream = None;
        }
        opened.map_err(|_| no_data(Unopened::Damaged))
    }
}

impl<R: Read> Read for Opener<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.read == self.piece.len() && self.stream.is_some() && !out.is_empty() {
            self.next_piece()?;
        }
        let given = self.piece.get(self.read..).unwrap_or_default();
        let taken = given.len().min(out.len());
        out[..taken].copy_from_slice(&given[..taken]);
        self.read += taken;
        Ok(taken)
    }
}

type Parts = ([u8; HEADER], [u32; 3], [u8; SALT], [u8; PREFIX], [u8; CHECK]);

fn parse(found: &[u8]) -> Result<Parts, Unopened> {
    let rest = found.strip_prefix(MAGIC.as_slice()).ok_or(Unopened::NotABackup)?;
    match rest.first() {
        None => return Err(Unopened::Damaged),
        Some(&VERSION) => {}
        Some(&other) => return Err(Unopened::Newer(other)),
    }
    let header = <[u8; HEADER]>::try_from(found).map_err(|_| Unopened::Damaged)?;
    let (content, expected) = header.split_last_chunk::<SUM>().ok_or(Unopened::Damaged)?;
    if sum(content) != *expected {
        return Err(Unopened::Damaged);
    }
    let split = || -> Option<_> {
        let rest = content.get(MAGIC.len()..)?;
        let (&[_, derivation], rest) = rest.split_first_chunk::<2>()?;
        let (memory, rest) = rest.split_first_chunk::<4>()?;
        let (passes, rest) = rest.split_first_chunk::<4>()?;
        let (lanes, rest) = rest.split_first_chunk::<4>()?;
        let (salt, rest) = rest.split_first_chunk::<SALT>()?;
        let (prefix, rest) = rest.split_first_chunk::<PREFIX>()?;
        let check = <[u8; CHECK]>::try_from(rest).ok()?;
        let cost = [memory, passes, lanes].map(|number| u32::from_be_bytes(*number));
        (derivation == ARGON2ID).then_some((header, cost, *salt, *prefix, check))
    };
    split().ok_or(Unopened::Damaged)
}

/// Reads that many bytes, or what there is.
fn up_to(input: &mut impl Read, bytes: usize) -> io::Result<Vec<u8>> {
    let mut found = Vec::with_capacity(bytes);
    input.by_ref().take(bytes as u64).read_to_end(&mut found)?;
    Ok(found)
}

fn sum(bytes: &[u8]) -> [u8; SUM] {
    let digest = Sha256::digest(bytes);
    let mut first = [0; SUM];
    first.copy_from_slice(&digest[..SUM]);
    first
}

fn no_data(why: Unopened) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// 2^32 pieces are 256 TiB.
fn too_long() -> io::Error {
    io::ErrorKind::FileTooLarge.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens_whole_at_every_length_around_a_piece() {
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE + 5] {
            let content: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let sealed = seal(&content);
            assert_eq!(open(&sealed, b"correct horse").unwrap(), content, "{length}");
            let pieces = length.div_ceil(PIECE).max(1);
            assert_eq!(sealed.len(), HEADER + length + pieces * TAG);
        }
    }

    #[test]
    fn a_wrong_passphrase_is_told_from_a_damaged_file() {
        let sealed = seal(b"content");
        assert_eq!(open(&sealed, b"correct horsf"), Err(Unopened::WrongPassphrase));
        assert_eq!(open(&sealed, b""), Err(Unopened::WrongPassphrase));
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let sealed = seal(b"content");
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 0x20;
            let expected = match at {
                0..16 => Unopened::NotABackup,
                16 => Unopened::Newer(VERSION ^ 0x20),
                _ => Unopened::Damaged,
            };
            assert_eq!(open(&changed, b"correct horse"), Err(expected), "byte {at}");
        }
    }

    #[test]
    fn every_cut_is_noticed() {
        let sealed = seal(&vec![7; 2 * PIECE + 3]);
        let boundaries = [HEADER, HEADER + PIECE + TAG, HEADER + 2 * (PIECE + TAG)];
        for length in (0..=HEADER).chain(boundaries).chain(boundaries.map(|at| at + 9)).chain([sealed.len() - 1]) {
            let expected = if length < MAGIC.len() { Unopened::NotABackup } else { Unopened::Damaged };
            assert_eq!(open(&sealed[..length], b"correct horse"), Err(expected), "{length} bytes");
        }
        let longer = [sealed.as_slice(), &[0]].concat();
        assert_eq!(open(&longer, b"correct horse"), Err(Unopened::Damaged));
    }

    #[test]
    fn pieces_cannot_change_places_or_files() {
        let content: Vec<u8> = (0..3 * PIECE).map(|at| (at / PIECE) as u8).collect();
        let (one, other) = (seal(&content), seal(&content));
        let piece = |of: &[u8], at: usize| of[HEADER + at * (PIECE + TAG)..][..PIECE + TAG].to_vec();
        let swapped = [&one[..HEADER], &piece(&one, 1), &piece(&one, 0), &piece(&one, 2)].concat();
        let mixed = [&one[..HEADER], &piece(&one, 0), &piece(&other, 1), &piece(&one, 2)].concat();
        let dropped = [&one[..HEADER], &piece(&one, 0), &piece(&one, 2)].concat();
        for wrong in [swapped, mixed, dropped] {
            assert_eq!(open(&wrong, b"correct horse"), Err(Unopened::Damaged));
        }
    }

    #[test]
    fn a_file_cannot_ask_for_more_than_a_machine_has() {
        let mut sealed = seal(b"content");
        sealed[18..22].copy_from_slice(&u32::MAX.to_be_bytes());
        let sum = sum(&sealed[..HEADER - SUM]);
        sealed[HEADER - SUM..HEADER].copy_from_slice(&sum);
        assert_eq!(open(&sealed, b"correct horse"), Err(Unopened::Damaged));
    }

    #[test]
    fn nothing_of_the_content_is_in_the_file() {
        let sealed = seal(b"a-secret-that-would-be-seen");
        assert!(!sealed.windows(8).any(|window| window == b"a-secret"));
        assert_ne!(sealed, seal(b"a-secret-that-would-be-seen"), "salt and nonce are used once");
    }

    fn seal(content: &[u8]) -> Vec<u8> {
        let mut sealer = Sealer::new(Vec::new(), b"correct horse", Cost::LEAST).unwrap();
        sealer.write_all(content).unwrap();
        sealer.finish().unwrap()
    }

    fn open(sealed: &[u8], passphrase: &[u8]) -> Result<Vec<u8>, Unopened> {
        let mut content = Vec::new();
        let read = Opener::new(sealed, passphrase).and_then(|mut opener| opener.read_to_end(&mut content));
        match read {
            Ok(_) => Ok(content),
            Err(error) => Err(*error.get_ref().and_then(|source| source.downcast_ref()).expect("an `Unopened`")),
        }
    }
}
