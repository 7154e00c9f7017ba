//! The QUIC handshake and packet protection that WireGuard makes needless: a null [`crypto::Session`] (wire.md §1).
//!
//! Four length-prefixed messages travel in CRYPTO frames: hello (our version and transport parameters), accept (the
//! server's version), parameters (the server's) and finished. They follow TLS's shape, because quinn's state machine
//! expects it. Bytes of the peer give errors; they must never panic. Who the peer is, WireGuard has settled: nothing
//! here authenticates anything, and the connection must only be used on a synthetic address that the engine gave.

use std::any::Any;
use std::mem;
use std::sync::Arc;

use bytes::BytesMut;
use quinn_proto::crypto::{
    self, CryptoError, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectError, ConnectionId, Side, TransportError, TransportErrorCode};

/// What both ends speak inside the tunnel: streams, hellos, control messages. Refused by name when it differs.
pub const PROTOCOL_VERSION: u32 = 2;

/// A QUIC version of our own (RFC 9000 §15 leaves them to private use): no other QUIC end is taken for ours.
pub(crate) const QUIC_VERSION: u32 = 0xc1e7_0001;

/// The TLS alert `no_application_protocol`, in the shape of a QUIC error (RFC 9001 §4.8): another protocol version.
pub(crate) const VERSION_ALERT: u8 = 0x78;

/// quinn compares the last 16 bytes of each packet with a reset token before it decrypts, so a packet must never end in
/// bytes of the application: these four stand behind them.
const END: [u8; 4] = *b"clvt";
/// Before them stand the low bits of the packet's number. QUIC writes numbers as short as what is under way permits and
/// leaves it to the AEAD to notice one that was read wrong (RFC 9001 §5.3, RFC 9000 §A.3), as that of a packet is which more
/// than a hundred have overtaken. Acknowledged under the wrong number it would end the connection.
const NUMBER: usize = size_of::<u32>();
const TAG_LEN: usize = NUMBER + END.len();

/// Longer messages are an attack: transport parameters have a few hundred bytes.
const MAX_MESSAGE: usize = 2048;
const PREFIX_LEN: usize = 3;

const HELLO: u8 = 1;
const ACCEPT: u8 = 2;
const PARAMETERS: u8 = 3;
const FINISHED: u8 = 4;

/// Both roles' configuration: it has nothing to configure but the version, which tests change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Null {
    pub(crate) version: u32,
}

impl crypto::ClientConfig for Null {
    fn start_session(
        self: Arc<Self>,
        _version: u32,
        _server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn crypto::Session>, ConnectError> {
        Ok(Box::new(Session::new(Side::Client, self.version, params)))
    }
}

impl crypto::ServerConfig for Null {
    fn initial_keys(&self, version: u32, _: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        if version == QUIC_VERSION { Ok(keys()) } else { Err(UnsupportedVersion) }
    }

    fn retry_tag(&self, _: u32, _: &ConnectionId, _: &[u8]) -> [u8; 16] {
        // Only Retry packets carry it, and this end sends none.
        [0; 16]
    }

    fn start_session(self: Arc<Self>, _version: u32, params: &TransportParameters) -> Box<dyn crypto::Session> {
        Box::new(Session::new(Side::Server, self.version, params))
    }
}

/// Where the exchange stands. `Await*` reads, `Send*` writes; each state does one of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    SendHello,
    AwaitHello,
    AwaitAccept,
    /// The server's accept goes out in the first space …
    SendAccept,
    /// … and its parameters in the second.
    SendParameters,
    /// The client has the accept: its keys for the second space.
    TakeHandshakeKeys,
    AwaitParameters,
    SendFinished,
    AwaitFinished,
    Done,
}

struct Session {
    step: Step,
    side: Side,
    version: u32,
    own: Vec<u8>,
    peer: Option<TransportParameters>,
    /// The start of a message that has not come whole.
    buffer: Vec<u8>,
}

