use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::state::StateDir;
use crate::task::{Task, spawn};

#[tokio::test]
async fn health_and_metrics_are_served_to_anyone() {
    let tcp = Tcp::serve("127.0.0.1:0").await;
    assert!(tcp.get("/livez", "evil.example").await.starts_with("HTTP/1.1 200"));
    let metrics = tcp.get("/metrics", "evil.example").await;
    assert!(metrics.starts_with("HTTP/1.1 200") && metrics.ends_with("culvert_up 1\n# EOF\n"), "{metrics}");
    assert!(metrics.contains("content-type: application/openmetrics-text"), "{metrics}");
}

#[tokio::test]
async fn readiness_is_that_of_the_program_or_of_one_service() {
    let tcp = Tcp::serve("127.0.0.1:0").await;
    for (target, status) in [
        ("/readyz", "200"),
        ("/readyz?service=orders", "200"),
        ("/readyz?service=ORDERS", "200"),
        ("/readyz?service=%6frders", "200"),
        ("/readyz?service=down", "503"),
        ("/readyz?service=unknown", "503"),
    ] {
        let reply = tcp.get(target, "x").await;
        assert!(reply.starts_with(&format!("HTTP/1.1 {status}")), "{target}: {reply}");
    }
    let body: Value = serde_json::from_str(body(&tcp.get("/readyz", "x").await)).unwrap();
    assert_eq!(
        body,
        json!({ "ready": true, "draining": false, "reasons": [], "registry": "degraded",
            "services": { "orders": { "up": 1, "total": 2 }, "down": { "up": 0, "total": 1 } } })
    );
}

#[test]
fn a_draining_program_is_ready_for_nothing() {
    let health = Health { draining: true, ..health() };
    assert!(!health.is_ready(None) && !health.is_ready(Some("orders")));
    let unready = Health { reasons: vec!["no relay session".to_owned()], ..self::health() };
    assert!(!unready.is_ready(None) && unready.is_ready(Some("orders")));
}

#[tokio::test]
async fn tcp_takes_no_change() {
    let tcp = Tcp::serve("127.0.0.1:0").await;
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"] {
        for target in ["/api/v1/tunnels", "/readyz"] {
            let reply = tcp.say(&format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
            assert!(reply.starts_with("HTTP/1.1 405") && reply.contains("allow: GET, HEAD"), "{method}: {reply}");
        }
    }
}

#[tokio::test]
async fn the_api_is_served_under_our_own_names_alone() {
    let tcp = Tcp::serve("127.0.0.1:0").await;
    let own = tcp.address.to_string();
    let ours = format!("localhost:{}", tcp.address.port());
    for host in [own.as_str(), ours.as_str(), "localhost"] {
        let reply = tcp.get("/api/v1/status?a=b", host).await;
        assert!(reply.starts_with("HTTP/1.1 200") && body(&reply).contains("\"query\":\"a=b\""), "{host}: {reply}");
    }
    for host in ["evil.example", "localhost.evil.example", "127.0.0.1:1"] {
        assert!(tcp.get("/api/v1/status", host).await.starts_with("HTTP/1.1 421"), "{host}");
    }
    for request in [
        "GET /api/v1/status HTTP/1.1\r\n\r\n",
        "GET /api/v1/status HTTP/1.0\r\n\r\n",
        "GET http://evil.example/api/v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    ] {
        let reply = tcp.say(request).await;
        assert!(reply.starts_with("HTTP/1.1 421") || reply.starts_with("HTTP/1.0 421"), "{request}: {reply}");
    }
}

