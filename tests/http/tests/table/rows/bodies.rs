//! Bodies of every framing, their trailers, and large ones.

use anyhow::{Result, ensure};
use bytes::Bytes;
use culvert_http_tests::caller::{Ask, Call};
use culvert_http_tests::origin::Taken;
use culvert_http_tests::site::{Front, Kind};
use culvert_http_tests::strict::{Fields, Framing};
use culvert_http_tests::table::{Cell, Expect};
use culvert_lab::origin::pattern;

use super::{asked, hears, nothing, same, sent};

const PIECE: usize = 64 * 1024;

/// Bytes of a large body: 100 MiB against what users run; less where everything is slow.
fn large() -> usize {
    let is_release = std::env::var("CULVERT_BIN_DIR").is_ok_and(|directory| directory.contains("release"));
    (if is_release { 100 } else { 8 }) * 1024 * 1024
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

pub(crate) fn trailers_up_unannounced_expect(front: Front, kind: Kind) -> Expect {
    match (front.is_two(), kind.is_two()) {
        (true, true) => Expect::Works,
        (true, false) | (false, _) => Expect::Impossible(
            "not possible with hyper 1.12, measured: in HTTP/1.1 it writes only trailers that the head's `Trailer` announced",
        ),
    }
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

pub(crate) fn trailers_down_unannounced_expect(front: Front, kind: Kind) -> Expect {
    // The hop between is HTTP/2 whenever the front is.
    match (front.is_two(), kind.is_two()) {
        (true, _) => Expect::Works,
        (false, _) => Expect::Impossible(
            "not possible with hyper 1.12, measured: in HTTP/1.1 it writes only trailers that the head's `Trailer` announced",
        ),
    }
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
    let (mut call, mut taken) = asked(&cell, Ask::new("POST", "/").body(Framing::Length(large() as u64))).await?;
    let (up, seen) = tokio::join!(upload(&mut call), swallow(&mut taken));
    up?;
    seen?;
    taken.reply(200, &nothing(), b"x").await?;
    hears(&mut call, 200, b"x").await.map(drop)
}

pub(crate) async fn large_down(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("GET", "/")).await?;
    taken.answer(200, &nothing(), Framing::Length(large() as u64)).await?;
    call.head().await?;
    let (down, heard) = tokio::join!(download(&mut taken), listen(&mut call));
    down?;
    heard
}

pub(crate) async fn large_both(cell: Cell) -> Result<()> {
    // Each side hands on what it reads, so that both directions are full at once.
    let (mut call, mut taken) = asked(&cell, Ask::new("POST", "/").body(Framing::Chunked)).await?;
    taken.answer(200, &nothing(), Framing::Chunked).await?;
    call.head().await?;
    let total = large() / 4;
    let mut at = 0;
    while at < total {
        let piece = pattern(at as u64, PIECE as u64);
        call.send(piece.clone()).await?;
        let mut back = Vec::new();
        while back.len() < piece.len() {
            let Ok(part) = taken.piece().await? else { anyhow::bail!("cut at {at}") };
            taken.send(part.clone()).await?;
            let mut heard = Vec::new();
            while heard.len() < part.len() {
                let Ok(part) = call.piece().await? else { anyhow::bail!("cut at {at}") };
                heard.extend_from_slice(&part);
            }
            back.extend_from_slice(&heard);
        }
        ensure!(back == piece, "other bytes at {at}");
        at += PIECE;
    }
    call.finish(&nothing()).await?;
    ensure!(taken.rest().await?.0.is_empty(), "more");
    taken.finish(&nothing()).await?;
    ensure!(call.rest().await?.0.is_empty(), "more");
    Ok(())
}

async fn upload(call: &mut Call) -> Result<()> {
    let mut at = 0;
    while at < large() {
        call.send(pattern(at as u64, PIECE as u64)).await?;
        at += PIECE;
    }
    call.finish(&nothing()).await
}

async fn download(taken: &mut Taken) -> Result<()> {
    let mut at = 0;
    while at < large() {
        taken.send(pattern(at as u64, PIECE as u64)).await?;
        at += PIECE;
    }
    taken.finish(&nothing()).await
}

async fn swallow(taken: &mut Taken) -> Result<()> {
    let mut check = Check::default();
    while let Ok(part) = taken.piece().await? {
        check.see(&part)?;
    }
    check.is_whole()
}

async fn listen(call: &mut Call) -> Result<()> {
    let mut check = Check::default();
    while let Ok(part) = call.piece().await? {
        check.see(&part)?;
    }
    check.is_whole()
}

/// Compares a body with the pattern, piece by piece.
#[derive(Default)]
struct Check {
    at: usize,
    piece: Bytes,
}

impl Check {
    fn see(&mut self, mut part: &[u8]) -> Result<()> {
        while !part.is_empty() {
            if self.piece.is_empty() {
                self.piece = pattern(self.at as u64, PIECE as u64);
            }
            let step = part.len().min(self.piece.len());
            let (now, rest) = part.split_at(step);
            let expected = self.piece.split_to(step);
            ensure!(now == expected, "other bytes after {}", self.at);
            self.at += step;
            part = rest;
        }
        Ok(())
    }

    fn is_whole(&self) -> Result<()> {
        ensure!(self.at == large(), "{} bytes in place of {}", self.at, large());
        Ok(())
    }
}
