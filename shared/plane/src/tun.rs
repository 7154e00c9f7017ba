//! The TUN plane: TCP and UDP to hosts behind stock WireGuard peers, by the kernel, in a network namespace of its own.
//!
//! ```text
//! out  socket ▶ kernel TCP ▶ TUN ▶ super-packet ▶ segments ▶ route ▶ stock peer ▶ engine ▶ outbox ▶ UDP
//! in   UDP ▶ engine ▶ source allowed ▶ destination is ours ▶ coalesced ▶ TUN ▶ kernel TCP ▶ socket
//! ```
//!
//! The host's routes, addresses and firewall are never touched, no other process reaches the namespace, and it ends with
//! this process however that ends. It must never carry a packet from one peer to another, to a connector or to the host.

mod checksum;
mod child;
pub(crate) mod coalesce;
mod config;
mod device;
pub(crate) mod inner;
mod keeper;
pub(crate) mod parked;
mod passing;
pub(crate) mod pump;
pub(crate) mod refuse;
mod routes;
pub(crate) mod segment;
mod sockets;
pub(crate) mod vnet;

use std::io;
use std::net::{IpAddr, TcpStream};
use std::process::Child;
use std::sync::Arc;
use std::thread;

use tokio::net::{TcpSocket, UdpSocket};
use tokio::task::AbortHandle;

pub use child::child_main;
pub use config::{CHILD_ARGUMENT, DEFAULT_MTU, HIGHEST_MTU, LOWEST_MTU, TunConfig, Unavailable, Way};

use self::device::Device;
use self::passing::{Kind, Reply, Setup, Step};
use self::sockets::{Keeper, Sockets};
use crate::plane::Plane;
use crate::port::PacketPort;
use crate::shard::TunSide;
use crate::shared::Shared;

/// A cheap handle to the TUN plane of a shard; when the last is gone, so is the device. Open sockets live on without a
/// network.
#[derive(Debug, Clone)]
pub struct Tun {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    sockets: Arc<Sockets>,
    way: Way,
    addresses: Vec<IpAddr>,
    tasks: [AbortHandle; 2],
    child: Option<Reaped>,
}

/// Plain counters of the TUN plane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TunStats {
    /// Packets that left for peers.
    pub packets_out: u64,
    /// Bytes of inner packets that left for peers.
    pub bytes_out: u64,
    /// Packets of peers that went to our sockets.
    pub packets_in: u64,
    /// Bytes of inner packets of peers.
    pub bytes_in: u64,
    /// Reads of the device: each brings up to 64 KiB.
    pub reads: u64,
    /// Writes to the device: each takes up to 64 KiB.
    pub writes: u64,
    /// Packets from our sockets that no stock peer could be reached with: answered with an ICMP error or a reset.
    pub unroutable: u64,
    /// Packets that waited for a session and were dropped: too many, or too long.
    pub waited: u64,
    /// Packets of peers that were not for our inner addresses, or claimed to come from one of them.
    pub foreign: u64,
    /// Packets that were no valid IP, or of a kind that does not go through (router solicitations, multicast).
    pub malformed: u64,
    /// Writes that the device refused.
    pub refused: u64,
}

