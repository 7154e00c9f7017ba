//! One connection to an origin: names resolved afresh, every address tried, failures named.
//!
//! The one place where a resolved address is judged and dialled. Must never dial an address that was not admitted.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use culvert_hop::fault::{Fault, Retry, Side};
use culvert_model::reason::Reason;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::allow::Allow;
use crate::origin::{Host, Origin};
use crate::tls::ClientTls;

/// The head start of each address over the next (RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);

/// Which addresses of an origin may be dialled.
#[derive(Debug, Clone)]
pub enum Admission {
    /// Declared by this connector's own operator: all.
    Declared,
    /// Managed from elsewhere: within the allow-list.
    Within(Arc<Allow>),
}

/// A byte stream to an origin.
#[derive(Debug)]
pub enum OriginIo {
    /// Plain TCP.
    Tcp(TcpStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
    /// A unix socket.
    Unix(UnixStream),
}

/// Connects within `patience`, TLS included.
///
/// # Errors
/// A [`Fault`] of the origin's side; nothing was sent.
pub async fn connect(
    origin: &Origin,
    tls: Option<&ClientTls>,
    admission: &Admission,
    patience: Duration,
) -> Result<OriginIo, Fault> {
    let deadline = Instant::now() + patience;
    match origin {
        Origin::Unix(path) => {
            if let Admission::Within(allow) = admission
                && !allow.permits(origin, None)
            {
                return Err(denied(origin));
            }
            unix(path, deadline).await.map(OriginIo::Unix)
        }
        Origin::Tcp { tls: secure, host, port } => {
            let addresses = resolve(host, *port, deadline).await?;
            let admitted: Vec<SocketAddr> = match admission {
                Admission::Declared => addresses,
                Admission::Within(allow) => {
                    addresses.into_iter().filter(|address| allow.permits(origin, Some(*address))).collect()
                }
            };
            if admitted.is_empty() {
                return Err(denied(origin));
            }
            let stream = race(&admitted, deadline).await?;
            match (secure, tls) {
                (false, _) => Ok(OriginIo::Tcp(stream)),
                (true, Some(tls)) => {
                    secured(stream, host, tls, deadline).await.map(|stream| OriginIo::Tls(Box::new(stream)))
                }
                (true, None) => Err(fault(Reason::OriginTls).log("an https origin without TLS settings")),
            }
        }
    }
}

/// Names an I/O error of a connection that was being made.
pub fn reason_of(error: &io::Error) -> Reason {
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
    Fault::new(reason).side(Side::Origin).retry(Retry::Safe)
}

fn denied(origin: &Origin) -> Fault {
    Fault::new(Reason::OriginDenied).side(Side::Here).retry(Retry::Never).log(format_args!("{origin} is not allowed"))
}

async fn resolve(host: &Host, port: u16, deadline: Instant) -> Result<Vec<SocketAddr>, Fault> {
    let name = match host {
        Host::Address(address) => return Ok(vec![SocketAddr::new(*address, port)]),
        Host::Name(name) => name,
    };
    let looked_up = timeout_at(deadline, tokio::net::lookup_host((name.as_str(), port))).await;
    let no = |why: &dyn std::fmt::Display| fault(Reason::OriginDns).log(format_args!("{name}: {why}"));
    match looked_up {
        Ok(Ok(found)) => {
            let mut found: Vec<SocketAddr> = found.collect();
            // Families in turn, the first address's family first, as the system sorted them (RFC 6724).
            let first_is_six = found.first().is_some_and(SocketAddr::is_ipv6);
            let (one, two): (Vec<_>, Vec<_>) = found.iter().copied().partition(|at| at.is_ipv6() == first_is_six);
            found.clear();
            let (mut one, mut two) = (one.into_iter(), two.into_iter());
            loop {
                let pair = [one.next(), two.next()];
                if pair == [None, None] {
                    break;
                }
                found.extend(pair.into_iter().flatten());
            }
            if found.is_empty() { Err(no(&"no address")) } else { Ok(found) }
        }
        Ok(Err(error)) => Err(no(&error)),
        Err(_) => Err(no(&"no answer in time")),
    }
}

/// Dials the addresses one after the other with a head start each; the first that accepts wins.
async fn race(addresses: &[SocketAddr], deadline: Instant) -> Result<TcpStream, Fault> {
    let mut waiting = addresses.iter().copied();
    let mut dialling = FuturesUnordered::new();
    let mut first_error: Option<(SocketAddr, io::Error)> = None;
    let mut next_start = Instant::now();
    loop {
        if Instant::now() >= next_start || dialling.is_empty() {
            match waiting.next() {
                Some(address) => {
                    dialling.push(async move { (address, TcpStream::connect(address).await) });
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
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(error) => {
                    first_error.get_or_insert((address, error));
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
    Err(match first_error {
        Some((address, error)) => fault(reason_of(&error)).log(format_args!("{address}: {error}")),
        None => fault(Reason::OriginDns),
    })
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
    deadline: Instant,
) -> Result<TlsStream<TcpStream>, Fault> {
    let name = match host {
        Host::Address(address) => ServerName::IpAddress(IpAddr::into(*address)),
        Host::Name(name) => ServerName::try_from(name.clone())
            .map_err(|_| fault(Reason::OriginTlsCertificate).log(format_args!("{name} is no TLS name")))?,
    };
    match timeout_at(deadline, TlsConnector::from(tls.config()).connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => {
            let reason = match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
                    Reason::OriginTlsCertificate
                }
                Some(_) => Reason::OriginTls,
                None if error.kind() == io::ErrorKind::UnexpectedEof => Reason::OriginTls,
                None => reason_of(&error),
            };
            Err(fault(reason).log(format_args!("{host}: {error}")))
        }
        Err(_) => Err(fault(Reason::OriginConnectTimeout).log(format_args!("{host}: TLS handshake"))),
    }
}

macro_rules! each {
    ($io:expr, $stream:ident => $call:expr) => {
        match $io.get_mut() {
            OriginIo::Tcp($stream) => $call,
            OriginIo::Tls($stream) => $call,
            OriginIo::Unix($stream) => $call,
        }
    };
}

impl AsyncRead for OriginIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for OriginIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    async fn dial(origin: &str) -> Result<OriginIo, Reason> {
        dial_within(origin, &Admission::Declared).await
    }

    async fn dial_within(origin: &str, admission: &Admission) -> Result<OriginIo, Reason> {
        connect(&origin.parse().unwrap(), None, admission, PATIENCE).await.map_err(|fault| fault.reason)
    }

    #[tokio::test]
    async fn an_origin_is_reached_by_address_by_name_and_by_socket_file() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(dial(&format!("http://127.0.0.1:{port}")).await.is_ok());
        assert!(dial(&format!("http://localhost:{port}")).await.is_ok(), "whichever family comes first");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.sock");
        let _listener = tokio::net::UnixListener::bind(&path).unwrap();
        assert!(dial(&format!("unix:{}", path.display())).await.is_ok());
    }

    #[tokio::test]
    async fn failures_have_names() {
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap().port()
        };
        assert_eq!(dial(&format!("http://127.0.0.1:{port}")).await.unwrap_err(), Reason::OriginRefused);
        assert_eq!(dial("http://no-such-host.invalid:80").await.unwrap_err(), Reason::OriginDns);
        assert_eq!(dial("unix:/no/such/file.sock").await.unwrap_err(), Reason::OriginRefused);
        let kinds = [
            (io::ErrorKind::HostUnreachable, Reason::OriginUnreachable),
            (io::ErrorKind::NetworkUnreachable, Reason::OriginUnreachable),
            (io::ErrorKind::PermissionDenied, Reason::OriginUnreachable),
            (io::ErrorKind::TimedOut, Reason::OriginConnectTimeout),
            (io::ErrorKind::ConnectionReset, Reason::OriginClosed),
        ];
        for (kind, reason) in kinds {
            assert_eq!(reason_of(&kind.into()), reason);
        }
    }

    /// An https origin on this host, and what trusts it.
    fn certified(names: &[&str]) -> (Arc<rustls::ServerConfig>, ClientTls) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let files = crate::tls::Files { ca: Some(made.cert.pem().into_bytes()), ..Default::default() };
        (Arc::new(server), ClientTls::new(files).unwrap())
    }

