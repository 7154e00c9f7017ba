//! Bodies of every framing, their trailers, and large ones.

use std::sync::LazyLock;

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use culvert_http_tests::caller::Ask;
use culvert_http_tests::site::{Front, Kind};
use culvert_http_tests::strict::{Fields, Framing};
use culvert_http_tests::table::{Cell, Expect};
use culvert_lab::origin::pattern;

use super::{asked, hears, nothing, same, sent};

const PIECE: usize = 64 * 1024;

/// Pieces before the pattern begins again.
const PIECES: usize = 17;
static PATTERN: LazyLock<Bytes> = LazyLock::new(|| pattern(0, (PIECES * PIECE) as u64));

/// Bytes of a large body: where each front meets the origin that is most like it 100 MiB, elsewhere 8 MiB; less of programs
/// that are not optimized.
fn large(cell: &Cell) -> usize {
    let is_release = std::env::var("CULVERT_BIN_DIR").is_ok_and(|directory| directory.contains("release"));
    let alike = [
        (Front::One, Kind::Http),
        (Front::Two, Kind::H2c),
        (Front::OneTls, Kind::Https),
        (Front::TwoTls, Kind::HttpsTwo),
        (Front::Unix, Kind::Unix),
    ];
    match (is_release, alike.contains(&(cell.front, cell.kind))) {
        (true, true) => 100 << 20,
        (true, false) => 8 << 20,
        (false, _) => 2 << 20,
    }
}

/// The piece of the body that begins there.
fn piece(at: usize) -> Bytes {
    let place = at / PIECE % PIECES * PIECE;
    PATTERN.slice(place..place + PIECE)
}

pub(crate) async fn length(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("POST", "/").body(Framing::Length(11))).await?;
    call.send("hello ").await?;
    taken.exactly(b"hello ").await?;
    call.send("world").await?;
    call.finish(&nothing()).await?;
    ensure!(taken.rest().await?.0 == b"world", "another body");
    ensure!(taken.framing == Framing::Length(11), "{:?}", taken.framing);
    taken.reply(201, &nothing(), b"done").await?;
    hears(&mut call, 201, b"done").await.map(drop)
}

pub(crate) async fn chunked(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("POST", "/").body(Framing::Chunked)).await?;
    ensure!(taken.framing == Framing::Chunked, "{:?}", taken.framing);
    for part in ["one", "two", "\r\n0\r\n\r\n", "three"] {
        call.send(part).await?;
        taken.exactly(part.as_bytes()).await?;
    }
    call.finish(&nothing()).await?;
    ensure!(taken.rest().await? == (Vec::new(), nothing()), "more");
    taken.reply(200, &nothing(), b"done").await?;
    hears(&mut call, 200, b"done").await.map(drop)
}

pub(crate) async fn zero_up(cell: Cell) -> Result<()> {
    for method in ["POST", "PUT", "GET"] {
        let mut call = cell.call(Ask::new(method, "/").body(Framing::Length(0))).await?;
        call.finish(&nothing()).await?;
        let mut taken = cell.taken().await?;
        ensure!(taken.fields.one("content-length") == Some(b"0"), "{method}: {:?}", taken.fields);
        ensure!(taken.rest().await?.0.is_empty(), "a body");
        taken.reply(200, &nothing(), b"x").await?;
        hears(&mut call, 200, b"x").await?;
    }
    Ok(())
}

pub(crate) async fn zero_down(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("GET", "/")).await?;
    taken.answer(200, &nothing(), Framing::Length(0)).await?;
    taken.finish(&nothing()).await?;
    let heard = hears(&mut call, 200, b"").await?;
    ensure!(heard.fields.one("content-length") == Some(b"0"), "{:?}", heard.fields);
    Ok(())
}

pub(crate) async fn empty_chunked(cell: Cell) -> Result<()> {
    let mut call = cell.call(Ask::new("POST", "/").body(Framing::Chunked)).await?;
    call.finish(&nothing()).await?;
    let mut taken = cell.taken().await?;
    ensure!(taken.rest().await? == (Vec::new(), nothing()), "a body");
    if !cell.front.is_two() && !cell.kind.is_two() {
        ensure!(taken.framing == Framing::Chunked, "{:?}", taken.framing);
    }
    taken.answer(200, &nothing(), Framing::Chunked).await?;
    taken.finish(&nothing()).await?;
    hears(&mut call, 200, b"").await.map(drop)
}

pub(crate) async fn get_with_body(cell: Cell) -> Result<()> {
    for framing in [Framing::Length(4), Framing::Chunked] {
        let (mut call, mut taken) = asked(&cell, Ask::new("GET", "/").body(framing)).await?;
        call.send("body").await?;
        call.finish(&nothing()).await?;
        ensure!(taken.rest().await?.0 == b"body", "another body");
        taken.reply(200, &nothing(), b"x").await?;
        hears(&mut call, 200, b"x").await?;
    }
    Ok(())
}

pub(crate) async fn answer_chunked(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("GET", "/")).await?;
    taken.answer(200, &nothing(), Framing::Chunked).await?;
    let heard = call.head().await?;
    ensure!(heard.fields.one("content-length").is_none(), "{:?}", heard.fields);
    for part in ["one", "0\r\n\r\n", "three"] {
        taken.send(part).await?;
        call.exactly(part.as_bytes()).await?;
    }
    taken.finish(&nothing()).await?;
    ensure!(call.rest().await? == (Vec::new(), nothing()), "more");
    Ok(())
}

pub(crate) async fn until_close(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("GET", "/")).await?;
    taken.answer(200, &nothing(), Framing::UntilClose).await?;
    taken.send("all of it").await?;
    taken.finish(&nothing()).await?;
    drop(taken);
    hears(&mut call, 200, b"all of it").await.map(drop)
}

