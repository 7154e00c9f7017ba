//! The gateways of `deploy/gateways`, real ones, in front of a real relay: what passes through them, and what a
//! hostile caller cannot do through them.
//!
//! Each has a path of its own, `/orders/`, to the service `orders`; a second service, `billing`, is up and is nobody's
//! path.

mod caddy;
mod haproxy;
mod nginx;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use culvert_lab::certificate::Certificate;
use culvert_lab::gateway::Gateway;
use culvert_lab::websocket::{Message, WebSocket};
use culvert_lab::{Connector, Origin, Relay, address, binary, client, origin};
use http::Method;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const BODY: u64 = 16 << 20;

/// A relay with two services, before its gateway is there.
struct Behind {
    relay: Relay,
    connector: Connector,
    orders: Origin,
    billing: Origin,
    /// Where the gateway is to listen.
    listen: SocketAddr,
    /// Its identity: `NAME:SECRET`.
    identity: String,
    /// Where the relay speaks TLS, and with what.
    over_tls: Option<(SocketAddr, Certificate)>,
}

/// All of it.
struct Site {
    behind: Behind,
    gateway: Gateway,
    /// Where callers call from: an address that is neither the gateway's nor the relay's.
    caller: IpAddr,
}

impl Behind {
    async fn new() -> Result<Self> {
        let mut relay = Relay::new()?;
        // Loopback would not ask for an identity; here the gateway's must arrive.
        let mut config = format!("[[http.listener]]\nlisten = \"{}\"\ngateways = [\"edge\"]\n", relay.http);
        let mut over_tls = None;
        if binary::on_path("openssl").is_some() {
            let certificate = Certificate::make(relay.directory(), "relay", "relay.example.com").await?;
            let at = address::at(relay.http.ip(), 31_443);
            config += &format!("[[http.listener]]\nlisten = \"{at}\"\n{}\n", certificate.setting());
            config += "gateways = [\"edge\"]\n";
            over_tls = Some((at, certificate));
        }
        relay.config(&config)?;
        relay.start().await?;
        let said = relay.cli(&["gateway", "create", "edge"]).await?;
        ensure!(said.status == 0, "{said:?}");
        let identity = said.stdout.trim().to_owned();
        let (orders, billing) = (Origin::start("orders").await?, Origin::start("billing").await?);
        let token = relay.tunnel("main", &["orders", "billing"]).await?;
        let services = [format!("orders={}", orders.url()), format!("billing={}", billing.url())];
        let mut connector = Connector::new(&token, &services.each_ref().map(String::as_str))?;
        connector.start().await?;
        relay.up("orders").await?;
        relay.up("billing").await?;
        let listen = address::at(address::own_loopback(), 31_081);
        Ok(Self { relay, connector, orders, billing, listen, identity, over_tls })
    }

    /// The addresses that every shipped configuration has, and this site's own.
    fn addresses(&self) -> [(&'static str, String); 2] {
        [("127.0.0.1:8080", self.relay.http.to_string()), ("9480", self.relay.admin.port().to_string())]
    }
}

impl Site {
    fn new(behind: Behind, gateway: Gateway) -> Self {
        Self { behind, gateway, caller: address::own_loopback() }
    }

    /// Sends raw bytes from the caller's address; everything that came until the gateway closed.
    async fn raw(&self, bytes: &str) -> Result<String> {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(self.caller, 0))?;
        let mut stream = socket.connect(self.gateway.listen).await?;
        stream.write_all(bytes.as_bytes()).await?;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(client::LIMIT, stream.read_to_end(&mut answer)).await;
        // A reset after a refusal still leaves what came before it.
        let _ = read.with_context(|| format!("no end of the answer to {bytes:?}"))?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    async fn head(&self, target: &str, fields: &str) -> Result<Head> {
        let answer = self
            .raw(&format!("GET {target} HTTP/1.1\r\nHost: api.example.com\r\n{fields}Connection: close\r\n\r\n"))
            .await?;
        let (start, end) = (answer.find('{'), answer.rfind('}'));
        let json = start.zip(end).and_then(|(start, end)| answer.get(start..=end));
        let json = json.with_context(|| format!("no head in {answer:?}\n{}", self.behind.relay.last_words()))?;
        Ok(Head(serde_json::from_str(json)?))
    }
}

/// What the origin saw.
#[derive(Debug)]
struct Head(serde_json::Value);

impl Head {
    fn values(&self, name: &str) -> Vec<String> {
        let fields: Vec<(String, String)> = serde_json::from_value(self.0["fields"].clone()).unwrap_or_default();
        fields.into_iter().filter(|(field, _)| field == name).map(|(_, value)| value).collect()
    }

