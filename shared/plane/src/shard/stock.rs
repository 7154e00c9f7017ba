//! Stock peers' packets: from the device to whoever is routed for them, and from peers to the device.
//!
//! It must never hand a packet of the device to anything but a stock peer, nor one of a peer to anything but our own inner
//! addresses: no peer reaches another, a connector or the host.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use culvert_engine::{PeerId, SealError};

use super::Shard;
use crate::port::PacketPort;
use crate::tun::coalesce::Coalescer;
use crate::tun::inner::Head;
use crate::tun::parked::Parked;
use crate::tun::refuse::{self, Refusal};
use crate::tun::segment::Segments;
use crate::tun::vnet;
use crate::wrap::{self, NEXT_ICMPV6};

/// Frames that wait for the end of a receive turn, in bytes; then the device gets them at once.
const MOST_WAITING: usize = 512 * 1024;

/// The shard's side of the device.
#[derive(Debug)]
pub(crate) struct TunSide {
    port: Arc<dyn PacketPort>,
    inner: Vec<IpAddr>,
    mtu: u16,
    coalescer: Coalescer,
    parked: Parked,
    /// Buffers that live as long as the device.
    segment: Vec<u8>,
    answer: Vec<u8>,
    frame: Vec<u8>,
}

impl TunSide {
    pub(crate) fn new(port: Arc<dyn PacketPort>, inner: Vec<IpAddr>, mtu: u16) -> Self {
        Self {
            port,
            inner,
            mtu,
            coalescer: Coalescer::default(),
            parked: Parked::default(),
            segment: Vec::new(),
            answer: Vec::new(),
            frame: Vec::new(),
        }
    }
}

impl Shard {
    /// Says something to a peer that no plane would say.
    #[cfg(test)]
    pub(crate) fn say_raw(&mut self, id: PeerId, packet: &[u8], now: Instant) {
        self.seal(id, &mut packet.to_vec(), now);
        self.after(now);
    }

    /// Connects the device. `false`: there is one already, or the shard has stopped.
    pub(crate) fn attach_tun(&mut self, side: TunSide) -> bool {
        if self.tun.is_some() || self.stopped {
            return false;
        }
        self.tun = Some(Box::new(side));
        true
    }

    /// Lets go of the device.
    pub(crate) fn detach_tun(&mut self) {
        self.tun = None;
    }

    pub(super) fn is_stock(&self, id: PeerId) -> bool {
        self.peers.get(id).is_some_and(|peer| peer.stock)
    }

    /// A handshake that was asked for is on its way: where to, only the engine knows.
    fn is_called(&self, id: PeerId) -> bool {
        self.peers.get(id).is_some_and(|peer| peer.asked)
    }

    // Out: a frame of the device.

    /// One frame of the device: its packets are sealed for the stock peer that has their destination.
    pub(crate) fn handle_frame(&mut self, frame: &[u8], now: Instant) {
        self.tun_stats.reads += 1;
        let Some(mut segments) = Segments::read(frame) else {
            self.tun_stats.malformed += 1;
            return;
        };
        let head = *segments.head();
        let peer = self.engine.0.route(head.destination).filter(|peer| self.is_stock(*peer));
        let Some(peer) = peer else {
            // The kernel's own chatter on a new link (router solicitations, group reports) is none of anybody's business.
            if self.refuse(segments.packet(), &head, Refusal::NoRoute) {
                self.tun_stats.unroutable += 1;
            } else {
                self.tun_stats.malformed += 1;
            }
            return;
        };
        self.bulk |= segments.is_bulk();
        let Some(mut packet) = self.tun.as_mut().map(|tun| std::mem::take(&mut tun.segment)) else { return };
        while segments.next(&mut packet) {
            if !self.send_out(peer, &mut packet, now) {
                break;
            }
        }
        if let Some(tun) = self.tun.as_mut() {
            tun.segment = packet;
        }
        self.after(now);
    }

    /// `false`: what follows would fare no better.
    fn send_out(&mut self, peer: PeerId, packet: &mut Vec<u8>, now: Instant) -> bool {
        let length = packet.len();
        match self.try_seal(peer, packet, now) {
            Ok(()) => {
                self.tun_stats.packets_out += 1;
                self.tun_stats.bytes_out += length as u64;
                true
            }
            Err(error) if error == SealError::NoSession || error == SealError::NoPath && self.is_called(peer) => {
                if let Some(tun) = self.tun.as_mut() {
                    self.tun_stats.waited += tun.parked.park(peer, packet, now);
                }
                true
            }
            Err(error) => {
                let mtu = self.tun.as_ref().map_or(0, |tun| tun.mtu);
                let refusal = match error {
                    SealError::TooLong => Refusal::TooLong(mtu),
                    SealError::NoSession | SealError::NoPath => Refusal::NoSession,
                    SealError::UnknownPeer => Refusal::NoRoute,
                };
                self.tun_stats.unroutable += 1;
                if let Some(head) = Head::read(packet) {
                    self.refuse(packet, &head, refusal);
                }
                false
            }
        }
    }

