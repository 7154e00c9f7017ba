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

/// Where the token comes from.
pub(crate) const TOKEN: &str = "CULVERT_BENCH_TOKEN";

/// Runs `count` connectors of `service` until standard input ends.
pub(crate) fn run(count: usize, service: &str) -> Result<()> {
    // Two descriptors each, and some; as far as this process may.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("read the limit of descriptors")?;
    setrlimit(Resource::RLIMIT_NOFILE, (count as u64 * 8).clamp(4096.min(most), most), most)
        .context("raise the limit of descriptors")?;
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
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = stop.send(());
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tokio::task::LocalSet::new().run_until(async move {
        let drain = Drain::new();
        let mut connectors = tokio::task::JoinSet::new();
        for _ in 0..count {
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
        tokio::select! {
            // Told to stop: the process goes, and its connectors with it.
            _ = stopped => Ok(()),
            ended = connectors.join_next() => Err(anyhow!("a connector ended: {ended:?}")),
        }
    }))
}
