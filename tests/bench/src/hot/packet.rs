//! Inner packets around a datagram of QUIC, whole and in two halves.

use std::net::Ipv6Addr;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use culvert_engine::{Config, Engine, HandshakeLimits, PeerConfig, PeerId, Shard};
use culvert_model::key::PrivateKey;

use crate::fragment::{self, Reassembly};
use crate::wrap::{self, Addresses, NEXT_FRAGMENT};

/// A sender and a receiver of inner packets, with their buffers.
pub struct Packets {
    peer: PeerId,
    addresses: Addresses,
    payload: Vec<u8>,
    packet: Vec<u8>,
    halves: [Vec<u8>; 2],
    whole: Vec<u8>,
    reassembly: Reassembly,
    now: Instant,
    next: u32,
}

impl Packets {
    /// For payloads of that length.
    ///
    /// # Errors
    /// No engine gave a peer's name.
    pub fn of(length: usize) -> Result<Self> {
        let now = Instant::now();
        let config = Config {
            statics: vec![PrivateKey::from_bytes([1; 32])],
            shard: Shard::default(),
            handshakes: HandshakeLimits::default(),
            seed: Some(1),
        };
        let peer = PeerConfig {
            public_key: PrivateKey::from_bytes([2; 32]).public_key(),
            static_index: 0,
            psks: Vec::new(),
            allowed_ips: Vec::new(),
            path: None,
            persistent_keepalive: None,
        };
        let address = |last: u16| Ipv6Addr::new(0xfd43, 0x554c, 0x5645, 0, 0, 0, 0, last);
        Ok(Self {
            peer: Engine::new(config, now).add_peer(peer, now)?,
            addresses: Addresses { source: address(1), destination: address(2) },
            payload: vec![0x55; length],
            packet: Vec::new(),
            halves: [Vec::new(), Vec::new()],
            whole: Vec::new(),
            reassembly: Reassembly::default(),
            now,
            next: 0,
        })
    }

    /// Wraps the payload and opens it again.
    ///
    /// # Errors
    /// It did not come out.
    pub fn wrap_one(&mut self) -> Result<()> {
        self.packet.clear();
        ensure!(wrap::write_udp(&self.addresses, wrap::QUIC_PORT, &self.payload, &mut self.packet), "too long");
        let opened = wrap::open(&self.packet).context("no packet")?;
        let (_, payload) = wrap::open_udp(opened.body).context("no datagram")?;
        ensure!(payload.len() == self.payload.len(), "{} bytes", payload.len());
        Ok(())
    }

    /// Wraps the payload, splits the packet and puts it together again.
    ///
    /// # Errors
    /// It did not come out.
    pub fn split_one(&mut self) -> Result<()> {
        self.packet.clear();
        self.next = self.next.wrapping_add(1);
        ensure!(wrap::write_udp(&self.addresses, wrap::QUIC_PORT, &self.payload, &mut self.packet), "too long");
        let [first, second] = &mut self.halves;
        first.clear();
        second.clear();
        self.whole.clear();
        ensure!(fragment::split(&self.packet, self.next, first, second), "not split");
        let mut is_whole = false;
        for half in [&*first, &*second] {
            let opened = wrap::open(half).context("no half")?;
            ensure!(opened.next == NEXT_FRAGMENT, "no fragment");
            is_whole =
                self.reassembly.handle_fragment(self.peer, &opened.addresses, opened.body, self.now, &mut self.whole);
        }
        ensure!(is_whole && self.whole == self.packet, "it came out as something else");
        Ok(())
    }
}
