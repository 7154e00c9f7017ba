//! The table of failures in the documentation, provoked row by row: each with its status, its `Proxy-Status`, its line in
//! the access log, its metric, and its gRPC status.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use culvert_e2e::promises;
use culvert_lab::client::Answer;
use culvert_lab::skip::{self, Need};
use culvert_lab::{Connector, Origin, Relay, address, client, wait};
use http::{HeaderName, Method};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

/// Rows that no real connector can be brought to yet, and why. The relay's own tests have a connector made by hand tell
/// them: `what_a_connector_tells_of_its_failure_is_the_reason_and_what_nobody_can_read_is_internal`.
const LATER: [(&str, &str); 1] = [("internal", "a defect by definition: no input is known that leads to it")];

const WEBSOCKET: &[(&str, &str)] = &[
    ("connection", "upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// How one row is provoked by a plain request.
struct Row {
    reason: &'static str,
    error: &'static str,
    status: u16,
    host: &'static str,
    path: &'static str,
    body: &'static str,
    /// Besides; [`KONG`] stands for the gateway's credential.
    fields: &'static [(&'static str, &'static str)],
    /// At the listener that asks who calls.
    guarded: bool,
}

const KONG: &[(&str, &str)] = &[("culvert-gateway", "")];

/// Through as many Culverts as a request may have been. (What a relay answers that is its own origin is the origin's.)
const AGAIN: &[(&str, &str)] = &[("via", "1.1 culvert, 1.1 culvert, 1.1 culvert, 1.1 culvert"); 2];

const GET: Row = Row { reason: "", error: "", status: 0, host: "", path: "/", body: "", fields: &[], guarded: false };

const ROWS: [Row; 22] = [
    Row { reason: "no_such_service", error: "destination_not_found", status: 404, host: "unheard-of", ..GET },
    Row { reason: "unauthenticated", error: "http_request_denied", status: 401, host: "held", guarded: true, ..GET },
    Row {
        reason: "not_allowed",
        error: "http_request_denied",
        status: 403,
        host: "refused",
        fields: KONG,
        guarded: true,
        ..GET
    },
    Row {
        reason: "gateway_limit",
        error: "connection_limit_reached",
        status: 429,
        host: "held",
        fields: KONG,
        guarded: true,
        ..GET
    },
    Row { reason: "no_connector", error: "destination_unavailable", status: 503, host: "nobody", ..GET },
    Row { reason: "draining", error: "destination_unavailable", status: 503, host: "leaving", ..GET },
    Row { reason: "overloaded", error: "connection_limit_reached", status: 503, host: "full", ..GET },
    Row { reason: "origin_dns", error: "dns_error", status: 502, host: "nameless", ..GET },
    Row { reason: "origin_refused", error: "connection_refused", status: 502, host: "refused", ..GET },
    Row { reason: "origin_unreachable", error: "destination_ip_unroutable", status: 502, host: "unroutable", ..GET },
    Row { reason: "origin_tls", error: "tls_certificate_error", status: 502, host: "stranger", ..GET },
    Row { reason: "origin_tls", error: "tls_protocol_error", status: 502, host: "not-tls", ..GET },
    Row { reason: "origin_timeout", error: "connection_timeout", status: 504, host: "deaf", ..GET },
    Row {
        reason: "origin_timeout",
        error: "http_response_timeout",
        status: 504,
        host: "slow",
        path: "/slow/60000",
        ..GET
    },
    Row { reason: "origin_closed", error: "http_response_incomplete", status: 502, host: "closing", ..GET },
    Row { reason: "origin_protocol", error: "http_protocol_error", status: 502, host: "garbled", ..GET },
    Row {
        reason: "upgrade_refused",
        error: "http_upgrade_failed",
        status: 502,
        host: "turncoat",
        fields: WEBSOCKET,
        ..GET
    },
    Row { reason: "origin_denied", error: "destination_ip_prohibited", status: 403, host: "denied", ..GET },
    Row { reason: "origin_auth", error: "proxy_internal_error", status: 502, host: "unproven", ..GET },
    Row { reason: "too_large", error: "http_request_error", status: 413, host: "small", body: "too long", ..GET },
    Row {
        reason: "deadline",
        error: "http_response_timeout",
        status: 504,
        host: "hurried",
        path: "/slow/60000",
        ..GET
    },
    Row { reason: "loop", error: "proxy_loop_detected", status: 508, host: "held", fields: AGAIN, ..GET },
];

/// Everything that has to be there for [`ROWS`].
struct Stage {
    relay: Relay,
    guarded: SocketAddr,
    kong: String,
    origin: Origin,
    mortal: Connector,
    _others: Vec<Connector>,
    _deaf: Deaf,
    _stranger: Option<Stranger>,
}

/// A port that takes no further connection: its queue is full.
struct Deaf {
    address: SocketAddr,
    _listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

/// A TLS server whose certificate nobody vouches for.
struct Stranger {
    address: SocketAddr,
    server: Child,
}

#[tokio::test]
async fn every_failure_answers_with_its_status_field_line_and_metric() -> Result<()> {
    let mut stage = Stage::new().await?;
    let mut seen: BTreeSet<(String, u16, String)> = BTreeSet::new();
    // What is held makes the next one too many.
    let holders = [
        stage.hold(stage.relay.http, "full", &[]),
        stage.hold(stage.guarded, "held", &[("culvert-gateway", &stage.kong)]),
    ];
    wait::until("both held requests", Duration::from_secs(10), || async {
        (stage.origin.requests("/slow/60000") == 2).then_some(())
    })
    .await?;
    for (number, row) in ROWS.iter().enumerate() {
        if row.host == "stranger" && stage._stranger.is_none() {
            continue;
        }
        let id = format!("row-{number}");
        let answer = stage.ask(row, &id, &[]).await.with_context(|| format!("{} {}", row.reason, row.error))?;
        assert_eq!(answer.status, row.status, "{} {}: {}", row.reason, answer.header("proxy-status"), answer.text());
        check_answer(&answer, row.reason, row.error)?;
        stage.check_log(&id, row.reason, row.status).await?;
        let known = stage.relay.json(&["service", "list"]).await?;
        let is_known = known.as_array().is_some_and(|all| all.iter().any(|one| one["name"] == row.host));
        // Who may not call a service, or calls none, counts for no service.
        let is_of_service = is_known && !["unauthenticated", "not_allowed"].contains(&row.reason);
        stage.check_metric(if is_of_service { row.host } else { "" }, row.reason).await?;
        seen.insert((row.reason.to_owned(), row.status, row.error.to_owned()));

        if row.fields == WEBSOCKET {
            continue;
        }
        let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
        let answer = stage.ask(row, &format!("{id}-grpc"), &grpc).await?;
        let promised = promises().reason.into_iter().find(|one| one.name == row.reason).context("a promise")?;
        assert_eq!(answer.status, 200, "{}: {answer:?}", row.reason);
        assert_eq!(answer.header("grpc-status"), promised.grpc.to_string(), "{}", row.reason);
        assert!(answer.body.is_empty(), "{}: {answer:?}", row.reason);
        check_answer(&answer, row.reason, row.error)?;
    }
    for holder in holders {
        holder.abort();
    }
    for (status, error, reason) in stage.raw_rows().await? {
        seen.insert((reason.to_owned(), status, error.to_owned()));
    }
    stage.lose_a_connector().await?;
    seen.insert(("connector_lost".to_owned(), 502, "connection_terminated".to_owned()));

    for promised in promises().reason {
        if let Some((reason, why)) = LATER.iter().find(|(reason, _)| *reason == promised.name) {
            skip::later(&format!("failure {reason}"), why);
            continue;
        }
        for status in &promised.status {
            let provoked = seen.iter().any(|(reason, own, _)| *reason == promised.name && own == status);
            ensure!(provoked, "{} with {status} was not provoked", promised.name);
        }
        for error in &promised.error {
            let provoked = seen.iter().any(|(reason, _, own)| *reason == promised.name && own == error);
            let is_skipped = error == "tls_certificate_error" && stage._stranger.is_none();
            ensure!(provoked || is_skipped, "{} as {error} was not provoked", promised.name);
        }
    }
    Ok(())
}

impl Stage {
    async fn new() -> Result<Self> {
        let mut relay = Relay::new()?;
        let guarded = address::at(relay.http.ip(), 31_082);
        let log = relay.directory().join("access.log");
        relay.config(&format!(
            "[http]\nlisten = [\"{}\"]\naccess_log = \"{}\"\n\
             [[http.listener]]\nlisten = \"{guarded}\"\ngateways = [\"kong\"]\n\
             [limits]\ngateway_concurrent = 1\nqueue = 0\nhead_time = \"1s\"\n\
             [service.full.limits]\nconcurrent = 1\n[service.small.limits]\nbody = 4\n",
            relay.http,
            log.display()
        ))?;
        relay.start().await?;
        let said = relay.cli(&["gateway", "create", "kong", "--service", "held"]).await?;
        ensure!(said.status == 0, "{said:?}");
        let origin = Origin::start("origin").await?;
        let deaf = Deaf::start().await?;
        let stranger = Stranger::start(relay.directory()).await?;
        let plain = answers(b"HTTP/1.1 400 no\r\ncontent-length: 0\r\n\r\n").await?;
        let closed = std::net::TcpListener::bind("127.0.0.1:0")?;
        let refused = format!("http://{}", closed.local_addr()?);
        drop(closed);
        let switched = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: elsewhere\r\n\r\n";
        let origins = [
            ("held", origin.url(), ""),
            ("full", origin.url(), ""),
            ("small", origin.url(), ""),
            ("slow", origin.url(), "first_byte = \"300ms\""),
            ("hurried", origin.url(), "request = \"300ms\""),
            ("nameless", "http://no-such-host.invalid:80".to_owned(), ""),
            ("refused", refused, ""),
            // A broadcast address: every Linux refuses to connect a stream there with ENETUNREACH.
            ("unroutable", "http://255.255.255.255:80".to_owned(), ""),
            ("not-tls", plain.replace("http://", "https://"), ""),
            ("stranger", format!("https://{}", stranger.as_ref().map_or(deaf.address, |one| one.address)), ""),
            ("deaf", format!("http://{}", deaf.address), "connect = \"300ms\""),
            ("closing", answers(b"").await?, ""),
            ("garbled", answers(b"this is not HTTP at all\r\n\r\n").await?, ""),
            ("turncoat", answers(switched).await?, ""),
            // Nobody says who its tokens are signed as.
            ("unproven", origin.url(), "[service.auth]\ntype = \"jwt\"\naudience = \"origin\""),
        ];
        let mut names: Vec<&str> = origins.iter().map(|(name, ..)| *name).collect();
        names.extend(["nobody", "leaving", "mortal", "denied"]);
        let token = relay.tunnel("main", &names).await?;
        let mut config = String::new();
        for (name, url, timeouts) in &origins {
            config += &format!("[[service]]\nname = \"{name}\"\norigin = \"{url}\"\n[service.timeouts]\n{timeouts}\n");
        }
        let mut main = Connector::new(&token, &[])?;
        main.config(&config)?;
        main.start().await?;
        let mut leaving = Connector::new(&token, &[&format!("leaving={}", origin.url())])?;
        leaving.args.extend(["--name", "leaving"].map(str::to_owned));
        leaving.start().await?;
        let mut mortal = Connector::new(&token, &[&format!("mortal={}", origin.url())])?;
        mortal.start().await?;
        for service in ["held", "leaving", "mortal"] {
            relay.up(service).await?;
        }
        // Managed here, and within no connector's allow-list.
        let managed = relay.cli(&["service", "set", "denied", "--tunnel", "main", "--origin", &origin.url()]).await?;
        ensure!(managed.status == 0, "{managed:?}");
        wait::until("what the connectors make of it", Duration::from_secs(10), || async {
            let shown = relay.json(&["service", "show", "denied"]).await.ok()?;
            (shown["refused"].as_array()?.len() == 3 && shown["connectors"].as_array()?.len() == 3).then_some(())
        })
        .await?;
        let drained = relay.cli(&["connector", "drain", "leaving"]).await?;
        ensure!(drained.status == 0, "{drained:?}");
        Ok(Self {
            kong: said.stdout.trim_end().to_owned(),
            relay,
            guarded,
            origin,
            mortal,
            _others: vec![main, leaving],
            _deaf: deaf,
            _stranger: stranger,
        })
    }

    async fn ask(&self, row: &Row, id: &str, more: &[(&str, &str)]) -> Result<Answer> {
        let method = if row.body.is_empty() { Method::GET } else { Method::POST };
        let mut request = client::request(method, row.host, row.path, Bytes::from_static(row.body.as_bytes()))?;
        for (name, value) in row.fields.iter().chain(more).copied().chain([("x-request-id", id)]) {
            let value = if name == "culvert-gateway" { &self.kong } else { value };
            request.headers_mut().append(HeaderName::from_bytes(name.as_bytes())?, value.parse()?);
        }
        client::send(if row.guarded { self.guarded } else { self.relay.http }, request).await
    }

    /// Sends a request that is not answered before the test is over.
    fn hold(&self, to: SocketAddr, host: &str, fields: &[(&str, &str)]) -> JoinHandle<Result<Answer>> {
        let request = client::request(Method::GET, host, "/slow/60000", Bytes::new()).and_then(|mut request| {
            for (name, value) in fields {
                request.headers_mut().append(HeaderName::from_bytes(name.as_bytes())?, value.parse()?);
            }
            Ok(request)
        });
        tokio::spawn(async move { client::whole(client::stream(to, request?).await?).await })
    }

    /// Those that no HTTP client sends.
    async fn raw_rows(&self) -> Result<[(u16, &'static str, &'static str); 3]> {
        let twice = b"GET / HTTP/1.1\r\nhost: held\r\nhost: full\r\nx-request-id: raw-0\r\n\r\n".to_vec();
        let long = format!("GET / HTTP/1.1\r\nhost: held\r\nx-long: {}\r\n\r\n", "x".repeat(100_000)).into_bytes();
        let slow = b"GET / HTTP/1.1\r\nhost: held\r\nx-slow: ".to_vec();
        let rows =
            [(400, "bad_request", twice, "raw-0"), (431, "too_large", long, ""), (408, "request_timeout", slow, "")];
        for (status, reason, bytes, id) in rows {
            let answer = client::raw(self.relay.http, &bytes, Duration::from_secs(10)).await?;
            let text = String::from_utf8_lossy(&answer).into_owned();
            assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{reason}: {text}");
            let field = format!("proxy-status: culvert-relay; error=http_request_error; details=\"{reason}\"");
            assert!(text.to_lowercase().contains(&field), "{reason}: {text}");
            assert!(text.to_lowercase().contains("connection: close"), "its framing is in doubt: {text}");
            self.check_log(id, reason, status).await?;
            self.check_metric("", reason).await?;
        }
        Ok(rows_of([400, 431, 408]))
    }

    async fn lose_a_connector(&mut self) -> Result<()> {
        let http = self.relay.http;
        let waiting = tokio::spawn(async move {
            let mut request = client::request(Method::POST, "mortal", "/slow/50000", "once".into())?;
            request.headers_mut().insert("x-request-id", "lost".parse()?);
            client::send(http, request).await
        });
        let origin = &self.origin;
        wait::until("the request at the origin", Duration::from_secs(5), || async {
            (origin.requests("/slow/50000") == 1).then_some(())
        })
        .await?;
        self.mortal.kill()?;
        let answer = waiting.await??;
        assert_eq!(answer.status, 502, "{}", answer.text());
        check_answer(&answer, "connector_lost", "connection_terminated")?;
        self.check_log("lost", "connector_lost", 502).await?;
        self.check_metric("mortal", "connector_lost").await
    }

    /// The access log tells of the request, once it was written.
    async fn check_log(&self, id: &str, reason: &str, status: u16) -> Result<()> {
        let log = self.relay.directory().join("access.log");
        let what = format!("{reason} with {status} in the access log");
        wait::until(&what, Duration::from_secs(5), || async {
            let text = std::fs::read_to_string(&log).ok()?;
            let mut lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            lines.find(|line| line["request_id"] == id && line["reason"] == reason && line["status"] == status)?;
            Some(())
        })
        .await
    }

    async fn check_metric(&self, service: &str, reason: &str) -> Result<()> {
        let name = format!("culvert_errors_total{{service=\"{service}\",reason=\"{reason}\"}} ");
        wait::until(&name, Duration::from_secs(5), || async {
            let metrics = self.relay.ask("/metrics").await.ok()?.text();
            metrics.lines().any(|line| line.starts_with(&name) && !line.ends_with(" 0")).then_some(())
        })
        .await
    }
}

impl Deaf {
    async fn start() -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(([127, 0, 0, 1], 0).into())?;
        let listener = socket.listen(1)?;
        let address = listener.local_addr()?;
        let mut waiting = Vec::new();
        while let Ok(stream) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
            waiting.push(stream?);
            ensure!(waiting.len() < 100, "{address} takes everybody");
        }
        Ok(Self { address, _listener: listener, _waiting: waiting })
    }
}

impl Stranger {
    /// None, and a counted skip, where there is no openssl.
    async fn start(directory: &Path) -> Result<Option<Self>> {
        if skip::unless("failure origin_tls, tls_certificate_error", &[Need::Program("openssl")]) {
            return Ok(None);
        }
        let address = address::at(address::own_loopback(), 31_444);
        let (key, cert) = (directory.join("stranger.key"), directory.join("stranger.pem"));
        let mut make = Command::new("openssl");
        make.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
        make.args(["-subj", "/CN=stranger", "-addext"]).arg(format!("subjectAltName=IP:{}", address.ip()));
        make.arg("-keyout").arg(&key).arg("-out").arg(&cert);
        let said = culvert_lab::process::run("openssl", make, None, Duration::from_secs(20)).await?;
        ensure!(said.status == 0, "{}", said.stderr);
        let mut serve = Command::new("openssl");
        serve.args(["s_server", "-quiet", "-www", "-accept"]).arg(address.to_string());
        serve.arg("-key").arg(&key).arg("-cert").arg(&cert);
        serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let stranger = Self { address, server: serve.spawn()? };
        wait::until("a stranger", Duration::from_secs(10), || async {
            TcpStream::connect(address).await.ok().map(drop)
        })
        .await?;
        Ok(Some(stranger))
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn rows_of(statuses: [u16; 3]) -> [(u16, &'static str, &'static str); 3] {
    let [bad, large, slow] = statuses;
    let error = "http_request_error";
    [(bad, error, "bad_request"), (large, error, "too_large"), (slow, error, "request_timeout")]
}

fn check_answer(answer: &Answer, reason: &str, error: &str) -> Result<()> {
    let field = answer.header("proxy-status");
    ensure!(field == format!("culvert-relay; error={error}; details=\"{reason}\""), "{reason}: {field}");
    ensure!(answer.headers.contains_key("www-authenticate") == (reason == "unauthenticated"), "{answer:?}");
    let is_limit = ["overloaded", "gateway_limit"].contains(&reason);
    ensure!(answer.headers.contains_key("retry-after") == is_limit, "{answer:?}");
    for private in ["127.", "255.255.255.255", "no-such-host"] {
        ensure!(!answer.text().contains(private), "{reason} names an address: {}", answer.text());
    }
    Ok(())
}

/// A server that reads a head and answers with these bytes, then closes.
async fn answers(bytes: &'static [u8]) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                if matches!(stream.read(&mut head).await, Ok(read) if read > 0) {
                    let _ = stream.write_all(bytes).await;
                }
            });
        }
    });
    Ok(url)
}
