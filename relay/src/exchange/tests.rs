//! Requests that need no connector to be answered: what decides about them, and what is told of them.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use culvert_hop::limits::Bounds;
use culvert_ops::drain::Plan;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

use super::*;
use crate::access_log::Target;
use crate::config::{Address, Limits, ServiceLimits};
use crate::lane::Lanes;
use crate::metrics::RelayMetrics;
use crate::router::Route;

#[tokio::test]
async fn an_unknown_service_is_404_and_a_known_one_without_a_connector_503() {
    let rig = Rig::new();
    assert_eq!(rig.ask("GET / HTTP/1.1\r\nhost: nobody\r\n").await, (404, "no_such_service".to_owned()));
    assert_eq!(rig.ask("GET / HTTP/1.1\r\nhost: localhost\r\n").await, (404, "no_such_service".to_owned()));
    assert_eq!(rig.ask("GET / HTTP/1.1\r\nhost: orders.internal:80\r\n").await, (503, "no_connector".to_owned()));
    assert_eq!(rig.ask("GET /b/1 HTTP/1.1\r\nhost: api.example.com\r\n").await, (503, "no_connector".to_owned()));
    let lines = rig.log();
    let said: Vec<_> = lines.iter().map(|line| (line["service"].as_str(), line["reason"].as_str())).collect();
    assert_eq!(said[0], (None, Some("no_such_service")));
    assert_eq!(said[2], (Some("orders"), Some("no_connector")));
    assert_eq!(said[3].0, Some("billing"), "the route decides");
    assert!(lines.iter().all(|line| line["request_id"].as_str().is_some_and(|id| !id.is_empty())));
}

#[tokio::test]
async fn a_listener_for_some_services_does_not_tell_whether_others_exist() {
    let rig = Rig::new();
    rig.door.set(Listener { services: Some(vec!["bill*".parse().unwrap()]), ..listener() }, None);
    for (host, expected) in [("orders", "not_allowed"), ("nobody", "not_allowed"), ("billing", "no_connector")] {
        let (_, reason) = rig.ask(&format!("GET / HTTP/1.1\r\nhost: {host}\r\n")).await;
        assert_eq!(reason, expected, "{host}");
    }
}

#[tokio::test]
async fn a_listener_that_selects_by_header_believes_one_such_field_and_nothing_else() {
    let rig = Rig::new();
    rig.door.set(Listener { select: Select::Header, ..listener() }, None);
    for (fields, expected) in [
        ("host: orders\r\nculvert-service: billing\r\n", "billing no_connector"),
        ("host: orders\r\n", " no_such_service"),
        ("host: orders\r\nculvert-service: billing\r\nculvert-service: orders\r\n", " bad_request"),
    ] {
        let (_, reason) = rig.ask(&format!("GET / HTTP/1.1\r\n{fields}")).await;
        let line = rig.log().pop().unwrap();
        assert_eq!(format!("{} {reason}", line["service"].as_str().unwrap_or_default()), expected, "{fields}");
    }
    rig.door.set(listener(), None);
    let (_, reason) = rig.ask("GET / HTTP/1.1\r\nhost: nobody\r\nculvert-service: orders\r\n").await;
    assert_eq!(reason, "no_such_service", "elsewhere the field selects nothing");
}

#[tokio::test]
async fn a_body_over_its_limit_and_a_full_service_have_their_names() {
    let rig = Rig::new();
    let post = |length: usize| format!("POST / HTTP/1.1\r\nhost: billing\r\ncontent-length: {length}\r\n");
    assert_eq!(rig.ask(&post(11)).await, (413, "too_large".to_owned()));
    let billing = rig.exchanges.directory.find("billing").unwrap();
    let _permit = billing.lane.in_flight.enter().await.unwrap();
    assert_eq!(rig.ask(&post(0)).await, (503, "overloaded".to_owned()));
    assert_eq!(rig.ask("GET / HTTP/1.1\r\nhost: orders\r\n").await.1, "no_connector", "others are unharmed");
}

#[tokio::test]
async fn a_query_is_never_logged_and_a_trace_is() {
    let rig = Rig::new();
    let trace = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nx-request-id: mine\r\n";
    rig.ask(&format!("GET /a?token=secret HTTP/1.1\r\nhost: orders\r\nauthorization: secret\r\n{trace}")).await;
    let line = rig.log().pop().unwrap();
    assert!(!line.to_string().contains("secret"), "{line}");
    assert_eq!((line["path"].as_str(), line["request_id"].as_str()), (Some("/a"), Some("mine")));
    assert_eq!(line["trace_id"].as_str(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
}

#[test]
fn requests_stick_by_what_the_balance_names() {
    let parts = |fields: &[(&str, &str)]| {
        let mut request = Request::new(());
        for (name, value) in fields {
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            request.headers_mut().append(name, HeaderValue::from_str(value).unwrap());
        }
        request.into_parts().0
    };
    let caller = |last| Caller { address: Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))), tls: false, port: None };
    let key = |balance: &str, fields: &[(&str, &str)], last, policy| {
        key(&Balance::read(balance).unwrap(), &parts(fields), &caller(last), policy)
    };
    let (append, replace) = (ForwardPolicy::Append, ForwardPolicy::Replace);
    assert_eq!(key("header:x-user", &[], 1, append), None);
    assert_eq!(
        key("header:x-user", &[("x-user", "a")], 1, append),
        key("header:x-user", &[("x-user", "a")], 2, append)
    );
    assert_ne!(
        key("header:x-user", &[("x-user", "a")], 1, append),
        key("header:x-user", &[("x-user", "b")], 1, append)
    );
    let cookies = [("cookie", "a=1; sid=x"), ("cookie", "b=2")];
    assert_eq!(key("cookie:sid", &cookies, 1, append), Some(pick::hash(b"x")));
    assert_eq!(key("cookie:b", &cookies, 1, append), Some(pick::hash(b"2")));
    assert_eq!(key("cookie:c", &cookies, 1, append), None);
    let forwarded = [("x-forwarded-for", "6.6.6.6, 192.0.2.7")];
    assert_eq!(key("client-ip", &forwarded, 1, append), Some(pick::hash(b"192.0.2.7")));
    assert_eq!(key("client-ip", &forwarded, 1, replace), Some(pick::hash(b"10.0.0.1")), "a stranger's word");
    assert_eq!(key("client-ip", &[], 1, append), Some(pick::hash(b"10.0.0.1")));
}

