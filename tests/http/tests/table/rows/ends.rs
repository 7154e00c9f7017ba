//! Ends that are not clean: each side must see that they are not.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use culvert_http_tests::caller::Ask;
use culvert_http_tests::site::{Front, Kind, Site};
use culvert_http_tests::strict::Framing;
use culvert_http_tests::table::{Cell, Expect};

use super::{asked, hears, nothing, show};

/// How soon the other side learns of an end.
const SOON: Duration = Duration::from_secs(10);

pub(crate) async fn leaves_before(cell: Cell) -> Result<()> {
    let (call, mut taken) = asked(&cell, Ask::new("GET", "/")).await?;
    call.leave();
    tokio::time::timeout(SOON, taken.gone()).await.context("the origin goes on working")
}

pub(crate) async fn leaves_within(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("GET", "/")).await?;
    taken.answer(200, &nothing(), Framing::Chunked).await?;
    call.head().await?;
    taken.send("some").await?;
    call.exactly(b"some").await?;
    call.leave();
    tokio::time::timeout(SOON, taken.gone()).await.context("the origin goes on working")
}

pub(crate) async fn leaves_uploading(cell: Cell) -> Result<()> {
    for framing in [Framing::Length(1000), Framing::Chunked] {
        let (mut call, mut taken) = asked(&cell, Ask::new("POST", "/").body(framing)).await?;
        call.send("some").await?;
        taken.exactly(b"some").await?;
        call.leave();
        let ended = tokio::time::timeout(SOON, taken.rest()).await.context("the origin waits on")?;
        ensure!(ended.is_err(), "{framing:?}: a cut upload ended cleanly");
    }
    Ok(())
}

async fn reset(cell: Cell, framing: Framing) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("GET", "/")).await?;
    taken.answer(200, &nothing(), framing).await?;
    ensure!(call.head().await?.status == 200, "not answered");
    taken.send("some").await?;
    call.exactly(b"some").await?;
    taken.reset();
    let ended = tokio::time::timeout(SOON, call.rest()).await.context("the caller waits on")?;
    ensure!(ended.is_err(), "a cut answer ended cleanly");
    Ok(())
}

pub(crate) async fn reset_length(cell: Cell) -> Result<()> {
    reset(cell, Framing::Length(1000)).await
}

pub(crate) async fn reset_chunked(cell: Cell) -> Result<()> {
    reset(cell, Framing::Chunked).await
}

pub(crate) async fn short(cell: Cell) -> Result<()> {
    for framing in [Framing::Length(1000), Framing::Chunked] {
        let (mut call, mut taken) = asked(&cell, Ask::new("GET", "/")).await?;
        taken.answer(200, &nothing(), framing).await?;
        call.head().await?;
        taken.send("some").await?;
        call.exactly(b"some").await?;
        drop(taken);
        let ended = tokio::time::timeout(SOON, call.rest()).await.context("the caller waits on")?;
        ensure!(ended.is_err(), "{framing:?}: a cut answer ended cleanly");
    }
    Ok(())
}

pub(crate) fn short_expect(_: Front, kind: Kind) -> Expect {
    match kind.is_two() {
        true => Expect::Moot("in HTTP/2 that is a reset: the rows above"),
        false => Expect::Works,
    }
}

/// The caller is told by Culvert, with this reason.
async fn failed(cell: &Cell, mut call: culvert_http_tests::caller::Call, reason: &str) -> Result<()> {
    let heard = call.head().await?;
    ensure!(heard.status == 502, "{} {}", heard.status, show(&heard.fields));
    let status = heard.fields.text("proxy-status");
    ensure!(status.starts_with("culvert-relay; error=") && status.contains(reason), "{}: {status}", cell.kind.name());
    call.rest().await.map(drop)
}

pub(crate) async fn no_answer(cell: Cell) -> Result<()> {
    // Not repeatable, so that the first failure is the answer.
    let (mut call, mut taken) = asked(&cell, Ask::new("POST", "/").body(Framing::Length(2))).await?;
    call.send("up").await?;
    call.finish(&nothing()).await?;
    ensure!(taken.rest().await?.0 == b"up", "another body");
    if cell.kind.is_two() {
        taken.reset();
    } else {
        drop(taken);
    }
    failed(&cell, call, "origin_closed").await?;
    ensure!(cell.is_quiet().await, "a POST was repeated");
    Ok(())
}

pub(crate) async fn garbage(cell: Cell) -> Result<()> {
    for garbage in [
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 20x OK\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
    ] {
        let (mut call, mut taken) = asked(&cell, Ask::new("POST", "/").body(Framing::Length(2))).await?;
        call.send("up").await?;
        call.finish(&nothing()).await?;
        taken.exactly(b"up").await?;
        taken.send(garbage).await?;
        failed(&cell, call, "origin_protocol").await.with_context(|| format!("{garbage:?}"))?;
    }
    Ok(())
}

pub(crate) fn garbage_expect(_: Front, kind: Kind) -> Expect {
    match kind.is_two() {
        true => Expect::Moot("garbage in frames is the frame library's to refuse"),
        false => Expect::Works,
    }
}

pub(crate) async fn kept_closed(cell: Cell) -> Result<()> {
    for _ in 0..3 {
        let mut ask = Ask::new("POST", "/").body(Framing::Length(2));
        ask.host = Site::own_service(cell.front, cell.kind);
        let (mut call, mut taken) = asked(&cell, ask).await?;
        call.send("up").await?;
        call.finish(&nothing()).await?;
        taken.exactly(b"up").await?;
        // Promised to be kept, and closed all the same once the caller has its answer.
        let keep = if cell.kind.is_two() {
            nothing()
        } else {
            culvert_http_tests::strict::Fields::of(&[("Connection", "keep-alive")])
        };
        taken.reply(200, &keep, b"x").await?;
        hears(&mut call, 200, b"x").await?;
        drop(taken);
        // The close is on its way before the next request is.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
