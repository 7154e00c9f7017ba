//! End to end on loopback, without root: the real binaries, real sockets, one relay and address for each test.

mod activation;
mod audit;
mod backup;
mod bad_input;
mod callers;
mod clones;
mod clouds;
mod confined;
mod day;
mod deploy;
mod dev;
mod failures;
mod gateways;
mod grants;
mod grpc;
mod health;
mod issuer;
mod joining;
mod lanes;
mod limits;
mod listeners;
mod long_answers;
mod main_path;
mod managed;
mod many;
mod origin_examples;
mod origins;
mod promises;
mod proof;
mod reasons;
mod redemptions;
mod relay_key;
mod replaced;
mod replicas;
mod restart;
mod revoked;
mod rotation;
mod secrets;
mod settings;
mod shards;
mod signatures;
mod silence;
mod slow_callers;
mod state_directory;
mod streams;
mod tcp;
mod two_relays;

use anyhow::Result;
use culvert_lab::{Connector, Origin, Relay};

/// A relay, one origin, one connector that serves it as `orders`, all up.
struct Setup {
    relay: Relay,
    connector: Connector,
    origin: Origin,
    token: String,
}

impl Setup {
    async fn new() -> Result<Self> {
        let mut relay = Relay::new()?;
        relay.start().await?;
        Self::behind(relay).await
    }

    async fn behind(relay: Relay) -> Result<Self> {
        let origin = Origin::start("orders").await?;
        let token = relay.tunnel("main", &["orders"]).await?;
        let mut connector = Connector::new(&token, &[&format!("orders={}", origin.url())])?;
        connector.start().await?;
        relay.up("orders").await?;
        Ok(Self { relay, connector, origin, token })
    }
}
