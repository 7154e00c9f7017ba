//! Every row, in the order of the page.

mod bodies;
mod continues;
mod ends;
mod fields;
mod plain;
mod streams;
mod switch;

use anyhow::{Result, ensure};
use culvert_http_tests::caller::{Ask, Call, Heard};
use culvert_http_tests::origin::{CELL, Taken};
use culvert_http_tests::site::{Front, Kind};
use culvert_http_tests::strict::Fields;
use culvert_http_tests::table::{Cell, Expect, Row};

macro_rules! row {
    ($name:expr, $test:expr) => {
        row!($name, $test, |_, _| Expect::Works)
    };
    ($name:expr, $test:expr, $expect:expr) => {
        Row { name: $name, test: |cell| Box::pin($test(cell)), expect: $expect }
    };
}

pub(crate) const ROWS: &[Row] = &[
    row!("GET", plain::get),
    row!("HEAD keeps its Content-Length", plain::head),
    row!("204", plain::no_content),
    row!("304", plain::not_modified),
    row!("a range, 206", plain::range),
    row!("OPTIONS *", plain::options),
    row!("methods of one's own", plain::own_method),
    row!("unusual statuses", plain::statuses),
    row!("`//path`", |cell| plain::target(cell, "//a//b/")),
    row!("`%2F`", |cell| plain::target(cell, "/a%2Fb%2f%00%zz")),
    row!("`..` and `.`", |cell| plain::target(cell, "/a/../b/./c/..")),
    row!("`?a&&b`", |cell| plain::target(cell, "/?a&&b=&=c&a=%20+?/")),
    row!("an empty query", |cell| plain::target(cell, "/a?")),
    row!("a mixed-case path", |cell| plain::target(cell, "/A/b/%aB/C")),
    row!("`;`, `:`, `@`, `'`, `~` in a path", |cell| plain::target(cell, "/a;b=c:d@e'f~g!$(*)+,=")),
    row!("a target of 16 KiB", |cell| async move { plain::target(cell, &format!("/{}", "x".repeat(16 * 1024))).await }),
    row!("two requests on one connection", plain::kept),
    row!("the origin sees its own Host", plain::host),
    row!("values byte for byte, 0x80–0xff", fields::bytes),
    row!("an empty value", fields::empty),
    row!("repeated fields in order", fields::repeated),
    row!("the order of different fields", fields::ordered),
    row!("the order of fields of mixed names", fields::mixed, fields::mixed_expect),
    row!("case of names", fields::case, fields::case_expect),
    row!("60 KiB of fields up", fields::large_up),
    row!("60 KiB of fields down", fields::large_down),
    row!("fields of one hop end there, up", fields::hop_up, fields::hop_up_expect),
    row!("fields of one hop end there, down", fields::hop_down, fields::hop_down_expect),
    row!("Cookie in pieces", fields::crumbs, fields::crumbs_expect),
    row!("Via, Forwarded, X-Forwarded-*", fields::forwarded),
    row!("X-Request-Id kept or made", fields::request_id),
    row!("traceparent", fields::trace),
    row!("Culvert-* ends here, both ways", fields::culvert),
    row!("POST with a length", bodies::length),
    row!("POST in chunks", bodies::chunked),
    row!("`Content-Length: 0` is kept, up", bodies::zero_up),
    row!("`Content-Length: 0` is kept, down", bodies::zero_down),
    row!("an empty body in chunks", bodies::empty_chunked),
    row!("GET with a body", bodies::get_with_body),
    row!("an answer in chunks", bodies::answer_chunked),
    row!("an answer that ends with its connection", bodies::until_close, bodies::until_close_expect),
    row!("trailers up, announced", bodies::trailers_up),
    row!("trailers up, not announced", bodies::trailers_up_unannounced),
    row!("trailers down, announced, asked for by TE", bodies::trailers_down),
    row!("trailers down, not announced", bodies::trailers_down_unannounced),
    row!("a large body up", bodies::large_up),
    row!("a large body down", bodies::large_down),
    row!("large bodies both ways at once", bodies::large_both),
    row!("Expect: the origin says 100", continues::said),
    row!("Expect: the origin refuses with 417", continues::refused),
    row!("Expect: the origin answers early", continues::early),
    row!("103 reaches the caller", continues::hints),
    row!("103 does not disturb the answer", continues::hints_pass_over),
    row!("an early answer ends the upload", streams::early_end),
    row!("an early answer, and the upload goes on", streams::early_and_on),
    row!("request and answer in lockstep", streams::lockstep),
    row!("half-close after the request", streams::half_close, streams::half_close_expect),
    row!("Server-Sent Events one by one", streams::events),
    row!("NDJSON line by line", streams::lines),
    row!("bytes with a length, as they come", streams::drops),
    row!("a pause of 3 s before and in the answer", streams::pause),
    row!("a pause of 3 s in the request", streams::pause_up),
    row!("WebSocket: echo and close code", switch::websocket, switch::websocket_expect),
    row!("WebSocket: the origin refuses", switch::refused, switch::websocket_expect),
    row!("WebSocket to an origin of HTTP/2", switch::to_two, switch::to_two_expect),
    row!("another upgrade as raw bytes", switch::raw, switch::raw_expect),
    row!("raw bytes after an upgrade: half-close", switch::raw_half_close, switch::raw_expect),
    row!("the caller leaves before the answer", ends::leaves_before),
    row!("the caller leaves in the answer", ends::leaves_within),
    row!("the caller leaves in its upload", ends::leaves_uploading),
    row!("the origin resets in a body with a length", ends::reset_length),
    row!("the origin resets in a chunked body", ends::reset_chunked),
    row!("the origin ends a body short, cleanly", ends::short, ends::short_expect),
    row!("the origin closes without an answer", ends::no_answer),
    row!("the origin answers with garbage", ends::garbage, ends::garbage_expect),
    row!("the origin closes a kept connection", ends::kept_closed),
];

