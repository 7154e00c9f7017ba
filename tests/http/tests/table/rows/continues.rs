//! `Expect: 100-continue` and the other 1xx.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use culvert_http_tests::caller::{Ask, Call};
use culvert_http_tests::strict::{Fields, Framing};
use culvert_http_tests::table::Cell;

use super::{answered, asked, hears, nothing, same};

fn ask() -> Ask {
    Ask::new("PUT", "/").with("expect", "100-continue").body(Framing::Length(4))
}

pub(crate) async fn said(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, ask()).await?;
    ensure!(taken.fields.text("expect") == "100-continue", "{:?}", taken.fields);
    taken.inform(100, &nothing()).await?;
    let asked = Instant::now();
    if let Call::One(one) = &mut call {
        // The caller waits for leave, and gets it before anything else.
        let head = one.wire.head().await?.ok_or_else(|| anyhow::anyhow!("closed"))?;
        ensure!(head.status()? == 100, "{head:?}");
    }
    call.send("body").await?;
    call.finish(&nothing()).await?;
    ensure!(taken.rest().await?.0 == b"body", "another body");
    ensure!(asked.elapsed() < Duration::from_millis(900), "leave was not passed on, but waited out");
    taken.reply(200, &nothing(), b"x").await?;
    hears(&mut call, 200, b"x").await.map(drop)
}

pub(crate) async fn refused(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, ask()).await?;
    taken.reply(417, &Fields::of(&[("x-why", "no")]), b"no").await?;
    let heard = hears(&mut call, 417, b"no").await?;
    ensure!(heard.informational.is_empty(), "100 before a refusal: {:?}", heard.informational);
    ensure!(heard.fields.text("x-why") == "no" && heard.fields.text("proxy-status").is_empty(), "{:?}", heard.fields);
    Ok(())
}

pub(crate) async fn early(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, ask()).await?;
    taken.answer(200, &nothing(), Framing::Length(2)).await?;
    taken.send("ok").await?;
    taken.finish(&nothing()).await?;
    let heard = hears(&mut call, 200, b"ok").await?;
    ensure!(heard.informational.is_empty(), "{:?}", heard.informational);
    Ok(())
}

pub(crate) async fn hints(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("GET", "/")).await?;
    let link = Fields::of(&[("link", "</a.css>; rel=preload")]);
    taken.inform(103, &link).await?;
    taken.reply(200, &nothing(), b"x").await?;
    let heard = hears(&mut call, 200, b"x").await?;
    let informational: Vec<u16> = heard.informational.iter().map(|(status, _)| *status).collect();
    ensure!(informational == [103], "{informational:?}");
    same(&super::lower(&heard.informational[0].1), &link)
}

pub(crate) async fn hints_pass_over(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("GET", "/")).await?;
    for _ in 0..3 {
        taken.inform(103, &Fields::of(&[("link", "</a.css>; rel=preload"), ("x-early", "1")])).await?;
    }
    let fields = Fields::of(&[("x-late", "1")]);
    taken.reply(200, &fields, b"x").await?;
    same(&answered(&hears(&mut call, 200, b"x").await?), &fields)
}
