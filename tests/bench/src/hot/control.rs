//! Control messages: the smallest, which both ends exchange all the time, and what a connector says when it comes.

use anyhow::{Context as _, Result, ensure};
use culvert_model::control::{self, Announce, AnnouncedService, Health, ServiceTimeouts, ToRelay};

/// Both messages, ready to be written and read.
pub struct Control {
    announce: ToRelay,
    bytes: Vec<u8>,
}

impl Control {
    /// An announcement of that many services.
    ///
    /// # Errors
    /// None in practice.
    pub fn of(services: usize) -> Result<Self> {
        let services = (0..services).map(|number| {
            Ok(AnnouncedService {
                name: format!("orders-{number}").parse()?,
                health: Health { up: true, reason: None },
                balance: None,
                timeouts: ServiceTimeouts::default(),
                tcp: false,
                managed: false,
            })
        });
        let announce = Announce {
            version: control::VERSION,
            program: "0.1.0".to_owned(),
            name: None,
            services: services.collect::<Result<_>>()?,
        };
        Ok(Self { announce: ToRelay::Announce(announce), bytes: Vec::new() })
    }

    /// Writes and reads a ping.
    ///
    /// # Errors
    /// It came out as something else.
    pub fn ping_one(&mut self, id: u64) -> Result<()> {
        self.pass(&ToRelay::Ping { id })
    }

    /// Writes and reads the announcement.
    ///
    /// # Errors
    /// It came out as something else.
    pub fn announce_one(&mut self) -> Result<()> {
        let announce = self.announce.clone();
        self.pass(&announce)
    }

    fn pass(&mut self, message: &ToRelay) -> Result<()> {
        self.bytes.clear();
        control::encode(message, &mut self.bytes)?;
        let (read, length) = control::decode::<ToRelay>(&self.bytes)?.context("half a message")?;
        ensure!(length == self.bytes.len() && &read == message, "it came out as something else");
        Ok(())
    }
}
