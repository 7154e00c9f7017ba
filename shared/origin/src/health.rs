//! Whether origins answer: one value for each service, which announcements, readiness, status and metrics all read.
//!
//! Must never call a service down that was seen up by one failure alone, or wait for the next check to tell a change.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use culvert_hop::body::Body;
use culvert_hop::exchange::{Answer, Deadlines};
use culvert_hop::fault::{Fault, Side};
use culvert_hop::message::Request;
use culvert_model::control::{Health as Told, ServiceHealth};
use culvert_model::name::ServiceName;
use culvert_model::reason::Reason;
use culvert_ops::task::Owner;
use http::{Method, header};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::moves::Moves;
use crate::origin_io::OriginIo;
use crate::origins::{Origins, Upstream};
use crate::tls::{Offer, refusal};

/// After a first failure the check is repeated so soon, and only then believed.
const CONFIRM: Duration = Duration::from_millis(250);
/// How long an origin may take to object to our certificate, which with TLS 1.3 it does after the handshake.
const OBJECTION: Duration = Duration::from_millis(100);
/// An origin that is down is looked at so often.
const WHILE_DOWN: Duration = Duration::from_secs(2);

/// Why an origin is down. Equal when the reason is: the words may tell times and addresses.
#[derive(Debug, Clone)]
pub struct Down {
    /// Its name, as relays are told.
    pub reason: String,
    /// In words, with a hint where there is one. For this connector's operator alone.
    pub detail: Option<Box<str>>,
}

/// The health of one service. Clones speak of the same one.
#[derive(Clone)]
pub struct Health {
    inner: Arc<Inner>,
}

struct Inner {
    why_down: RwLock<Option<Down>>,
    /// A check has passed: until then "up" is only a hope, and the first failure is believed.
    seen_up: AtomicBool,
    doubt: Notify,
}

impl Health {
    /// Up until a check says otherwise.
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                why_down: RwLock::new(None),
                seen_up: AtomicBool::new(false),
                doubt: Notify::new(),
            }),
        }
    }

    /// Down from the start.
    pub fn down(fault: &Fault) -> Self {
        let health = Self::new();
        health.set(Some(Down::by(fault)));
        health
    }

    /// Whether the origin answers.
    pub fn is_up(&self) -> bool {
        self.inner.why_down.read().unwrap_or_else(std::sync::PoisonError::into_inner).is_none()
    }

    /// As it is told to relays.
    pub fn told(&self) -> Told {
        let reason = self.why_down().map(|down| down.reason);
        Told { up: reason.is_none(), reason }
    }

    /// Why it does not.
    pub fn why_down(&self) -> Option<Down> {
        self.inner.why_down.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Something spoke against the present value: check now.
    pub fn doubt(&self) {
        self.inner.doubt.notify_one();
    }

    /// Sets the value, why it is down; true if that changed it.
    pub fn set(&self, why_down: Option<Down>) -> bool {
        let mut value = self.inner.why_down.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_news = *value != why_down;
        *value = why_down;
        is_news
    }
}

impl Down {
    fn by(fault: &Fault) -> Self {
        Self { reason: fault.reason.wire_name().to_owned(), detail: fault.detail().map(Into::into) }
    }
}

impl From<Reason> for Down {
    fn from(reason: Reason) -> Self {
        Self { reason: reason.wire_name().to_owned(), detail: None }
    }
}

