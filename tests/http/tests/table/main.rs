//! The conformance table, run against the real programs and compared with the page that is committed.

mod rows;

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use culvert_http_tests::site::Site;
use culvert_http_tests::table::{self, Outcome};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/CONFORMANCE.md");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_exchange_passes_through_every_front_to_every_origin() -> Result<()> {
    let site = Arc::new(Site::start().await?);
    let only = std::env::var("CULVERT_ROW").ok();
    let outcomes = table::run(Arc::clone(&site), rows::ROWS, only.as_deref()).await;
    let mut failures = Vec::new();
    for (name, cells) in &outcomes {
        for (front, kind, outcome) in cells {
            if let Outcome::Failed(why) = outcome {
                failures.push(format!("{name} · {} · {}: {why}", front.name(), kind.name()));
            }
        }
    }
    let [passed, failed, impossible, moot, pending] = table::count(&outcomes);
    println!("table: {passed} passed, {failed} failed, {impossible} impossible, {moot} moot, {pending} pending");
    if pending > 0 {
        eprintln!("PENDING: {pending} cells of the table, named in CONFORMANCE.md");
    }
    if let Ok(site) = Arc::try_unwrap(site)
        && !failures.is_empty()
    {
        println!("relay:\n{}\nconnector:\n{}", site.relay.last_words(), site.connector.last_words());
    }
    ensure!(failures.is_empty(), "{} cells fail:\n{}", failures.len(), failures.join("\n"));
    if only.is_some() {
        return Ok(());
    }
    let page = table::render(&outcomes);
    if std::env::var_os("CULVERT_ACCEPT").is_some() {
        std::fs::write(PAGE, &page)?;
    }
    let committed =
        std::fs::read_to_string(PAGE).context("CONFORMANCE.md is missing: run this with CULVERT_ACCEPT=1")?;
    ensure!(committed == page, "CONFORMANCE.md is out of date: run this with CULVERT_ACCEPT=1");
    Ok(())
}
