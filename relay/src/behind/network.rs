//! The network behind a peer: sockets in the TUN plane's namespace, and names by the resolver that the peer names.
//!
//! Must never open a socket in the host's own network, or ask the host's resolver.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use culvert_origin::names::{Names, Resolve};
use culvert_origin::network::{Network, OpenSocket, Sockets};
use culvert_plane::tun::Tun;
use tokio::net::TcpSocket;

use super::resolve;
use crate::peers::Peers;

/// The port of name servers.
const DNS: u16 = 53;

type Later<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// Opens sockets where the TUN plane has them now: it may be another one than before.
#[derive(Clone)]
pub(super) struct Inside {
    peers: Peers,
}

/// Asks one name server inside.
struct ByServer {
    inside: Inside,
    server: SocketAddr,
}

/// Nobody knows names there.
struct Nobody;

/// What is behind a peer whose names `resolver` knows.
pub(super) fn network(peers: &Peers, resolver: Option<IpAddr>) -> Network {
    let inside = Inside { peers: peers.clone() };
    let resolver: Arc<dyn Resolve> = match resolver {
        Some(server) => Arc::new(ByServer { inside: inside.clone(), server: SocketAddr::new(server, DNS) }),
        None => Arc::new(Nobody),
    };
    Network { names: Names::by(resolver), sockets: Sockets::Of(Arc::new(inside)) }
}

impl Inside {
    fn tun(&self) -> io::Result<Tun> {
        let none = || io::Error::new(io::ErrorKind::NetworkUnreachable, "there is no TUN plane");
        self.peers.tun().ok_or_else(none)
    }
}

impl OpenSocket for Inside {
    fn tcp(&self, v6: bool) -> Later<'_, TcpSocket> {
        Box::pin(async move { self.tun()?.tcp(v6).await })
    }
}

impl Resolve for ByServer {
    fn resolve(&self, name: &str) -> Later<'static, Vec<SocketAddr>> {
        let (tun, server, name) = (self.inside.tun(), self.server, name.to_owned());
        Box::pin(async move { resolve::resolve(&tun?, server, &name).await })
    }
}

impl Resolve for Nobody {
    fn resolve(&self, _: &str) -> Later<'static, Vec<SocketAddr>> {
        Box::pin(async { Err(io::Error::other("the peer names no resolver (`peer add --dns ADDRESS`)")) })
    }
}
