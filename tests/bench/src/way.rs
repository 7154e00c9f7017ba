//! The long way between the two hosts: a TUN device in each, and between them loss and delay of our own making.
//!
//! It works on whole IP packets as the kernel cuts them (no offloads are offered), so TCP and UDP suffer alike and every
//! peer runs unchanged: while a [`Way`] is on, routes lead the same addresses over it. No netem, no nftables. It must
//! never reorder, and its queue drops what does not fit, as a router's does.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use culvert_lab::Namespace;

use crate::site::{GATEWAY, PRIVATE, Site};

/// How the long way treats packets.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub(crate) struct Manner {
    /// Share of packets lost, each way.
    pub(crate) loss: f64,
    /// There and back; half of it each way.
    pub(crate) round_trip: Duration,
    /// Bytes a second, each way; none: as many as the machine carries.
    pub(crate) rate: Option<f64>,
}

/// The narrow link of one direction, with a queue before it.
#[derive(Debug, Default)]
struct Link {
    /// When its last packet has left it.
    free: Option<Instant>,
}

impl Link {
    /// When a packet has left the link; `None`: it found the queue full.
    fn leave(&mut self, length: usize, rate: Option<f64>, now: Instant) -> Option<Instant> {
        let Some(rate) = rate else { return Some(now) };
        let start = self.free.unwrap_or(now).max(now);
        if start - now > LONGEST_WAIT {
            return None;
        }
        let left = start + Duration::from_secs_f64(length as f64 / rate);
        self.free = Some(left);
        Some(left)
    }
}

/// A long way that is there; not yet used.
pub(crate) struct LongWay {
    ends: [End; 2],
}

/// Traffic goes over it until this is dropped.
pub(crate) struct Way<'a> {
    site: &'a Site,
}

struct End {
    counts: Arc<Counts>,
    is_on: Arc<AtomicBool>,
}

/// Packets of one direction.
#[derive(Debug, Default)]
struct Counts {
    carried: AtomicU64,
    lost: AtomicU64,
    overflowed: AtomicU64,
}

const DEVICE: &str = "long";
/// Packets under way at most, each direction: far more than a fast sender has out in 50 ms.
const QUEUE: usize = 16_384;
/// How long a packet may wait before a narrow link: what home routers have, and some have far more.
const LONGEST_WAIT: Duration = Duration::from_millis(100);
/// TUN packets are at most an MTU long.
const LONGEST: usize = 1500;

struct Packet {
    due: Instant,
    bytes: Vec<u8>,
}

impl LongWay {
    /// Makes both devices and begins to carry between them.
    pub(crate) fn build(site: &Site, manner: Manner) -> Result<Self> {
        let gateway = device(&site.gateway, "10.97.0.1/24")?;
        let private = device(&site.private, "10.97.0.2/24")?;
        let down = carry(gateway.try_clone()?, private.try_clone()?, manner, 0x9e37_79b9_7f4a_7c15)?;
        let up = carry(private, gateway, manner, 0xd1b5_4a32_d192_ed03)?;
        Ok(Self { ends: [down, up] })
    }

    /// Leads the traffic between the hosts over it.
    pub(crate) fn lead<'a>(&self, site: &'a Site) -> Result<Way<'a>> {
        let way = Way { site };
        site.gateway.ip(&["route", "replace", &format!("{PRIVATE}/32"), "dev", DEVICE, "src", GATEWAY])?;
        site.private.ip(&["route", "replace", &format!("{GATEWAY}/32"), "dev", DEVICE, "src", PRIVATE])?;
        Ok(way)
    }

    /// Packets carried, lost on purpose, and dropped for want of room: both directions.
    pub(crate) fn counts(&self) -> [u64; 3] {
        let sum = |pick: fn(&Counts) -> &AtomicU64| {
            self.ends.iter().map(|end| pick(&end.counts).load(Ordering::Relaxed)).sum()
        };
        [sum(|counts| &counts.carried), sum(|counts| &counts.lost), sum(|counts| &counts.overflowed)]
    }
}

impl Drop for Way<'_> {
    fn drop(&mut self) {
        let _ = self.site.gateway.ip(&["route", "del", &format!("{PRIVATE}/32"), "dev", DEVICE]);
        let _ = self.site.private.ip(&["route", "del", &format!("{GATEWAY}/32"), "dev", DEVICE]);
    }
}

impl Drop for LongWay {
    fn drop(&mut self) {
        for end in &self.ends {
            end.is_on.store(false, Ordering::Relaxed);
        }
    }
}