#[tokio::test]
async fn in_a_drain_answers_close_their_connection() {
    let rig = Rig::new();
    let head = "GET / HTTP/1.1\r\nhost: nobody\r\n";
    assert!(!rig.raw(head).await.contains("connection: close"));
    rig.exchanges.drain.begin(
        Plan { delay: Duration::from_secs(60), timeout: Duration::ZERO, streams: Duration::ZERO },
        Instant::now(),
    );
    assert!(rig.raw(head).await.contains("connection: close"));
}

struct Rig {
    exchanges: Arc<Exchanges>,
    door: Arc<Door>,
    dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bounds = Bounds { running: 10, waiting: 0, wait: Duration::ZERO };
        let small = ServiceLimits { bounds: Bounds { running: 1, ..bounds }, body: Some(10) };
        let services = HashMap::from([("billing".parse().unwrap(), small)]);
        let limits = Limits { services, ..Limits::same(bounds) };
        let front = limits.front;
        let metrics = Arc::new(RelayMetrics::new());
        let directory = Arc::new(Directory::new(Lanes::new(Arc::clone(&metrics), limits)));
        directory.know(&HashSet::from(["orders".parse().unwrap(), "billing".parse().unwrap()]));
        let route = Route {
            host: Some("api.example.com".to_owned()),
            path: "/b".to_owned(),
            service: "billing".parse().unwrap(),
        };
        let exchanges = Exchanges {
            directory,
            router: Mutex::new(Arc::new(Router::new(vec![route], "internal"))),
            gateways: Arc::new(Gateways::new(&[])),
            sender: Sender::default(),
            log: Arc::new(AccessLog::open(&Target::File(dir.path().join("access.log"))).unwrap()),
            in_flight: InFlight::new(bounds, Reason::Overloaded),
            gateway_lanes: GatewayLanes::new(bounds),
            bounds: MessageBounds::new(&front),
            no_service: Arc::new(metrics.no_service()),
            relay: "test".to_owned(),
            drain: Drain::new(),
            long: Arc::default(),
            switched: Mutex::new(Owner::new()),
        };
        Self { exchanges: Arc::new(exchanges), door: Arc::new(Door::new(listener(), None)), dir }
    }

    /// The status and the reason of the answer to a request with this head.
    async fn ask(&self, head: &str) -> (u16, String) {
        let raw = self.raw(head).await;
        let status = raw.split(' ').nth(1).unwrap().parse().unwrap();
        let details = raw.split("details=\"").nth(1).unwrap_or_else(|| panic!("{raw}"));
        (status, details.split('"').next().unwrap().to_owned())
    }

    async fn raw(&self, head: &str) -> String {
        let (mut near, far) = duplex(64 * 1024);
        let caller = Caller { address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), tls: false, port: Some(8080) };
        let running = Arc::new(Running::default());
        let answer = |request: Request<Body>| {
            let (exchanges, door, running) =
                (Arc::clone(&self.exchanges), Arc::clone(&self.door), Arc::clone(&running));
            async move { Ok(exchanges.carry(&door, caller, None, &running, request).await) }
        };
        let settings = culvert_hop::server::ServerSettings::front();
        let talk = async {
            near.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
            let mut read = Vec::new();
            // The answer ends with the request's id, which is the last line of its body.
            while !String::from_utf8_lossy(&read).contains("request id: ") {
                if near.read_buf(&mut read).await.unwrap() == 0 {
                    break;
                }
            }
            drop(near);
            String::from_utf8(read).unwrap()
        };
        let serve = culvert_hop::server::serve(far, &settings, answer, std::future::pending());
        tokio::join!(talk, serve).0
    }

    /// What the access log says, once everything so far is written.
    fn log(&self) -> Vec<serde_json::Value> {
        self.exchanges.log.settle();
        let text = std::fs::read_to_string(self.dir.path().join("access.log")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn listener() -> Listener {
    let address = Address::Tcp("127.0.0.1:8080".parse().unwrap());
    crate::config::listener_of(address).unwrap()
}