impl Tun {
    /// Makes the namespace and its device, and carries packets between it and the plane's stock peers from now on.
    ///
    /// To be called on the plane's runtime, on a thread that lives as long as the process: a child ends with the thread that
    /// started it. Dropped before its end, nothing is left behind.
    ///
    /// # Errors
    /// [`Unavailable`]; nothing is left behind then.
    pub async fn start(plane: &Plane, config: TunConfig) -> Result<Self, Unavailable> {
        let setup = settle(&config)?;
        let made = match config.way {
            Some(way) => make(way, &config, &setup).await?,
            None => match make(Way::Thread, &config, &setup).await {
                Ok(made) => made,
                Err(first) => make(Way::Child, &config, &setup).await.map_err(|second| tell(first, second))?,
            },
        };
        let Made { way, keeper, device, child, v6 } = made;
        let v6_addresses = setup.v6.iter().filter(|_| v6).copied().map(IpAddr::V6);
        let addresses: Vec<_> = v6_addresses.chain(setup.v4.map(IpAddr::V4)).collect();
        let port: Arc<dyn PacketPort> = Arc::new(device);
        let shared = plane.shared().clone();
        if !shared.shard().attach_tun(TunSide::new(port.clone(), addresses.clone(), setup.mtu)) {
            return Err(Unavailable::Occupied);
        }
        let sockets = Arc::<Sockets>::default();
        let pump = pump::pump(shared.clone(), port);
        let reading = {
            let sockets = sockets.clone();
            tokio::spawn(async move {
                if let Err(error) = pump.await {
                    tracing::warn!(%error, "the TUN device cannot be read");
                }
                sockets.end();
            })
        };
        let filling = tokio::spawn(sockets.clone().fill(keeper));
        let tasks = [reading.abort_handle(), filling.abort_handle()];
        Ok(Self { inner: Arc::new(Inner { shared, sockets, way, addresses, tasks, child }) })
    }

    /// An unconnected TCP socket inside the namespace: `connect` reaches hosts behind stock peers.
    ///
    /// Destinations that no peer is routed for fail at once (`ENETUNREACH`); those of a peer that does not answer, after
    /// three seconds (`EHOSTUNREACH`). Cancel safe.
    ///
    /// # Errors
    /// The namespace is gone ([`Self::ended`]), descriptors are short, or the host has no IPv6.
    pub async fn tcp(&self, v6: bool) -> io::Result<TcpSocket> {
        let socket = self.inner.sockets.take(if v6 { Kind::TcpV6 } else { Kind::TcpV4 }).await?;
        Ok(TcpSocket::from_std_stream(TcpStream::from(socket)))
    }

    /// An unbound UDP socket inside the namespace (for DNS): `connect` or `send_to` give it an address. Cancel safe.
    ///
    /// # Errors
    /// As [`Self::tcp`].
    pub async fn udp(&self, v6: bool) -> io::Result<UdpSocket> {
        let socket = self.inner.sockets.take(if v6 { Kind::UdpV6 } else { Kind::UdpV4 }).await?;
        UdpSocket::from_std(std::net::UdpSocket::from(socket))
    }

    /// Waits until the namespace gives no sockets any more: somebody has killed the child. Then another TUN plane can be
    /// started once this one's handles are dropped.
    pub async fn ended(&self) {
        self.inner.sockets.ended().await;
    }

    /// How the namespace was made.
    pub fn way(&self) -> Way {
        self.inner.way
    }

    /// Our addresses inside.
    pub fn inner(&self) -> &[IpAddr] {
        &self.inner.addresses
    }

    /// The process that keeps the namespace, where it is one.
    pub fn child(&self) -> Option<u32> {
        self.inner.child.as_ref()?.0.as_ref().map(Child::id)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.sockets.end();
        for task in &self.tasks {
            task.abort();
        }
        self.shared.shard().detach_tun();
    }
}

/// A namespace that stands.
struct Made {
    way: Way,
    keeper: Keeper,
    device: Device,
    child: Option<Reaped>,
    v6: bool,
}

/// A child that is ended when nobody wants it any more.
#[derive(Debug)]
struct Reaped(Option<Child>);

impl Drop for Reaped {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            // It is dead: this does not wait.
            let _ = child.wait();
        }
    }
}

fn settle(config: &TunConfig) -> Result<Setup, Unavailable> {
    let wrong = |text: String| Err(Unavailable::Config(text));
    if !(LOWEST_MTU..=HIGHEST_MTU).contains(&config.mtu) {
        return wrong(format!("the MTU inside is {LOWEST_MTU} to {HIGHEST_MTU}, not {}", config.mtu));
    }
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for net in &config.inner {
        match net.addr() {
            IpAddr::V4(address) => v4.push(address),
            IpAddr::V6(address) => v6.push(address),
        }
    }
    if v4.len() > 1 || v6.len() > 4 || v4.is_empty() && v6.is_empty() {
        return wrong("the relay has one IPv4 address inside and one to four of IPv6".to_owned());
    }
    Ok(Setup { mtu: config.mtu, v4: v4.pop(), v6 })
}

