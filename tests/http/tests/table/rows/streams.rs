//! Answers before their request is whole, and bodies that come little by little.

use std::time::Duration;

use anyhow::{Result, ensure};
use culvert_http_tests::caller::{Ask, Call};
use culvert_http_tests::site::{Front, Kind};
use culvert_http_tests::strict::{Fields, Framing};
use culvert_http_tests::table::{Cell, Expect};

use super::{asked, hears, nothing};

pub(crate) async fn early_end(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("POST", "/").body(Framing::Length(1_000_000_000))).await?;
    call.send("some of it").await?;
    taken.exactly(b"some of it").await?;
    taken.reply(413, &nothing(), b"too much").await?;
    let heard = hears(&mut call, 413, b"too much").await?;
    ensure!(heard.fields.text("proxy-status").is_empty(), "{:?}", heard.fields);
    Ok(())
}

pub(crate) async fn early_and_on(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("POST", "/").body(Framing::Length(8))).await?;
    taken.answer(200, &nothing(), Framing::Length(4)).await?;
    ensure!(call.head().await?.status == 200, "not answered");
    taken.send("an").await?;
    call.exactly(b"an").await?;
    call.send("abcd").await?;
    taken.exactly(b"abcd").await?;
    call.send("efgh").await?;
    call.finish(&nothing()).await?;
    ensure!(taken.rest().await?.0 == b"efgh", "another body");
    taken.send("sw").await?;
    taken.finish(&nothing()).await?;
    ensure!(call.rest().await?.0 == b"sw", "another answer");
    Ok(())
}

pub(crate) async fn lockstep(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("POST", "/").body(Framing::Chunked)).await?;
    taken.answer(200, &nothing(), Framing::Chunked).await?;
    ensure!(call.head().await?.status == 200, "not answered");
    for at in 0..50 {
        let word = format!("word {at}");
        call.send(word.clone()).await?;
        taken.exactly(word.as_bytes()).await?;
        taken.send(word.clone()).await?;
        call.exactly(word.as_bytes()).await?;
    }
    call.finish(&nothing()).await?;
    ensure!(taken.rest().await?.0.is_empty(), "more");
    taken.send("the end").await?;
    taken.finish(&nothing()).await?;
    ensure!(call.rest().await?.0 == b"the end", "another end");
    Ok(())
}

pub(crate) async fn half_close(cell: Cell) -> Result<()> {
    let mut call = cell.call(Ask::new("POST", "/").body(Framing::Length(2))).await?;
    call.send("up").await?;
    let Call::One(one) = &mut call else { anyhow::bail!("not HTTP/1.1") };
    one.wire.shut().await?;
    let mut taken = cell.taken().await?;
    ensure!(taken.rest().await?.0 == b"up", "another body");
    tokio::time::sleep(Duration::from_millis(300)).await;
    taken.reply(200, &nothing(), b"down").await?;
    hears(&mut call, 200, b"down").await.map(drop)
}

pub(crate) fn half_close_expect(front: Front, _: Kind) -> Expect {
    match front {
        Front::One | Front::Unix => Expect::Works,
        Front::Two | Front::TwoTls => Expect::Moot("every request of HTTP/2 ends so"),
        Front::OneTls => Expect::Moot("close_notify is not half a close in most of TLS"),
    }
}

/// Each piece must arrive before the next is sent.
async fn one_by_one(cell: Cell, kind: &str, framing: Framing, pieces: &[&str]) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("GET", "/").with("accept", kind)).await?;
    taken.answer(200, &Fields::of(&[("content-type", kind)]), framing).await?;
    let heard = call.head().await?;
    ensure!(heard.fields.text("content-type") == kind, "{:?}", heard.fields);
    for piece in pieces {
        taken.send((*piece).to_owned()).await?;
        call.exactly(piece.as_bytes()).await?;
    }
    let ended = taken.finish(&nothing()).await;
    // Where the length says that this is all, the connector may be gone already.
    ensure!(ended.is_ok() || framing != Framing::Chunked, "{ended:?}");
    ensure!(call.rest().await? == (Vec::new(), nothing()), "more");
    Ok(())
}

pub(crate) async fn events(cell: Cell) -> Result<()> {
    let pieces = ["id: 1\ndata: a\n\n", ":\n\n", "data: b\ndata: c\n\n", "d", "ata: d\n\n"];
    one_by_one(cell, "text/event-stream", Framing::Chunked, &pieces).await
}

pub(crate) async fn lines(cell: Cell) -> Result<()> {
    one_by_one(cell, "application/x-ndjson", Framing::Chunked, &["{\"a\":1}\n", "{}\n", "[]\n", "\n"]).await
}

pub(crate) async fn drops(cell: Cell) -> Result<()> {
    one_by_one(cell, "application/octet-stream", Framing::Length(6), &["a", "b", "c", "d", "e", "f"]).await
}

/// What is tested is that time passes and nothing happens.
const PAUSE: Duration = Duration::from_secs(3);

pub(crate) async fn pause(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("GET", "/")).await?;
    tokio::time::sleep(PAUSE).await;
    taken.answer(200, &nothing(), Framing::Chunked).await?;
    ensure!(call.head().await?.status == 200, "not answered");
    taken.send("before").await?;
    call.exactly(b"before").await?;
    tokio::time::sleep(PAUSE).await;
    taken.send("after").await?;
    taken.finish(&nothing()).await?;
    ensure!(call.rest().await?.0 == b"after", "another body");
    Ok(())
}

pub(crate) async fn pause_up(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("POST", "/").body(Framing::Chunked)).await?;
    call.send("before").await?;
    taken.exactly(b"before").await?;
    tokio::time::sleep(PAUSE).await;
    call.send("after").await?;
    call.finish(&nothing()).await?;
    ensure!(taken.rest().await?.0 == b"after", "another body");
    taken.reply(200, &nothing(), b"x").await?;
    hears(&mut call, 200, b"x").await.map(drop)
}
