//! One connection to an origin: names resolved afresh, every address tried, failures named.
//!
//! The one place where a resolved address is judged and dialled. Must never dial an address that was not admitted.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use culvert_hop::fault::{Fault, Retry, Side};
use culvert_model::reason::Reason;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use ipnet::IpNet;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::allow::Allow;
use crate::names::Names;
use crate::network::{Network, Sockets};
use crate::origin::{Host, Origin, Scheme};
use crate::origin_io::{OriginIo, Raw};
use crate::tls::{ClientTls, Offer, refusal};

/// The head start of each address over the next (RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);

/// How long a connection may be silent before the origin's host is asked whether it is there; and how often it is asked
/// within the same time again.
const KEEPALIVE_SECONDS: u32 = 60;
const KEEPALIVE_PROBES: u32 = 4;

/// Which addresses of an origin may be dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Declared by this connector's own operator: all.
    Declared,
    /// Managed from elsewhere: within the allow-list.
    Within(Arc<Allow>),
    /// Behind a peer: within the networks that it has.
    Behind(Arc<[IpNet]>),
}

impl Admission {
    /// The failure that stands fast before anything is looked up or dialled.
    pub fn refusal(&self, origin: &Origin) -> Option<Fault> {
        match self {
            Self::Declared => None,
            Self::Within(allow) => allow.may_permit(origin).err().map(|outside| denied(&outside)),
            Self::Behind(_) if matches!(origin, Origin::Unix(_)) => Some(denied(&"a socket file is on this host")),
            Self::Behind(_) => None,
        }
    }

    fn admits(&self, origin: &Origin, address: SocketAddr) -> bool {
        match self {
            Self::Declared => true,
            Self::Within(allow) => allow.permits(origin, Some(address)),
            Self::Behind(networks) => networks.iter().any(|network| network.contains(&address.ip())),
        }
    }
}

/// The way to an origin.
#[derive(Debug, Clone, Copy)]
pub struct Way<'a> {
    /// Where it is.
    pub origin: &'a Origin,
    /// How an https origin is verified; none for the others.
    pub tls: Option<&'a ClientTls>,
    /// Which HTTP an https origin is offered.
    pub offer: Offer,
    /// Which of its addresses may be dialled.
    pub admission: &'a Admission,
    /// Where it is: who knows its name, and who opens sockets there.
    pub network: &'a Network,
}

/// Connects within `patience`, TLS included.
///
/// # Errors
/// A [`Fault`] of the origin's side; nothing was sent.
pub async fn connect(way: Way<'_>, patience: Duration) -> Result<OriginIo, Fault> {
    let deadline = Instant::now() + patience;
    let Way { origin, admission, .. } = way;
    // Names that lead nowhere are not even looked up.
    if let Some(refusal) = admission.refusal(origin) {
        return Err(refusal);
    }
    match origin {
        Origin::Unix(path) => unix(path, deadline).await.map(OriginIo::Unix),
        Origin::Net { scheme, host, port } => {
            let found = resolve(host, *port, &way.network.names, deadline).await?;
            // INVARIANT: what is dialled below is what was judged here, each address of each attempt.
            let (admitted, denied_ones): (Vec<SocketAddr>, Vec<SocketAddr>) =
                found.into_iter().partition(|address| admission.admits(origin, *address));
            if admitted.is_empty() {
                let leads_to: Vec<String> = denied_ones.iter().map(|address| address.ip().to_string()).collect();
                let within = match admission {
                    Admission::Behind(_) => "the peer's networks",
                    Admission::Declared | Admission::Within(_) => "[allow] origins",
                };
                let why = format!("{origin} leads to {}: not within {within}", leads_to.join(", "));
                return Err(denied(&why));
            }
            let dialled = race(&admitted, &way.network.sockets, deadline).await;
            if dialled.is_err()
                && let Host::Name(name) = host
            {
                // It may have moved.
                way.network.names.forget(name);
            }
            let stream = dialled?;
            match (scheme, way.tls) {
                (Scheme::Http | Scheme::H2c, _) => Ok(OriginIo::Tcp(stream)),
                (Scheme::Tcp, _) => Ok(OriginIo::Raw(Raw::new(stream))),
                (Scheme::Https, Some(tls)) => {
                    secured(stream, host, tls, way.offer, deadline).await.map(|stream| OriginIo::Tls(Box::new(stream)))
                }
                (Scheme::Https, None) => Err(fault(Reason::OriginTls).log("an https origin without TLS settings")),
            }
        }
    }
}

/// Names an I/O error of a connection that was being made.
pub fn reason_of(error: &io::Error) -> Reason {
    // This process has no descriptor, port or memory left: not the origin's doing.
    if let Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL) = error.raw_os_error()
    {
        return Reason::Overloaded;
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Reason::OriginRefused,
        io::ErrorKind::TimedOut => Reason::OriginConnectTimeout,
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::UnexpectedEof => {
            Reason::OriginClosed
        }
        _ => Reason::OriginUnreachable,
    }
}

