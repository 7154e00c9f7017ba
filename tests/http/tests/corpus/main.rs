//! Malformed and ambiguous requests against the real programs: what reaches the origin is logged byte by byte.
//!
//! None may reach it as something other than what the front understood; each is answered with its 4xx by name, and the
//! connection is closed where it is in doubt what follows.

mod bodies;
mod entry;
mod heads;
mod hosts;
mod lengths;
mod site;

use std::collections::HashSet;

use anyhow::{Result, ensure};

use crate::site::Site;

#[tokio::test]
async fn no_bad_request_reaches_an_origin_as_something_else() -> Result<()> {
    let site = Site::start().await?;
    let entries = [lengths::all(), bodies::all(), heads::all(), hosts::all()].concat();
    let names: HashSet<&str> = entries.iter().map(|entry| entry.name).collect();
    ensure!(names.len() == entries.len(), "two entries share a name");
    ensure!(entries.len() >= 120, "only {} entries", entries.len());
    let only = std::env::var("CULVERT_ROW").ok();
    let mut failures = Vec::new();
    for entry in &entries {
        if only.as_ref().is_some_and(|only| !entry.name.contains(only.as_str())) {
            continue;
        }
        if let Err(error) = entry.run(&site).await {
            failures.push(format!("{}: {error:#}", entry.name));
        }
    }
    if let Err(error) = site.no_strangers() {
        failures.push(format!("{error:#}"));
    }
    println!("corpus: {} requests, {} wrong", entries.len(), failures.len());
    ensure!(failures.is_empty(), "{} of {} are wrong:\n{}", failures.len(), entries.len(), failures.join("\n"));
    Ok(())
}

/// What the corpus says stays true of the parser that judges it: entries that are no HTTP for the strict reader are never
/// listed as passing.
#[test]
fn every_entry_that_passes_is_http_for_the_strict_reader() {
    for entry in [lengths::all(), bodies::all(), heads::all(), hosts::all()].concat() {
        entry.agrees_with_the_strict_reader();
    }
}
