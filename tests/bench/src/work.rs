//! The work: what a peer is asked to carry, named so that a run can be repeated by its words.

use std::fmt;
use std::str::FromStr;

/// One kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    /// Over the long way, with loss and delay, instead of the veth pair.
    pub(crate) is_lossy: bool,
    /// While somebody else fetches large bodies, one after the other, over the same peer.
    pub(crate) is_beside: bool,
    pub(crate) load: Load,
}

/// What the callers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// wrk: kept HTTP/1.1 connections, one request after the other on each.
    Requests { is_upload: bool, body: Size, connections: u32 },
    /// h2load: the same number of requests at once, as HTTP/2 streams on a few connections.
    Http2 { body: Size, at_once: u32 },
    /// curl: whole bodies, one on each connection.
    Bulk { is_upload: bool, streams: u32 },
}

/// A body's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    K1,
    K64,
    M1,
}

/// What a run does when nobody says anything else: the figures that most decide.
pub(crate) const USUAL: &str = "get-1k-c64,get-1k-c1,down-s1,down-s8,up-s1,up-s8";

/// Everything there is.
pub(crate) const ALL: &str = "get-1k-c1,get-1k-c16,get-1k-c64,get-1k-c256,get-64k-c16,get-64k-c64,get-1m-c16,get-1m-c64,\
    put-1k-c1,put-1k-c64,put-1k-c256,put-64k-c64,put-1m-c16,h2-1k-c1,h2-1k-c64,h2-1k-c256,h2-64k-c64,\
    down-s1,down-s8,up-s1,up-s8,lossy-get-1k-c1,lossy-get-1k-c64,lossy-get-64k-c16,lossy-h2-1k-c64,\
    get-1k-c16-beside,lossy-get-1k-c16-beside,lossy-down-s1,lossy-up-s1";

/// The grammar, for `--help`.
pub(crate) const GRAMMAR: &str = "\
Work is named get-SIZE-cN (wrk, N requests at once), put-SIZE-cN (the same with a body to the origin), h2-SIZE-cN \
(h2load, N requests at once over HTTP/2), down-sN and up-sN (curl, N large bodies at once); SIZE is 1k, 64k or 1m. \
lossy- in front sends it over a way with loss and delay. `--work usual` and `--work all` are lists of these, and `none` is none.";

/// HTTP/2 streams on one connection of h2load.
const STREAMS_PER_CONNECTION: u32 = 16;

impl Work {
    /// Reads a list of names; `usual` and `all` stand for theirs.
    pub(crate) fn list(text: &str) -> Result<Vec<Self>, String> {
        let mut list = Vec::new();
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let more = match name {
                "none" => Vec::new(),
                "usual" => Self::list(USUAL)?,
                "all" => Self::list(ALL)?,
                one => vec![one.parse()?],
            };
            for work in more {
                if !list.contains(&work) {
                    list.push(work);
                }
            }
        }
        Ok(list)
    }
}

impl Size {
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::K1 => 1 << 10,
            Self::K64 => 64 << 10,
            Self::M1 => 1 << 20,
        }
    }

    /// Its name, which is also the file's at the origin.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::K1 => "1k",
            Self::K64 => "64k",
            Self::M1 => "1m",
        }
    }

    pub(crate) fn every() -> [Self; 3] {
        [Self::K1, Self::K64, Self::M1]
    }
}

impl Load {
    /// Connections of h2load, and streams on each.
    pub(crate) fn http2_shape(at_once: u32) -> (u32, u32) {
        (at_once.div_ceil(STREAMS_PER_CONNECTION), at_once.min(STREAMS_PER_CONNECTION))
    }
}

impl FromStr for Work {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let no = || format!("there is no work {text:?}. {GRAMMAR}");
        let (is_lossy, name) = text.strip_prefix("lossy-").map_or((false, text), |rest| (true, rest));
        let (is_beside, name) = name.strip_suffix("-beside").map_or((false, name), |rest| (true, rest));
        let words: Vec<&str> = name.split('-').collect();
        let count = |word: &str, letter: char| -> Result<u32, String> {
            let number = word.strip_prefix(letter).and_then(|digits| digits.parse().ok());
            number.filter(|number| (1..=4096).contains(number)).ok_or_else(no)
        };
        let size = |word: &str| Size::every().into_iter().find(|size| size.name() == word).ok_or_else(no);
        let load = match words.as_slice() {
            ["get", body, at_once] => {
                Load::Requests { is_upload: false, body: size(body)?, connections: count(at_once, 'c')? }
            }
            ["put", body, at_once] => {
                Load::Requests { is_upload: true, body: size(body)?, connections: count(at_once, 'c')? }
            }
            ["h2", body, at_once] => Load::Http2 { body: size(body)?, at_once: count(at_once, 'c')? },
            ["down", streams] => Load::Bulk { is_upload: false, streams: count(streams, 's')? },
            ["up", streams] => Load::Bulk { is_upload: true, streams: count(streams, 's')? },
            _ => return Err(no()),
        };
        Ok(Self { is_lossy, is_beside, load })
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_lossy {
            f.write_str("lossy-")?;
        }
        match self.load {
            Load::Requests { is_upload, body, connections } => {
                write!(f, "{}-{}-c{connections}", if is_upload { "put" } else { "get" }, body.name())
            }
            Load::Http2 { body, at_once } => write!(f, "h2-{}-c{at_once}", body.name()),
            Load::Bulk { is_upload, streams } => write!(f, "{}-s{streams}", if is_upload { "up" } else { "down" }),
        }?;
        f.write_str(if self.is_beside { "-beside" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back_as_it_was_written() {
        let all = Work::list("all").unwrap();
        assert_eq!(all.len(), ALL.split(',').count());
        let names: Vec<String> = all.iter().map(Work::to_string).collect();
        assert_eq!(names.join(","), ALL);
        assert_eq!(Work::list("usual,down-s1").unwrap().len(), USUAL.split(',').count());
    }

    #[test]
    fn what_is_no_work_is_refused() {
        for name in ["get", "get-2k-c1", "get-1k-c0", "get-1k-beside", "get-1k-c99999", "down-c1", "lossy-", "h2-1k-64"]
        {
            assert!(name.parse::<Work>().is_err(), "{name}");
        }
    }

    #[test]
    fn http2_asks_for_as_many_at_once_as_named() {
        for at_once in [1, 16, 64, 256] {
            let (connections, streams) = Load::http2_shape(at_once);
            assert_eq!(connections * streams, at_once);
        }
    }
}
