//! Origins behind a stock WireGuard peer: nginx as the gateway, NAT that lets nothing in, Debian's `wireguard-go` as the
//! branch's router, nginx and others as origins behind it. The relay's own host uses the same private range.
//!
//! Needs root; says so loudly where it has to skip.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use culvert_lab::branch::Branch;
use culvert_lab::certificate::Certificate;
use culvert_lab::load::Plan;
use culvert_lab::netns::{self, Namespace};
use culvert_lab::nginx::Nginx;
use culvert_lab::process::Process;
use culvert_lab::skip::{self, Need};
use culvert_lab::topology::{Internet, RELAY_V4};
use culvert_lab::websocket::{Message, WebSocket};
use culvert_lab::{Connector, Origin, Relay, binary, client, spawner, wait};
use http_body_util::BodyExt as _;

const NEEDS: [Need; 7] = [
    Need::Root,
    Need::Program("nginx"),
    Need::Program("nft"),
    Need::Program("curl"),
    Need::Program("openssl"),
    Need::Program("wg"),
    Need::Program("wireguard-go"),
];
const SOON: Duration = Duration::from_secs(20);
const HOST: &str = "10.20.0.5";
const KEY: &str = "of-the-branch-and-of-nobody-else";
const CONFIG: &str = "
    [http]
    listen = [\"127.0.0.1:8080\"]
    [[tcp]]
    listen = \"127.0.0.1:7000\"
    service = \"raw\"
    [service.legacy.headers]
    X-Branch-Key = { env = \"BRANCH_KEY\", prefix = \"Bearer \" }
    [service.signed.auth]
    type = \"http-signature\"
    algorithm = \"hmac-sha256\"
    key = { env = \"BRANCH_KEY\" }
    components = [\"@method\", \"@path\"]
    digest = \"none\"
";

/// Everything up: gateway nginx, relay, NAT, the branch's router, origins.
struct Site {
    internet: Internet,
    relay: Relay,
    branch: Branch,
    config: String,
    origin: Nginx,
    _live: Origin,
    _gateway: Nginx,
    _decoy: (Nginx, Namespace),
    gateway: SocketAddr,
    files: tempfile::TempDir,
}

impl Site {
    async fn build(prefix: &[&str]) -> Result<Self> {
        let internet = Internet::build()?;
        // The relay's host is in a network of the same range, where somebody else has the origin's address.
        let neighbour = Namespace::new("own")?;
        let (own, others) = (["10.20.0.9/16", "10.30.0.9/16"], ["10.20.0.5/16", "10.30.0.5/16"]);
        netns::join((&internet.gateway, "own", &own), (&neighbour, "eth0", &others))?;
        let decoy = "server { listen 10.20.0.5:8081; return 200 \"the wrong host\\n\"; }";
        let decoy = Nginx::start(Some(&neighbour), ([10, 20, 0, 5], 8081).into(), decoy).await?;
        let branch =
            Branch::at_home(&internet, &["10.20.0.1/16", "fd00:20::1/64"], &["10.20.0.5/16", "fd00:20::5/64"])?;
        let files = tempfile::Builder::new().prefix("culvert-branch-").tempdir_in("/dev/shm")?;
        std::fs::set_permissions(files.path(), std::fs::Permissions::from_mode(0o755))?;
        std::fs::create_dir(files.path().join("stored"))?;
        std::fs::write(files.path().join("hello"), "hello from the branch\n")?;
        let live = Origin::start_at("live", ([127, 0, 0, 1], 8083).into(), Some(&branch.inside)).await?;
        let origin = Nginx::start(
            Some(&branch.inside),
            ([10, 20, 0, 5], 8081).into(),
            &format!(
                "map $http_upgrade $up {{ default upgrade; '' ''; }}
                 server {{ listen 10.20.0.5:8081; listen [fd00:20::5]:8081; root {0};
                   default_type application/octet-stream;
                   location / {{ }}
                   location /live/ {{ proxy_pass http://127.0.0.1:8083/; proxy_buffering off; proxy_http_version 1.1;
                     proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $up; }}
                   location /store {{
                     client_body_in_file_only on; client_body_temp_path {0}/stored;
                     proxy_pass http://127.0.0.1:8083/; proxy_pass_request_body off;
                     proxy_set_header Content-Length \"\"; proxy_method GET; }} }}",
                files.path().display()
            ),
        )
        .await?;
        let gateway_address: SocketAddr = ([127, 0, 0, 1], 8000).into();
        let gateway = Nginx::start(
            Some(&internet.gateway),
            gateway_address,
            "map $http_upgrade $up { default upgrade; '' ''; }
             server { listen 127.0.0.1:8000;
               location / { proxy_pass http://127.0.0.1:8080; proxy_http_version 1.1; proxy_set_header Host $host;
                 proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $up;
                 proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 60s; } }",
        )
        .await?;
        let mut relay = Relay::within(&internet.gateway, RELAY_V4)?;
        relay.config(CONFIG)?;
        relay.env.push(("BRANCH_KEY".to_owned(), KEY.to_owned()));
        if !prefix.is_empty() {
            relay.use_public_copy()?;
            let state = relay.directory().join("own");
            std::fs::create_dir(&state)?;
            nix::unistd::chown(&state, Some(65534.into()), Some(65534.into()))?;
            std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o700))?;
            relay.set_state(&state);
            relay.prefix.extend(prefix.iter().map(|word| (*word).to_owned()));
        }
        relay.launch()?;
        answers(&internet, relay.admin, "/readyz").await.with_context(|| relay.last_words())?;
        let add = ["peer", "add", "branch", "--generate-key", "--dns", HOST];
        let add = [&add[..], &["--allowed-ips", "10.20.0.0/16,fd00:20::/48"]].concat();
        let config = asked(&relay, &add).await?;
        let mut site = Self {
            internet,
            relay,
            branch,
            config,
            origin,
            _live: live,
            _gateway: gateway,
            _decoy: (decoy, neighbour),
            gateway: gateway_address,
            files,
        };
        site.set("legacy", &["--origin", "http://10.20.0.5:8081"]).await?;
        let unheard = site.get("legacy", "/").await?;
        assert_eq!(unheard.status, 503, "{}", unheard.text());
        assert!(unheard.text().contains("no_connector"), "{}", unheard.text());
        site.branch.up(&site.config).await?;
        site.is_up("legacy").await?;
        Ok(site)
    }

    async fn set(&self, service: &str, more: &[&str]) -> Result<String> {
        asked(&self.relay, &[&["service", "set", service, "--peer", "branch"], more].concat()).await
    }

    async fn is_up(&self, service: &str) -> Result<()> {
        let up = answers(&self.internet, self.relay.admin, &format!("/readyz?service={service}")).await;
        up.with_context(|| format!("{}\n{}", self.relay.last_words(), self.origin.output()))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// Pseudo-random bytes; gives their SHA-256.
    fn make(&self, name: &str, mib: u64) -> Result<String> {
        let path = self.file(name);
        shell(&format!(
            "head -c {} /dev/zero | openssl enc -aes-128-ctr -K {:032x} -iv {mib:032x} > {}",
            mib << 20,
            0x0123_4567_89ab_cdef_u64,
            path.display()
        ))?;
        sha256(&path)
    }

    /// curl on the gateway's side through the gateway.
    fn curl(&self, arguments: &str) -> Result<String> {
        self.curl_for("legacy", arguments)
    }

    fn curl_for(&self, service: &str, arguments: &str) -> Result<String> {
        let prefix = self.internet.gateway.prefix();
        let curl = format!("curl -sS --fail --max-time 280 -H 'Host: {service}' -H 'Expect:'");
        shell(&format!("{} {curl} {arguments}", prefix[..2].join(" ")))
    }

    /// GET at the relay itself.
    async fn get(&self, service: &'static str, path: &'static str) -> Result<client::Answer> {
        let relay = self.relay.http;
        self.internet.gateway.within(move || async move { client::get(relay, service, path).await }).await
    }

    fn no_panic(&self) {
        let said = self.relay.output();
        assert!(!said.contains("panicked"), "{said}");
    }
}

async fn answers(internet: &Internet, to: SocketAddr, path: &str) -> Result<()> {
    let path = path.to_owned();
    let waiting = move || async move {
        wait::until(&path, SOON, || async {
            let answer = client::get(to, "localhost", &path).await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await
    };
    internet.gateway.within(waiting).await
}

async fn asked(relay: &Relay, args: &[&str]) -> Result<String> {
    let said = relay.cli(args).await?;
    ensure!(said.status == 0, "{args:?}: {said:?}\n{}", relay.last_words());
    Ok(said.stdout)
}

fn shell(command: &str) -> Result<String> {
    let output = Command::new("bash").args(["-c", &format!("set -o pipefail; {command}")]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{command}: {text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

fn sha256(path: &std::path::Path) -> Result<String> {
    let said = shell(&format!("sha256sum {}", path.display()))?;
    Ok(said.split(' ').next().unwrap_or_default().to_owned())
}

/// Everything that goes through a connector goes through a peer.
async fn everything_passes(prefix: &[&str]) -> Result<()> {
    let site = Site::build(prefix).await?;
    assert_eq!(site.curl("http://127.0.0.1:8000/hello")?, "hello from the branch\n");
    // The host's own network of the same range is as it was.
    let own = site.internet.gateway.run("curl", &["-sS", "http://10.20.0.5:8081/hello"])?;
    assert_eq!(own, "the wrong host\n");

    // The relay proves to the origin whose it is, whatever the caller says.
    let seen = site.curl("-H 'X-Branch-Key: forged' http://127.0.0.1:8000/live/head")?;
    assert!(seen.contains(&format!("Bearer {KEY}")) && !seen.contains("forged"), "{seen}");

    signed(&site).await?;

    // A debug build is slow.
    let is_release = binary::own("culvert-relay")?.components().any(|part| part.as_os_str() == "release");
    let expected = site.make("big", if is_release { 1024 } else { 64 })?;
    let got = site.curl("http://127.0.0.1:8000/big | sha256sum")?;
    assert_eq!(got.split(' ').next(), Some(expected.as_str()), "down");
    site.curl(&format!("-T {} http://127.0.0.1:8000/store", site.file("big").display()))?;
    let stored: Vec<PathBuf> = std::fs::read_dir(site.file("stored"))?.flatten().map(|entry| entry.path()).collect();
    assert_eq!(stored.len(), 1, "{stored:?}");
    assert_eq!(sha256(stored.first().context("stored")?)?, expected, "up");

    let gateway = site.gateway;
    let events = move || async move {
        let request = client::request(http::Method::GET, "legacy", "/live/sse/3/200", Bytes::new())?;
        let mut response = client::stream(gateway, request).await?;
        let mut frames = 0;
        while let Some(frame) = response.body_mut().frame().await {
            frames += u32::from(frame?.is_data());
        }
        Ok(frames)
    };
    assert!(site.internet.gateway.within(events).await? >= 3, "events were joined");
    let talk = move || async move {
        let mut socket = WebSocket::open(gateway, "legacy", "/live/ws").await?;
        socket.send("are you there").await?;
        socket.receive().await
    };
    assert_eq!(site.internet.gateway.within(talk).await?, Message::Text("are you there".to_owned()));

    site.set("six", &["--origin", "http://[fd00:20::5]:8081"]).await?;
    site.is_up("six").await?;
    assert_eq!(site.get("six", "/hello").await?.text(), "hello from the branch\n");
    site.set("shut", &["--origin", "http://10.20.0.5:9"]).await?;
    let refused = site.get("shut", "/").await?;
    assert_eq!(refused.status, 502, "{}", refused.text());
    assert!(refused.text().contains("origin_refused"), "{}", refused.text());
    let elsewhere = site.relay.cli(&["service", "set", "away", "--peer", "branch", "--origin", "http://10.21.0.5"]);
    assert_ne!(elsewhere.await?.status, 0, "an origin outside of the peer's networks");
    grpc(&site).await?;
    site.no_panic();
    Ok(())
}

/// The relay signs for an origin behind a peer, and says so.
async fn signed(site: &Site) -> Result<()> {
    site.set("signed", &["--origin", "http://10.20.0.5:8081"]).await?;
    site.is_up("signed").await?;
    let seen = site.curl_for("signed", "-H 'Signature: forged=:AA==:' http://127.0.0.1:8000/live/head")?;
    let head: serde_json::Value = serde_json::from_str(&seen)?;
    let fields = head["fields"].as_array().context("fields")?;
    let field = |name: &str| {
        let named = |field: &&serde_json::Value| field[0].as_str().is_some_and(|text| text.eq_ignore_ascii_case(name));
        let values: Vec<_> = fields.iter().filter(named).filter_map(|field| field[1].as_str()).collect();
        ensure!(values.len() == 1, "{name}: {seen}");
        values[0].strip_prefix("culvert=").map(str::to_owned).context(name.to_owned())
    };
    let input = field("signature-input")?;
    let base = format!("\"@method\": GET\n\"@path\": /live/head\n\"@signature-params\": {input}");
    std::fs::write(site.file("base"), base)?;
    let hmac = format!("openssl dgst -sha256 -hmac {KEY} -binary {}", site.file("base").display());
    let made = shell(&format!("{hmac} | base64 -w0"))?;
    assert_eq!(field("signature")?, format!(":{made}:"), "{seen}");
    let shown = asked(&site.relay, &["service", "show", "signed"]).await?;
    assert!(shown.contains("http-signature, made at this relay"), "{shown}");
    let said = site.relay.output();
    assert!(said.contains("requests are proven at this relay"), "{said}");
    assert!(said.contains("it is behind none that runs here"), "{said}");
    Ok(())
}

async fn grpc(site: &Site) -> Result<()> {
    if skip::unless("gRPC behind a peer", &[Need::Python("grpc")]) {
        return Ok(());
    }
    let program = |name: &str| binary::project().join("tests/e2e/grpc").join(name);
    let prefix = site.branch.inside.prefix();
    let mut command = spawner::command(&prefix[0]);
    command.args(&prefix[1..]).arg(binary::PYTHON).arg(program("server.py")).arg(format!("{HOST}:50051"));
    command.stdin(std::process::Stdio::piped());
    let mut server = Process::start("gRPC server", command)?;
    server.line("listening ", SOON).await?;
    site.set("grpc", &["--origin", "h2c://10.20.0.5:50051"]).await?;
    site.is_up("grpc").await?;
    let scenarios = ["unary", "bidirectional", "error_in_trailers", "large_message"];
    let prefix = site.internet.gateway.prefix();
    let mut command = Command::new(&prefix[0]);
    command.args(&prefix[1..]).arg(binary::PYTHON).arg(program("client.py"));
    command.args([site.relay.http.to_string().as_str(), "grpc"]).args(scenarios);
    let said = tokio::task::spawn_blocking(move || command.output()).await??;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    ensure!(said.status.success(), "{text}{}", String::from_utf8_lossy(&said.stderr));
    for scenario in scenarios {
        ensure!(text.contains(&format!("ok {scenario}")), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn everything_passes_to_origins_behind_a_stock_peer() -> Result<()> {
    if skip::unless("a stock peer's origins", &NEEDS) {
        return Ok(());
    }
    everything_passes(&[]).await
}

#[tokio::test]
async fn everything_passes_without_any_privilege_of_the_relays() -> Result<()> {
    const MAKE: &str =
        "mount -t tmpfs none /dev/net && mknod /dev/net/tun c 10 200 && chmod 666 /dev/net/tun && exec \"$@\"";
    const NOBODY: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    if skip::unless("a stock peer's origins without privilege", &NEEDS) {
        return Ok(());
    }
    // A machine where everybody may open the device, which is the rule outside of containers.
    let open = ["unshare", "--mount", "sh", "-c", MAKE, "sh"];
    let whole = [&open[..], &NOBODY].concat();
    let tried = Command::new(whole[0]).args(&whole[1..]).args(["unshare", "--user", "--net", "true"]).output()?;
    if !tried.status.success() {
        let why = String::from_utf8_lossy(&tried.stderr).trim().to_owned();
        skip::later("a stock peer's origins without privilege", &format!("needs user namespaces: {why}"));
        return Ok(());
    }
    everything_passes(&whole).await
}

#[tokio::test]
async fn names_are_the_peers_own_resolvers_and_lead_nowhere_but_into_its_networks() -> Result<()> {
    if skip::unless("names behind a stock peer", &[&NEEDS[..], &[Need::Program("dnsmasq")]].concat()) {
        return Ok(());
    }
    let site = Site::build(&[]).await?;
    let certificate = Certificate::make(site.files.path(), "branch", "app.branch").await?;
    let tls = format!(
        "server {{ listen 10.20.0.5:8443 ssl; ssl_certificate {}; ssl_certificate_key {}; return 200 \"$ssl_server_name\"; }}",
        certificate.cert.display(),
        certificate.key.display()
    );
    let _tls = Nginx::start(Some(&site.branch.inside), ([10, 20, 0, 5], 8443).into(), &tls).await?;
    let prefix = site.branch.inside.prefix();
    let mut command = spawner::command(&prefix[0]);
    command.args(&prefix[1..]).args(["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root"]);
    command.args([
        "--no-resolv",
        "--no-hosts",
        "--pid-file=",
        "--bind-interfaces",
        "--log-facility=-",
        "--log-queries",
    ]);
    command.arg(format!("--listen-address={HOST}")).arg("--host-record=real.branch,10.20.0.5,fd00:20::5");
    command.args(["--cname=app.branch,real.branch", "--host-record=away.branch,203.0.113.2"]);
    let mut names = Process::start("dnsmasq", command)?;
    names.line("started", SOON).await?;

    let ca = certificate.cert.display().to_string();
    site.set("secure", &["--origin", "https://app.branch:8443", "--ca", &ca]).await?;
    site.is_up("secure").await.with_context(|| names.output())?;
    assert_eq!(site.get("secure", "/").await?.text(), "app.branch");
    site.set("raw", &["--origin", "tcp://app.branch:8081"]).await?;
    site.is_up("raw").await?;
    let raw = || async { client::get(([127, 0, 0, 1], 7000).into(), "anybody", "/hello").await };
    assert_eq!(site.internet.gateway.within(raw).await?.text(), "hello from the branch\n");
    assert_eq!(site.get("raw", "/").await?.status, 404, "raw TCP is nothing for HTTP");
    for (service, origin, reason) in [
        ("away", "http://away.branch", "origin_denied"),
        ("nobody", "http://nobody.branch", "origin_dns"),
        // The relay's own resolver is not asked.
        ("local", "http://localhost.localdomain", "origin_dns"),
    ] {
        site.set(service, &["--origin", origin]).await?;
        let answer = site.get(service, "/").await?;
        assert!(answer.text().contains(reason), "{origin}: {}", answer.text());
    }
    site.no_panic();
    Ok(())
}

#[tokio::test]
async fn a_restart_of_either_side_and_a_move_end_in_the_same_service() -> Result<()> {
    if skip::unless("restarts beside a stock peer", &NEEDS) {
        return Ok(());
    }
    let mut site = Site::build(&[]).await?;
    site.relay.kill()?;
    site.relay.launch()?;
    site.is_up("legacy").await?;
    assert_eq!(site.curl("http://127.0.0.1:8000/hello")?, "hello from the branch\n", "after the relay's restart");

    site.branch.down();
    site.branch.up(&site.config).await?;
    let hello = wait::until("the branch after its restart", SOON, || async {
        site.curl("http://127.0.0.1:8000/hello").ok().filter(|text| text == "hello from the branch\n")
    });
    hello.await.with_context(|| site.relay.last_words())?;

    // The router gets another address, and another one from the NAT: the next packet tells the relay.
    site.branch.keepalive(1)?;
    let gateway = site.gateway;
    let (tell, told) = tokio::sync::oneshot::channel();
    let load = site.internet.gateway.begin(move || async move {
        let load = Plan { path: "/hello".to_owned(), ..Plan::gets(gateway, "legacy") }.start();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let _ = tell.send(());
        tokio::time::sleep(Duration::from_secs(5)).await;
        load.finish().await
    })?;
    told.await?;
    site.internet.roam()?;
    site.branch.rebind(51_999)?;
    let report = load.await??;
    eprintln!("roamed: {} answered, slowest {:?}", report.answered, report.slowest);
    report.all_well(150).with_context(|| site.relay.last_words())?;
    let peer = site.relay.json(&["peer", "show", "branch"]).await?;
    assert!(peer["endpoint"].as_str().is_some_and(|at| at.starts_with("203.0.113.9:")), "{peer}");
    site.no_panic();
    Ok(())
}

#[tokio::test]
async fn a_peer_that_is_removed_ends_its_own_requests_and_nobody_elses() -> Result<()> {
    if skip::unless("removing a stock peer", &NEEDS) {
        return Ok(());
    }
    let site = Site::build(&[]).await?;
    let mut other = Branch::beside(&site.internet, &["10.30.0.1/16"], &["10.30.0.5/16"])?;
    let origin = "server { listen 10.30.0.5:8081; return 200 \"the other branch\\n\"; }";
    let _origin = Nginx::start(Some(&other.inside), ([10, 30, 0, 5], 8081).into(), origin).await?;
    let add = ["peer", "add", "second", "--generate-key", "--allowed-ips", "10.30.0.0/16"];
    let config = asked(&site.relay, &add).await?;
    asked(&site.relay, &["service", "set", "other", "--peer", "second", "--origin", "http://10.30.0.5:8081"]).await?;
    other.up(&config).await?;
    site.is_up("other").await?;
    assert_eq!(site.get("other", "/").await?.text(), "the other branch\n");
    nothing_leads_from_a_peer_anywhere(&site, &other).await?;

    let relay = site.relay.http;
    let beside = site.internet.gateway.begin(move || async move {
        let load = Plan::gets(relay, "other").start();
        tokio::time::sleep(Duration::from_secs(3)).await;
        load.finish().await
    })?;
    let (tell, told) = tokio::sync::oneshot::channel();
    let ended = site.internet.gateway.begin(move || async move {
        let request = client::request(http::Method::GET, "legacy", "/live/slow/9000", Bytes::new())?;
        let waiting = tokio::spawn(client::send(relay, request));
        let request = client::request(http::Method::GET, "legacy", "/live/flood", Bytes::new())?;
        let mut flood = client::stream(relay, request).await?;
        flood.body_mut().frame().await.context("the flood begins")??;
        let mut socket = WebSocket::open(relay, "legacy", "/live/ws").await?;
        socket.send("hello").await?;
        socket.receive().await?;
        let _ = tell.send(());
        let socket_ends = socket.receive().await.unwrap_or(Message::End);
        let cut = loop {
            match flood.body_mut().frame().await {
                Some(Ok(_)) => {}
                Some(Err(_)) => break true,
                None => break false,
            }
        };
        Ok((waiting.await??, cut, socket_ends))
    })?;
    told.await?;
    asked(&site.relay, &["peer", "delete", "branch"]).await?;
    let (waiting, cut, socket) = tokio::time::timeout(SOON, ended).await.context("they end")???;
    assert_eq!(waiting.status, 502, "{}", waiting.text());
    assert!(waiting.text().contains("connector_lost"), "{}", waiting.text());
    assert!(cut, "an answer that was cut ends as one");
    assert_ne!(socket, Message::Text("hello".to_owned()));
    let gone = site.get("legacy", "/hello").await?;
    assert_eq!(gone.status, 404, "{}", gone.text());
    beside.await??.all_well(100)?;
    let lines = site.relay.output();
    let lost: Vec<&str> = lines.lines().filter(|line| line.contains("\"reason\":\"connector_lost\"")).collect();
    assert!(lost.len() >= 3 && lost.iter().all(|line| line.contains("\"tunnel\":\"branch\"")), "{lost:?}");
    site.no_panic();
    Ok(())
}

/// Packets from inside a branch: to the relay's inner addresses only echo is answered; the relay's host, the other branch
/// and what listens on the host are not there.
async fn nothing_leads_from_a_peer_anywhere(site: &Site, other: &Branch) -> Result<()> {
    // The router lets everything into its tunnel, whatever the relay allows.
    let interface = site.branch.interface();
    let peer = site.branch.run("wg", &["show", interface, "peers"])?;
    site.branch.run("wg", &["set", interface, "peer", peer.trim(), "allowed-ips", "0.0.0.0/0,::/0"])?;
    site.branch.run("ip", &["route", "add", "10.30.0.0/16", "dev", interface])?;
    site.branch.run("ip", &["-6", "route", "add", "fd43:554c:5645::/48", "dev", interface])?;
    let inner = asked(&site.relay, &["peer", "config", "branch"]).await?;
    let relay_inner: Vec<String> = inner
        .lines()
        .filter_map(|line| line.strip_prefix("AllowedIPs = "))
        .flat_map(|list| list.split(','))
        .filter_map(|net| net.trim().split('/').next().map(str::to_owned))
        .collect();
    ensure!(relay_inner.len() == 2, "{inner}");
    for address in &relay_inner {
        site.branch.run("ping", &["-c", "1", "-W", "5", address]).with_context(|| site.relay.last_words())?;
        for port in ["22", "53", "8080", "9480", "31820"] {
            let target = if address.contains(':') { format!("[{address}]") } else { address.clone() };
            let knocked = site.branch.run("curl", &["-sS", "-m", "1", &format!("http://{target}:{port}/")]);
            ensure!(knocked.is_err(), "something listens inside at {address} {port}");
        }
    }
    // The other branch hears nothing of it.
    let count = format!(
        "table inet seen {{ chain arrivals {{ type filter hook prerouting priority raw;
           iifname \"{}\" meta l4proto icmp counter; }}; }}",
        other.interface()
    );
    other.run("nft", &[&count])?;
    for target in ["10.30.0.5", "10.30.0.1"] {
        ensure!(site.branch.run("ping", &["-c", "2", "-i", "0.2", "-W", "1", target]).is_err(), "{target} answers");
    }
    let seen = other.run("nft", &["list", "table", "inet", "seen"])?;
    ensure!(seen.contains("counter packets 0 "), "{seen}");
    // A connector answers echo to the relay and to nobody else.
    let token = site.relay.tunnel("main", &["orders"]).await?;
    let mut connector = Connector::within(&site.internet.private, &token, &["orders=http://127.0.0.1:1"])?;
    connector.launch()?;
    let there = wait::until("the connector's inner address", SOON, || async {
        let listed = site.relay.json(&["connector", "list"]).await.ok()?;
        listed.pointer("/0/inner_address")?.as_str().map(str::to_owned)
    });
    let there = there.await.with_context(|| connector.last_words())?;
    let silent = site.branch.run("ping", &["-c", "2", "-i", "0.2", "-W", "1", &there]);
    ensure!(silent.is_err(), "the connector at {there} answers a peer");
    // The host's own addresses, through the tunnel.
    site.branch.run("ip", &["route", "add", "203.0.113.77/32", "dev", interface])?;
    site.internet.gateway.ip(&["addr", "add", "203.0.113.77/32", "dev", "lo"])?;
    ensure!(site.branch.run("ping", &["-c", "1", "-W", "1", "203.0.113.77"]).is_err(), "the relay's host answers");
    Ok(())
}