/// A request and what the origin took of it.
pub(crate) async fn asked(cell: &Cell, ask: Ask) -> Result<(Call, Taken)> {
    let mut call = cell.call(ask).await?;
    match cell.taken().await {
        Ok(taken) => Ok((call, taken)),
        Err(error) => {
            let heard = tokio::time::timeout(std::time::Duration::from_millis(100), call.head()).await;
            Err(error.context(format!("the caller heard {heard:?}")))
        }
    }
}

/// The fields that the test itself sent, of those that came: without the ones that belong to the version or to Culvert.
pub(crate) fn sent(fields: &Fields) -> Fields {
    const OWN: [&str; 12] = [
        "host",
        CELL,
        "via",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-request-id",
        "te",
        "content-length",
        "transfer-encoding",
    ];
    let is_own = |name: &[u8]| {
        OWN.iter().any(|own| name.eq_ignore_ascii_case(own.as_bytes())) || name.eq_ignore_ascii_case(b"connection")
    };
    Fields(fields.0.iter().filter(|(name, _)| !is_own(name)).cloned().collect())
}

/// The fields in lower case, as HTTP/2 has them.
pub(crate) fn lower(fields: &Fields) -> Fields {
    Fields(fields.0.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect())
}

/// The fields that the origin sent, of those that the caller got.
pub(crate) fn answered(heard: &Heard) -> Fields {
    let framing: [&[u8]; 2] = [b"content-length", b"transfer-encoding"];
    let fields = heard.fields.0.iter();
    Fields(fields.filter(|(name, _)| !framing.iter().any(|own| name.eq_ignore_ascii_case(own))).cloned().collect())
}

pub(crate) fn same(got: &Fields, expected: &Fields) -> Result<()> {
    ensure!(got == expected, "{} in place of {}", show(got), show(expected));
    Ok(())
}

pub(crate) fn show(fields: &Fields) -> String {
    let line = |(name, value): &(Vec<u8>, Vec<u8>)| {
        let value = String::from_utf8_lossy(value);
        format!("{}: {}", String::from_utf8_lossy(name), value.get(..80).unwrap_or(&value))
    };
    format!("[{}]", fields.0.iter().map(line).collect::<Vec<_>>().join("; "))
}

pub(crate) fn nothing() -> Fields {
    Fields::default()
}

/// Waits for the end of the caller's answer and checks all of it.
pub(crate) async fn hears(call: &mut Call, status: u16, body: &[u8]) -> Result<Heard> {
    let heard = call.head().await?;
    ensure!(heard.status == status, "{} in place of {status}: {}", heard.status, show(&heard.fields));
    let (got, trailers) = call.rest().await?;
    ensure!(got == body, "{:?} in place of {:?}", String::from_utf8_lossy(&got), String::from_utf8_lossy(body));
    same(&trailers, &nothing())?;
    Ok(heard)
}

pub(crate) fn one_everywhere(front: Front, kind: Kind) -> bool {
    !front.is_two() && !kind.is_two()
}