impl Session {
    fn new(side: Side, version: u32, params: &TransportParameters) -> Self {
        let mut own = Vec::new();
        params.write(&mut own);
        let step = if side.is_client() { Step::SendHello } else { Step::AwaitHello };
        Self { step, side, version, own, peer: None, buffer: Vec::new() }
    }

    /// The one message that this step waits for.
    fn awaited(&self) -> Option<u8> {
        match self.step {
            Step::AwaitHello => Some(HELLO),
            Step::AwaitAccept => Some(ACCEPT),
            Step::AwaitParameters => Some(PARAMETERS),
            Step::AwaitFinished => Some(FINISHED),
            Step::SendHello
            | Step::SendAccept
            | Step::SendParameters
            | Step::TakeHandshakeKeys
            | Step::SendFinished
            | Step::Done => None,
        }
    }

    fn handle_message(&mut self, body: &[u8]) -> Result<(), TransportError> {
        match self.step {
            Step::AwaitHello => {
                self.peer = Some(self.read_parameters(self.check_version(body)?)?);
                self.step = Step::SendAccept;
            }
            Step::AwaitAccept => {
                if !self.check_version(body)?.is_empty() {
                    return Err(violation("the accept is too long"));
                }
                self.step = Step::TakeHandshakeKeys;
            }
            Step::AwaitParameters => {
                self.peer = Some(self.read_parameters(body)?);
                self.step = Step::SendFinished;
            }
            Step::AwaitFinished => {
                if !body.is_empty() {
                    return Err(violation("the finish is not empty"));
                }
                self.step = Step::Done;
            }
            Step::SendHello | Step::SendAccept | Step::SendParameters => return Err(violation("unexpected message")),
            Step::TakeHandshakeKeys | Step::SendFinished | Step::Done => return Err(violation("unexpected message")),
        }
        Ok(())
    }

    fn check_version<'a>(&self, body: &'a [u8]) -> Result<&'a [u8], TransportError> {
        let (version, rest) = body.split_first_chunk().ok_or_else(|| violation("the version is missing"))?;
        let theirs = u32::from_be_bytes(*version);
        if theirs == self.version {
            return Ok(rest);
        }
        let ours = self.version;
        Err(TransportError {
            code: TransportErrorCode::crypto(VERSION_ALERT),
            frame: None,
            reason: format!("culvert protocol version {theirs} met version {ours}"),
        })
    }

    fn read_parameters(&self, mut body: &[u8]) -> Result<TransportParameters, TransportError> {
        Ok(TransportParameters::read(self.side, &mut body)?)
    }
}

impl crypto::Session for Session {
    fn initial_keys(&self, _: &ConnectionId, _: Side) -> Keys {
        keys()
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        self.step != Step::Done
    }

