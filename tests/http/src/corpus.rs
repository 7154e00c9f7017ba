//! Malformed and ambiguous requests, and ones at the edge of them that are fine.
//!
//! Must never list as passing what the strict reader refuses.

mod bodies;
mod heads;
mod hosts;
mod lengths;

/// All of it.
pub fn all() -> Vec<Entry> {
    [lengths::all(), bodies::all(), heads::all(), hosts::all()].concat()
}

/// What has to become of it.
#[derive(Debug, Clone)]
pub enum Want {
    /// Answered with this status by name, closed, nothing reaches the origin.
    Refused(u16),
    /// The body turns out to be wrong: a whole request never reaches the origin, and the connection is closed.
    Cut,
    /// More of its body is expected; it never becomes whole.
    Waits,
    /// It reaches the origin as these, one after the other: method, target, body.
    Passes(Vec<(&'static str, &'static str, &'static [u8])>),
}

#[derive(Debug, Clone)]
pub struct Entry {
    pub name: &'static str,
    pub bytes: Vec<u8>,
    pub want: Want,
}

/// Refused with 400.
pub fn bad(name: &'static str, bytes: impl Into<Vec<u8>>) -> Entry {
    refused(name, 400, bytes)
}

pub fn refused(name: &'static str, status: u16, bytes: impl Into<Vec<u8>>) -> Entry {
    Entry { name, bytes: bytes.into(), want: Want::Refused(status) }
}

pub fn cut(name: &'static str, bytes: impl Into<Vec<u8>>) -> Entry {
    Entry { name, bytes: bytes.into(), want: Want::Cut }
}

pub fn waits(name: &'static str, bytes: impl Into<Vec<u8>>) -> Entry {
    Entry { name, bytes: bytes.into(), want: Want::Waits }
}

pub fn passes(
    name: &'static str,
    bytes: impl Into<Vec<u8>>,
    seen: &[(&'static str, &'static str, &'static [u8])],
) -> Entry {
    Entry { name, bytes: bytes.into(), want: Want::Passes(seen.to_vec()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logged::{Rest, requests};

    #[test]
    fn every_entry_that_passes_is_http_for_the_strict_reader() {
        for entry in all() {
            let Want::Passes(expected) = &entry.want else { continue };
            let (seen, rest) = requests(&entry.bytes);
            assert_eq!(rest, Rest::End, "{}", entry.name);
            let seen: Vec<_> = seen.iter().map(|seen| (seen.method.as_str(), seen.body.as_slice())).collect();
            let expected: Vec<_> = expected.iter().map(|(method, _, body)| (*method, *body)).collect();
            assert_eq!(seen, expected, "{}", entry.name);
        }
    }
}