    fn names(&self) -> Vec<String> {
        let fields: Vec<(String, String)> = serde_json::from_value(self.0["fields"].clone()).unwrap_or_default();
        fields.into_iter().map(|(name, _)| name).collect()
    }
}

/// The target arrives byte for byte, the gateway's word about the caller too, and nothing the caller forged.
async fn the_origin_learns_who_called_from_the_gateway(site: &Site) -> Result<()> {
    let target = "/orders/head//a%2Fb/%7E?q=%20&&x";
    let forged = "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: gopher\r\nX-Forwarded-Host: forged.example\r\n\
                  X-Forwarded-Port: 44444\r\nForwarded: for=203.0.113.9;proto=gopher\r\n\
                  Culvert-Service: billing\r\nCulvert-Gateway: other:secret\r\nX-Kept: kept\r\n";
    let head = site.head(target, forged).await?;
    ensure!(head.0["target"] == target, "{head:?}");
    let caller = site.caller.to_string();
    let forwarded_for = head.values("x-forwarded-for").join(", ");
    let mut hops = forwarded_for.split(", ");
    ensure!(hops.next() == Some(&caller) && hops.next().is_some() && hops.next().is_none(), "{forwarded_for}");
    ensure!(head.values("x-forwarded-proto") == ["http"], "{head:?}");
    ensure!(head.values("x-forwarded-host") == ["api.example.com"], "{head:?}");
    let text = head.0.to_string();
    for forged in ["203.0.113.9", "gopher", "forged", "44444"] {
        ensure!(!text.contains(forged), "{text}");
    }
    ensure!(head.values("x-kept") == ["kept"], "{head:?}");
    ensure!(head.names().iter().all(|name| !name.starts_with("culvert")), "{head:?}");
    // The relay asked who calls: without the gateway's secret nobody gets in.
    let answer = site.behind.relay.get("orders", "/orders/head").await?;
    ensure!(answer.status == 401, "{answer:?}");
    ensure!(!text.contains("culvert_g1_"), "{text}");
    Ok(())
}

/// Naming a field in `Connection` takes nothing away that the gateway says.
async fn a_caller_takes_nothing_away_with_connection(site: &Site) -> Result<()> {
    let named = "Connection: Host, Culvert-Gateway, X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host\r\n";
    let head = site.head("/orders/head", named).await?;
    let caller = site.caller.to_string();
    ensure!(head.values("x-forwarded-for").join(", ").starts_with(&caller), "{head:?}");
    ensure!(head.values("x-forwarded-host") == ["api.example.com"], "{head:?}");
    ensure!(head.values("x-forwarded-proto") == ["http"], "{head:?}");
    Ok(())
}

/// Whatever a caller says, `billing` never hears of it.
async fn no_caller_reaches_another_service(site: &Site) -> Result<()> {
    let attempts = [
        "GET /orders/ HTTP/1.1\r\nHost: api.example.com\r\nCulvert-Service: billing\r\n",
        "GET /orders/ HTTP/1.1\r\nHost: api.example.com\r\nculvert_service: billing\r\nCulvert-Service : billing\r\n",
        "GET /orders/ HTTP/1.1\r\nHost: api.example.com\r\nCulvert-Gateway: other:secret\r\n",
        "GET /orders/ HTTP/1.1\r\nHost: billing\r\n",
        "GET /orders/ HTTP/1.1\r\nHost: billing.internal\r\n",
        "GET /orders/ HTTP/1.1\r\nHost: api.example.com\r\nHost: billing.internal\r\n",
        "GET /orders/ HTTP/1.1\r\nHost: api.example.com\r\nX-Forwarded-Host: billing.internal\r\n",
        "GET http://billing.internal/orders/ HTTP/1.1\r\nHost: billing.internal\r\n",
        "GET http://billing.internal/orders/ HTTP/1.1\r\nHost: api.example.com\r\n",
        "GET http://billing.internal/orders/?a=http://billing.internal/ HTTP/1.1\r\nHost: billing.internal:80\r\n",
        "GET //billing.internal/orders/ HTTP/1.1\r\nHost: billing.internal\r\n",
        "GET /orders/../../billing/ HTTP/1.1\r\nHost: billing.internal\r\n",
        "GET /orders/ HTTP/1.1\r\nHost: billing.internal\r\nX-Named: Host\r\nConnection: Host\r\n",
        "GET /orders/ HTTP/1.0\r\n",
        "GET http://billing.internal/orders/ HTTP/1.0\r\n",
        "CONNECT billing.internal:80 HTTP/1.1\r\nHost: billing.internal:80\r\n",
        "POST /orders/sink HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 62\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\nGET / HTTP/1.1\r\nHost: billing.internal\r\nCulvert-Service: billing\r\n",
    ];
    let mut reached = 0;
    for attempt in attempts {
        let answer = site.raw(&format!("{attempt}Connection: close\r\n\r\n")).await?;
        ensure!(!answer.contains("billing\n"), "{attempt:?} was answered by billing: {answer}");
        ensure!(site.behind.billing.all_requests() == 0, "{attempt:?} reached billing: {answer}");
        reached += usize::from(answer.contains("hello from orders"));
    }
    // Most of them are ordinary requests to this gateway's own path: refusing everything would prove nothing.
    ensure!(reached >= 7 && site.behind.orders.all_requests() >= reached, "only {reached} attempts reached orders");
    Ok(())
}

/// A WebSocket echoes, again and again.
async fn a_websocket_passes(site: &Site) -> Result<()> {
    let mut socket = WebSocket::open(site.gateway.listen, "api.example.com", "/orders/ws").await?;
    for number in 0..20 {
        let text = format!("message {number}");
        socket.send(&text).await?;
        ensure!(socket.receive().await? == Message::Text(text));
    }
    Ok(())
}

/// In lockstep: the origin makes the next event only when the last one has arrived.
async fn events_arrive_one_by_one(site: &Site) -> Result<()> {
    let request = client::request(Method::GET, "api.example.com", "/orders/feed", Bytes::new())?;
    let mut response = client::stream(site.gateway.listen, request).await?;
    ensure!(response.status() == 200, "{response:?}");
    let mut expected = "ready".to_owned();
    for number in 0..10 {
        let wanted = format!("data: {expected}\n\n");
        let mut seen = Vec::new();
        while seen.len() < wanted.len() {
            let frame = tokio::time::timeout(client::LIMIT, response.body_mut().frame()).await;
            let frame = frame.with_context(|| format!("{expected} is held back"))?.context("the stream ended")??;
            seen.extend_from_slice(frame.data_ref().context("trailers")?);
        }
        ensure!(seen == wanted.as_bytes(), "{:?}", String::from_utf8_lossy(&seen));
        expected = format!("event {number}");
        site.behind.orders.tell(&expected);
    }
    Ok(())
}

/// The origin has the first piece of a body, and its echo is back, before the second is made.
async fn an_upload_goes_out_as_it_comes(site: &Site) -> Result<()> {
    let mut stream = TcpStream::connect(site.gateway.listen).await?;
    let head = "POST /orders/echo HTTP/1.1\r\nHost: api.example.com\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    let mut seen = String::new();
    for piece in ["first", "second", "third"] {
        stream.write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).await?;
        let mut buffer = [0; 4096];
        while !seen.contains(piece) {
            let read = tokio::time::timeout(client::LIMIT, stream.read(&mut buffer)).await;
            let read = read.with_context(|| format!("no echo of the {piece} piece: {seen:?}"))??;
            ensure!(read > 0, "the answer ended before the {piece} piece: {seen:?}");
            seen += &String::from_utf8_lossy(&buffer[..read]);
        }
    }
    Ok(())
}

