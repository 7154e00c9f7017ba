//! Relay, connector and one origin of each kind, as real programs and sockets: what every cell of the table goes through.
//!
//! Must never hold a setting that changes what a request looks like: the defaults are what is tested.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use culvert_lab::{Connector, Relay, address};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::caller::{Ask, Call};
use crate::origin::{Desk, serve_one, serve_two};
use crate::wire::{Wire, dial, twin};

/// How a caller reaches the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Front {
    One,
    Two,
    OneTls,
    TwoTls,
    Unix,
}

/// What the connector finds behind a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Http,
    H2c,
    Https,
    HttpsTwo,
    Unix,
}

impl Front {
    pub const ALL: [Self; 5] = [Self::One, Self::Two, Self::OneTls, Self::TwoTls, Self::Unix];

    pub fn name(self) -> &'static str {
        match self {
            Self::One => "HTTP/1.1",
            Self::Two => "HTTP/2",
            Self::OneTls => "HTTP/1.1, TLS",
            Self::TwoTls => "HTTP/2, TLS",
            Self::Unix => "HTTP/1.1, unix",
        }
    }

    pub fn is_two(self) -> bool {
        matches!(self, Self::Two | Self::TwoTls)
    }

    pub fn is_tls(self) -> bool {
        matches!(self, Self::OneTls | Self::TwoTls)
    }

    /// What this relay has not yet, said aloud and counted.
    pub fn pending(self) -> Option<&'static str> {
        None
    }
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Http, Self::H2c, Self::Https, Self::HttpsTwo, Self::Unix];

    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::H2c => "h2c",
            Self::Https => "https, HTTP/1.1",
            Self::HttpsTwo => "https, HTTP/2",
            Self::Unix => "unix",
        }
    }

    /// The service that stands for it.
    pub fn service(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::H2c => "h2c",
            Self::Https => "https",
            Self::HttpsTwo => "https-two",
            Self::Unix => "unix",
        }
    }

    pub fn is_two(self) -> bool {
        matches!(self, Self::H2c | Self::HttpsTwo)
    }

    /// What this connector has not yet, said aloud and counted.
    pub fn pending(self) -> Option<&'static str> {
        None
    }
}

pub struct Site {
    pub relay: Relay,
    pub connector: Connector,
    pub desk: Desk,
    tls: SocketAddr,
    unix: PathBuf,
    /// Authority of each kind of origin, as a request's Host names it.
    hosts: Vec<(Kind, String)>,
    trust: [Arc<ClientConfig>; 2],
    _directory: tempfile::TempDir,
}

impl Site {
    /// Starts all of it.
    ///
    /// # Errors
    /// Something does not come up.
    pub async fn start() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("culvert-http-").tempdir()?;
        let file = |name: &str| directory.path().join(name);
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        std::fs::write(file("cert.pem"), pair.cert.pem())?;
        std::fs::write(file("key.pem"), pair.signing_key.serialize_pem())?;
        let der = pair.cert.der().clone();
        let key = pair.signing_key.serialize_der();

        let desk = Desk::default();
        let mut services = String::new();
        let mut hosts = Vec::new();
        for kind in Kind::ALL.into_iter().filter(|kind| kind.pending().is_none()) {
            let (url, host) = match kind {
                Kind::Unix => {
                    let path = file("origin.sock");
                    let listener = UnixListener::bind(&path)?;
                    let desk = desk.clone();
                    tokio::spawn(async move {
                        while let Ok((stream, _)) = listener.accept().await {
                            tokio::spawn(serve_one(Wire::new(Box::new(stream), None), desk.clone()));
                        }
                    });
                    (format!("unix:{}", path.display()), "localhost".to_owned())
                }
                Kind::Http | Kind::H2c | Kind::Https | Kind::HttpsTwo => {
                    let acceptor = match kind {
                        Kind::Https => Some(acceptor(&der, &key, b"http/1.1")?),
                        Kind::HttpsTwo => Some(acceptor(&der, &key, b"h2")?),
                        Kind::Http | Kind::H2c | Kind::Unix => None,
                    };
                    let at = listen(desk.clone(), kind.is_two(), acceptor).await?;
                    let scheme = match kind {
                        Kind::Http | Kind::Unix => "http",
                        Kind::H2c => "h2c",
                        Kind::Https | Kind::HttpsTwo => "https",
                    };
                    let host = format!("{}:{}", if scheme == "https" { "localhost" } else { "127.0.0.1" }, at.port());
                    (format!("{scheme}://{host}"), host)
                }
            };
            // A front's row that closes kept connections has its own pool, or it would close those of other cells.
            let own = Front::ALL.map(|front| Self::own_service(front, kind));
            for name in own.iter().map(String::as_str).chain([kind.service()]) {
                services += &format!("[[service]]\nname = \"{name}\"\norigin = \"{url}\"\n");
                if matches!(kind, Kind::Https | Kind::HttpsTwo) {
                    services += &format!("[service.tls]\nca = \"{}\"\n", file("cert.pem").display());
                }
            }
            hosts.push((kind, host));
        }

