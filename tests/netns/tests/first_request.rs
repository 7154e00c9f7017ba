//! The main job over a real path: nginx as the gateway, NAT that lets nothing in, nginx as the private origin.
//!
//! Needs root; says so loudly where it has to skip.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use culvert_lab::load::Plan;
use culvert_lab::nginx::Nginx;
use culvert_lab::skip::{self, Need};
use culvert_lab::topology::{Internet, RELAY_V4, RELAY_V6};
use culvert_lab::{Connector, Origin, Relay, client, wait};
use http_body_util::BodyExt as _;

const NEEDS: [Need; 5] =
    [Need::Root, Need::Program("nginx"), Need::Program("nft"), Need::Program("curl"), Need::Program("openssl")];

/// Everything up: gateway nginx, relay, NAT, connector, origin nginx.
struct Site {
    internet: Internet,
    relay: Relay,
    connector: Connector,
    origin: Nginx,
    live: Origin,
    _gateway: Nginx,
    gateway: SocketAddr,
    files: tempfile::TempDir,
}

impl Site {
    async fn build(relay_ip: IpAddr, prepare: impl FnOnce(&Internet) -> Result<()>) -> Result<Self> {
        let internet = Internet::build()?;
        prepare(&internet)?;
        let files = tempfile::Builder::new().prefix("culvert-netns-").tempdir_in("/dev/shm")?;
        std::fs::set_permissions(files.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        std::fs::create_dir(files.path().join("stored"))?;
        std::fs::write(files.path().join("hello"), "hello from a real origin\n")?;
        std::fs::create_dir(files.path().join("orders"))?;
        std::fs::write(files.path().join("orders/42"), "order 42\n")?;
        let live = Origin::start_at("live", ([127, 0, 0, 1], 8083).into(), Some(&internet.private)).await?;
        let origin = Nginx::start(
            Some(&internet.private),
            ([127, 0, 0, 1], 8081).into(),
            &format!(
                "server {{ listen 127.0.0.1:8081; root {0}; default_type application/octet-stream;
                   location / {{ }}
                   location /live/ {{ proxy_pass http://127.0.0.1:8083/; proxy_buffering off; proxy_http_version 1.1; }}
                   location /store {{
                     client_body_in_file_only on; client_body_temp_path {0}/stored;
                     proxy_pass http://127.0.0.1:8083/; proxy_pass_request_body off;
                     proxy_set_header Content-Length \"\"; proxy_method GET; }} }}",
                files.path().display()
            ),
        )
        .await?;
        let gateway_address: SocketAddr = ([127, 0, 0, 1], 8000).into();
        // The shipped example at port 80, a plain one for everything else at 8000.
        // The relay is on this host's loopback, which asks for no identity.
        let shipped = std::fs::read_to_string(culvert_lab::binary::project().join("deploy/gateways/nginx.conf"))?
            .replace("include /etc/nginx/culvert-gateway;", "default \"\";");
        let gateway = Nginx::start(
            Some(&internet.gateway),
            gateway_address,
            &(shipped + "server { listen 127.0.0.1:8000;
               location / { proxy_pass http://127.0.0.1:8080; proxy_http_version 1.1; proxy_set_header Host $host;
                 proxy_set_header Connection \"\"; proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 60s; } }"),
        )
        .await?;
        let mut relay = Relay::within(&internet.gateway, relay_ip)?;
        relay.launch()?;
        answers(&internet, relay.admin, "localhost", "/readyz").await.with_context(|| relay.last_words())?;
        let token = relay.tunnel("main", &["orders", "nowhere"]).await?;
        let services = ["orders=http://127.0.0.1:8081", "nowhere=http://198.51.100.99:80"];
        let mut connector = Connector::within(&internet.private, &token, &services)?;
        connector.launch()?;
        let up = answers(&internet, relay.admin, "localhost", "/readyz?service=orders").await;
        up.with_context(|| format!("{}\n{}", relay.last_words(), connector.last_words()))?;
        Ok(Self { internet, relay, connector, origin, live, _gateway: gateway, gateway: gateway_address, files })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// Pseudo-random bytes; gives their SHA-256.
    fn make(&self, name: &str, mib: u64) -> Result<String> {
        let path = self.file(name);
        shell(&format!(
            "head -c {} /dev/zero | openssl enc -aes-128-ctr -K {:032x} -iv {:032x} > {}",
            mib << 20,
            0x0123_4567_89ab_cdef_u64,
            mib,
            path.display()
        ))?;
        sha256(&path)
    }

    /// curl on the gateway's side through the gateway.
    fn curl(&self, arguments: &str) -> Result<String> {
        let prefix = self.internet.gateway.prefix();
        shell(&format!(
            "{} curl -sS --fail --max-time 280 -H 'Host: orders' -H 'Expect:' {arguments}",
            prefix[..2].join(" ")
        ))
    }

    fn no_panic(&self) {
        for said in [self.relay.output(), self.connector.output()] {
            assert!(!said.contains("panicked"), "{said}");
        }
    }
}

async fn answers(internet: &Internet, to: SocketAddr, host: &'static str, path: &'static str) -> Result<()> {
    let waiting = move || async move {
        wait::until(path, Duration::from_secs(20), || async {
            let answer = client::get(to, host, path).await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await
    };
    internet.gateway.within(waiting).await
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

#[tokio::test]
async fn a_request_passes_where_nothing_can_come_in_and_failures_keep_their_names() -> Result<()> {
    if skip::unless("a request through NAT", &NEEDS) {
        return Ok(());
    }
    let site = Site::build(RELAY_V4, |_| Ok(())).await?;
    assert_eq!(site.curl("http://127.0.0.1:8000/hello")?, "hello from a real origin\n");
    // So does the gateway configuration that `deploy/` ships.
    let shipped =
        site.internet.gateway.run("curl", &["-sS", "-H", "Host: api.example.com", "http://127.0.0.1/orders/42"])?;
    assert_eq!(shipped, "order 42\n");
    // The private side really is closed: the gateway's side cannot reach it by itself.
    let knocked = site.internet.gateway.run("curl", &["-sS", "-m", "1", "http://192.168.7.2:8081/"]);
    assert!(knocked.is_err(), "the private side can be reached from outside");
    // The origin behind `nowhere` has no route once the private side's default route is gone.
    site.internet.private.ip(&["route", "add", "unreachable", "198.51.100.0/24"])?;
    let http = site.relay.http;
    let answer = site.internet.gateway.within(move || async move { client::get(http, "nowhere", "/").await }).await?;
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(answer.header("proxy-status").contains("destination_ip_unroutable"), "{}", answer.header("proxy-status"));
    // `ping` of the relay's inner address needs a WireGuard tool: the stock-peer test does it.
    site.no_panic();
    Ok(())
}

#[tokio::test]
async fn a_gibibyte_passes_byte_exact_each_way_in_under_64_mib() -> Result<()> {
    if skip::unless("1 GiB each way", &NEEDS) {
        return Ok(());
    }
    let site = Site::build(RELAY_V4, |_| Ok(())).await?;
    let expected = site.make("big", 1024)?;
    let start = Instant::now();
    let got = site.curl("http://127.0.0.1:8000/big | sha256sum")?;
    let down = start.elapsed();
    assert_eq!(got.split(' ').next(), Some(expected.as_str()), "down");
    let start = Instant::now();
    site.curl(&format!("-T {} http://127.0.0.1:8000/store", site.file("big").display()))?;
    let up = start.elapsed();
    let stored: Vec<PathBuf> = std::fs::read_dir(site.file("stored"))?.flatten().map(|entry| entry.path()).collect();
    assert_eq!(stored.len(), 1, "{stored:?}");
    assert_eq!(sha256(stored.first().context("stored")?)?, expected, "up");
    for (name, usage) in [("relay", site.relay.usage()?), ("connector", site.connector.usage()?)] {
        let peak = usage.peak_rss_bytes >> 20;
        eprintln!("{name}: {peak} MiB at most; 1 GiB down in {down:.1?}, up in {up:.1?}");
        assert!(peak < 64, "{name} took {peak} MiB");
    }
    site.no_panic();
    Ok(())
}

#[tokio::test]
async fn server_sent_events_arrive_one_by_one_through_both_nginxes() -> Result<()> {
    if skip::unless("events through nginx", &NEEDS) {
        return Ok(());
    }
    let site = Site::build(RELAY_V4, |_| Ok(())).await?;
    let gateway = site.gateway;
    let seen: Vec<(Duration, Bytes)> = site
        .internet
        .gateway
        .within(move || async move {
            let request = client::request(http::Method::GET, "orders", "/live/sse/10/200", Bytes::new())?;
            let start = Instant::now();
            let mut response = client::stream(gateway, request).await?;
            let mut seen = Vec::new();
            while let Some(frame) = response.body_mut().frame().await {
                if let Ok(data) = frame?.into_data() {
                    seen.push((start.elapsed(), data));
                }
            }
            Ok(seen)
        })
        .await?;
    for event in 0..10_u32 {
        let text = format!("data: event {event}\n");
        let at = seen.iter().find(|(_, data)| String::from_utf8_lossy(data).contains(&text)).map(|(at, _)| *at);
        let at = at.with_context(|| format!("no event {event} in {seen:?}"))?;
        let due = Duration::from_millis(200) * event;
        assert!(
            at + Duration::from_millis(50) >= due && at < due + Duration::from_millis(700),
            "event {event} came at {at:?}"
        );
    }
    assert!(seen.len() >= 10, "events were joined: {seen:?}");
    Ok(())
}

#[tokio::test]
async fn a_connector_that_moves_under_load_keeps_its_tunnel_with_no_failed_request() -> Result<()> {
    if skip::unless("roaming", &NEEDS) {
        return Ok(());
    }
    let site = Site::build(RELAY_V4, |_| Ok(())).await?;
    let gateway = site.gateway;
    let (moved, done) = (tokio::sync::oneshot::channel::<()>(), tokio::sync::oneshot::channel::<()>());
    let ((go_on, may_go_on), (tell, told)) = (moved, done);
    let load = site.internet.gateway.begin(move || async move {
        let load = Plan { path: "/hello".to_owned(), ..Plan::gets(gateway, "orders") }.start();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let _ = tell.send(());
        let _ = may_go_on.await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        load.finish().await
    })?;
    let before = endpoint(&site.relay).await?;
    told.await?;
    site.internet.roam()?;
    let _ = go_on.send(());
    let report = load.await??;
    let after = endpoint(&site.relay).await?;
    eprintln!("{before} → {after}; {} answered, slowest {:?}", report.answered, report.slowest);
    report.all_well(250).with_context(|| format!("{}\n{}", site.relay.last_words(), site.connector.last_words()))?;
    assert!(before.starts_with("203.0.113.1:") && after.starts_with("203.0.113.9:20"), "{before} → {after}");
    let listed = site.relay.json(&["connector", "list"]).await?;
    assert_eq!(listed.as_array().map(Vec::len), Some(1));
    site.no_panic();
    Ok(())
}

async fn endpoint(relay: &Relay) -> Result<String> {
    let listed = relay.json(&["connector", "list"]).await?;
    Ok(listed[0]["endpoint"].as_str().context("an endpoint")?.to_owned())
}

async fn passes_a_narrow_path(relay_ip: IpAddr, hidden: bool) -> Result<()> {
    let site = Site::build(relay_ip, |internet| {
        internet.narrow(1280)?;
        if hidden { internet.hide_too_big() } else { Ok(()) }
    })
    .await?;
    let up = site.make("mebibyte", 1)?;
    site.curl(&format!("--data-binary @{} http://127.0.0.1:8000/store", site.file("mebibyte").display()))?;
    let stored: Vec<PathBuf> = std::fs::read_dir(site.file("stored"))?.flatten().map(|entry| entry.path()).collect();
    assert_eq!(sha256(stored.first().context("stored")?)?, up, "up");
    let down = site.make("hundred", 100)?;
    let start = Instant::now();
    let got = site.curl("http://127.0.0.1:8000/hundred | sha256sum")?;
    assert_eq!(got.split(' ').next(), Some(down.as_str()), "down");
    eprintln!("100 MiB at MTU 1280 toward {relay_ip} in {:.1?}", start.elapsed());
    site.no_panic();
    let _ = (&site.live, &site.origin);
    Ok(())
}

#[tokio::test]
async fn a_path_of_1280_bytes_carries_everything_over_ipv4() -> Result<()> {
    if skip::unless("MTU 1280 over IPv4", &NEEDS) {
        return Ok(());
    }
    passes_a_narrow_path(RELAY_V4, false).await
}

#[tokio::test]
async fn a_path_of_1280_bytes_that_hides_it_carries_everything_over_ipv4() -> Result<()> {
    if skip::unless("MTU 1280 over IPv4 without ICMP", &NEEDS) {
        return Ok(());
    }
    passes_a_narrow_path(RELAY_V4, true).await
}

#[tokio::test]
async fn a_path_of_1280_bytes_carries_everything_over_ipv6() -> Result<()> {
    if skip::unless("MTU 1280 over IPv6", &NEEDS) {
        return Ok(());
    }
    passes_a_narrow_path(RELAY_V6, false).await
}

#[tokio::test]
async fn udp_blocked_on_the_way_out_is_said_within_10_seconds_and_heals() -> Result<()> {
    if skip::unless("UDP blocked", &NEEDS) {
        return Ok(());
    }
    let internet = Internet::build()?;
    internet.internet.nft(
        "table inet block {
            chain way {
                type filter hook forward priority filter;
                meta l4proto udp drop
            }
        }",
    )?;
    let mut relay = Relay::within(&internet.gateway, RELAY_V4)?;
    relay.launch()?;
    answers(&internet, relay.admin, "localhost", "/readyz").await?;
    let token = relay.tunnel("main", &["orders"]).await?;
    let mut connector = Connector::within(&internet.private, &token, &["orders=http://127.0.0.1:8081"])?;
    connector.launch()?;
    let line = connector.process()?.line("UDP is blocked", Duration::from_secs(10)).await?;
    assert!(line.contains("203.0.113.2"), "{line}");
    let before = connector.usage()?.cpu;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let spent = connector.usage()?.cpu - before;
    assert!(spent < Duration::from_millis(200), "a blocked connector spins: {spent:?} in 2 s");
    internet.internet.nft("delete table inet block")?;
    let admin = connector.admin;
    let waiting = move || async move {
        wait::until("the connector", Duration::from_secs(15), || async {
            let answer = client::get(admin, "localhost", "/readyz").await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await
    };
    internet.private.within(waiting).await.with_context(|| connector.last_words())
}