    fn read_handshake(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        self.buffer.extend_from_slice(bytes);
        let Some(awaited) = self.awaited() else { return Err(violation("unexpected handshake data")) };
        let Some((&[kind, high, low], rest)) = self.buffer.split_first_chunk::<PREFIX_LEN>() else { return Ok(false) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if kind != awaited || length > MAX_MESSAGE || rest.len() > length {
            return Err(violation("unexpected handshake message"));
        }
        if rest.len() == length {
            let whole = mem::take(&mut self.buffer);
            self.handle_message(whole.get(PREFIX_LEN..).unwrap_or_default())?;
        }
        Ok(false)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        Ok(self.peer)
    }

    fn write_handshake(&mut self, out: &mut Vec<u8>) -> Option<Keys> {
        let version = self.version.to_be_bytes();
        match self.step {
            Step::SendHello => {
                write_message(HELLO, &version, &self.own, out);
                self.step = Step::AwaitAccept;
                None
            }
            Step::SendAccept => {
                write_message(ACCEPT, &version, &[], out);
                self.step = Step::SendParameters;
                Some(keys())
            }
            Step::SendParameters => {
                write_message(PARAMETERS, &[], &self.own, out);
                self.step = Step::AwaitFinished;
                Some(keys())
            }
            Step::TakeHandshakeKeys => {
                self.step = Step::AwaitParameters;
                Some(keys())
            }
            Step::SendFinished => {
                write_message(FINISHED, &[], &[], out);
                self.step = Step::Done;
                Some(keys())
            }
            Step::AwaitHello | Step::AwaitAccept | Step::AwaitParameters | Step::AwaitFinished | Step::Done => None,
        }
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        Some(keys().packet)
    }

    fn is_valid_retry(&self, _: &ConnectionId, _: &[u8], _: &[u8]) -> bool {
        false
    }

    fn export_keying_material(&self, _: &mut [u8], _: &[u8], _: &[u8]) -> Result<(), ExportKeyingMaterialError> {
        Err(ExportKeyingMaterialError)
    }
}

fn write_message(kind: u8, head: &[u8], body: &[u8], out: &mut Vec<u8>) {
    let length = u16::try_from(head.len() + body.len()).unwrap_or(u16::MAX);
    out.push(kind);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(head);
    out.extend_from_slice(body);
}

fn violation(reason: &str) -> TransportError {
    TransportError { code: TransportErrorCode::PROTOCOL_VIOLATION, frame: None, reason: reason.to_owned() }
}

fn keys() -> Keys {
    Keys {
        header: KeyPair { local: Box::new(NoHeaderKey), remote: Box::new(NoHeaderKey) },
        packet: KeyPair { local: Box::new(TagKey), remote: Box::new(TagKey) },
    }
}

/// Headers stay as they are.
struct NoHeaderKey;

impl HeaderKey for NoHeaderKey {
    fn decrypt(&self, _: usize, _: &mut [u8]) {}

    fn encrypt(&self, _: usize, _: &mut [u8]) {}

    fn sample_size(&self) -> usize {
        0
    }
}

/// Payloads stay as they are; behind them the packet's number and [`END`].
struct TagKey;

impl TagKey {
    fn tag(packet: u64) -> [u8; TAG_LEN] {
        let [.., a, b, c, d] = packet.to_be_bytes();
        let [e, f, g, h] = END;
        [a, b, c, d, e, f, g, h]
    }
}

impl PacketKey for TagKey {
    fn encrypt(&self, packet: u64, bytes: &mut [u8], _: usize) {
        if let Some(end) = bytes.last_chunk_mut() {
            *end = Self::tag(packet);
        }
    }

    fn decrypt(&self, packet: u64, _: &[u8], payload: &mut BytesMut) -> Result<(), CryptoError> {
        let Some((body, _)) = payload.split_last_chunk().filter(|(_, end)| **end == Self::tag(packet)) else {
            return Err(CryptoError);
        };
        let length = body.len();
        payload.truncate(length);
        Ok(())
    }

    fn tag_len(&self) -> usize {
        TAG_LEN
    }

    fn confidentiality_limit(&self) -> u64 {
        u64::MAX
    }

