//! What users were promised, as data: the tests hold the programs to it.
//!
//! `promises.toml` is this project's own copy of the names in its documentation that work today. A promise that is
//! broken on purpose changes there, in the CHANGELOG, and keeps its old name working.

use serde::Deserialize;

/// All of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promises {
    /// Every command that has `--help`.
    pub commands: Commands,
    /// Every listing's fields.
    pub listing: Vec<Listing>,
    /// Every failure made by Culvert.
    pub reason: Vec<Reason>,
    /// Every metric.
    pub metrics: Metrics,
}

/// Commands by program, each a line of words.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commands {
    /// Of `culvert-relay`.
    pub relay: Vec<String>,
    /// Of `culvert-connector`.
    pub connector: Vec<String>,
    /// Flags that stand in a command's help: `PROGRAM COMMAND: --flag --flag`.
    pub flags: Vec<String>,
    /// Another name of the same command: `OLD = NEW`.
    pub aliases: Vec<String>,
    /// What must not be in any help, because it does not work yet.
    pub later: Vec<String>,
}

/// One command's `--json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listing {
    /// The command.
    pub command: String,
    /// `array` or `object`.
    pub shape: String,
    /// Fields that are there, in each element of an array.
    pub fields: Vec<String>,
}

/// One failure.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// As in `Proxy-Status` details.
    pub name: String,
    /// Possible HTTP statuses.
    pub status: Vec<u16>,
    /// Possible RFC 9209 types.
    pub error: Vec<String>,
    /// gRPC status.
    pub grpc: u8,
}

/// Metric names by program.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Of the relay once requests passed.
    pub relay: Vec<String>,
}

/// Reads them.
///
/// # Panics
/// The file is malformed.
pub fn promises() -> Promises {
    match toml::from_str(include_str!("../promises.toml")) {
        Ok(promises) => promises,
        Err(error) => panic!("promises.toml: {error}"),
    }
}