/// A TUN device in a namespace, up, with that address.
fn device(namespace: &Namespace, address: &str) -> Result<File> {
    let entrance = namespace.entrance()?;
    // A thread that enters a namespace never comes back: this one ends.
    let opened = std::thread::spawn(move || {
        entrance.enter()?;
        open_tun()
    });
    let file = opened.join().ok().context("the thread inside the namespace panicked")??;
    namespace.ip(&["addr", "add", address, "dev", DEVICE])?;
    namespace.ip(&["link", "set", DEVICE, "mtu", &LONGEST.to_string(), "txqueuelen", "10000", "up"])?;
    Ok(file)
}

#[expect(unsafe_code, reason = "a TUN device is had by an ioctl only")]
fn open_tun() -> Result<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
    let mut name = [0; nix::libc::IFNAMSIZ];
    for (into, byte) in name.iter_mut().zip(DEVICE.bytes()) {
        *into = byte as nix::libc::c_char;
    }
    let flags = (nix::libc::IFF_TUN | nix::libc::IFF_NO_PI) as nix::libc::c_short;
    let request =
        nix::libc::ifreq { ifr_name: name, ifr_ifru: nix::libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    // SAFETY: the descriptor is open for the length of the call, and TUNSETIFF reads one `ifreq`, which outlives it.
    let result = unsafe { nix::libc::ioctl(file.as_raw_fd(), nix::libc::TUNSETIFF as _, &raw const request) };
    nix::errno::Errno::result(result).context("TUNSETIFF")?;
    Ok(file)
}

/// One direction: a thread that reads and decides, and one that waits and writes.
fn carry(from: File, to: File, manner: Manner, seed: u64) -> Result<End> {
    let end = End { counts: Arc::default(), is_on: Arc::new(AtomicBool::new(true)) };
    let (sender, receiver) = sync_channel(QUEUE);
    let (counts, is_on) = (Arc::clone(&end.counts), Arc::clone(&end.is_on));
    std::thread::Builder::new()
        .name("long-way-in".to_owned())
        .spawn(move || take(from, &sender, manner, seed, &counts, &is_on))?;
    std::thread::Builder::new().name("long-way-out".to_owned()).spawn(move || give(to, &receiver))?;
    Ok(end)
}

fn take(mut from: File, to: &SyncSender<Packet>, manner: Manner, seed: u64, counts: &Counts, is_on: &AtomicBool) {
    let (mut chance, mut link) = (Chance(seed), Link::default());
    let mut buffer = vec![0; LONGEST + 64];
    while let Ok(length) = from.read(&mut buffer) {
        if !is_on.load(Ordering::Relaxed) {
            return;
        }
        if chance.next() < manner.loss {
            counts.lost.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let bytes = buffer.get(..length).unwrap_or_default().to_vec();
        let left = link.leave(length, manner.rate, Instant::now());
        let is_carried =
            left.is_some_and(|left| to.try_send(Packet { due: left + manner.round_trip / 2, bytes }).is_ok());
        let count = if is_carried { &counts.carried } else { &counts.overflowed };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

fn give(mut to: File, from: &Receiver<Packet>) {
    for packet in from {
        std::thread::sleep(packet.due.saturating_duration_since(Instant::now()));
        // The device is down or gone: what a cut cable does.
        let _ = to.write_all(&packet.bytes);
    }
}

/// xorshift64*: the same losses in every run, whatever else chance does here.
struct Chance(u64);

impl Chance {
    /// From 0 to 1.
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_packets_are_lost_as_asked_for() {
        let mut chance = Chance(7);
        let lost = (0..100_000).filter(|_| chance.next() < 0.01).count();
        assert!((900..1100).contains(&lost), "{lost}");
    }

    #[test]
    fn a_narrow_link_takes_its_time_and_what_finds_its_queue_full_is_lost() {
        let (mut link, now) = (Link::default(), Instant::now());
        // 1500 bytes take 10 ms: one that leaves, and those that wait for 100 ms at most.
        let left: Vec<_> = (0..20).filter_map(|_| link.leave(1500, Some(150_000.0), now)).collect();
        assert_eq!(left.len(), 11);
        assert_eq!(left[10] - now, Duration::from_millis(110));
        assert_eq!(
            link.leave(1500, Some(150_000.0), now + Duration::from_secs(1)).map(|left| left - now),
            Some(Duration::from_millis(1010))
        );
        assert_eq!(link.leave(1500, None, now), Some(now));
    }
}
