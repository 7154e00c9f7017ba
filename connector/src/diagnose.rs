//! Why nothing answers: two small datagrams whose ICMP answers tell silence apart from a closed way.
//!
//! WireGuard says nothing to those it does not know, so only the network around the relay can be asked. Must never send
//! anything that could be taken for a handshake, or more than a handful of datagrams a minute.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::link::Finding;

/// How long an ICMP answer is waited for.
const PATIENCE: Duration = Duration::from_millis(1000);
/// Where traceroute starts: ports that nobody listens on.
const CLOSED_PORT: u16 = 33434;

/// Looks at the way to a relay that stays silent.
pub async fn diagnose(relay: SocketAddr) -> Finding {
    let other = SocketAddr::new(relay.ip(), if relay.port() == CLOSED_PORT { CLOSED_PORT + 1 } else { CLOSED_PORT });
    let (own, host) = tokio::join!(probe(relay), probe(other));
    match (own, host) {
        (Err(error), _) => finding_of(&error),
        (Ok(()), Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Finding::HostAnswers,
        (Ok(()), _) => Finding::Silence,
    }
}

/// Sends one byte from a connected socket, which is told of ICMP errors; silence is fine.
async fn probe(to: SocketAddr) -> io::Result<()> {
    let any: SocketAddr = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }.parse().map_err(io::Error::other)?;
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    socket.send(&[0]).await?;
    let mut answer = [0; 64];
    match timeout(PATIENCE, socket.recv(&mut answer)).await {
        Ok(Ok(_)) | Err(_) => Ok(()),
        Ok(Err(error)) => Err(error),
    }
}

fn finding_of(error: &io::Error) -> Finding {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Finding::PortClosed,
        io::ErrorKind::PermissionDenied => Finding::NotPermitted,
        _ => Finding::NoRoute,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_port_and_a_silent_one_are_told_apart() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        assert_eq!(diagnose(address).await, Finding::HostAnswers, "this host answers for its closed ports");
        drop(socket);
        assert_eq!(diagnose(address).await, Finding::PortClosed);
    }

    #[test]
    fn errors_of_this_host_have_names() {
        assert_eq!(finding_of(&io::ErrorKind::PermissionDenied.into()), Finding::NotPermitted);
        assert_eq!(finding_of(&io::ErrorKind::NetworkUnreachable.into()), Finding::NoRoute);
        assert_eq!(finding_of(&io::ErrorKind::HostUnreachable.into()), Finding::NoRoute);
    }
}
