//! What each command does: `run` becomes the connector, the others ask one, or its files.
//!
//! Must never change anything but through the running process.

use std::path::Path;
use std::time::Duration;

use clap::CommandFactory as _;
use culvert_model::token::Token;
use culvert_ops::admin::{CallError, Client};
use culvert_ops::config::Loaded;
use culvert_ops::drain::{Drain, Plan, Signals, obey};
use culvert_ops::exit::{self, Exit, OrQuit as _, Quit};
use culvert_ops::log::{self, LogHandle};
use culvert_ops::secret::find_token;
use culvert_ops::state::{Search, StateDir};
use culvert_ops::systemd::Notifier;
use culvert_ops::task::spawn;
use culvert_ops::{Environment, ProcessEnvironment, Program, process, resident};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::app::{self, Start};
use crate::cli::{Ask, CheckArgs, Cli, KeyVerb, Place, ReadyArgs, RunArgs, Verb};
use crate::config::{self, Settled};
use crate::identity::Store;

mod key;

/// Between the word to the relay and the end of an idle process at least.
const DRAIN_DELAY: Duration = Duration::from_millis(100);
/// Upgraded connections end so long before the deadline, so that their end can be told.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Carries out one command.
///
/// # Errors
/// The end of the process.
pub async fn dispatch(verb: Verb) -> Result<Exit, Quit> {
    let environment = &ProcessEnvironment;
    match verb {
        Verb::Run(args) => run(*args).await,
        Verb::Check(args) => check(&args, environment),
        Verb::Key(KeyVerb::Show(ask)) => key::show(&ask).await,
        Verb::Key(KeyVerb::Rotate(ask)) => key::rotate(&ask).await,
        Verb::Status(ask) => status(&ask).await,
        Verb::Ready(args) => ready(&args).await,
        Verb::Reload(place) => reload(&place).await,
        Verb::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), Program::Connector.binary(), &mut script);
            exit::print(String::from_utf8_lossy(&script).trim_end())?;
            Ok(Exit::Ok)
        }
    }
}

async fn run(args: RunArgs) -> Result<Exit, Quit> {
    let environment = &ProcessEnvironment;
    let log = log::init("info", environment).or_config("the log")?;
    for refused in process::harden() {
        tracing::debug!(%refused, "not hardened");
    }
    if let Err(refused) = process::raise_open_files() {
        tracing::debug!(%refused, "open files stay as they are");
    }
    let (loaded, settled) = load(&args, environment)?;
    for warning in &loaded.warnings {
        tracing::warn!(warning, "configuration");
    }
    let token = token(&args, environment)?;
    // Read once, and of no use to whoever looks at this process.
    if !process::forget_variables(&[c"CULVERT_TOKEN", c"TUNNEL_TOKEN"]) {
        tracing::debug!("the token stays in the environment");
    }
    let keeps_state = !settled.ephemeral || args.place.state_dir.is_some();
    let state = match keeps_state {
        true => Some(Search::new(Program::Connector, args.place.state_dir.as_deref(), environment).create()?),
        false => None,
    };
    let lock = state.as_ref().map(StateDir::lock).transpose()?;
    let store = match &state {
        Some(state) if !settled.ephemeral => Store::Directory(state.clone()),
        _ => Store::Memory,
    };
    let drain = Drain::new();
    let timeout = settled.drain_timeout;
    let plan = Plan { delay: DRAIN_DELAY, timeout, streams: timeout.saturating_sub(LAST_WORDS) };
    let (ask_reload, reloads) = mpsc::channel(1);
    let signals = Signals::install().or_failed("cannot listen for signals")?;
    let obeying = spawn("connector.signals", obey(signals, drain.clone(), plan, ask_reload));
    // Of the process, which elsewhere may hold many connectors.
    let starting = spawn("connector.start", resident::give_back_start());
    let start = Start {
        settled,
        token,
        store,
        socket: state,
        serve_admin: true,
        source: Some(Box::new(Source { args, loaded: std::sync::Mutex::new(loaded), log })),
        reloads: Some(reloads),
        notifier: Some(Notifier::new(environment)),
    };
    let outcome = app::run(start, drain).await;
    drop((starting, obeying, lock));
    outcome
}

fn load(args: &RunArgs, environment: &dyn Environment) -> Result<(Loaded, Settled), Quit> {
    let loaded = config::load(&args.given(), environment)?;
    let settled = config::settle(&loaded, environment)?;
    Ok((loaded, settled))
}

/// The token, checked as far as that goes without a packet.
fn token(args: &RunArgs, environment: &dyn Environment) -> Result<Option<Token>, Quit> {
    let found = find_token(args.token_file.as_deref(), environment).or_config("the token")?;
    let Some(found) = found else { return Ok(None) };
    let token = found.secret.expose().parse::<Token>();
    let token = token.map_err(|error| {
        Quit::config(format!("the token from {} cannot be used: {error}", found.from))
            .hint("make a new one at the relay: culvert-relay token create TUNNEL")
    })?;
    Ok(Some(token))
}

