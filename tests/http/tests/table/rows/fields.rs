//! Fields: what passes as it is, what ends at the hop, what is added.

use anyhow::{Result, ensure};
use culvert_http_tests::caller::Ask;
use culvert_http_tests::site::{Front, Kind};
use culvert_http_tests::strict::{Fields, Framing};
use culvert_http_tests::table::{Cell, Expect};

use super::{answered, asked, hears, lower, nothing, one_everywhere, same, sent, show};

/// Sends the lines both ways, and expects them as they are.
async fn pass(cell: &Cell, lines: &Fields) -> Result<()> {
    let mut ask = Ask::new("GET", "/");
    ask.fields = lines.clone();
    let (mut call, mut taken) = asked(cell, ask).await?;
    let expected = if cell.is_one() { lines.clone() } else { lower(lines) };
    let got = sent(&taken.fields);
    same(&if cell.is_one() { got } else { lower(&got) }, &expected)?;
    taken.reply(200, lines, b"x").await?;
    let got = answered(&hears(&mut call, 200, b"x").await?);
    same(&if cell.is_one() { got } else { lower(&got) }, &expected)
}

pub(crate) async fn bytes(cell: Cell) -> Result<()> {
    let mut lines = nothing();
    lines.push("x-high", (0x80..=0xff).collect::<Vec<u8>>());
    lines.push("x-low", (0x21..=0x7e).collect::<Vec<u8>>());
    lines.push("x-spaces", &b"a  b\tc \t d"[..]);
    lines.push("x-quoted", &b"\"a\\\"b\", c"[..]);
    pass(&cell, &lines).await
}

pub(crate) async fn empty(cell: Cell) -> Result<()> {
    pass(&cell, &Fields::of(&[("x-empty", ""), ("x-full", "1")])).await
}

pub(crate) async fn repeated(cell: Cell) -> Result<()> {
    let lines =
        Fields::of(&[("x-a", "3"), ("x-a", "1"), ("x-a", "2, 5"), ("set-cookie", "a=b"), ("set-cookie", "c=d")]);
    pass(&cell, &lines).await
}

pub(crate) async fn ordered(cell: Cell) -> Result<()> {
    let lines = Fields::of(&[("x-z", "1"), ("accept", "*/*"), ("x-a", "2"), ("user-agent", "t"), ("x-m", "3")]);
    pass(&cell, &lines).await
}

pub(crate) async fn mixed(cell: Cell) -> Result<()> {
    pass(&cell, &Fields::of(&[("x-a", "1"), ("x-b", "2"), ("x-a", "3")])).await
}

pub(crate) fn mixed_expect(front: Front, kind: Kind) -> Expect {
    match one_everywhere(front, kind) {
        true => Expect::Works,
        false => Expect::Impossible(
            "not possible with h2 0.4, measured: it keeps fields by name, so `a, b, a` becomes `a, a, b`; within one name the order stays",
        ),
    }
}

pub(crate) async fn case(cell: Cell) -> Result<()> {
    pass(&cell, &Fields::of(&[("X-MiXed", "1"), ("ACCEPT", "a"), ("x-lower", "2")])).await
}

pub(crate) fn case_expect(front: Front, kind: Kind) -> Expect {
    match one_everywhere(front, kind) {
        true => Expect::Works,
        false => Expect::Moot("HTTP/2 has names in lower case only"),
    }
}

fn large() -> Fields {
    let mut lines = nothing();
    for at in 0..60 {
        lines.push(&format!("x-{at}"), vec![b'a' + at % 26; 1000]);
    }
    lines
}

pub(crate) async fn large_up(cell: Cell) -> Result<()> {
    let mut ask = Ask::new("GET", "/");
    ask.fields = large();
    let (mut call, mut taken) = asked(&cell, ask).await?;
    same(&sent(&taken.fields), &large())?;
    taken.reply(200, &nothing(), b"x").await?;
    hears(&mut call, 200, b"x").await.map(drop)
}

pub(crate) async fn large_down(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("GET", "/")).await?;
    taken.reply(200, &large(), b"x").await?;
    same(&answered(&hears(&mut call, 200, b"x").await?), &large())
}

pub(crate) async fn hop_up(cell: Cell) -> Result<()> {
    let ask = Ask::new("GET", "/")
        .with("Connection", "keep-alive, X-Mine, X-Two")
        .with("X-Mine", "1")
        .with("Keep-Alive", "timeout=5")
        .with("TE", "gzip")
        .with("X-Stays", "1")
        .with("X-Two", "1")
        .with("Proxy-Connection", "keep-alive")
        .with("Upgrade", "h2c");
    let (mut call, mut taken) = asked(&cell, ask).await?;
    same(&lower(&sent(&taken.fields)), &Fields::of(&[("x-stays", "1")]))?;
    ensure!(!taken.fields.text("connection").contains("mine"), "{}", show(&taken.fields));
    ensure!(taken.fields.text("te") == "trailers", "{}", show(&taken.fields));
    taken.reply(200, &nothing(), b"x").await?;
    hears(&mut call, 200, b"x").await.map(drop)
}

pub(crate) fn hop_up_expect(front: Front, _: Kind) -> Expect {
    match front.is_two() {
        true => Expect::Moot("such a request is malformed in HTTP/2 (RFC 9113 §8.2.2): see the corpus"),
        false => Expect::Works,
    }
}

pub(crate) async fn hop_down(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("GET", "/")).await?;
    let fields = Fields::of(&[
        ("Connection", "close, X-Mine"),
        ("X-Mine", "1"),
        ("Keep-Alive", "timeout=5"),
        ("X-Stays", "1"),
        ("Upgrade", "h2c"),
        ("Proxy-Connection", "close"),
    ]);
    taken.reply(200, &fields, b"x").await?;
    let heard = hears(&mut call, 200, b"x").await?;
    same(&lower(&answered(&heard)), &Fields::of(&[("x-stays", "1")]))
}

