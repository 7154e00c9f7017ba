//! What was revoked is worth nothing on the wire: its sessions get no answer, and neither do its handshakes.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use boringtun::noise::{Tunn, TunnResult};
use culvert_lab::udp::{Forwarder, probe};
use culvert_lab::{Connector, Origin, Relay, address};
use culvert_model::key::{PrivateKey, Psk, PublicKey};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::Setup;

/// How long an answer is waited for where there must be none. One takes a millisecond.
const SILENCE: Duration = Duration::from_secs(2);
/// The relay inside the tunnel: it answers `ping`.
const RELAY_INNER: Ipv6Addr = Ipv6Addr::new(0xfd43, 0x554c, 0x5645, 0, 0, 0, 0, 1);

/// A WireGuard peer that is no connector: the keys of one, and boringtun alone.
struct Peer {
    tunn: Tunn,
    socket: UdpSocket,
    own: Ipv6Addr,
}

/// What a connector's state directory holds.
struct Keys {
    private_key: PrivateKey,
    psk: Psk,
    epoch: u32,
    inner: Ipv6Addr,
    relay: PublicKey,
}

impl Keys {
    fn read(connector: &Connector) -> Result<Self> {
        let read = |name: &str| std::fs::read_to_string(connector.state().join(name)).with_context(|| name.to_owned());
        let joined: serde_json::Value = serde_json::from_str(&read("joined.json")?)?;
        let relay = joined["relays"][0].clone();
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned).context("a text");
        Ok(Self {
            private_key: read("private.key")?.trim().parse()?,
            psk: read(&format!("relays/{}/preshared.key", text(&relay["name"])?))?.trim().parse()?,
            epoch: u32::try_from(relay["psk_epoch"].as_u64().context("an epoch")?)?,
            inner: text(&joined["inner_address"])?.parse()?,
            relay: text(&relay["public_key"])?.parse()?,
        })
    }
}

impl Peer {
    async fn new(keys: &Keys, relay: SocketAddr, index: u32) -> Result<Self> {
        let socket = UdpSocket::bind((address::own_loopback(), 0)).await?;
        socket.connect(relay).await?;
        // The lowest bit of the index tells the epoch of the pre-shared key.
        let index = index << 1 | keys.epoch & 1;
        let private = (*keys.private_key.as_bytes()).into();
        let tunn = Tunn::new(private, (*keys.relay.as_bytes()).into(), Some(*keys.psk.as_bytes()), None, index, None);
        Ok(Self { tunn, socket, own: keys.inner })
    }

    /// Sends an initiation.
    async fn knock(&mut self) -> Result<()> {
        let mut out = [0; 2048];
        match self.tunn.format_handshake_initiation(&mut out, true) {
            TunnResult::WriteToNetwork(datagram) => self.socket.send(datagram).await.map(drop).context("send"),
            _ => bail!("no initiation"),
        }
    }

    /// Shakes hands, or tells that nobody answers.
    async fn handshake(&mut self) -> Result<bool> {
        self.knock().await?;
        let Some(answer) = self.receive(SILENCE).await? else { return Ok(false) };
        let mut out = [0; 2048];
        match self.tunn.decapsulate(None, &answer, &mut out) {
            TunnResult::WriteToNetwork(confirmation) => self.socket.send(confirmation).await?,
            other => bail!("{other:?} to {} bytes of type {:?}", answer.len(), answer.first()),
        };
        Ok(true)
    }

