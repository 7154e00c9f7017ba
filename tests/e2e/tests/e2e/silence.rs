//! The UDP port says nothing to whoever holds no key, and what was recorded cannot be played again.

use std::time::Duration;

use anyhow::{Context as _, Result};
use culvert_lab::udp::{Forwarder, probe};
use culvert_lab::{Connector, Origin, Relay, address};

/// Bytes that look random and are the same in every run.
fn junk(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(length)
    .collect()
}

fn typed(kind: u8, length: usize, seed: u64) -> Vec<u8> {
    let mut datagram = junk(length, seed);
    for (place, byte) in [kind, 0, 0, 0].into_iter().enumerate() {
        if let Some(slot) = datagram.get_mut(place) {
            *slot = byte;
        }
    }
    datagram
}

#[tokio::test]
async fn garbage_gets_no_answer_and_costs_next_to_nothing() -> Result<()> {
    let setup = crate::Setup::new().await?;
    let mut datagrams = vec![Vec::new(), vec![0], vec![1, 0, 0, 0]];
    for seed in 1..50 {
        // Right types and lengths of the protocol, wrong content; and every wrong length.
        datagrams.extend([typed(1, 148, seed), typed(2, 92, seed), typed(3, 64, seed), typed(4, 32, seed)]);
        datagrams.extend([typed(4, 1452, seed), typed(1, 147, seed), typed(9, 148, seed), junk(1 + 29 * 50, seed)]);
    }
    let answers = probe(setup.relay.wireguard, &datagrams, Duration::from_millis(500)).await?;
    assert_eq!(answers, 0);

    let before = setup.relay.usage()?;
    let many: Vec<Vec<u8>> = (0..20_000).map(|seed| typed(1, 148, seed)).collect();
    probe(setup.relay.wireguard, &many, Duration::from_millis(200)).await?;
    let after = setup.relay.usage()?;
    let each = (after.cpu.saturating_sub(before.cpu)) / 20_000;
    // A debug build checks mac1 in some 20 µs; one X25519 costs it half a millisecond.
    assert!(each < Duration::from_micros(150), "{each:?} for each junk initiation");
    assert!(after.rss_bytes < before.rss_bytes + (8 << 20), "{before:?} → {after:?}");
    assert_eq!(setup.relay.get("orders", "/").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_replayed_initiation_even_eight_in_a_row_gets_no_answer_and_harms_no_session() -> Result<()> {
    let origin = Origin::start("orders").await?;
    let mut relay = Relay::new()?;
    let forwarder = Forwarder::start(address::own_loopback(), relay.wireguard).await?;
    relay.endpoint = forwarder.address().to_string();
    relay.start().await?;
    let token = relay.tunnel("main", &["orders"]).await?;
    let mut connector = Connector::new(&token, &[&format!("orders={}", origin.url())])?;
    connector.start().await?;
    relay.up("orders").await?;
    let recorded = forwarder.recorded();
    let is_initiation = |datagram: &&Vec<u8>| datagram.len() == 148 && datagram.first() == Some(&1);
    let initiations: Vec<Vec<u8>> = recorded.iter().filter(is_initiation).cloned().collect();
    assert!(initiations.len() >= 2, "one as its token, one as itself: {}", initiations.len());
    let last = initiations.last().context("none")?;
    let answers = probe(relay.wireguard, &vec![last.clone(); 8], Duration::from_millis(500)).await?;
    assert_eq!(answers, 0, "a replayed initiation was answered");
    // Everything else it ever sent, from another address: nothing moves.
    let rest: Vec<Vec<u8>> = recorded.into_iter().filter(|datagram| datagram.first() != Some(&1)).collect();
    assert_eq!(probe(relay.wireguard, &rest, Duration::from_millis(300)).await?, 0);
    assert_eq!(relay.get("orders", "/").await?.status, 200);
    let listed = relay.json(&["connector", "list"]).await?;
    assert_eq!(listed[0]["state"], "up");
    Ok(())
}

#[tokio::test]
async fn a_nat_that_forgets_its_ports_under_load_costs_no_request() -> Result<()> {
    let origin = Origin::start("orders").await?;
    let mut relay = Relay::new()?;
    let forwarder = Forwarder::start(address::own_loopback(), relay.wireguard).await?;
    relay.endpoint = forwarder.address().to_string();
    relay.start().await?;
    let token = relay.tunnel("main", &["orders"]).await?;
    let mut connector = Connector::new(&token, &[&format!("orders={}", origin.url())])?;
    connector.start().await?;
    relay.up("orders").await?;
    let load = culvert_lab::load::Plan::gets(relay.http, "orders").start();
    for round in 1..=3 {
        culvert_lab::wait::until("requests", Duration::from_secs(15), || async {
            (origin.requests("/") > round * 50).then_some(())
        })
        .await?;
        forwarder.rebind();
    }
    culvert_lab::wait::until("requests", Duration::from_secs(15), || async {
        (origin.requests("/") > 250).then_some(())
    })
    .await?;
    load.finish().await?.all_well(200)
}
