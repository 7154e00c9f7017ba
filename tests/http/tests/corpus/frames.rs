//! One connection of HTTP/2, its frames sent to the front.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use culvert_http_tests::frames::{
    ACK, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, Want, block, frame, with,
};
use culvert_http_tests::logged::{Fact, Seen};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::site::Site;

/// Sends them, and judges what became of them.
pub(crate) async fn run(frames: &Frames, site: &Site) -> Result<()> {
    let mut socket = TcpStream::connect(site.front()).await?;
    let after = match frames.want {
        // Whether the connection goes on is seen by another request on it.
        Want::Stream | Want::Late(..) | Want::Either => {
            frame(HEADERS, END_HEADERS | END_STREAM, 3, &block(&with(2, b"/after")))
        }
        Want::Connection | Want::Passes(..) => Vec::new(),
    };
    let settings = frame(SETTINGS, 0, 0, &[]);
    // A connection that ends may end before all of it was written.
    let _ = socket.write_all(&[PREFACE, &settings, &frames.bytes, &after].concat()).await;
    let mut heard = Vec::new();
    let listening = tokio::time::timeout(Duration::from_secs(5), listen(&mut socket, &frames.want, &mut heard)).await;
    listening.with_context(|| format!("nothing was decided within 5 s, but {heard:?}"))??;
    drop(socket);
    let mut whole: Vec<Seen> = Vec::new();
    for fact in site.facts().await? {
        match fact {
            Fact::Whole(seen) => whole.push(seen),
            Fact::Cut => {}
            Fact::Flaw(why, bytes) => bail!("came as no HTTP, {why}: {:?}", String::from_utf8_lossy(&bytes)),
        }
    }
    let seen: Vec<_> =
        whole.iter().map(|seen| (seen.method.as_str(), seen.target.as_str(), seen.body.as_slice())).collect();
    match &frames.want {
        Want::Either if heard.last() == Some(&Heard::End) => {
            ensure!(seen.is_empty(), "came as {whole:?}");
            ensure!(heard.contains(&Heard::Goaway { code: 1 }), "ended without a word: {heard:?}");
        }
        Want::Late(method, target) => {
            let before = (*method, *target, &b""[..]);
            let is_known = |one: &&(&str, &str, &[u8])| **one == before || one.1 == "/after";
            ensure!(seen.iter().filter(is_known).count() == seen.len(), "came as {whole:?}");
            ensure!(heard.iter().any(Heard::refuses), "not refused: {heard:?}");
        }
        Want::Stream | Want::Either => {
            ensure!(seen == [("GET", "/after", &b""[..])], "came as {whole:?}; heard {heard:?}");
            ensure!(heard.iter().any(Heard::refuses), "not refused: {heard:?}");
        }
        Want::Connection => ensure!(seen.is_empty(), "came as {whole:?}"),
        Want::Passes(method, target, body) => {
            ensure!(seen == [(*method, *target, *body)], "came as {whole:?}; {heard:?}")
        }
    }
    ensure!(whole.iter().all(|seen| seen.host.as_deref() == Some("orders")), "for another: {whole:?}");
    Ok(())
}

/// What decides.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Heard {
    Head { stream: u32, status: Option<u16> },
    Reset { stream: u32 },
    Goaway { code: u32 },
    End,
}

impl Heard {
    fn refuses(&self) -> bool {
        matches!(self, Self::Reset { stream: 1 } | Self::Head { stream: 1, status: Some(400..500) })
    }
}

/// Reads until the wanted thing is decided.
async fn listen(socket: &mut TcpStream, want: &Want, heard: &mut Vec<Heard>) -> Result<()> {
    loop {
        let mut start = [0; 9];
        if socket.read_exact(&mut start).await.is_err() {
            heard.push(Heard::End);
            let may_end = matches!(want, Want::Connection | Want::Either);
            ensure!(may_end, "the connection ended: {heard:?}");
            return Ok(());
        }
        let [a, b, c, kind, flags, d, e, f, g] = start;
        let (length, stream) = (u32::from_be_bytes([0, a, b, c]), u32::from_be_bytes([d, e, f, g]));
        let mut body = vec![0; length as usize];
        socket.read_exact(&mut body).await?;
        match kind {
            SETTINGS if flags & ACK == 0 => {
                let _ = socket.write_all(&frame(SETTINGS, ACK, 0, &[])).await;
            }
            HEADERS => heard.push(Heard::Head { stream, status: status(&body) }),
            RST_STREAM => heard.push(Heard::Reset { stream }),
            GOAWAY => {
                let code = body.get(4..8).and_then(|code| code.try_into().ok()).map_or(0, u32::from_be_bytes);
                heard.push(Heard::Goaway { code });
            }
            _ => {}
        }
        let is_answered = |of: u32| heard.iter().any(|one| matches!(one, Heard::Head { stream, .. } if *stream == of));
        match want {
            Want::Stream | Want::Late(..) | Want::Either if heard.iter().any(Heard::refuses) && is_answered(3) => {
                return Ok(());
            }
            Want::Passes(..) if is_answered(1) => return Ok(()),
            Want::Stream | Want::Late(..) | Want::Either | Want::Connection | Want::Passes(..) => {}
        }
    }
}

/// The status in a block that begins with it, as every encoder writes one (RFC 7541 appendix A).
fn status(block: &[u8]) -> Option<u16> {
    let mut rest = block;
    while let [0x20..=0x3f, more @ ..] = rest {
        rest = more;
    }
    match rest {
        [index @ 0x88..=0x8e, ..] => [200, 204, 206, 304, 400, 404, 500].get(usize::from(index - 0x88)).copied(),
        // Written out, plain or by Huffman: 4 stands for itself in the first bits of both.
        [0x08 | 0x48, length, first, ..] if length & 0x80 != 0 => (first >> 2 == 0b01_1010).then_some(499),
        [0x08 | 0x48, 3, text @ ..] => std::str::from_utf8(text.get(..3)?).ok()?.parse().ok(),
        _ => None,
    }
}