/// Where a reload reads from: the same flags, the environment and files as they are then.
struct Source {
    args: RunArgs,
    loaded: std::sync::Mutex<Loaded>,
    log: LogHandle,
}

impl app::Source for Source {
    fn load(&self) -> Result<(Settled, Vec<String>), Quit> {
        let (loaded, settled) = load(&self.args, &ProcessEnvironment)?;
        self.log.set(None).or_config("the log filter")?;
        let mut old = self.loaded.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let restart = old.restart_needed(&loaded);
        // What needs a restart stays as it was, and is named again at the next reload.
        if restart.is_empty() {
            *old = loaded;
        }
        Ok((settled, restart))
    }
}

fn check(args: &CheckArgs, environment: &dyn Environment) -> Result<Exit, Quit> {
    let (loaded, settled) = load(&args.run, environment)?;
    for warning in &loaded.warnings {
        exit::say(format_args!("warning: {warning}"));
    }
    match &loaded.file {
        Some(file) => exit::say(format_args!("configuration: {}", file.display())),
        None => exit::say("configuration: no file, flags, environment and defaults alone"),
    }
    if settled.services.is_empty() && settled.allow.is_empty() {
        exit::say("warning: no service is declared: --service NAME=URL, or [[service]] in the file");
    }
    match token(&args.run, environment)? {
        Some(token) => {
            let relays: Vec<String> = token.relays().iter().map(|relay| relay.endpoint.to_string()).collect();
            exit::say(format_args!("token: for {}", relays.join(" ")));
        }
        None => exit::say("token: none (needed only to join)"),
    }
    let values = loaded.values();
    if args.json {
        exit::print(json!(values))?;
    } else {
        let lines: Vec<String> = values.iter().map(ToString::to_string).collect();
        exit::print(lines.join("\n"))?;
    }
    Ok(Exit::Ok)
}

async fn status(ask: &Ask) -> Result<Exit, Quit> {
    let state = find(&ask.place)?;
    let reply = call(&state, Method::GET, "/api/v1/status").await?;
    let body: Value = reply.success()?;
    if ask.json {
        exit::print(&body)?;
    } else {
        exit::print(crate::admin::status_text(&body))?;
    }
    Ok(if body["ready"] == true { Exit::Ok } else { Exit::Failed })
}

async fn ready(args: &ReadyArgs) -> Result<Exit, Quit> {
    let state = find(&args.ask.place)?;
    let target = match &args.service {
        Some(name) => format!("/readyz?service={}", name.as_str()),
        None => "/readyz".to_owned(),
    };
    let answer = call(&state, Method::GET, &target).await?;
    let is_ready = answer.status == StatusCode::OK;
    let body: Value = serde_json::from_slice(&answer.body)
        .map_err(|_| Quit::failed(format!("the running connector answered {} without a reason", answer.status)))?;
    if args.ask.json {
        exit::print(&body)?;
    } else {
        let reasons: Vec<&str> = body["reasons"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let draining = (body["draining"] == true).then_some("draining");
        let why: Vec<&str> = draining.into_iter().chain(reasons).collect();
        match (is_ready, why.is_empty()) {
            (true, _) => exit::print("ready")?,
            (false, true) => exit::print("not ready")?,
            (false, false) => exit::print(format_args!("not ready: {}", why.join(", ")))?,
        }
    }
    Ok(if is_ready { Exit::Ok } else { Exit::Failed })
}

async fn reload(place: &Place) -> Result<Exit, Quit> {
    let state = find(place)?;
    let body: Value = call(&state, Method::POST, "/api/v1/reload").await?.success()?;
    for key in body["restart_needed"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        exit::say(format_args!("{key} changes only with a restart"));
    }
    exit::print("reloaded")?;
    Ok(Exit::Ok)
}

async fn call(state: &StateDir, method: Method, target: &str) -> Result<culvert_ops::admin::Reply, Quit> {
    let body = (method == Method::POST).then_some(Value::Null);
    match Client::new(state).call(method, target, body.as_ref()).await {
        Err(CallError::NotRunning(_)) => {
            Err(Quit::failed(format!("the connector is not running on {}", state.path().display()))
                .hint("`culvert-connector run` starts it; --state-dir DIR names another one"))
        }
        answer => Ok(answer?),
    }
}

fn find(place: &Place) -> Result<StateDir, Quit> {
    find_at(place.state_dir.as_deref(), &ProcessEnvironment)
}

fn find_at(flag: Option<&Path>, environment: &dyn Environment) -> Result<StateDir, Quit> {
    let state = Search::new(Program::Connector, flag, environment).find()?;
    exit::say(format_args!("state directory: {}", state.path().display()));
    Ok(state)
}