#[tokio::test]
async fn the_api_is_not_served_off_this_host() {
    let Some(address) = own_address() else {
        eprintln!("SKIPPED: this host has no address but loopback");
        return;
    };
    let tcp = Tcp::serve(&format!("{address}:0")).await;
    let host = tcp.address.to_string();
    assert!(tcp.get("/api/v1/status", &host).await.starts_with("HTTP/1.1 403"));
    assert!(tcp.get("/livez", &host).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn unknown_pages_are_404_and_head_has_no_body() {
    let tcp = Tcp::serve("127.0.0.1:0").await;
    for target in ["/", "/api", "/api/v2/x", "/livez/", "/livez/../api/v1/x"] {
        assert!(tcp.get(target, "localhost").await.starts_with("HTTP/1.1 404"), "{target}");
    }
    let head = tcp.say("HEAD /api/v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_says_nothing_is_let_go() {
    let tcp = Tcp::serve("127.0.0.1:0").await;
    let start = tokio::time::Instant::now();
    let mut silent = TcpStream::connect(tcp.address).await.unwrap();
    silent.write_all(b"GET /livez HTT").await.unwrap();
    let mut said = Vec::new();
    let _ = silent.read_to_end(&mut said).await;
    assert!(!said.starts_with(b"HTTP/1.1 200"));
    assert!(start.elapsed() <= std::time::Duration::from_secs(11), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_default_port_that_is_taken_gives_way_and_a_chosen_one_does_not() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let other = bind_tcp(address, false).await.unwrap();
    assert_ne!(other.local_addr().unwrap().port(), address.port());
    let error = bind_tcp(address, true).await.unwrap_err();
    assert!(matches!(error, AdminError::InUse(_)));
    let quit = Quit::from(error);
    assert!(quit.exit == Exit::Failed && quit.message.contains(&address.to_string()), "{quit:?}");
    let nowhere = bind_tcp("192.0.2.1:1".parse().unwrap(), false).await.unwrap_err();
    assert!(matches!(nowhere, AdminError::Listen { .. }));
}

#[tokio::test]
async fn commands_change_things_through_the_socket() {
    let state = StateDir::temporary().unwrap();
    let _server = serve(&state);
    let client = Client::new(&state);
    let answer: Value = client.post("/api/v1/echo?x=1", &json!({ "name": "dc1" })).await.unwrap();
    assert_eq!(answer["method"], "POST");
    assert_eq!((&answer["body"]["name"], &answer["query"]), (&json!("dc1"), &json!("x=1")));
    assert_eq!(answer["uid"], nix::unistd::geteuid().as_raw());
    let ready: Value = client.read("/readyz").await.unwrap();
    assert_eq!(ready["ready"], true);
}

#[tokio::test]
async fn a_command_ends_as_the_running_program_says() {
    let state = StateDir::temporary().unwrap();
    let _server = serve(&state);
    let client = Client::new(&state);
    let refused = client.post::<Value>("/api/v1/refuse", &Value::Null).await.unwrap_err();
    assert_eq!(refused, Quit::config("relay.toml:3: no").hint("correct it"));
    let missing = client.read::<Value>("/api/v1/missing").await.unwrap_err();
    assert_eq!((missing.exit, missing.message.as_str()), (Exit::Failed, "no tunnel \"x\""));
    let unready = client.call(Method::GET, "/readyz?service=down", None).await.unwrap();
    assert_eq!(unready.status, StatusCode::SERVICE_UNAVAILABLE);
    let large = client.post::<Value>("/api/v1/echo", &json!("a".repeat(2 << 20))).await.unwrap_err();
    assert_eq!(large.exit, Exit::Failed);
}

#[tokio::test]
async fn without_a_running_program_a_command_says_so() {
    let state = StateDir::temporary().unwrap();
    let client = Client::new(&state);
    let not_running = |quit: Quit| quit.exit == Exit::Failed && quit.message.starts_with("not running");
    assert!(not_running(client.read::<Value>("/readyz").await.unwrap_err()));
    // What a killed program leaves behind.
    drop(std::os::unix::net::UnixListener::bind(client.path()).unwrap());
    assert!(client.path().exists());
    assert!(not_running(client.read::<Value>("/readyz").await.unwrap_err()));
    let socket = AdminSocket::bind(&state, None).unwrap();
    drop(socket);
    assert!(!client.path().exists(), "a socket's file goes with it");
}

#[tokio::test(start_paused = true)]
async fn a_program_that_hangs_is_not_waited_for_for_ever() {
    let state = StateDir::temporary().unwrap();
    let _hangs = AdminSocket::bind(&state, None).unwrap();
    let error = Client::new(&state).call(Method::GET, "/readyz", None).await.unwrap_err();
    assert!(matches!(error, CallError::Silent(_)), "{error}");
}

#[tokio::test]
async fn a_state_directory_with_a_long_path_has_a_socket_too() {
    let outside = tempfile::tempdir().unwrap();
    let long = outside.path().join("a".repeat(120)).join("b".repeat(60));
    let state = StateDir::create(&long).unwrap();
    let _server = serve(&state);
    let ready: Value = Client::new(&state).read("/readyz").await.unwrap();
    assert_eq!(ready["ready"], true);
}

#[tokio::test]
async fn the_socket_is_for_its_user_or_for_a_group() {
    let state = StateDir::temporary().unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let socket = AdminSocket::bind(&state, None).unwrap();
    assert_eq!((mode(socket.path()), mode(state.path())), (0o600, 0o700));
    drop(socket);
    assert!(matches!(AdminSocket::bind(&state, Some("no-such-group")), Err(AdminError::NoGroup(_))));
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root can give the socket to a group");
        return;
    }
    let socket = AdminSocket::bind(&state, Some("daemon")).unwrap();
    let group = nix::unistd::Group::from_name("daemon").unwrap().unwrap().gid.as_raw();
    assert_eq!((mode(socket.path()), mode(state.path())), (0o660, 0o710));
    assert_eq!(std::fs::metadata(socket.path()).unwrap().gid(), group);
    assert!(StateDir::open(state.path()).is_ok(), "the directory stays fit for the next start");
}

#[test]
fn queries_and_paths_are_decoded() {
    let call = Call {
        method: Method::GET,
        path: "/api/v1/tunnels/a%2Fb/".to_owned(),
        query: "service=a+b%26c&empty&service=second&bad=%zz%".to_owned(),
        body: Bytes::from_static(b"{}"),
        caller: Caller::Tcp("127.0.0.1:1".parse().unwrap()),
    };
    assert_eq!(call.parts(), ["tunnels", "a/b"]);
    assert_eq!(call.query("service").as_deref(), Some("a b&c"));
    assert_eq!((call.query("empty").as_deref(), call.query("none")), (Some(""), None));
    assert_eq!(call.query("bad").as_deref(), Some("%zz%"));
    let wrong: Answer = call.json::<Vec<u8>>().unwrap_err();
    assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
}

struct Program;

impl Admin for Program {
    fn health(&self) -> Health {
        health()
    }

    fn metrics(&self) -> String {
        "culvert_up 1\n# EOF\n".to_owned()
    }

    async fn api(&self, call: Call) -> Answer {
        let parts = call.parts();
        match parts.first().map(String::as_str) {
            Some("refuse") => Quit::config("relay.toml:3: no").hint("correct it").into(),
            Some("missing") => Answer::not_found("no tunnel \"x\""),
            _ => {
                let uid = match call.caller {
                    Caller::Socket { uid, .. } => Some(uid),
                    Caller::Tcp(_) => None,
                };
                let body: Value = serde_json::from_slice(&call.body).unwrap_or_default();
                Answer::ok(json!({ "method": call.method.as_str(), "query": call.query, "body": body, "uid": uid }))
            }
        }
    }
}

fn health() -> Health {
    let services = [("orders", 1, 2), ("down", 0, 1)];
    Health {
        services: services.map(|(name, up, total)| (name.to_owned(), Pairs { up, total })).into(),
        notes: [("registry", "degraded".into())].into(),
        ..Health::default()
    }
}

struct Tcp {
    address: SocketAddr,
    _server: Task<()>,
}

impl Tcp {
    async fn serve(address: &str) -> Self {
        let listener = bind_tcp(address.parse().unwrap(), true).await.unwrap();
        let address = listener.local_addr().unwrap();
        Self { address, _server: spawn("test.admin", serve_tcp(listener, Arc::new(Program))) }
    }

    async fn get(&self, target: &str, host: &str) -> String {
        self.say(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await
    }

    async fn say(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = request.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        reply
    }
}

fn serve(state: &StateDir) -> Task<()> {
    let socket = AdminSocket::bind(state, None).unwrap();
    spawn("test.socket", serve_socket(socket, Arc::new(Program)))
}

fn body(reply: &str) -> &str {
    reply.split_once("\r\n\r\n").unwrap().1
}

/// The address from which this host would speak to another; nothing is sent.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback())
}