    /// A session is there: what waited for it leaves.
    pub(super) fn unpark(&mut self, id: PeerId, now: Instant) {
        let Some(tun) = self.tun.as_mut() else { return };
        for mut packet in tun.parked.take(id) {
            self.send_out(id, &mut packet, now);
        }
        self.wake_flusher();
    }

    /// What waited too long is answered: the peer is not to be reached.
    pub(super) fn expire_parked(&mut self, now: Instant) {
        if self.parked_due().is_none_or(|due| due > now) {
            return;
        }
        let expired = self.tun.as_mut().map(|tun| tun.parked.expire(now)).unwrap_or_default();
        self.refuse_all(expired, Refusal::NoSession);
    }

    /// What waited for a peer that is gone is answered.
    pub(super) fn refuse_parked(&mut self, id: PeerId) {
        let parked: Vec<_> = self.tun.as_mut().map(|tun| tun.parked.take(id).collect()).unwrap_or_default();
        self.refuse_all(parked, Refusal::NoRoute);
    }

    pub(super) fn parked_due(&self) -> Option<Instant> {
        self.tun.as_ref()?.parked.poll_timeout()
    }

    fn refuse_all(&mut self, packets: Vec<Vec<u8>>, refusal: Refusal) {
        for packet in packets {
            self.tun_stats.waited += 1;
            if let Some(head) = Head::read(&packet) {
                self.refuse(&packet, &head, refusal);
            }
        }
    }

    /// Answers a packet of the device in the name of the network. `false`: such a packet gets no answer.
    fn refuse(&mut self, packet: &[u8], head: &Head, refusal: Refusal) -> bool {
        let Some(tun) = self.tun.as_mut() else { return false };
        let answered = refuse::answer(packet, head, refusal, &mut tun.answer);
        if answered {
            tun.frame.clear();
            tun.frame.extend_from_slice(&vnet::Vnet::WHOLE);
            tun.frame.extend_from_slice(&tun.answer);
            self.tun_stats.writes += 1;
            self.tun_stats.refused += u64::from(!tun.port.write(&tun.frame));
        }
        answered
    }

    // In: a packet of a stock peer.

    /// One packet of a stock peer, whose source the engine has checked.
    pub(super) fn take_in(&mut self, peer: PeerId, packet: &[u8], now: Instant) {
        let Some(tun) = self.tun.as_mut() else { return self.answer_echo(peer, packet, now) };
        let Some(head) = Head::read(packet) else {
            self.tun_stats.malformed += 1;
            return;
        };
        let ours = tun.inner.contains(&head.destination);
        if !ours || tun.inner.contains(&head.source) || is_no_host(head.source) {
            self.tun_stats.foreign += 1;
            return;
        }
        self.tun_stats.packets_in += 1;
        self.tun_stats.bytes_in += head.total as u64;
        tun.coalescer.push(packet, &head);
        if tun.coalescer.waiting() >= MOST_WAITING {
            self.flush_tun();
        }
    }

    /// Without a device a stock peer can see that its tunnel works, and nothing else.
    fn answer_echo(&mut self, peer: PeerId, packet: &[u8], now: Instant) {
        let asked = wrap::open(packet).filter(|packet| packet.addresses.destination == self.inner);
        match asked.filter(|packet| packet.next == NEXT_ICMPV6) {
            Some(asked) => self.echo(peer, &asked, now),
            None => self.tun_stats.foreign += 1,
        }
    }

    /// Gives the device what the turn brought.
    pub(super) fn flush_tun(&mut self) {
        let Some(tun) = self.tun.as_mut().filter(|tun| !tun.coalescer.is_empty()) else { return };
        let (port, stats) = (&tun.port, &mut self.tun_stats);
        tun.coalescer.drain(|frame| {
            stats.writes += 1;
            stats.refused += u64::from(!port.write(frame));
        });
    }
}

/// Addresses that no host speaks from, whatever networks a peer was allowed.
fn is_no_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_loopback() || address.is_multicast() || address.is_broadcast() || address.is_unspecified()
        }
        IpAddr::V6(address) => address.is_loopback() || address.is_multicast() || address.is_unspecified(),
    }
}