/// Starts a keeper and waits for its device.
async fn make(way: Way, config: &TunConfig, setup: &Setup) -> Result<Made, Unavailable> {
    let (here, there) = passing::pair().map_err(Unavailable::Child)?;
    let child = match way {
        Way::Thread => {
            use std::os::fd::AsFd as _;
            let keep = move || drop(keeper::keep(there.as_fd(), Way::Thread, || {}));
            thread::Builder::new().name("tun-namespace".to_owned()).spawn(keep).map_err(Unavailable::Child)?;
            None
        }
        Way::Child => Some(Reaped(Some(child::start(config, there).map_err(Unavailable::Child)?))),
    };
    let keeper = Keeper::new(here).map_err(Unavailable::Child)?;
    keeper.send(&setup.write()).await.map_err(Unavailable::Child)?;
    match keeper.receive().await.map_err(Unavailable::Child)? {
        Some(Reply::Ready { device, v6 }) => {
            let device = Device::new(device).map_err(|error| Unavailable::Setup { step: Step::Make.name(), error })?;
            Ok(Made { way, keeper, device, child, v6 })
        }
        Some(Reply::Failed { step, errno }) => Err(unavailable(way, step, io::Error::from_raw_os_error(errno))),
        Some(Reply::Sockets { .. } | Reply::Short { .. }) => Err(Unavailable::Child(io::ErrorKind::InvalidData.into())),
        None => Err(Unavailable::Child(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended before it was ready"))),
    }
}

fn unavailable(way: Way, step: Step, error: io::Error) -> Unavailable {
    let denied = error.kind() == io::ErrorKind::PermissionDenied;
    match step {
        Step::Open if error.kind() == io::ErrorKind::NotFound => Unavailable::NoDevice,
        // The node is there, the driver is not.
        Step::Open if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => Unavailable::NoDevice,
        Step::Open if denied => Unavailable::DeviceDenied,
        Step::Namespace => Unavailable::NoNamespace(error),
        Step::Map | Step::Make | Step::Address | Step::Route if denied && way == Way::Child => {
            Unavailable::Powerless { step: step.name(), error }
        }
        _ => Unavailable::Setup { step: step.name(), error },
    }
}

/// Which of two refusals to tell: the thread's says more where it got further than the namespace.
fn tell(thread: Unavailable, child: Unavailable) -> Unavailable {
    match (thread, child) {
        (thread @ (Unavailable::Setup { .. } | Unavailable::NoDevice), _) => thread,
        (_, child) => child,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_cannot_be_right_is_refused_by_name() {
        let right = TunConfig::new(Some("100.64.0.1/32".parse().unwrap()));
        assert_eq!(settle(&right).unwrap().v4, Some("100.64.0.1".parse().unwrap()));
        for (config, says) in [
            (TunConfig { mtu: 1279, ..right.clone() }, "not 1279"),
            (TunConfig { inner: Vec::new(), ..right.clone() }, "one IPv4 address"),
        ] {
            assert!(settle(&config).unwrap_err().to_string().contains(says));
        }
    }

    #[test]
    fn every_refusal_says_what_to_change() {
        let errno = |errno| io::Error::from_raw_os_error(errno);
        for (way, step, error, says) in [
            (Way::Child, Step::Open, libc::ENOENT, "--device /dev/net/tun"),
            (Way::Child, Step::Open, libc::EACCES, "DeviceAllow=/dev/net/tun"),
            (Way::Child, Step::Namespace, libc::EPERM, "RestrictNamespaces=user net"),
            (Way::Child, Step::Make, libc::EPERM, "apparmor_restrict_unprivileged_userns"),
            (Way::Thread, Step::Make, libc::EBUSY, "cannot make the TUN device"),
        ] {
            let text = unavailable(way, step, errno(error)).to_string();
            assert!(text.contains(says), "{text}");
        }
    }
}