pub(crate) fn hop_down_expect(_: Front, kind: Kind) -> Expect {
    match kind.is_two() {
        true => Expect::Moot("HTTP/2 has no such fields"),
        false => Expect::Works,
    }
}

pub(crate) async fn crumbs(cell: Cell) -> Result<()> {
    let ask = Ask::new("GET", "/").with("cookie", "a=b").with("cookie", "c=d").with("x-a", "1");
    let (mut call, mut taken) = asked(&cell, ask).await?;
    if cell.kind.is_two() {
        let joined: Vec<_> =
            taken.fields.all("cookie").map(|part| String::from_utf8_lossy(part).into_owned()).collect();
        ensure!(joined.join("; ") == "a=b; c=d", "{joined:?}");
    } else {
        same(&lower(&sent(&taken.fields)), &Fields::of(&[("cookie", "a=b; c=d"), ("x-a", "1")]))?;
    }
    taken.reply(200, &nothing(), b"x").await?;
    hears(&mut call, 200, b"x").await.map(drop)
}

pub(crate) fn crumbs_expect(front: Front, _: Kind) -> Expect {
    match front.is_two() {
        true => Expect::Works,
        false => Expect::Moot("only HTTP/2 may split it (RFC 9113 §8.2.3)"),
    }
}

pub(crate) async fn forwarded(cell: Cell) -> Result<()> {
    let ask = Ask::new("GET", "/")
        .with("x-forwarded-for", "198.51.100.7")
        .with("forwarded", "for=198.51.100.7")
        .with("via", "1.0 edge")
        .with("x-forwarded-prefix", "/p");
    let (mut call, mut taken) = asked(&cell, ask).await?;
    let proto = if cell.front.is_tls() { "https" } else { "http" };
    let text = |name: &str| taken.fields.text(name);
    let is_unix = cell.front == Front::Unix;
    let address = if is_unix { "198.51.100.7".to_owned() } else { "198.51.100.7, 127.".to_owned() };
    ensure!(text("x-forwarded-for").starts_with(&address), "{}", text("x-forwarded-for"));
    ensure!(text("x-forwarded-proto") == proto, "{}", text("x-forwarded-proto"));
    ensure!(text("x-forwarded-host") == cell.kind.service(), "{}", text("x-forwarded-host"));
    ensure!(text("x-forwarded-port").parse::<u16>().is_ok(), "{}", text("x-forwarded-port"));
    ensure!(text("x-forwarded-prefix") == "/p", "{}", text("x-forwarded-prefix"));
    let by = if is_unix { "for=198.51.100.7, for=unknown;" } else { "for=198.51.100.7, for=127." };
    let element = text("forwarded");
    ensure!(element.starts_with(by) && element.ends_with(&format!(";proto={proto}")), "{element}");
    ensure!(
        text("via") == format!("1.0 edge, {} culvert", if cell.front.is_two() { "2.0" } else { "1.1" })
            || text("via") == "1.0 edge, 1.1 culvert",
        "{}",
        text("via")
    );
    taken.reply(200, &Fields::of(&[("via", "1.1 inner")]), b"x").await?;
    let heard = hears(&mut call, 200, b"x").await?;
    ensure!(heard.fields.text("via") == "1.1 inner", "{}", heard.fields.text("via"));
    Ok(())
}

pub(crate) async fn request_id(cell: Cell) -> Result<()> {
    let (mut call, mut taken) = asked(&cell, Ask::new("GET", "/").with("x-request-id", "Own-1.~")).await?;
    ensure!(taken.fields.text("x-request-id") == "Own-1.~", "{}", taken.fields.text("x-request-id"));
    taken.reply(200, &nothing(), b"x").await?;
    hears(&mut call, 200, b"x").await?;
    for bad in ["", "a b", "\u{e4}", &"x".repeat(129)] {
        let (mut call, mut taken) = asked(&cell, Ask::new("GET", "/").with("x-request-id", bad)).await?;
        let made = taken.fields.text("x-request-id");
        ensure!(made.len() == 32 && made.bytes().all(|byte| byte.is_ascii_hexdigit()), "{bad:?} became {made}");
        taken.reply(200, &nothing(), b"x").await?;
        hears(&mut call, 200, b"x").await?;
    }
    let (mut call, mut taken) = asked(&cell, Ask::new("GET", "/")).await?;
    ensure!(taken.fields.text("x-request-id").len() == 32, "{}", taken.fields.text("x-request-id"));
    taken.reply(200, &nothing(), b"x").await?;
    hears(&mut call, 200, b"x").await.map(drop)
}

pub(crate) async fn trace(cell: Cell) -> Result<()> {
    let lines = Fields::of(&[
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "a=1,b=2"),
        ("baggage", "k=v"),
    ]);
    pass(&cell, &lines).await
}

pub(crate) async fn culvert(cell: Cell) -> Result<()> {
    let ask = Ask::new("GET", "/")
        .with("culvert-service", "other")
        .with("culvert-gateway", "a:b")
        .with("culvert-failure", "internal; sent=0")
        .with("culvert-peer", "x");
    let (mut call, mut taken) = asked(&cell, ask).await?;
    same(&sent(&taken.fields), &nothing())?;
    taken
        .answer(
            200,
            &Fields::of(&[
                ("culvert-failure", "internal; sent=0"),
                ("culvert-x", "1"),
                ("proxy-status", "culvert-relay; error=dns_error"),
            ]),
            Framing::Length(1),
        )
        .await?;
    taken.send("x").await?;
    taken.finish(&nothing()).await?;
    same(&answered(&hears(&mut call, 200, b"x").await?), &nothing())
}