    /// Sends `ping` through the tunnel; whether any datagram comes back.
    async fn ping(&mut self) -> Result<bool> {
        let mut out = [0; 2048];
        match self.tunn.encapsulate(&echo_request(self.own), &mut out) {
            TunnResult::WriteToNetwork(datagram) => {
                ensure!(datagram.first() == Some(&4), "no data: the session is gone here");
                self.socket.send(datagram).await?;
            }
            other => bail!("{other:?}"),
        }
        while let Some(answer) = self.receive(SILENCE).await? {
            let mut inner = [0; 2048];
            if let TunnResult::WriteToTunnelV6(packet, _) = self.tunn.decapsulate(None, &answer, &mut inner)
                && packet.get(40) == Some(&129)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn receive(&self, limit: Duration) -> Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; 2048];
        match timeout(limit, self.socket.recv(&mut buffer)).await {
            Err(_) => Ok(None),
            Ok(length) => {
                buffer.truncate(length?);
                Ok(Some(buffer))
            }
        }
    }

    /// Takes what is still on its way.
    async fn settle(&self) -> Result<()> {
        while self.receive(Duration::from_millis(300)).await?.is_some() {}
        Ok(())
    }
}

/// An ICMPv6 echo request with eight bytes of data (RFC 4443 §4.1).
fn echo_request(from: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![128, 0, 0, 0, 0, 7, 0, 1];
    message.extend_from_slice(b"culvert!");
    let mut sum = 58 + message.len() as u64;
    let mut add =
        |bytes: &[u8]| sum += bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair[1])).sum::<u64>();
    add(&from.octets());
    add(&RELAY_INNER.octets());
    add(&message);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = !u16::try_from(sum).unwrap_or(0);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0, 0, u8::try_from(message.len()).unwrap_or(0), 58, 64];
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&RELAY_INNER.octets());
    packet.extend_from_slice(&message);
    packet
}

/// A relay whose only connector has stopped, what that connector ever sent, and a peer that has its keys and a session.
async fn with_stolen_keys() -> Result<(Relay, Vec<Vec<u8>>, Keys, Peer)> {
    let origin = Origin::start("orders").await?;
    let mut relay = Relay::new()?;
    let forwarder = Forwarder::start(address::own_loopback(), relay.wireguard).await?;
    relay.endpoint = forwarder.address().to_string();
    relay.start().await?;
    let token = relay.tunnel("main", &["orders"]).await?;
    let mut connector = Connector::new(&token, &[&format!("orders={}", origin.url())])?;
    connector.start().await?;
    connector.terminate(Duration::from_secs(10)).await?;
    // From here on it speaks under its own key alone: a token that still works is answered, whoever plays it again.
    forwarder.forget();
    connector.env.retain(|(name, _)| name != "CULVERT_TOKEN");
    connector.start().await?;
    relay.up("orders").await?;
    connector.terminate(Duration::from_secs(10)).await?;
    let keys = Keys::read(&connector)?;
    let mut peer = Peer::new(&keys, relay.wireguard, 1000).await?;
    ensure!(peer.handshake().await?, "the key works");
    ensure!(peer.ping().await?, "and so does its session");
    Ok((relay, forwarder.recorded(), keys, peer))
}

/// Nothing that the keys can do is answered.
async fn is_silent(relay: &Relay, recorded: &[Vec<u8>], keys: &Keys, peer: &mut Peer) -> Result<()> {
    peer.settle().await?;
    assert!(!peer.ping().await?, "a packet of the old session was answered");
    assert!(!peer.handshake().await?, "an initiation of the known peer was answered");
    let mut again = Peer::new(keys, relay.wireguard, 2000).await?;
    assert!(!again.handshake().await?, "an initiation with the old static key was answered");
    ensure!(recorded.len() > 10, "{} datagrams were recorded", recorded.len());
    assert_eq!(probe(relay.wireguard, recorded, SILENCE).await?, 0, "what was recorded was answered");
    Ok(())
}

#[tokio::test]
async fn a_revoked_connectors_packets_and_handshakes_get_no_answer() -> Result<()> {
    let (relay, recorded, keys, mut peer) = with_stolen_keys().await?;
    let listed = relay.json(&["connector", "list"]).await?;
    let id = listed[0]["id"].as_str().context("an id")?;
    let said = relay.cli(&["connector", "revoke", id]).await?;
    assert_eq!(said.status, 0, "{said:?}");
    is_silent(&relay, &recorded, &keys, &mut peer).await
}

