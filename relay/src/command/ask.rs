//! Which relay a command talks to (interface.md §1): the one that runs on the state directory, else its registry itself.
//!
//! Must never change a registry behind the back of a running relay: whoever works on it holds the directory's lock.

use std::time::{Duration, SystemTime};

use culvert_ops::admin::{CallError, Client, Reply as Answer};
use culvert_ops::exit::{self, Exit, Quit};
use culvert_ops::load::{Environment, ProcessEnvironment};
use culvert_ops::program::Program;
use culvert_ops::state::{Lock, Search, StateDir, StateError};
use http::{Method, StatusCode};
use serde_json::Value;

use super::{Command, Facts, Offline, PATH, RELOAD_PATH, Reply, Request, carry_out};
use crate::behind;
use crate::cli::{Ask, CheckArgs, Place, ReadyArgs, RunArgs};
use crate::config;
use crate::door::{IssuerDoor, tls_of};
use crate::identity;

/// How long a command waits for another one, or for a relay that is starting.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

/// Has one command carried out and prints what came of it.
///
/// # Errors
/// The command's end.
pub(crate) async fn ask(command: Command, how: Ask) -> Result<Exit, Quit> {
    let state = find(&how.place)?;
    perform(command, &how.place, &state).await?.print(how.json)
}

/// Has one command carried out, by the relay that runs or without one.
///
/// # Errors
/// It could be carried out by neither.
pub(crate) async fn perform(command: Command, place: &Place, state: &StateDir) -> Result<Reply, Quit> {
    let client = Client::new(state);
    let request = Request { actor: super::uid(nix::unistd::geteuid().as_raw()), command };
    let mut waited = Duration::ZERO;
    loop {
        match call(&client, &request).await {
            Ok(reply) => return Ok(reply),
            Err(CallError::NotRunning(_)) if request.command == Command::Status => return Err(not_running(state)),
            Err(CallError::NotRunning(_)) => {}
            Err(error) => return Err(error.into()),
        }
        match state.lock() {
            Ok(lock) => return by_itself(request, place, state, lock).await,
            // A relay that is starting or stopping, or another command.
            Err(StateError::Busy { .. }) if waited < PATIENCE => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(error.into()),
        }
        waited += PAUSE;
    }
}

/// Says whether the relay, or one of its services, is ready.
///
/// # Errors
/// Status 1 when it is not, or does not run.
pub(crate) async fn ready(args: ReadyArgs) -> Result<Exit, Quit> {
    let state = find(&args.ask.place)?;
    let target = match &args.service {
        Some(name) => format!("/readyz?service={}", name.as_str()),
        None => "/readyz".to_owned(),
    };
    let answer = match Client::new(&state).call(Method::GET, &target, None).await {
        Err(CallError::NotRunning(_)) => return Err(not_running(&state)),
        answer => answer?,
    };
    let is_ready = answer.status == StatusCode::OK;
    let body: Value = serde_json::from_slice(&answer.body)
        .map_err(|_| Quit::failed(format!("the running relay answered {} without a reason", answer.status)))?;
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

/// Makes the running relay read its configuration again.
///
/// # Errors
/// Status 78 when that is wrong (nothing changed), 1 when no relay runs.
pub(crate) async fn reload(place: Place) -> Result<Exit, Quit> {
    let state = find(&place)?;
    match Client::new(&state).call(Method::POST, RELOAD_PATH, Some(&Value::Null)).await {
        Err(CallError::NotRunning(_)) => Err(not_running(&state)),
        answer => {
            let ended = reply(&answer?)?.print(false)?;
            exit::say("configuration reloaded");
            Ok(ended)
        }
    }
}

/// Checks the configuration and prints it.
///
/// # Errors
/// Status 78 with what is wrong.
pub(crate) fn check(args: &CheckArgs) -> Result<Exit, Quit> {
    let (loaded, settled) = config::load(&args.run, &ProcessEnvironment)?;
    for listener in &settled.listeners {
        tls_of(listener)?;
    }
    behind::read(&settled.behind, &loaded, &ProcessEnvironment)?;
    let issuer = settled.issuer.as_ref().map(IssuerDoor::of).transpose()?.flatten();
    for warning in loaded.warnings.iter().chain(&issuer.and_then(|issuer| issuer.warning())) {
        exit::say(format_args!("warning: {warning}"));
    }
    match &loaded.file {
        Some(file) => exit::say(format_args!("configuration: {}", file.display())),
        None => exit::say("configuration: no file, flags, environment and defaults alone"),
    }
    let state = Search::new(Program::Relay, args.run.place.state_dir.as_deref(), &ProcessEnvironment).find().ok();
    exit::say(format_args!("registry: {}", settled.registry.look(state.as_ref())));
    let values = loaded.values();
    if args.json {
        exit::print(serde_json::json!(values))?;
    } else {
        let lines: Vec<String> = values.iter().map(ToString::to_string).collect();
        exit::print(lines.join("\n"))?;
    }
    Ok(Exit::Ok)
}

/// The state directory that is meant; said on stderr, because it decides whose relay this changes.
pub(crate) fn find(place: &Place) -> Result<StateDir, Quit> {
    find_in(place, &ProcessEnvironment)
}

fn find_in(place: &Place, environment: &dyn Environment) -> Result<StateDir, Quit> {
    let state = Search::new(Program::Relay, place.state_dir.as_deref(), environment).find()?;
    exit::say(format_args!("state directory: {}", state.path().display()));
    Ok(state)
}

async fn call(client: &Client, request: &Request) -> Result<Reply, CallError> {
    let body = serde_json::json!(request);
    let answer = client.call(Method::POST, PATH, Some(&body)).await?;
    Ok(reply(&answer).unwrap_or_else(Reply::from))
}

fn reply(answer: &Answer) -> Result<Reply, Quit> {
    answer.success()
}

/// Carries the command out on the registry while no relay runs.
async fn by_itself(request: Request, place: &Place, state: &StateDir, lock: Lock) -> Result<Reply, Quit> {
    let args = RunArgs { place: place.clone(), ..RunArgs::default() };
    let (_, settled) = config::load(&args, &ProcessEnvironment)?;
    let (identity, registry) = identity::open_state(state, &settled.registry)?;
    let facts = Facts::new(&identity, &settled.wireguard);
    let result = carry_out(request, registry.as_ref(), &Offline, &facts, SystemTime::now()).await;
    // The write-ahead log is folded into the file before the next process may open it.
    drop(registry);
    drop(lock);
    Ok(Reply::from(&result))
}

fn not_running(state: &StateDir) -> Quit {
    Quit::failed(format!("the relay is not running on {}", state.path().display()))
        .hint("`culvert-relay run` starts it; --state-dir DIR names another one")
}
