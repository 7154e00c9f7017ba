//! Many connectors in one process: the connector's own library, each with its own identity, socket and tunnel.
//!
//! A process of its own (`culvert-bench crowd`), so that what the connectors take is not the benchmark's.

use std::collections::BTreeMap;
use std::io::Read as _;

use anyhow::{Context as _, Result, anyhow};
use culvert_connector::config::{self, Given};
use culvert_connector::identity::Store;
use culvert_model::token::Token;
use culvert_ops::drain::Drain;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::setuid;

/// Where the token comes from.
pub(crate) const TOKEN: &str = "CULVERT_BENCH_TOKEN";

/// Starts one connector of `service` for each byte of standard input, and runs them until it ends, as user `user`: by it
/// the private side's routes tell the processes apart and give each an address of its own.
pub(crate) fn run(service: &str, user: Option<u32>) -> Result<()> {
    // Two descriptors each, and some.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("read the limit of descriptors")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raise the limit of descriptors")?;
    if let Some(user) = user {
        setuid(user.into()).context("become the user of this process's address")?;
    }
    let token: Token = std::env::var(TOKEN).context(TOKEN)?.parse()?;
    let empty = tempfile::NamedTempFile::new()?;
    let nowhere = BTreeMap::new();
    let given = Given {
        config: Some(empty.path().to_path_buf()),
        services: vec![service.to_owned()],
        ephemeral: true,
        ..Given::default()
    };
    let settled = config::settle(&config::load(&given, &nowhere)?, &nowhere)?;
    let (ask, mut asked) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for byte in std::io::stdin().lock().bytes() {
            if byte.is_err() || ask.send(()).is_err() {
                break;
            }
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tokio::task::LocalSet::new().run_until(async move {
        let drain = Drain::new();
        let mut connectors = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                more = asked.recv() => if more.is_none() {
                    // Told to stop: the process goes, and its connectors with it.
                    return Ok(());
                },
                Some(ended) = connectors.join_next() => return Err(anyhow!("a connector ended: {ended:?}")),
            }
            let start = culvert_connector::Start {
                settled: settled.clone(),
                token: Some(token.clone()),
                store: Store::Memory,
                socket: None,
                serve_admin: false,
                source: None,
                reloads: None,
                notifier: None,
            };
            connectors.spawn_local(culvert_connector::run(start, drain.clone()));
        }
    }))
}