/// Megabytes both ways are the same bytes on the other side.
async fn large_bodies_pass_whole(site: &Site) -> Result<()> {
    let answer = client::get(site.gateway.listen, "api.example.com", &format!("/orders/bytes/{BODY}")).await?;
    ensure!(answer.body.len() as u64 == BODY && answer.body == origin::pattern(0, BODY), "the download differs");
    let upload = origin::pattern(0, BODY);
    let answer = client::post(site.gateway.listen, "api.example.com", "/orders/hash", upload).await?;
    ensure!(answer.text() == format!("{} {BODY}", origin::pattern_hash(BODY)), "the upload differs: {answer:?}");
    Ok(())
}

/// The relay's own words about a failure, and the origin's own status, come back through the gateway.
async fn a_failure_keeps_its_name(site: &mut Site) -> Result<()> {
    let answer = client::get(site.gateway.listen, "api.example.com", "/orders/status/418").await?;
    ensure!(answer.status == 418 && answer.header("proxy-status").is_empty(), "{answer:?}");
    site.behind.connector.terminate(client::LIMIT).await?;
    // For a moment the relay may still know a connector that drains or has just gone.
    let start = Instant::now();
    loop {
        let answer = client::get(site.gateway.listen, "api.example.com", "/orders/").await?;
        let why = answer.header("proxy-status");
        if answer.status == 503 && why.contains("no_connector") {
            return Ok(());
        }
        ensure!(why.contains("culvert-relay; error=") && start.elapsed() < client::LIMIT, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
