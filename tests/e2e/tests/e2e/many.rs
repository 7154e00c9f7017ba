//! Many connectors at the same instant with one token.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use culvert_connector::config::{self, Given};
use culvert_connector::identity::Store;
use culvert_lab::{Connector, Origin, Relay, wait};
use culvert_model::token::Token;
use culvert_ops::drain::Drain;

/// More than may be joining at a time: places have to come free as soon as somebody is in.
const IN_ONE_PROCESS: usize = 300;
const PROCESSES: usize = 10;

#[tokio::test]
async fn three_hundred_connectors_and_ten_processes_join_with_one_token_within_20_seconds() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    let origin = Origin::start("orders").await?;
    let token = relay.tunnel("main", &["orders"]).await?;
    let service = format!("orders={}", origin.url());

    let start = Instant::now();
    let (stop, crowd) = crowd(&service, &token)?;
    let mut connectors = Vec::new();
    for _ in 0..PROCESSES {
        let mut connector = Connector::new(&token, &[&service])?;
        connector.launch()?;
        connectors.push(connector);
    }
    let all = (IN_ONE_PROCESS + PROCESSES) as u64;
    if let Err(error) = relay.pairs_up("orders", all).await {
        let metrics = relay.ask("/metrics").await?.text();
        let told: Vec<&str> = metrics.lines().filter(|line| !line.starts_with('#') && !line.ends_with(" 0")).collect();
        let told: Vec<&&str> = told.iter().filter(|line| !line.contains("con_")).collect();
        anyhow::bail!("{error:.300}\n{told:#?}\n{:?}", relay.usage()?);
    }
    let took = start.elapsed();
    eprintln!("{all} connectors were up after {took:.2?}");
    assert!(took < Duration::from_secs(20), "{took:?}");

    // Each has an id, a key and an inner address of its own, and load spreads over them.
    let listed = relay.json(&["connector", "list"]).await?;
    let listed = listed.as_array().context("an array")?;
    for field in ["id", "public_key", "inner_address"] {
        let values: BTreeSet<&str> = listed.iter().filter_map(|one| one[field].as_str()).collect();
        assert_eq!(values.len() as u64, all, "{field}");
    }
    for _ in 0..300 {
        assert_eq!(relay.get("orders", "/").await?.status, 200);
    }
    let tokens = relay.json(&["token", "list"]).await?;
    assert!(tokens[0]["uses_left"].is_null(), "unlimited: {tokens}");

    // All in one process go at once, and the relay knows it.
    let _ = stop.send(());
    crowd.join().ok().context("the crowd's thread panicked")??;
    relay.pairs_up("orders", PROCESSES as u64).await?;
    wait::until("the relay's view", Duration::from_secs(10), || async {
        (relay.get("orders", "/").await.ok()?.status == 200).then_some(())
    })
    .await
}

type Crowd = std::thread::JoinHandle<Result<()>>;

/// Ephemeral connectors on one thread of this process, each with sockets of its own.
fn crowd(service: &str, token: &str) -> Result<(tokio::sync::oneshot::Sender<()>, Crowd)> {
    let empty = tempfile::NamedTempFile::new()?;
    let nowhere = BTreeMap::new();
    let given = Given {
        config: Some(empty.path().to_path_buf()),
        services: vec![service.to_owned()],
        ephemeral: true,
        ..Given::default()
    };
    let settled = config::settle(&config::load(&given, &nowhere)?, &nowhere)?;
    let token: Token = token.parse()?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(tokio::task::LocalSet::new().run_until(async move {
            let drain = Drain::new();
            let mut connectors = tokio::task::JoinSet::new();
            for _ in 0..IN_ONE_PROCESS {
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
            let _ = stopped.await;
            drain.stop();
            while let Some(ended) = connectors.join_next().await {
                ended?.map_err(|quit| anyhow::anyhow!("a connector ended: {quit:?}"))?;
            }
            Ok(())
        }))
    });
    Ok((stop, thread))
}