        let mut relay = Relay::new()?;
        let tls = address::at(relay.http.ip(), 31_443);
        let unix = file("front.sock");
        let mut config = format!("[http]\nlisten = [\"{}\"]\n", relay.http);
        config += &format!("[[http.listener]]\nlisten = \"unix:{}\"\n", unix.display());
        if Front::OneTls.pending().is_none() {
            let (cert, key) = (file("cert.pem"), file("key.pem"));
            config += &format!(
                "[[http.listener]]\nlisten = \"{tls}\"\ntls = {{ cert = \"{}\", key = \"{}\" }}\n",
                cert.display(),
                key.display()
            );
        }
        relay.config(&config)?;
        relay.start().await?;
        let names: Vec<&str> = hosts.iter().map(|(kind, _)| kind.service()).collect();
        let token = relay.tunnel("table", &[&names[..], &["own-*"]].concat()).await?;
        let mut connector = Connector::new(&token, &[])?;
        connector.config(&services)?;
        connector.start().await?;
        for name in names {
            relay.up(name).await?;
        }
        let trust = [trust(&der, b"http/1.1")?, trust(&der, b"h2")?];
        Ok(Self { relay, connector, desk, tls, unix, hosts, trust, _directory: directory })
    }

    /// A service of the same origin that no other front uses.
    pub fn own_service(front: Front, kind: Kind) -> String {
        format!("own-{}-{}", front as u8, kind.service())
    }

    /// A connection to the relay.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn connect(&self, front: Front) -> Result<Wire> {
        match front {
            Front::One | Front::Two => Wire::connect(self.relay.http).await,
            Front::Unix => Wire::connect_unix(&self.unix).await,
            Front::OneTls | Front::TwoTls => {
                let (stream, socket) = dial(self.tls).await?;
                let [one, two] = &self.trust;
                let config = if front.is_two() { two } else { one };
                let connector = TlsConnector::from(Arc::clone(config));
                let stream = connector.connect(ServerName::try_from("localhost")?, stream).await.context("TLS")?;
                let agreed = stream.get_ref().1.alpn_protocol().unwrap_or_default().to_vec();
                let wanted: &[u8] = if front.is_two() { b"h2" } else { b"http/1.1" };
                anyhow::ensure!(agreed == wanted, "ALPN agreed on {:?}", String::from_utf8_lossy(&agreed));
                Ok(Wire::new(Box::new(stream), Some(socket)))
            }
        }
    }

    /// Asks on a connection of its own.
    ///
    /// # Errors
    /// The relay is not there.
    pub async fn call(&self, front: Front, ask: &Ask) -> Result<Call> {
        let wire = self.connect(front).await?;
        if front.is_two() { Call::two(wire, ask, front.is_tls()).await } else { Call::one(wire, ask).await }
    }

    /// The origin's own name.
    pub fn host(&self, kind: Kind) -> &str {
        self.hosts.iter().find(|(own, _)| *own == kind).map_or("", |(_, host)| host)
    }
}

async fn listen(desk: Desk, is_two: bool, acceptor: Option<TlsAcceptor>) -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let at = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok((stream, socket)) = twin(stream) else { continue };
            let (desk, acceptor) = (desk.clone(), acceptor.clone());
            tokio::spawn(async move {
                match (is_two, acceptor) {
                    (false, None) => serve_one(Wire::new(Box::new(stream), Some(socket)), desk).await,
                    (true, None) => serve_two(Box::new(stream), desk).await,
                    (is_two, Some(acceptor)) => {
                        let Ok(stream) = acceptor.accept(stream).await else { return };
                        match is_two {
                            true => serve_two(Box::new(stream), desk).await,
                            false => serve_one(Wire::new(Box::new(stream), Some(socket)), desk).await,
                        }
                    }
                }
            });
        }
    });
    Ok(at)
}

fn acceptor(cert: &CertificateDer<'static>, key: &[u8], alpn: &[u8]) -> Result<TlsAcceptor> {
    let key = PrivateKeyDer::try_from(key.to_vec()).map_err(|error| anyhow::anyhow!("{error}"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![cert.clone()], key)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn trust(cert: &CertificateDer<'static>, alpn: &[u8]) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(cert.clone())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(Arc::new(config))
}
