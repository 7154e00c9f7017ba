//! One entry of the corpus, sent to the front.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use culvert_http_tests::corpus::{Entry, Want};
use culvert_http_tests::logged::{ANSWER_END, Fact, Seen};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::site::Site;

/// What follows each entry on the same connection, and must never be taken for a request after a refused one.
const SMUGGLED: &[u8] = b"GET /smuggled HTTP/1.1\r\nHost: other\r\n\r\n";
/// After a refusal the connection ends soon.
const CLOSED: Duration = Duration::from_secs(5);

/// And one that waits for more stays at least so long.
const OPEN: Duration = Duration::from_millis(300);

/// Sends it, and judges what became of it.
pub(crate) async fn run(entry: &Entry, site: &Site) -> Result<()> {
    let shown = String::from_utf8_lossy(entry.bytes.get(..300).unwrap_or(&entry.bytes)).into_owned();
    judge(entry, site).await.with_context(|| format!("{shown:?}"))
}

async fn judge(entry: &Entry, site: &Site) -> Result<()> {
    let (tail, answers) = match &entry.want {
        Want::Passes(expected) => (&b""[..], expected.len()),
        Want::Refused(_) | Want::Cut | Want::Waits => (SMUGGLED, usize::MAX),
    };
    let limit = if matches!(entry.want, Want::Waits) { OPEN } else { CLOSED };
    let (heard, is_closed) = hear(site, &[&entry.bytes, tail].concat(), answers, limit).await?;
    let text = String::from_utf8_lossy(&heard);
    let facts = site.facts().await?;
    for fact in &facts {
        if let Fact::Flaw(why, bytes) = fact {
            bail!("came to the origin as no HTTP, {why}: {:?}", String::from_utf8_lossy(bytes));
        }
    }
    let whole: Vec<&Seen> =
        facts.iter().filter_map(|fact| if let Fact::Whole(seen) = fact { Some(seen) } else { None }).collect();
    match &entry.want {
        Want::Refused(status) => {
            ensure!(facts.is_empty(), "came to the origin as {facts:?}, answered {text:?}");
            refusal(&text, *status)?;
            ensure!(is_closed, "the connection stays open");
        }
        Want::Cut => {
            ensure!(whole.is_empty(), "came to the origin whole as {whole:?}, answered {text:?}");
            ensure!(!text.contains(" 200 OK"), "answered {text:?}");
            ensure!(is_closed, "the connection stays open");
            if !text.is_empty() {
                refusal(&text, 400)?;
            }
        }
        Want::Waits => {
            ensure!(whole.is_empty(), "came to the origin whole as {whole:?}, answered {text:?}");
            ensure!(text.is_empty() && !is_closed, "answered {text:?}");
        }
        Want::Passes(expected) => {
            let got: Vec<_> =
                whole.iter().map(|seen| (seen.method.as_str(), seen.target.as_str(), seen.body.as_slice())).collect();
            ensure!(got == *expected, "came to the origin as {facts:?}, answered {text:?}");
            ensure!(
                whole.iter().all(|seen| seen.host.as_ref().is_some_and(|host| host.starts_with("orders"))),
                "for another: {whole:?}"
            );
            ensure!(text.matches(" 200 OK\r\n").count() == expected.len(), "answered {text:?}");
        }
    }
    Ok(())
}

/// What is answered until the connection ends, so many whole answers came, or the time is over; whether it ended.
async fn hear(site: &Site, bytes: &[u8], answers: usize, limit: Duration) -> Result<(Vec<u8>, bool)> {
    let mut stream = TcpStream::connect(site.front()).await?;
    // A refusal may come before everything was written.
    let _ = stream.write_all(bytes).await;
    let mut heard = Vec::new();
    let is_closed = tokio::time::timeout(limit, async {
        while heard.windows(ANSWER_END.len()).filter(|part| *part == ANSWER_END).count() < answers {
            match stream.read_buf(&mut heard).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return true,
            }
        }
        false
    });
    let is_closed = is_closed.await.unwrap_or(false);
    Ok((heard, is_closed))
}

/// One answer of Culvert's own, and the end of the connection with it.
fn refusal(text: &str, status: u16) -> Result<()> {
    ensure!(
        text.get(8..).is_some_and(|rest| rest.starts_with(&format!(" {status} "))),
        "answered {text:?}, not {status}"
    );
    ensure!(text.matches("HTTP/1.").count() == 1, "two answers: {text:?}");
    let head = text.split("\r\n\r\n").next().unwrap_or_default().to_ascii_lowercase();
    ensure!(head.contains("\r\nproxy-status: culvert-relay; error="), "nameless: {text:?}");
    ensure!(head.contains("\r\nconnection: close"), "does not say that it closes: {text:?}");
    Ok(())
}
