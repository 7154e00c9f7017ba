//! `dev`: relay, connector and an example origin on this machine, with real WireGuard over loopback between them.
//!
//! The only file that may use the connector. Must never touch the state or the settings of an installed relay.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use culvert_connector::config::Given;
use culvert_hop::body::Body;
use culvert_hop::message::{Request, Response};
use culvert_hop::server::{ServerSettings, serve};
use culvert_model::token::Token;
use culvert_ops::drain::{Drain, Signals};
use culvert_ops::exit::{self, Exit, OrQuit as _, Quit};
use culvert_ops::load::ProcessEnvironment;
use culvert_ops::log;
use culvert_ops::process;
use culvert_ops::state::StateDir;
use culvert_ops::systemd::{Notifier, Sockets};
use http::header;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::app::{Relay, Start};
use crate::cli::{DevArgs, Place, RunArgs};
use crate::command::{self, Command, TokenTerms};
use crate::config;
use crate::control::Control;

/// The built-in service.
const EXAMPLE: &str = "hello";
/// The tunnel's name.
const TUNNEL: &str = "dev";
/// Everything is on this machine: if it is not up by then, something is wrong.
const UP_WITHIN: Duration = Duration::from_secs(10);
/// The connector's last words, after the relay's.
const CONNECTOR_ENDS_WITHIN: Duration = Duration::from_secs(1);
/// The settings that differ from those of an installed relay.
const RELAY_TOML: &str = "\
[wireguard]
listen = [\"127.0.0.1:51820\"]
[http]
domain = \"localhost\"
access_log = \"stderr\"
[drain]
timeout = \"3s\"
streams = \"1s\"
";

/// `dev`.
///
/// # Errors
/// What could not be had on this machine, or is wrong with a `--service`.
pub(crate) async fn dev(args: DevArgs) -> Result<Exit, Quit> {
    drop(process::harden());
    drop(process::raise_open_files());
    log::init("warn", &ProcessEnvironment).map_err(|error| Quit::config(error.to_string()))?;
    let signals = Signals::install().or_failed("cannot take signals")?;
    // The settings of this host's own relay and connector are none of ours: an empty environment, files of our own.
    let nowhere = BTreeMap::new();
    let (relay_state, connector_state) = (StateDir::temporary()?, StateDir::temporary()?);
    let relay_file = settings_file(&relay_state, "relay.toml", RELAY_TOML)?;
    let connector_file = settings_file(&connector_state, "connector.toml", "")?;
    let (services, mut origin) = services(args.service).await?;
    let given = Given { config: Some(connector_file), services: services.clone(), ..Given::default() };
    let loaded = culvert_connector::config::load(&given, &nowhere)?;
    let connector = culvert_connector::config::settle(&loaded, &nowhere)?;
    let names: Vec<String> = connector.services.iter().map(|service| service.name.to_string()).collect();

    let place = Place { config: Some(relay_file), ..Place::default() };
    let run = RunArgs { place, ..RunArgs::default() };
    let (loaded, mut settled) = config::load(&run, &nowhere)?;
    settled.any_port = true;
    let reload = Box::new(move || config::load(&run, &BTreeMap::new()));
    let start = Start { loaded, settled, state: relay_state, sockets: Sockets::default(), reload, log: None };
    let relay = Relay::start(start).await?;
    let control = std::sync::Arc::clone(relay.control());
    let token = token(&control, &names).await?;

    let drain = Drain::new();
    let start = culvert_connector::Start::plain(connector, connector_state, token);
    let connector = culvert_connector::run(start, drain.clone());
    let serve = relay.serve(signals, Notifier::default());
    let told = async {
        up(&control, &names).await?;
        exit::print(welcome(&control, &names, &services))?;
        std::future::pending::<Result<Exit, Quit>>().await
    };
    tokio::pin!(connector, serve);
    let result = tokio::select! {
        ended = &mut serve => ended,
        ended = &mut connector => ended,
        ended = told => ended,
    };
    drain.stop();
    let _ = timeout(CONNECTOR_ENDS_WITHIN, connector).await;
    origin.abort_all();
    result
}

fn settings_file(state: &StateDir, name: &str, text: &str) -> Result<PathBuf, Quit> {
    let path: &Path = state.path();
    let path = path.join(name);
    fs::write(&path, text).or_failed("cannot write temporary settings")?;
    Ok(path)
}

/// What was asked for, or the example and its origin.
async fn services(asked: Vec<String>) -> Result<(Vec<String>, JoinSet<()>), Quit> {
    let mut origin = JoinSet::new();
    if !asked.is_empty() {
        return Ok((asked, origin));
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.or_failed("cannot start the example origin")?;
    let address = listener.local_addr().or_failed("cannot start the example origin")?;
    origin.spawn(example(listener));
    Ok((vec![format!("{EXAMPLE}=http://{address}")], origin))
}

/// The example origin: says who it is and what it was asked.
async fn example(listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(async move {
                        let answer = |request: Request<Body>| async move { Ok(hello(&request)) };
                        serve(stream, &ServerSettings::gate(), answer, std::future::pending()).await;
                    });
                }
                Err(_) => sleep(Duration::from_millis(100)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

fn hello(request: &Request<Body>) -> Response<Body> {
    let mut text = format!(
        "Hello from a private origin.\nYou asked for {} {}, and came through a WireGuard tunnel.\n",
        request.method(),
        request.uri()
    );
    for (name, value) in request.headers().iter() {
        text.push_str(&format!("  {name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
    }
    let mut response = Response::new(Body::full(text));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

async fn token(control: &Control, names: &[String]) -> Result<Token, Quit> {
    let mut grants = Vec::new();
    for name in names {
        grants.push(name.parse().or_usage("--service")?);
    }
    let terms = TokenTerms {
        services: Vec::new(),
        uses: Some(1),
        expires_seconds: Some(60),
        from: Vec::new(),
        endpoints: listening(control, "wireguard"),
    };
    let name = TUNNEL.parse().or_failed("tunnel")?;
    let command = Command::TunnelCreate { name, services: grants, shared: false, token: terms };
    let reply = control.carry_out(command::Request { actor: TUNNEL.to_owned(), command }).await;
    match reply {
        command::Reply::Done { json, .. } => {
            let text = json.get("token").and_then(serde_json::Value::as_str).unwrap_or_default();
            text.parse().or_failed("cannot make a token")
        }
        command::Reply::Failed { message, .. } => Err(Quit::failed(message)),
    }
}

/// Waits until every service has a connector. Origins that do not answer yet are no reason to wait.
async fn up(control: &Control, names: &[String]) -> Result<(), Quit> {
    let start = Instant::now();
    loop {
        let counts = control.exchanges.directory.counts();
        let there = |name: &String| counts.iter().any(|(own, count)| own.as_str() == name && count.total > 0);
        if names.iter().all(there) {
            return Ok(());
        }
        if start.elapsed() > UP_WITHIN {
            return Err(Quit::failed("the tunnel did not come up within 10 s on this machine")
                .hint("CULVERT_LOG=debug culvert-relay dev shows why"));
        }
        sleep(Duration::from_millis(10)).await;
    }
}

fn welcome(control: &Control, names: &[String], services: &[String]) -> String {
    let http = listening(control, "http").into_iter().next().unwrap_or_default();
    let port = http.parse::<SocketAddr>().map_or(0, |address| address.port());
    let (admin, wireguard) = (listening(control, "admin").join(" "), listening(control, "wireguard").join(" "));
    let mut text = format!("relay and connector are up: http {http}, WireGuard {wireguard}, admin {admin}\n\n");
    for (name, service) in names.iter().zip(services) {
        let origin = service.split_once('=').map_or("", |(_, origin)| origin);
        text.push_str(&format!("  {name}  ->  {origin}\n"));
        text.push_str(&format!("  curl http://{name}.localhost:{port}/\n"));
        text.push_str(&format!("  curl -H 'Host: {name}' http://{http}/\n\n"));
    }
    text.push_str("Ctrl-C ends both.");
    text
}

fn listening(control: &Control, kind: &str) -> Vec<String> {
    let of_kind = control.listeners.iter().filter(|(own, _)| own == kind);
    of_kind.map(|(_, address)| address.clone()).collect()
}
