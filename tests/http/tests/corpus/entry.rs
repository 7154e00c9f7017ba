//! One entry of the corpus, and what has to become of it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::BytesMut;
use culvert_http_tests::strict::{self, Decoder, Step};
use culvert_lab::client;

use crate::site::{Fact, Seen, Site};

/// What follows each entry on the same connection, and must never be taken for a request after a refused one.
const SMUGGLED: &[u8] = b"GET /smuggled HTTP/1.1\r\nHost: other\r\n\r\n";
/// After a refusal the connection ends soon.
const CLOSED: Duration = Duration::from_secs(5);

/// What has to become of it.
#[derive(Debug, Clone)]
pub(crate) enum Want {
    /// Answered with this status by name, closed, nothing reaches the origin.
    Refused(u16),
    /// The body turns out to be wrong: a whole request never reaches the origin, and the connection is closed.
    Cut,
    /// It reaches the origin as these, one after the other: method, target, body.
    Passes(Vec<(&'static str, &'static str, &'static [u8])>),
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) want: Want,
}

/// Refused with 400.
pub(crate) fn bad(name: &'static str, bytes: impl Into<Vec<u8>>) -> Entry {
    refused(name, 400, bytes)
}

pub(crate) fn refused(name: &'static str, status: u16, bytes: impl Into<Vec<u8>>) -> Entry {
    Entry { name, bytes: bytes.into(), want: Want::Refused(status) }
}

pub(crate) fn cut(name: &'static str, bytes: impl Into<Vec<u8>>) -> Entry {
    Entry { name, bytes: bytes.into(), want: Want::Cut }
}

pub(crate) fn passes(
    name: &'static str,
    bytes: impl Into<Vec<u8>>,
    seen: &[(&'static str, &'static str, &'static [u8])],
) -> Entry {
    Entry { name, bytes: bytes.into(), want: Want::Passes(seen.to_vec()) }
}

impl Entry {
    pub(crate) async fn run(&self, site: &Site) -> Result<()> {
        let shown = String::from_utf8_lossy(self.bytes.get(..300).unwrap_or(&self.bytes)).into_owned();
        self.judge(site).await.with_context(|| format!("{shown:?}"))
    }

    async fn judge(&self, site: &Site) -> Result<()> {
        let is_passed = matches!(self.want, Want::Passes(_));
        let tail: &[u8] = if is_passed { b"" } else { SMUGGLED };
        let limit = if is_passed { Duration::from_millis(400) } else { CLOSED };
        let start = std::time::Instant::now();
        let heard = client::raw(site.front(), &[&self.bytes, tail].concat(), limit).await?;
        let is_closed = start.elapsed() < limit;
        let text = String::from_utf8_lossy(&heard);
        let facts = site.facts().await?;
        for fact in &facts {
            if let Fact::Flaw(why, bytes) = fact {
                bail!("came to the origin as no HTTP, {why}: {:?}", String::from_utf8_lossy(bytes));
            }
        }
        let whole: Vec<&Seen> =
            facts.iter().filter_map(|fact| if let Fact::Whole(seen) = fact { Some(seen) } else { None }).collect();
        match &self.want {
            Want::Refused(status) => {
                ensure!(facts.is_empty(), "came to the origin as {facts:?}, answered {text:?}");
                refusal(&text, *status)?;
                ensure!(is_closed, "the connection stays open");
            }
            Want::Cut => {
                ensure!(whole.is_empty(), "came to the origin whole as {whole:?}, answered {text:?}");
                ensure!(!text.contains(" 200 OK"), "answered {text:?}");
                ensure!(is_closed, "the connection stays open");
                if !text.is_empty() {
                    refusal(&text, 400)?;
                }
            }
            Want::Passes(expected) => {
                let got: Vec<_> = whole
                    .iter()
                    .map(|seen| (seen.method.as_str(), seen.target.as_str(), seen.body.as_slice()))
                    .collect();
                ensure!(got == *expected, "came to the origin as {facts:?}, answered {text:?}");
                ensure!(whole.iter().all(|seen| seen.host.starts_with("orders")), "for another: {whole:?}");
                ensure!(text.matches(" 200 OK\r\n").count() == expected.len(), "answered {text:?}");
            }
        }
        Ok(())
    }

    /// What passes is the same for the strict reader, which does not know what Culvert thinks of it.
    pub(crate) fn agrees_with_the_strict_reader(&self) {
        let Want::Passes(expected) = &self.want else { return };
        let mut bytes = BytesMut::from(&self.bytes[..]);
        for (method, _, body) in expected {
            // Blank lines before a request are to be ignored (RFC 9112 §2.2).
            while bytes.starts_with(b"\r\n") {
                let _ = bytes.split_to(2);
            }
            let (head, taken) = strict::head(&bytes).unwrap_or_else(|flaw| panic!("{}: {flaw}", self.name)).unwrap();
            let _ = bytes.split_to(taken);
            assert_eq!(String::from_utf8_lossy(head.line().unwrap().method), *method, "{}", self.name);
            let mut decoder = Decoder::new(head.request_framing().unwrap());
            let mut read = Vec::new();
            loop {
                match decoder.step(&mut bytes).unwrap_or_else(|flaw| panic!("{}: {flaw}", self.name)) {
                    Step::Data(data) => read.extend_from_slice(&data),
                    Step::End(_) => break,
                    Step::More => panic!("{}: cut", self.name),
                }
            }
            assert_eq!(read, *body, "{}", self.name);
        }
        assert!(bytes.is_empty(), "{}: {bytes:?} left", self.name);
    }
}

/// One answer of Culvert's own, and the end of the connection with it.
fn refusal(text: &str, status: u16) -> Result<()> {
    ensure!(
        text.get(8..).is_some_and(|rest| rest.starts_with(&format!(" {status} "))),
        "answered {text:?}, not {status}"
    );
    ensure!(text.matches("HTTP/1.").count() == 1, "two answers: {text:?}");
    let head = text.split("\r\n\r\n").next().unwrap_or_default().to_ascii_lowercase();
    ensure!(head.contains("\r\nproxy-status: culvert-relay; error="), "nameless: {text:?}");
    ensure!(head.contains("\r\nconnection: close"), "does not say that it closes: {text:?}");
    Ok(())
}