impl PartialEq for Down {
    fn eq(&self, other: &Self) -> bool {
        self.reason == other.reason
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

/// The checks of all services of a table, and the news of any change.
pub struct Checks {
    origins: Origins,
    news: watch::Sender<u64>,
    running: std::sync::Mutex<Owner>,
}

impl Checks {
    /// No check runs before [`Checks::restart`].
    pub fn new(origins: Origins) -> Self {
        Self { origins, news: watch::Sender::new(0), running: std::sync::Mutex::new(Owner::new()) }
    }

    /// Starts a check for each service of the present table, in place of the former ones.
    pub fn restart(&self) {
        let mut owner = Owner::new();
        for upstream in self.origins.table().iter() {
            let name = upstream.service.name.clone();
            owner.spawn("origin.health", check_for_ever(self.origins.clone(), name, self.news.clone()));
        }
        *self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = owner;
        self.news.send_modify(|version| *version += 1);
    }

    /// Told of every change of any service's health, and of every new table.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }
}

/// Every service's health, as relays are told.
pub fn told(origins: &Origins) -> Vec<ServiceHealth> {
    let table = origins.table();
    table.iter().map(|up| ServiceHealth { name: up.service.name.clone(), health: up.health.told() }).collect()
}

async fn check_for_ever(origins: Origins, name: ServiceName, news: watch::Sender<u64>) {
    let mut moves = Moves::default();
    loop {
        let Some(upstream) = origins.table().upstream(name.as_str()).cloned() else { return };
        let health = &upstream.health;
        let mut found = check(&upstream).await;
        if found.is_some() && health.is_up() && health.inner.seen_up.load(Ordering::Relaxed) {
            tokio::time::sleep(CONFIRM).await;
            found = check(&upstream).await;
        }
        health.inner.seen_up.fetch_or(found.is_none(), Ordering::Relaxed);
        if health.set(found.clone()) {
            match found {
                Some(Down { reason, detail }) => {
                    tracing::warn!(service = %name, reason, detail = detail.as_deref().unwrap_or_default(), "origin is down");
                }
                None => tracing::info!(service = %name, "origin is up"),
            }
            news.send_modify(|version| *version += 1);
        }
        let patience = upstream.service.health.timeout;
        if let Ok(Some(addresses)) = timeout(patience, upstream.addresses()).await
            && moves.note(&addresses, Instant::now())
        {
            tracing::info!(service = %name, "the origin's name has left an address");
            origins.renew(name.as_str());
        }
        let interval = upstream.service.health.interval;
        let next = Instant::now() + if health.is_up() { interval } else { interval.min(WHILE_DOWN) };
        tokio::select! {
            () = sleep_until(next) => {}
            // Not more often than it can be confirmed, whatever requests say.
            () = async { health.inner.doubt.notified().await; tokio::time::sleep(CONFIRM).await } => {}
        }
    }
}

/// One check; why it failed.
async fn check(upstream: &Upstream) -> Option<Down> {
    let service = &upstream.service;
    let attempt = async {
        match &service.health.path {
            None => knock(upstream).await.map_err(|fault| Down::by(&fault)),
            Some(path) => ask(upstream, path).await,
        }
    };
    match timeout(service.health.timeout, attempt).await {
        Ok(outcome) => outcome.err(),
        Err(_) => Some(Reason::OriginTimeout.into()),
    }
}

/// A connection, ended at once and in good order.
async fn knock(upstream: &Upstream) -> Result<(), Fault> {
    let mut io = upstream.pools.opener().connect(Offer::Either).await?;
    if upstream.service.origin.is_tls()
        && let Ok(Err(error)) = timeout(OBJECTION, io.read(&mut [0])).await
        && let Some((reason, why)) = refusal(&error)
    {
        return Err(Fault::new(reason).side(Side::Origin).log(why));
    }
    if let Some(version) = upstream.service.proxy_protocol {
        // Some servers log a connection without the header that they are set to expect.
        let _ = io.write_all(&version.header(None)).await;
    }
    let _ = io.shutdown().await;
    if let OriginIo::Raw(raw) = io {
        raw.end();
    }
    Ok(())
}

async fn ask(upstream: &Upstream, path: &http::uri::PathAndQuery) -> Result<(), Down> {
    let service = &upstream.service;
    let host = match &service.host {
        crate::service::HostPolicy::Literal(host) => host.clone(),
        crate::service::HostPolicy::Origin | crate::service::HostPolicy::Preserve => service.origin.authority(),
    };
    let mut request = Request::new(Body::empty());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = http::Uri::from(path.clone());
    request.headers_mut().insert(header::HOST, host);
    let (mut parts, body) = request.into_parts();
    let body = upstream.prove(&mut parts, body, None).await.map_err(|fault| Down::by(&fault))?;
    let request = Request::from_parts(parts, body);
    let deadlines = Deadlines { first_byte: service.health.timeout, idle: service.health.timeout, request: None };
    match upstream.pools.here().send(request, &deadlines).await {
        Ok(Answer::Response(response)) if response.status().is_success() || response.status().is_redirection() => {
            // Read to its end, so that the connection can be used again.
            let _ = response.into_body().read(64 * 1024).await;
            Ok(())
        }
        Ok(Answer::Response(response)) => {
            Err(Down { reason: format!("status_{}", response.status().as_u16()), detail: None })
        }
        Ok(Answer::Switched(..)) => Err(Reason::OriginProtocol.into()),
        Err(error) => Err(Down::by(&error.fault)),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::service::Service;

    fn origins(origin: String) -> Origins {
        let origins = Origins::default();
        let mut service = Service::new("orders".parse().unwrap(), origin.parse().unwrap(), None);
        service.health.interval = Duration::from_millis(50);
        origins.replace(vec![service]);
        origins
    }

    #[tokio::test]
    async fn an_origin_that_goes_and_comes_back_is_told_each_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let origins = origins(format!("http://{address}"));
        let checks = Checks::new(origins.clone());
        checks.restart();
        let mut news = checks.news();
        drop(listener);
        let told_when = async |news: &mut watch::Receiver<u64>, up: bool| {
            timeout(Duration::from_secs(10), async {
                while told(&origins)[0].health.up != up {
                    news.changed().await.unwrap();
                }
            })
            .await
            .expect("the change is told");
        };
        told_when(&mut news, false).await;
        assert_eq!(told(&origins)[0].health.reason.as_deref(), Some("origin_refused"));
        let _listener = TcpListener::bind(address).await.unwrap();
        told_when(&mut news, true).await;
        assert_eq!(told(&origins)[0].health.reason, None);
    }

    #[tokio::test]
    async fn a_check_of_a_raw_origin_says_that_it_is_one_and_ends_in_good_order() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("tcp://{}", listener.local_addr().unwrap());
        let mut service = Service::new("orders".parse().unwrap(), origin.parse().unwrap(), None);
        service.proxy_protocol = Some(crate::proxy_protocol::ProxyProtocol::V1);
        let origins = Origins::default();
        origins.replace(vec![service]);
        let table = origins.table();
        let (outcome, heard) = tokio::join!(check(table.upstream("orders").unwrap()), async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).await.expect("no reset");
            heard
        });
        assert_eq!((outcome, heard.as_slice()), (None, &b"PROXY UNKNOWN\r\n"[..]));
    }

    #[test]
    fn only_a_change_of_the_reason_is_news_and_the_newest_words_are_kept() {
        let health = Health::new();
        let down = |reason: &str, detail: &str| Some(Down { reason: reason.to_owned(), detail: Some(detail.into()) });
        assert!(!health.set(None), "up from the start");
        assert!(health.set(down("origin_refused", "at 1")));
        assert!(!health.set(down("origin_refused", "at 2")));
        assert_eq!(health.why_down().unwrap().detail.as_deref(), Some("at 2"));
        assert!(health.set(down("origin_dns", "")));
        assert!(health.set(None));
    }
}
