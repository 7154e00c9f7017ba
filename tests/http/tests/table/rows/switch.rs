//! WebSockets and other changes of protocol.

use anyhow::{Result, ensure};
use culvert_http_tests::caller::Ask;
use culvert_http_tests::site::{Front, Kind};
use culvert_http_tests::strict::{Fields, Framing};
use culvert_http_tests::table::{Cell, Expect};
use culvert_lab::websocket;

use super::{hears, nothing, show};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

fn ask(cell: &Cell) -> Ask {
    if cell.front.is_two() {
        let mut ask = Ask::new("CONNECT", "/chat?x=1").with("sec-websocket-version", "13").with("origin", "http://a");
        ask.protocol = Some("websocket");
        return ask.with("sec-websocket-protocol", "chat");
    }
    Ask::new("GET", "/chat?x=1")
        .with("connection", "Upgrade")
        .with("upgrade", "websocket")
        .with("sec-websocket-version", "13")
        .with("sec-websocket-key", KEY)
        .with("origin", "http://a")
        .with("sec-websocket-protocol", "chat")
}

pub(crate) async fn websocket(cell: Cell) -> Result<()> {
    let mut call = cell.call(ask(&cell)).await?;
    let mut taken = cell.taken().await?;
    ensure!(taken.method == "GET" && taken.target == "/chat?x=1", "{} {}", taken.method, taken.target);
    ensure!(taken.fields.text("upgrade").eq_ignore_ascii_case("websocket"), "{}", show(&taken.fields));
    ensure!(taken.fields.text("connection").eq_ignore_ascii_case("upgrade"), "{}", show(&taken.fields));
    ensure!(taken.fields.text("sec-websocket-protocol") == "chat", "{}", show(&taken.fields));
    ensure!(taken.fields.text("sec-websocket-version") == "13", "{}", show(&taken.fields));
    let key = taken.fields.text("sec-websocket-key");
    let fields = Fields::of(&[
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Accept", &websocket::accept(&key)),
        ("Sec-WebSocket-Protocol", "chat"),
    ]);
    taken.answer(101, &fields, Framing::None).await?;
    let heard = call.head().await?;
    ensure!(heard.fields.text("sec-websocket-protocol") == "chat", "{}", show(&heard.fields));
    if cell.front.is_two() {
        ensure!(heard.status == 200, "{}", heard.status);
        ensure!(heard.fields.text("sec-websocket-accept").is_empty(), "{}", show(&heard.fields));
    } else {
        ensure!(heard.status == 101, "{}", heard.status);
        ensure!(heard.fields.text("sec-websocket-accept") == websocket::accept(KEY), "{}", show(&heard.fields));
    }
    // Frames pass as they are: masked text, a ping, binary, then Close with its code both ways.
    let text = b"\x81\x85\x01\x02\x03\x04hello"[..6].iter().chain(b"hello").copied().collect::<Vec<u8>>();
    for frame in [&text[..], b"\x89\x80\x00\x00\x00\x00", b"\x82\x83\x00\x00\x00\x00\x00\xff\x80"] {
        call.send(frame.to_vec()).await?;
        taken.exactly(frame).await?;
        taken.send(frame.to_vec()).await?;
        call.exactly(frame).await?;
    }
    let close = b"\x88\x82\x00\x00\x00\x00\x03\xe9";
    call.send(close.to_vec()).await?;
    taken.exactly(close).await?;
    let back = b"\x88\x05\x0f\xa0bye";
    taken.send(back.to_vec()).await?;
    call.exactly(back).await?;
    taken.finish(&nothing()).await?;
    ensure!(call.rest().await?.0.is_empty(), "more after Close");
    Ok(())
}

/// Culvert carries no WebSocket to an origin of HTTP/2, and says so. By TLS only HTTP/1.1 is offered for one.
pub(crate) async fn to_two(cell: Cell) -> Result<()> {
    let mut call = cell.call(ask(&cell)).await?;
    let heard = call.head().await?;
    let status = heard.fields.text("proxy-status");
    let reason = if cell.kind == Kind::HttpsTwo { "origin_tls" } else { "upgrade_refused" };
    ensure!(heard.status == 502 && status.contains(reason), "{} {}", heard.status, show(&heard.fields));
    Ok(())
}

pub(crate) fn to_two_expect(_: Front, kind: Kind) -> Expect {
    match kind.is_two() {
        true => Expect::Works,
        false => Expect::Moot("HTTP/1.1 origins are in the rows above"),
    }
}

pub(crate) async fn refused(cell: Cell) -> Result<()> {
    let mut call = cell.call(ask(&cell)).await?;
    let mut taken = cell.taken().await?;
    taken.reply(403, &Fields::of(&[("x-why", "no")]), b"no chat").await?;
    let heard = hears(&mut call, 403, b"no chat").await?;
    ensure!(
        heard.fields.text("x-why") == "no" && heard.fields.text("proxy-status").is_empty(),
        "{}",
        show(&heard.fields)
    );
    Ok(())
}

pub(crate) fn websocket_expect(_: Front, kind: Kind) -> Expect {
    match kind.is_two() {
        true => Expect::Moot("WebSockets go to HTTP/1.1 origins; the others are in a row of their own"),
        false => Expect::Works,
    }
}

async fn switched(cell: &Cell) -> Result<(culvert_http_tests::caller::Call, culvert_http_tests::origin::Taken)> {
    let ask = Ask::new("GET", "/").with("connection", "upgrade").with("upgrade", "Own-Protocol/7");
    let mut call = cell.call(ask).await?;
    let mut taken = cell.taken().await?;
    ensure!(taken.fields.text("upgrade") == "Own-Protocol/7", "{}", show(&taken.fields));
    let fields = Fields::of(&[("Connection", "upgrade"), ("Upgrade", "Own-Protocol/7"), ("X-A", "1")]);
    taken.answer(101, &fields, Framing::None).await?;
    let heard = call.head().await?;
    ensure!(heard.status == 101 && heard.fields.text("upgrade") == "Own-Protocol/7", "{}", show(&heard.fields));
    ensure!(heard.fields.text("x-a") == "1", "{}", show(&heard.fields));
    Ok((call, taken))
}

pub(crate) async fn raw(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = switched(&cell).await?;
    for part in [&b"GET / HTTP/1.1\n\n"[..], b"\0\x01\xff", b"\r\n\r\n"] {
        call.send(part.to_vec()).await?;
        taken.exactly(part).await?;
        taken.send(part.to_vec()).await?;
        call.exactly(part).await?;
    }
    drop(call);
    taken.gone().await;
    Ok(())
}

pub(crate) async fn raw_half_close(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = switched(&cell).await?;
    call.send("up").await?;
    call.finish(&nothing()).await?;
    ensure!(taken.rest().await?.0 == b"up", "other bytes");
    taken.send("down").await?;
    taken.finish(&nothing()).await?;
    ensure!(call.rest().await?.0 == b"down", "other bytes");
    Ok(())
}

pub(crate) fn raw_expect(front: Front, kind: Kind) -> Expect {
    match (front, kind.is_two()) {
        (Front::Two | Front::TwoTls, _) | (_, true) => Expect::Moot("HTTP/2 has no Upgrade"),
        (Front::One | Front::OneTls | Front::Unix, false) => Expect::Works,
    }
}