pub(crate) fn until_close_expect(_: Front, kind: Kind) -> Expect {
    match kind {
        Kind::H2c | Kind::HttpsTwo => Expect::Moot("HTTP/2 has no such end"),
        Kind::Http | Kind::Https | Kind::Unix => Expect::Works,
    }
}

pub(crate) async fn trailers_up(cell: Cell) -> Result<()> {
    let ask = Ask::new("POST", "/").with("trailer", "x-sum, x-other").body(Framing::Chunked);
    trailed_up(cell, ask).await
}

pub(crate) async fn trailers_up_unannounced(cell: Cell) -> Result<()> {
    trailed_up(cell, Ask::new("POST", "/").body(Framing::Chunked)).await
}

async fn trailed_up(cell: Cell, ask: Ask) -> Result<()> {
    let announced = sent(&ask.fields);
    let (mut call, mut taken) = asked(&cell, ask).await?;
    same(&sent(&taken.fields), &announced)?;
    call.send("body").await?;
    let trailers = Fields::of(&[("x-sum", "1"), ("x-other", "\u{e4}")]);
    call.finish(&trailers).await?;
    let (body, got) = taken.rest().await?;
    ensure!(body == b"body", "{body:?}");
    same(&super::lower(&got), &trailers)?;
    taken.reply(200, &nothing(), b"x").await?;
    hears(&mut call, 200, b"x").await.map(drop)
}

pub(crate) async fn trailers_down(cell: Cell) -> Result<()> {
    trailed_down(cell, Fields::of(&[("trailer", "x-sum, x-other")])).await
}

pub(crate) async fn trailers_down_unannounced(cell: Cell) -> Result<()> {
    trailed_down(cell, nothing()).await
}

async fn trailed_down(cell: Cell, announced: Fields) -> Result<()> {
    let mut ask = Ask::new("GET", "/").with("te", "trailers");
    if !cell.front.is_two() {
        ask = ask.with("connection", "te");
    }
    let (mut call, mut taken) = asked(&cell, ask).await?;
    taken.answer(200, &announced, Framing::Chunked).await?;
    taken.send("body").await?;
    let trailers = Fields::of(&[("x-sum", "1"), ("x-other", "2")]);
    taken.finish(&trailers).await?;
    call.head().await?;
    let (body, got) = call.rest().await?;
    ensure!(body == b"body", "{body:?}");
    same(&super::lower(&got), &trailers)
}

pub(crate) async fn large_up(cell: Cell) -> Result<()> {
    let length = large(&cell);
    let (mut call, mut taken) = asked(&cell, Ask::new("POST", "/").body(Framing::Length(length as u64))).await?;
    let up = async {
        for at in (0..length).step_by(PIECE) {
            call.send(piece(at)).await?;
        }
        call.finish(&nothing()).await
    };
    let seen = async {
        let mut check = Check::default();
        while let Ok(part) = taken.piece().await? {
            check.see(&part)?;
        }
        check.is_whole(length)
    };
    tokio::try_join!(up, seen)?;
    taken.reply(200, &nothing(), b"x").await?;
    hears(&mut call, 200, b"x").await.map(drop)
}

pub(crate) async fn large_down(cell: Cell) -> Result<()> {
    let length = large(&cell);
    let (mut call, mut taken) = asked(&cell, Ask::new("GET", "/")).await?;
    taken.answer(200, &nothing(), Framing::Length(length as u64)).await?;
    call.head().await?;
    let down = async {
        for at in (0..length).step_by(PIECE) {
            taken.send(piece(at)).await?;
        }
        let _ = taken.finish(&nothing()).await;
        Ok(())
    };
    let heard = async {
        let mut check = Check::default();
        while let Ok(part) = call.piece().await? {
            check.see(&part)?;
        }
        check.is_whole(length)
    };
    tokio::try_join!(down, heard).map(drop)
}

pub(crate) async fn large_both(cell: Cell) -> Result<()> {
    // The origin hands back what it reads, as it comes.
    let length = large(&cell) / 4;
    let (mut call, mut taken) = asked(&cell, Ask::new("POST", "/").body(Framing::Chunked)).await?;
    taken.answer(200, &nothing(), Framing::Chunked).await?;
    call.head().await?;
    for at in (0..length).step_by(PIECE) {
        let said = piece(at);
        let back = async {
            let mut passed = 0;
            while passed < PIECE {
                let Ok(part) = taken.piece().await? else { bail!("cut at {at}") };
                passed += part.len();
                taken.send(part).await?;
            }
            Ok(())
        };
        // What is read of the call waits for the whole piece to be sent: it fits the buffers on the way.
        let (sent, handed) = tokio::join!(call.send(said.clone()), back);
        sent?;
        handed?;
        call.exactly(&said).await?;
    }
    call.finish(&nothing()).await?;
    ensure!(taken.rest().await?.0.is_empty(), "more");
    taken.finish(&nothing()).await?;
    ensure!(call.rest().await?.0.is_empty(), "more");
    Ok(())
}

/// Compares a body with the pattern, piece by piece.
#[derive(Default)]
struct Check {
    at: usize,
    left: Bytes,
}

impl Check {
    fn see(&mut self, mut part: &[u8]) -> Result<()> {
        while !part.is_empty() {
            if self.left.is_empty() {
                self.left = piece(self.at);
            }
            let (now, rest) = part.split_at(part.len().min(self.left.len()));
            ensure!(now == self.left.split_to(now.len()), "other bytes after {}", self.at);
            self.at += now.len();
            part = rest;
        }
        Ok(())
    }

    fn is_whole(&self, length: usize) -> Result<()> {
        ensure!(self.at == length, "{} bytes in place of {length}", self.at);
        Ok(())
    }
}
