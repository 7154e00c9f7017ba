//! The programs, and an origin that logs what comes.
//!
//! Must never forget a request that came late.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use culvert_http_tests::logged::{Fact, serve};
use culvert_http_tests::wire::Wire;
use culvert_lab::{Connector, Relay};
use tokio::net::TcpListener;

pub(crate) struct Site {
    pub(crate) relay: Relay,
    _connector: Connector,
    log: Arc<Mutex<Vec<Fact>>>,
    probes: std::sync::atomic::AtomicUsize,
}

impl Site {
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let at = listener.local_addr()?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let facts = Arc::clone(&log);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&facts)));
            }
        });
        let mut relay = Relay::new()?;
        relay.start().await?;
        let token = relay.tunnel("corpus", &["orders", "other"]).await?;
        let mut connector = Connector::new(&token, &[])?;
        let service =
            |name: &str| format!("[[service]]\nname = \"{name}\"\norigin = \"http://{at}\"\nhost = \"preserve\"\n");
        connector.config(&format!("{}{}", service("orders"), service("other")))?;
        connector.start().await?;
        relay.up("orders").await?;
        relay.up("other").await?;
        Ok(Self { relay, _connector: connector, log, probes: 0.into() })
    }

    /// Where callers call.
    pub(crate) fn front(&self) -> SocketAddr {
        self.relay.http
    }

    /// What came to the origin since the last time, after a request that came after everything else.
    pub(crate) async fn facts(&self) -> Result<Vec<Fact>> {
        let number = self.probes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = format!("/probe/{number}");
        let mut wire = Wire::connect(self.front()).await?;
        wire.write(format!("GET {path} HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n").as_bytes()).await?;
        let head = wire.head().await?.context("the probe was not answered")?;
        ensure!(head.status()? == 200, "the probe was answered {}", head.status()?);
        let mut facts = std::mem::take(&mut *self.log());
        let is_probe = |fact: &Fact| matches!(fact, Fact::Whole(seen) if seen.target == path);
        let at = facts.iter().position(is_probe).context("the probe did not come")?;
        facts.remove(at);
        Ok(facts)
    }

    /// Nothing came that no entry asked for.
    pub(crate) fn no_strangers(&self) -> Result<()> {
        let left = self.log();
        ensure!(left.is_empty(), "came to the origin late: {left:?}");
        Ok(())
    }

    fn log(&self) -> std::sync::MutexGuard<'_, Vec<Fact>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
