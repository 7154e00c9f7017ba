//! Malformed and ambiguous requests against the real programs: what reaches the origin is logged byte by byte.
//!
//! None may reach it as something other than what the front understood; each is answered with its 4xx by name, and the
//! connection is closed where it is in doubt what follows.

mod entry;
mod frames;
mod site;

use std::collections::HashSet;

use anyhow::{Result, ensure};
use culvert_http_tests::corpus;

use crate::site::Site;

#[tokio::test]
async fn no_bad_request_reaches_an_origin_as_something_else() -> Result<()> {
    let site = Site::start().await?;
    let entries = corpus::all();
    let names: HashSet<&str> = entries.iter().map(|entry| entry.name).collect();
    ensure!(names.len() == entries.len(), "two entries share a name");
    ensure!(entries.len() >= 120, "only {} entries", entries.len());
    let only = std::env::var("CULVERT_ROW").ok();
    let mut failures = Vec::new();
    for entry in &entries {
        if only.as_ref().is_some_and(|only| !entry.name.contains(only.as_str())) {
            continue;
        }
        if let Err(error) = entry::run(entry, &site).await {
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

#[tokio::test]
async fn no_bad_frame_reaches_an_origin_as_something_else() -> Result<()> {
    let site = Site::start().await?;
    let entries = culvert_http_tests::frames::all();
    let only = std::env::var("CULVERT_ROW").ok();
    let mut failures = Vec::new();
    for entry in entries.iter().filter(|entry| only.as_ref().is_none_or(|only| entry.name.contains(only.as_str()))) {
        if let Err(error) = frames::run(entry, &site).await {
            failures.push(format!("{}: {error:#}", entry.name));
        }
    }
    if let Err(error) = site.no_strangers() {
        failures.push(format!("{error:#}"));
    }
    println!("corpus of HTTP/2: {} connections, {} wrong", entries.len(), failures.len());
    ensure!(failures.is_empty(), "{} of {} are wrong:\n{}", failures.len(), entries.len(), failures.join("\n"));
    Ok(())
}
