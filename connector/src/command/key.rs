//! `key show` and `key rotate`.
//!
//! Must never print more of a key than its public half.

use std::time::{Duration, SystemTime};

use culvert_ops::admin::{CallError, Client};
use culvert_ops::exit::{self, Exit, Quit};
use culvert_ops::state::{StateDir, StateError};
use culvert_ops::time::rfc3339;
use http::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{call, find};
use crate::admin::age_seconds;
use crate::cli::Ask;
use crate::identity::{Identity, Store};
use crate::rotation;

/// How long a rotation is waited for; it goes on by itself.
const WAIT: Duration = Duration::from_secs(60);
/// And how often it is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How long a process that is just starting or ending is waited for.
const BUSY: Duration = Duration::from_secs(5);

pub(super) async fn show(ask: &Ask) -> Result<Exit, Quit> {
    let state = find(&ask.place)?;
    let body = match running(&state, Method::GET, "/api/v1/key").await? {
        Some(body) if !body["public_key"].is_null() => body,
        _ => on_disk(&state)?,
    };
    print(&body, ask.json)
}

pub(super) async fn rotate(ask: &Ask) -> Result<Exit, Quit> {
    let state = find(&ask.place)?;
    let mut waited = Duration::ZERO;
    let asked = loop {
        if let Some(asked) = running(&state, Method::POST, "/api/v1/key/rotate").await? {
            break asked;
        }
        match state.lock() {
            Ok(_lock) => {
                prepare(&state)?;
                exit::say("the connector is not running: the next run makes the new key known to its relays");
                return print(&on_disk(&state)?, ask.json);
            }
            Err(StateError::Busy { .. }) if waited < BUSY => sleep(LOOK).await,
            Err(error) => return Err(error.into()),
        }
        waited += LOOK;
    };
    let mut waited = Duration::ZERO;
    loop {
        let key: Value = call(&state, Method::GET, "/api/v1/key").await?.success()?;
        if key["public_key"] == asked["public_key"] {
            exit::say("the new key is in use; the one before is answered for three more minutes");
            return print(&key, ask.json);
        }
        if key["rotation"]["public_key"] != asked["public_key"] {
            return Err(Quit::failed("a relay refused the new key, and the one before stays in use")
                .hint("the connector's log says why"));
        }
        if waited >= WAIT {
            exit::say("not every relay knows the new key yet: it goes on by itself, `key show` tells how far it is");
            return print(&key, ask.json);
        }
        sleep(LOOK).await;
        waited += LOOK;
    }
}

/// Asks the running connector; none when none runs.
async fn running(state: &StateDir, method: Method, target: &str) -> Result<Option<Value>, Quit> {
    let body = (method == Method::POST).then_some(Value::Null);
    match Client::new(state).call(method, target, body.as_ref()).await {
        Err(CallError::NotRunning(_)) => Ok(None),
        answer => answer?.success().map(Some),
    }
}

/// Writes a next key, while no process runs here.
fn prepare(state: &StateDir) -> Result<(), Quit> {
    let store = Store::Directory(state.clone());
    let Identity { joined, .. } = store.load()?.ok_or_else(|| not_joined(state))?;
    store.make_next(&joined, SystemTime::now())?;
    Ok(())
}

/// What files tell.
fn on_disk(state: &StateDir) -> Result<Value, Quit> {
    let store = Store::Directory(state.clone());
    let (public_key, joined) = store.peek()?.ok_or_else(|| not_joined(state))?;
    let relays: Vec<String> = joined.relays.iter().map(|relay| relay.name.clone()).collect();
    let next = store.next_key(&joined)?.filter(|next| next.public_key() != public_key);
    Ok(json!({
        "public_key": public_key,
        "created": rfc3339(joined.key_made()),
        "age_seconds": age_seconds(joined.key_made(), SystemTime::now()),
        "rotation": next.map(|next| rotation::told(&next, &relays, None)),
    }))
}

fn not_joined(state: &StateDir) -> Quit {
    Quit::failed(format!("this connector has not joined yet: no key in {}", state.path().display()))
        .hint("`culvert-connector run` with a token joins; --state-dir DIR names another place")
}

/// The public key alone on stdout, as scripts want it; its age and what goes on are words.
fn print(key: &Value, as_json: bool) -> Result<Exit, Quit> {
    if as_json {
        exit::print(key)?;
        return Ok(Exit::Ok);
    }
    exit::print(key["public_key"].as_str().unwrap_or_default())?;
    if let (Some(created), Some(age)) = (key["created"].as_str(), key["age_seconds"].as_u64()) {
        exit::say(format_args!("made {created}, {} ago", rough(age)));
    }
    if let Some(next) = key["rotation"]["public_key"].as_str() {
        exit::say(format_args!("next key, under way: {next}"));
        for (relay, state) in key["rotation"]["relays"].as_object().into_iter().flatten() {
            let words = match state.as_str() {
                Some("in_use") => "uses it",
                Some("known") => "knows it",
                _ => "does not know it yet",
            };
            exit::say(format_args!("  {relay} {words}"));
        }
    }
    Ok(Exit::Ok)
}

/// An age in one word and a half.
fn rough(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_told_as_people_tell_it() {
        for (seconds, words) in [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7_200, "2 h"), (172_800, "2 days")] {
            assert_eq!(rough(seconds), words);
        }
    }
}