#[tokio::test]
async fn the_packets_and_handshakes_of_a_deleted_tunnels_connectors_get_no_answer() -> Result<()> {
    let (mut relay, recorded, keys, mut peer) = with_stolen_keys().await?;
    let said = relay.cli(&["tunnel", "delete", "main"]).await?;
    assert_eq!(said.status, 0, "{said:?}");
    is_silent(&relay, &recorded, &keys, &mut peer).await?;
    // Nor after a restart, which reads everything anew.
    relay.terminate(Duration::from_secs(10)).await?;
    relay.start().await?;
    let mut again = Peer::new(&keys, relay.wireguard, 3000).await?;
    assert!(!again.handshake().await?, "an initiation was answered after a restart");
    Ok(())
}

#[tokio::test]
async fn requests_in_flight_on_a_revoked_connector_fail_as_connector_lost_and_it_stops_for_good() -> Result<()> {
    let mut setup = Setup::new().await?;
    let http = setup.relay.http;
    let slow = tokio::spawn(async move { culvert_lab::client::post(http, "orders", "/slow/8000", "once").await });
    culvert_lab::wait::until("the request at the origin", Duration::from_secs(5), || async {
        (setup.origin.requests("/slow/8000") == 1).then_some(())
    })
    .await?;
    let listed = setup.relay.json(&["connector", "list"]).await?;
    let id = listed[0]["id"].as_str().context("an id")?;
    assert_eq!(setup.relay.cli(&["connector", "revoke", id]).await?.status, 0);
    let answer = slow.await??;
    assert_eq!(answer.status, 502);
    assert!(answer.header("proxy-status").contains("connector_lost"), "{}", answer.header("proxy-status"));
    let status = setup.connector.process()?.end(Duration::from_secs(5)).await?;
    assert_eq!(status.code(), Some(78), "{}", setup.connector.output());
    assert!(setup.connector.output().contains("revoked"), "{}", setup.connector.output());
    Ok(())
}

#[tokio::test]
async fn a_stolen_key_in_two_places_is_noticed_once_and_shown_everywhere() -> Result<()> {
    let (relay, _, keys, mut one) = with_stolen_keys().await?;
    let mut other = Peer::new(&keys, relay.wireguard, 4000).await?;
    let places = [one.socket.local_addr()?.to_string(), other.socket.local_addr()?.to_string()];
    assert!(relay.json(&["status"]).await?["alarms"].as_array().is_some_and(Vec::is_empty));
    for _ in 0..5 {
        for peer in [&mut other, &mut one] {
            // The relay answers one initiation a second.
            tokio::time::sleep(Duration::from_millis(1050)).await;
            ensure!(peer.handshake().await? && peer.ping().await?, "the newest is served");
        }
    }
    let names_both = |text: &str| places.iter().all(|place| text.contains(place.as_str()));
    let status = relay.json(&["status"]).await?;
    assert!(names_both(&status["alarms"][0].to_string()), "{status}");
    let list = relay.json(&["connector", "list"]).await?;
    assert!(names_both(&list[0]["flapping"].to_string()), "{list}");
    assert!(names_both(&relay.cli(&["connector", "list"]).await?.stderr));
    let id = list[0]["id"].as_str().context("an id")?;
    assert!(names_both(&relay.cli(&["connector", "show", id]).await?.stdout));
    let audit = relay.cli(&["audit"]).await?.stdout;
    let rows: Vec<&str> = audit.lines().filter(|line| line.contains("connector.flapping")).collect();
    assert!(rows.len() == 1 && names_both(rows[0]) && rows[0].contains(id), "{audit}");
    let output = relay.output();
    let said: Vec<&str> = output.lines().filter(|line| line.contains("two places")).collect();
    assert!(said.len() == 1 && names_both(said[0]) && said[0].contains("WARN"), "{said:?}");
    Ok(())
}
