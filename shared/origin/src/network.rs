//! The network that origins are in: who knows its names, and who opens sockets there.
//!
//! Must never fall back to the host's own network where another was given: the same address is another host there.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use tokio::net::{TcpSocket, TcpStream};

use crate::names::Names;

/// A network; this host's by default.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// Who knows its names.
    pub names: Names,
    /// Who opens sockets there.
    pub sockets: Sockets,
}

/// Opens TCP sockets in a network that is not this host's.
pub trait OpenSocket: Send + Sync {
    /// A socket of that family, bound to nothing yet.
    fn tcp(&self, v6: bool) -> Pin<Box<dyn Future<Output = io::Result<TcpSocket>> + Send + '_>>;
}

/// Where sockets are opened.
#[derive(Clone, Default)]
pub enum Sockets {
    /// In this process's own network.
    #[default]
    Host,
    /// Elsewhere.
    Of(Arc<dyn OpenSocket>),
}

impl Sockets {
    /// Connects to `address`.
    ///
    /// # Errors
    /// As the system says, of the socket or of the connection.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        match self {
            Self::Host => TcpStream::connect(address).await,
            Self::Of(opener) => opener.tcp(address.is_ipv6()).await?.connect(address).await,
        }
    }
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "Host",
            Self::Of(_) => "Of",
        })
    }
}