    fn integrity_limit(&self) -> u64 {
        u64::MAX
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Instant;

    use proptest::prelude::*;
    use quinn_proto::crypto::Session as _;
    use quinn_proto::{ClientConfig, Endpoint, EndpointConfig};

    use super::*;

    /// Transport parameters as quinn makes them.
    fn parameters() -> TransportParameters {
        struct Catch(std::sync::Mutex<Option<TransportParameters>>);
        impl crypto::ClientConfig for Catch {
            fn start_session(
                self: Arc<Self>,
                _: u32,
                _: &str,
                params: &TransportParameters,
            ) -> Result<Box<dyn crypto::Session>, ConnectError> {
                *self.0.lock().unwrap() = Some(*params);
                Ok(Box::new(Session::new(Side::Client, PROTOCOL_VERSION, params)))
            }
        }
        let mut config = EndpointConfig::default();
        config.supported_versions(vec![QUIC_VERSION]);
        let mut endpoint = Endpoint::new(Arc::new(config), None, true, None);
        let catch = Arc::new(Catch(std::sync::Mutex::new(None)));
        let mut client = ClientConfig::new(catch.clone());
        client.version(QUIC_VERSION);
        let remote: SocketAddr = "[100::1]:1".parse().unwrap();
        endpoint.connect(Instant::now(), client, remote, "peer").unwrap();
        catch.0.lock().unwrap().take().unwrap()
    }

    fn session(side: Side, version: u32) -> Session {
        Session::new(side, version, &parameters())
    }

    /// Hands what one end writes in one space to the other, `step` bytes at a time.
    fn pass(from: &mut Session, to: &mut Session, step: usize) -> Result<bool, TransportError> {
        let mut bytes = Vec::new();
        let keys = from.write_handshake(&mut bytes);
        for chunk in bytes.chunks(step) {
            to.read_handshake(chunk)?;
        }
        Ok(keys.is_some())
    }

    #[test]
    fn both_ends_finish_however_the_bytes_are_cut() {
        for step in [1, 2, 3, 7, 4096] {
            let (mut client, mut server) =
                (session(Side::Client, PROTOCOL_VERSION), session(Side::Server, PROTOCOL_VERSION));
            assert!(!pass(&mut client, &mut server, step).unwrap());
            assert!(server.transport_parameters().unwrap().is_some(), "known before the keys change");
            assert!(pass(&mut server, &mut client, step).unwrap());
            assert!(pass(&mut client, &mut server, step).unwrap());
            assert!(pass(&mut server, &mut client, step).unwrap());
            assert!(client.transport_parameters().unwrap().is_some());
            assert!(pass(&mut client, &mut server, step).unwrap());
            assert!(!client.is_handshaking() && !server.is_handshaking());
            assert!(!pass(&mut server, &mut client, step).unwrap(), "no keys beyond the last");
            assert!(server.next_1rtt_keys().is_some());
        }
    }

    #[test]
    fn another_protocol_version_is_refused_by_name() {
        let (mut client, mut server) = (session(Side::Client, 7), session(Side::Server, PROTOCOL_VERSION));
        let refusal = pass(&mut client, &mut server, 4096).unwrap_err();
        assert_eq!(refusal.code, TransportErrorCode::crypto(VERSION_ALERT));
        let met = format!("version 7 met version {PROTOCOL_VERSION}");
        assert!(refusal.reason.contains(&met), "{}", refusal.reason);
    }

    #[test]
    fn a_packet_never_ends_in_bytes_of_the_application() {
        let mut packet = b"header, payload, token-shaped end________".to_vec();
        TagKey.encrypt(0x1_0203_0405, &mut packet, 6);
        assert!(packet.ends_with(b"end\x02\x03\x04\x05clvt"));
        let mut payload = BytesMut::from(&packet[6..]);
        TagKey.decrypt(0x1_0203_0405, &packet[..6], &mut payload).unwrap();
        assert_eq!(payload.len(), packet.len() - 6 - TAG_LEN);
        assert!(TagKey.decrypt(0x1_0203_0505, &packet[..6], &mut BytesMut::from(&packet[6..])).is_err());
        for short in [&b""[..], b"lvt", b"\0\0\0\0clvx", b"\0\0\0clvt"] {
            assert!(TagKey.decrypt(0, b"", &mut BytesMut::from(short)).is_err());
        }
    }

    #[test]
    fn a_retry_is_never_valid() {
        assert!(!session(Side::Client, 1).is_valid_retry(&ConnectionId::new(&[1; 8]), &[0; 8], &[0; 16]));
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_step_give_an_error_and_no_panic(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..8),
            kind in 0_u8..6,
            server: bool,
            writes in 0_usize..3,
        ) {
            let mut session = session(if server { Side::Server } else { Side::Client }, PROTOCOL_VERSION);
            for _ in 0..writes {
                session.write_handshake(&mut Vec::new());
            }
            let _ = session.read_handshake(&[kind]);
            for chunk in &chunks {
                if session.read_handshake(chunk).is_err() {
                    break;
                }
                session.write_handshake(&mut Vec::new());
            }
            prop_assert!(session.buffer.len() <= PREFIX_LEN + MAX_MESSAGE + 64);
        }
    }
}
