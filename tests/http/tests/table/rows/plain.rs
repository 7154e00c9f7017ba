//! Methods, statuses, targets.

use anyhow::{Result, ensure};
use culvert_http_tests::caller::{Ask, Call};
use culvert_http_tests::strict::{Fields, Framing};
use culvert_http_tests::table::Cell;

use super::{answered, asked, hears, nothing, same, sent};

pub(crate) async fn get(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("GET", "/a?b")).await?;
    ensure!((taken.method.as_str(), taken.target.as_str()) == ("GET", "/a?b"), "{} {}", taken.method, taken.target);
    ensure!(taken.framing == Framing::None, "{:?}", taken.framing);
    same(&sent(&taken.fields), &nothing())?;
    ensure!(taken.rest().await?.0.is_empty(), "a body");
    let fields = Fields::of(&[("content-type", "text/plain")]);
    taken.reply(200, &fields, b"hello").await?;
    let heard = hears(&mut call, 200, b"hello").await?;
    ensure!(heard.fields.one("content-length") == Some(b"5"), "{:?}", heard.fields);
    ensure!(heard.informational.is_empty(), "{:?}", heard.informational);
    same(&answered(&heard), &fields)
}

pub(crate) async fn head(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("HEAD", "/")).await?;
    ensure!(taken.method == "HEAD", "{}", taken.method);
    taken.answer(200, &Fields::of(&[("content-length", "1234"), ("etag", "\"e\"")]), Framing::None).await?;
    let heard = hears(&mut call, 200, b"").await?;
    ensure!(heard.fields.one("content-length") == Some(b"1234"), "{:?}", heard.fields);
    same(&answered(&heard), &Fields::of(&[("etag", "\"e\"")]))
}

pub(crate) async fn no_content(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("DELETE", "/")).await?;
    taken.answer(204, &Fields::of(&[("x-a", "b")]), Framing::None).await?;
    let heard = hears(&mut call, 204, b"").await?;
    same(&heard.fields, &Fields::of(&[("x-a", "b")]))
}

pub(crate) async fn not_modified(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("GET", "/").with("if-none-match", "\"e\"")).await?;
    same(&sent(&taken.fields), &Fields::of(&[("if-none-match", "\"e\"")]))?;
    let fields = Fields::of(&[("etag", "\"e\""), ("cache-control", "max-age=5")]);
    taken.answer(304, &fields, Framing::None).await?;
    let heard = hears(&mut call, 304, b"").await?;
    same(&heard.fields, &fields)
}

pub(crate) async fn range(cell: Cell) -> Result<()> {
    let ask = Ask::new("GET", "/").with("range", "bytes=2-5,7-").with("if-range", "\"e\"");
    let (mut call, mut taken) = asked(&cell, ask).await?;
    same(&sent(&taken.fields), &Fields::of(&[("range", "bytes=2-5,7-"), ("if-range", "\"e\"")]))?;
    let fields = Fields::of(&[("content-range", "bytes 2-5/10"), ("accept-ranges", "bytes")]);
    taken.reply(206, &fields, b"cdef").await?;
    let heard = hears(&mut call, 206, b"cdef").await?;
    same(&answered(&heard), &fields)
}

pub(crate) async fn options(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("OPTIONS", "*")).await?;
    ensure!(taken.method == "OPTIONS" && taken.target == "*", "{} {}", taken.method, taken.target);
    taken.reply(200, &Fields::of(&[("allow", "GET")]), b"").await?;
    hears(&mut call, 200, b"").await.map(drop)
}

pub(crate) async fn own_method(cell: Cell) -> Result<()> {
    for method in ["PURGE", "M-SEARCH", "get", "X"] {
        let (mut call, mut taken) = asked(&cell, Ask::new(method, "/")).await?;
        ensure!(taken.method == method, "{}", taken.method);
        taken.reply(200, &nothing(), b"x").await?;
        hears(&mut call, 200, b"x").await?;
    }
    Ok(())
}

pub(crate) async fn statuses(cell: Cell) -> Result<()> {
    for status in [203, 226, 299, 300, 308, 418, 421, 451, 499, 500, 502, 511, 599, 999] {
        let (mut call, mut taken) = asked(&cell, Ask::new("GET", "/")).await?;
        taken.reply(status, &nothing(), b"x").await?;
        let heard = hears(&mut call, status, b"x").await?;
        ensure!(heard.fields.one("proxy-status").is_none(), "{:?}", heard.fields);
    }
    Ok(())
}

pub(crate) async fn target(cell: Cell, target: &str) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("GET", target)).await?;
    ensure!(taken.target == target, "{:?} in place of {target:?}", taken.target);
    taken.reply(200, &nothing(), b"x").await?;
    hears(&mut call, 200, b"x").await.map(drop)
}

pub(crate) async fn kept(cell: Cell) -> Result<()> {
    let wire = cell.site.connect(cell.front).await?;
    let ask = |path: &str| cell.mark(Ask::new("POST", path).body(Framing::Length(1)));
    if cell.front.is_two() {
        let mut first = Call::two(wire, &ask("/1"), cell.front.is_tls()).await?;
        let mut taken = cell.taken().await?;
        ensure!(taken.target == "/1", "{}", taken.target);
        // Side by side on one connection.
        let mut second = first.beside(&ask("/2"), cell.front.is_tls()).await?;
        second.send("b").await?;
        second.finish(&nothing()).await?;
        let mut other = cell.taken().await?;
        ensure!(other.target == "/2", "{}", other.target);
        ensure!(other.rest().await?.0 == b"b", "another body");
        other.reply(200, &nothing(), b"second").await?;
        hears(&mut second, 200, b"second").await?;
        first.send("a").await?;
        first.finish(&nothing()).await?;
        ensure!(taken.rest().await?.0 == b"a", "another body");
        taken.reply(200, &nothing(), b"first").await?;
        return hears(&mut first, 200, b"first").await.map(drop);
    }
    let mut call = Call::one(wire, &ask("/1")).await?;
    for path in ["/1", "/2", "/3"] {
        call.send(path.as_bytes()[1..].to_vec()).await?;
        let mut taken = cell.taken().await?;
        ensure!(taken.target == path, "{}", taken.target);
        ensure!(taken.rest().await?.0 == path.as_bytes()[1..], "another body");
        taken.reply(200, &nothing(), path.as_bytes()).await?;
        hears(&mut call, 200, path.as_bytes()).await?;
        if path == "/3" {
            break;
        }
        let next = if path == "/1" { "/2" } else { "/3" };
        let Call::One(one) = call else { anyhow::bail!("not HTTP/1.1") };
        call = Call::one(one.wire, &ask(next)).await?;
    }
    Ok(())
}

pub(crate) async fn host(cell: Cell) -> Result<()> {
    let mut ask = Ask::new("GET", "/");
    ask.host = format!("{}.internal:8080", cell.kind.service());
    let (mut call, mut taken) = asked(&cell, ask).await?;
    let own = cell.site.host(cell.kind);
    ensure!(taken.host == own, "{} in place of {own}", taken.host);
    ensure!(
        taken.fields.text("x-forwarded-host") == format!("{}.internal:8080", cell.kind.service()),
        "{:?}",
        taken.fields
    );
    taken.reply(200, &nothing(), b"x").await?;
    hears(&mut call, 200, b"x").await.map(drop)
}
