//! How QUIC is set up for a tunnel: nothing of the open Internet's caution is needed, some of its limits are.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hkdf::Hkdf;
use quinn_proto::{
    ClientConfig, EndpointConfig, HashedConnectionIdGenerator, MtuDiscoveryConfig, NoneTokenStore, ServerConfig,
    TransportConfig, VarInt,
};
use sha2::Sha256;

use crate::congestion::SharesConfig;
use crate::crypto::{Null, QUIC_VERSION};
use crate::plane::StreamLimits;
use crate::wrap;

/// The MTU of the network between the two hosts that DPLPMTUD may reach. Jumbo frames would raise it.
const OUTER_MTU: usize = 1500;
/// WireGuard's data header and tag.
const WIREGUARD_LEN: usize = 32;
/// WireGuard pads inner packets to a multiple of this.
const PADDING: usize = 16;

/// A dead peer that nothing else noticed. The ping on the control stream decides long before.
const MAX_IDLE: Duration = Duration::from_secs(15);
/// Before the first sample; the hello has just gone both ways within about this.
const INITIAL_RTT: Duration = Duration::from_millis(50);
/// How far packets may overtake each other: several paths and queues lie below.
const PACKET_THRESHOLD: u32 = 6;
/// One page of an API answer in the first round trip: a tunnel carries many exchanges and starts seldom.
const INITIAL_WINDOW: u64 = 32 * 1200;
/// Bytes of all streams of one connection that are sent or wait, unacknowledged.
const SEND_WINDOW: u64 = 8 << 20;
/// Incoming handshakes that wait to be looked at; they are looked at in the same turn.
const MAX_INCOMING: usize = 64;
const INCOMING_BUFFER: u64 = 4 * 1024;
const INCOMING_BUFFER_TOTAL: u64 = 64 * 1024;

/// Both ends' QUIC configuration of one shard.
#[derive(Debug)]
pub(crate) struct Settings {
    client: [ClientConfig; 2],
    server: [Arc<ServerConfig>; 2],
}

impl Settings {
    pub(crate) fn new(limits: &StreamLimits, version: u32) -> Self {
        let null = Arc::new(Null { version });
        let client = |outer_header| {
            let mut config = ClientConfig::new(null.clone());
            config.transport_config(Arc::new(transport(limits, outer_header)));
            config.version(QUIC_VERSION);
            config.token_store(Arc::new(NoneTokenStore));
            config
        };
        let server = |outer_header| {
            let mut config = ServerConfig::with_crypto(null.clone());
            config.transport_config(Arc::new(transport(limits, outer_header)));
            // The remote address is the only authenticator: it must never change under a connection (wire.md §1).
            config.migration(false);
            config.max_incoming(MAX_INCOMING);
            config.incoming_buffer_size(INCOMING_BUFFER);
            config.incoming_buffer_size_total(INCOMING_BUFFER_TOTAL);
            config.validation_token_config({
                let mut tokens = quinn_proto::ValidationTokenConfig::default();
                tokens.sent(0);
                tokens
            });
            Arc::new(config)
        };
        let headers = [IPV4_HEADERS, IPV6_HEADERS];
        Self { client: headers.map(client), server: headers.map(server) }
    }

    /// For dialling a peer that is at `outer`.
    pub(crate) fn client(&self, outer: IpAddr) -> ClientConfig {
        let [v4, v6] = &self.client;
        if outer.to_canonical().is_ipv4() { v4.clone() } else { v6.clone() }
    }

    /// For accepting a peer that is at `outer`.
    pub(crate) fn server(&self, outer: IpAddr) -> Arc<ServerConfig> {
        let [v4, v6] = &self.server;
        if outer.to_canonical().is_ipv4() { v4.clone() } else { v6.clone() }
    }

    /// For an endpoint that accepts.
    pub(crate) fn any_server(&self) -> Arc<ServerConfig> {
        let [v4, _] = &self.server;
        v4.clone()
    }
}

const IPV4_HEADERS: usize = 20 + 8;
const IPV6_HEADERS: usize = 40 + 8;

/// Connection ids and reset tokens by `secret`: after a restart this end still answers packets of its old connections
/// with resets that their peers believe (wire.md §2).
pub(crate) fn endpoint(secret: &[u8; 32]) -> EndpointConfig {
    let hkdf = Hkdf::<Sha256>::new(Some(b"culvert quic v1"), secret);
    let (mut reset, mut ids) = ([0; 32], [0; 8]);
    // Lengths that HKDF-SHA256 always has; a zero key would only make resets and ids of no use.
    let _ = hkdf.expand(b"stateless reset", &mut reset);
    let _ = hkdf.expand(b"connection id", &mut ids);
    let ids = u64::from_be_bytes(ids);
    let mut config = EndpointConfig::new(Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &reset)));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    config.supported_versions(vec![QUIC_VERSION]);
    config.grease_quic_bit(false);
    config.min_reset_interval(Duration::ZERO);
    config
}

/// The largest QUIC datagram for which the outer packet, with `outer_header` bytes of IP and UDP, fits [`OUTER_MTU`].
const fn largest_datagram(outer_header: usize) -> usize {
    let inner = (OUTER_MTU - outer_header - WIREGUARD_LEN) / PADDING * PADDING;
    inner - wrap::OVERHEAD
}

fn transport(limits: &StreamLimits, outer_header: usize) -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(u16::try_from(largest_datagram(outer_header)).unwrap_or(u16::MAX));
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(limits.incoming.into())
        .max_concurrent_uni_streams(0_u32.into())
        .stream_receive_window(limits.window.into())
        // Shared by all streams: a few that nobody reads would stop the rest (wire.md §1).
        .receive_window(VarInt::MAX)
        .send_window(SEND_WINDOW)
        // Streams take turns packet by packet: a transfer that always has data would keep every other request waiting.
        .send_fairness(true)
        .packet_threshold(PACKET_THRESHOLD)
        .initial_rtt(INITIAL_RTT)
        .max_idle_timeout(MAX_IDLE.try_into().ok())
        .keep_alive_interval(None)
        .mtu_discovery_config(Some(mtu))
        .crypto_buffer_size(4096)
        .allow_spin(false)
        .datagram_receive_buffer_size(None)
        .congestion_controller_factory(Arc::new(SharesConfig { initial_window: INITIAL_WINDOW }));
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_datagram_fills_a_1500_byte_path_and_no_more() {
        for (header, largest) in [(IPV4_HEADERS, 1392), (IPV6_HEADERS, 1360)] {
            assert_eq!(largest_datagram(header), largest);
            let outer =
                |datagram: usize| header + WIREGUARD_LEN + (datagram + wrap::OVERHEAD).next_multiple_of(PADDING);
            assert!(outer(largest) <= OUTER_MTU);
            assert!(outer(largest + 1) > OUTER_MTU);
        }
    }

    #[test]
    fn full_size_packets_are_as_long_as_the_wire_page_says() {
        let sealed = (1200 + wrap::OVERHEAD).next_multiple_of(PADDING) + WIREGUARD_LEN;
        assert_eq!((sealed + IPV4_HEADERS, sealed + IPV6_HEADERS), (1308, 1328));
    }
}