fn fault(reason: Reason) -> Fault {
    let side = if reason == Reason::Overloaded { Side::Here } else { Side::Origin };
    Fault::new(reason).side(side).retry(Retry::Safe)
}

fn denied(why: &dyn std::fmt::Display) -> Fault {
    Fault::new(Reason::OriginDenied).side(Side::Here).retry(Retry::Safe).log(why)
}

async fn resolve(host: &Host, port: u16, names: &Names, deadline: Instant) -> Result<Vec<SocketAddr>, Fault> {
    let name = match host {
        Host::Address(address) => return Ok(vec![SocketAddr::new(*address, port)]),
        Host::Name(name) => name,
    };
    let no = |why: &str| fault(Reason::OriginDns).log(format_args!("{name}: {why}"));
    match timeout_at(deadline, names.addresses(name)).await {
        Ok(Ok(found)) => {
            let mut found = found.to_vec();
            found.iter_mut().for_each(|address| address.set_port(port));
            Ok(found)
        }
        Ok(Err(why)) => Err(no(&why)),
        Err(_) => Err(no("the resolver did not answer in time")),
    }
}

/// Dials the addresses one after the other with a head start each; the first that accepts wins, the others are closed.
async fn race(addresses: &[SocketAddr], sockets: &Sockets, deadline: Instant) -> Result<TcpStream, Fault> {
    let mut waiting = addresses.iter().copied();
    let mut dialling = FuturesUnordered::new();
    let mut best: Option<(SocketAddr, io::Error)> = None;
    let mut next_start = Instant::now();
    loop {
        if Instant::now() >= next_start || dialling.is_empty() {
            match waiting.next() {
                Some(address) => {
                    dialling.push(async move { (address, sockets.connect(address).await) });
                    next_start = Instant::now() + STAGGER;
                }
                None if dialling.is_empty() => break,
                None => next_start = deadline + STAGGER,
            }
        }
        tokio::select! {
            biased;
            Some((address, result)) = dialling.next() => match result {
                Ok(stream) => {
                    tune(&stream);
                    return Ok(stream);
                }
                Err(error) => {
                    if best.as_ref().is_none_or(|(_, best)| says_more(&error, best)) {
                        best = Some((address, error));
                    }
                    next_start = Instant::now();
                }
            },
            () = sleep_until(deadline) => {
                let address = addresses.first().map(ToString::to_string).unwrap_or_default();
                return Err(fault(Reason::OriginConnectTimeout).log(address));
            }
            () = sleep_until(next_start) => {}
        }
    }
    Err(match best {
        Some((address, error)) => fault(reason_of(&error)).log(format_args!("{address}: {error}")),
        None => fault(Reason::OriginDns),
    })
}

/// An origin's host that vanished is noticed on a silent connection too. Not by TCP_USER_TIMEOUT: it would also end the
/// connection of an origin that only reads slowly (RFC 5482, zero windows). What cannot be set changes nothing else.
fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_SECONDS);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &(KEEPALIVE_SECONDS / KEEPALIVE_PROBES));
    let _ = setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_PROBES);
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
}

/// Whether an address's failure says more of the origin than another's: a host that answered no more than one that has
/// no way to it, as the IPv6 addresses of a dual-stack origin have on an IPv4 network.
fn says_more(error: &io::Error, than: &io::Error) -> bool {
    let weight = |error| match reason_of(error) {
        Reason::OriginUnreachable => 0,
        Reason::OriginConnectTimeout => 1,
        Reason::Overloaded => 3,
        _ => 2,
    };
    weight(error) > weight(than)
}

async fn unix(path: &Path, deadline: Instant) -> Result<UnixStream, Fault> {
    match timeout_at(deadline, UnixStream::connect(path)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(fault(reason_of(&error)).log(format_args!("{}: {error}", path.display()))),
        Err(_) => Err(fault(Reason::OriginConnectTimeout).log(path.display())),
    }
}

async fn secured(
    stream: TcpStream,
    host: &Host,
    tls: &ClientTls,
    offer: Offer,
    deadline: Instant,
) -> Result<TlsStream<TcpStream>, Fault> {
    let name = tls.name_of(host);
    let name =
        name.ok_or_else(|| fault(Reason::OriginTlsCertificate).log(format_args!("{host} is no name for TLS")))?;
    match timeout_at(deadline, TlsConnector::from(tls.config(offer)).connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(match refusal(&error) {
            Some((reason, why)) => fault(reason).log(format_args!("{host}: {why}")),
            // It accepted the connection and closed it on the first word of TLS.
            None if error.kind() == io::ErrorKind::UnexpectedEof => fault(Reason::OriginTls)
                .log(format_args!("{host} closed the connection in the middle of the handshake")),
            None => fault(reason_of(&error)).log(format_args!("{host}: {error}")),
        }),
        Err(_) => Err(fault(Reason::OriginConnectTimeout).log(format_args!("{host}: TLS handshake"))),
    }
}

#[cfg(test)]
mod tests;