    async fn dial_tls(origin: &str, tls: &ClientTls) -> Result<OriginIo, Reason> {
        let origin = origin.parse().unwrap();
        connect(&origin, Some(tls), &Admission::Declared, PATIENCE).await.map_err(|fault| fault.reason)
    }

    #[tokio::test]
    async fn an_https_origin_must_prove_its_name_to_who_trusts_it() {
        let (server, tls) = certified(&["localhost"]);
        let (_, stranger) = certified(&["localhost"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = culvert_ops::task::spawn("test.origin", async move {
            let acceptor = tokio_rustls::TlsAcceptor::from(server);
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let _ = acceptor.accept(stream).await;
            }
        });
        assert!(dial_tls(&format!("https://localhost:{port}"), &tls).await.is_ok());
        let wrong_name = dial_tls(&format!("https://127.0.0.1:{port}"), &tls).await.unwrap_err();
        assert_eq!(wrong_name, Reason::OriginTlsCertificate);
        let untrusted = dial_tls(&format!("https://localhost:{port}"), &stranger).await.unwrap_err();
        assert_eq!(untrusted, Reason::OriginTlsCertificate);
        drop(serving);
    }

    #[tokio::test]
    async fn an_origin_that_does_not_speak_tls_is_named() {
        let (_, tls) = certified(&["localhost"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = culvert_ops::task::spawn("test.origin", async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            stream
        });
        assert_eq!(dial_tls(&format!("https://localhost:{port}"), &tls).await.unwrap_err(), Reason::OriginTls);
        drop(serving);
    }

    #[tokio::test(start_paused = true)]
    async fn an_origin_that_says_nothing_is_given_up_after_its_patience() {
        let (_, tls) = certified(&["localhost"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let started = Instant::now();
        let outcome = dial_tls(&format!("https://127.0.0.1:{port}"), &tls).await.unwrap_err();
        assert_eq!(outcome, Reason::OriginConnectTimeout);
        assert_eq!(started.elapsed().as_secs(), PATIENCE.as_secs());
    }

    #[tokio::test]
    async fn an_address_outside_the_allow_list_is_not_dialled() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let within = |text: &str| Admission::Within(Arc::new(Allow::parse(&[text.to_owned()]).unwrap()));
        let origin = format!("http://localhost:{port}");
        assert_eq!(dial_within(&origin, &within("10.0.0.0/8")).await.unwrap_err(), Reason::OriginDenied);
        assert!(dial_within(&origin, &within("127.0.0.0/8")).await.is_ok());
        assert_eq!(dial_within("unix:/x.sock", &within("10.0.0.0/8")).await.unwrap_err(), Reason::OriginDenied);
    }
}
