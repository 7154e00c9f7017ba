//! The whole connector against a relay played by this test over real sockets: joining, serving, losing, leaving.

#[expect(unreachable_pub, reason = "a module of one test binary")]
mod played;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use culvert_connector::app::Source;
use culvert_connector::config::{self, Given, Settled};
use culvert_connector::identity::Store;
use culvert_connector::{Start, run};
use culvert_model::close::CloseCode;
use culvert_model::control::{Refusal, Subject, ToConnector, ToRelay};
use culvert_model::token::Token;
use culvert_ops::drain::{Drain, Plan};
use culvert_ops::exit::{Exit, Quit};
use culvert_ops::state::StateDir;
use culvert_ops::task::{Task, spawn};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;

use played::{Answer, PlayedRelay, token_for};

const PATIENCE: Duration = Duration::from_secs(20);
const PLAN: Plan =
    Plan { delay: Duration::from_millis(100), timeout: Duration::from_secs(10), streams: Duration::from_secs(9) };

/// A connector in this process.
struct Connector {
    drain: Drain,
    outcome: Task<Result<Exit, Quit>>,
}

impl Connector {
    fn start(start: Start) -> Self {
        let drain = Drain::new();
        let outcome = spawn("test.connector", run(start, drain.clone()));
        Self { drain, outcome }
    }

    async fn drained(self) -> Exit {
        self.drain.begin(PLAN, Instant::now());
        self.ended().await.expect("a clean end")
    }

    async fn ended(self) -> Result<Exit, Quit> {
        timeout(PATIENCE, self.outcome).await.expect("it ends").expect("without a panic")
    }
}

fn settled(services: &[&str]) -> Settled {
    let nowhere: BTreeMap<String, String> = BTreeMap::new();
    let services = services.iter().map(|text| (*text).to_owned()).collect();
    let given = Given { config: Some("/dev/null".into()), services, ..Given::default() };
    config::settle(&config::load(&given, &nowhere).unwrap(), &nowhere).unwrap()
}

fn start(services: &[&str], state: &StateDir, token: Option<&Token>) -> Start {
    Start {
        settled: settled(services),
        token: token.cloned(),
        store: Store::Directory(state.clone()),
        socket: None,
        serve_admin: false,
        source: None,
        reloads: None,
        notifier: None,
    }
}

/// An origin that answers every request with `ok`.
async fn origin() -> (String, Task<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serves = spawn("test.origin", async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = vec![0; 4096];
            while stream.read(&mut bytes).await.is_ok_and(|length| length > 0) {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            }
        }
    });
    (format!("orders=http://{address}"), serves)
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: api.example\r\nculvert-service: orders\r\nconnection: close\r\n\r\n";

async fn get(connection: &culvert_plane::Connection) -> String {
    let mut stream = timeout(PATIENCE, connection.open()).await.expect("a stream").unwrap();
    stream.write_all(GET).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer").unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_connector_joins_announces_and_serves_and_comes_back_without_a_token() {
    let mut relay = PlayedRelay::start();
    let token = token_for(&[&relay]);
    relay.accept(&token);
    let (service, _origin) = origin().await;
    let state = StateDir::temporary().unwrap();
    let connector = Connector::start(start(&[&service], &state, Some(&token)));
    let enrolled = relay.enrolled().await;
    let member = relay.announced().await;
    assert_eq!(member.announce.services[0].name.as_str(), "orders");
    assert!(get(&member.connection).await.ends_with("\r\n\r\nok"));
    assert_eq!(connector.drained().await, Exit::Ok);

    let again = Connector::start(start(&[&service], &state, None));
    let member = relay.announced().await;
    assert!(get(&member.connection).await.ends_with("\r\n\r\nok"));
    assert_eq!(relay.enrolments(), 1, "once");
    assert_eq!(relay.keys(), [enrolled.public_key]);
    assert_eq!(again.drained().await, Exit::Ok);
}

#[tokio::test]
async fn every_refusal_ends_78_in_its_own_words() {
    let mut said = Vec::new();
    for refusal in [Refusal::Expired, Refusal::UsedUp, Refusal::Revoked, Refusal::Version] {
        let relay = PlayedRelay::start();
        let token = token_for(&[&relay]);
        relay.accept(&token);
        relay.answer(Answer::Refuse(refusal));
        let state = StateDir::temporary().unwrap();
        let quit = Connector::start(start(&[], &state, Some(&token))).ended().await.unwrap_err();
        assert_eq!(quit.exit, Exit::Config);
        said.push(quit.message);
    }
    said.sort();
    said.dedup();
    assert_eq!(said.len(), 4, "{said:#?}");
}

#[tokio::test]
async fn an_answer_that_is_lost_is_asked_for_again_with_the_same_key() {
    let mut relay = PlayedRelay::start();
    let token = token_for(&[&relay]);
    relay.accept(&token);
    relay.answer(Answer::Lose);
    let state = StateDir::temporary().unwrap();
    let killed = Connector::start(start(&[], &state, Some(&token)));
    let first = relay.enrolled().await;
    drop(killed);
    relay.answer(Answer::Lose);
    let connector = Connector::start(start(&[], &state, Some(&token)));
    let second = relay.enrolled().await;
    relay.answer(Answer::Admit);
    let third = relay.enrolled().await;
    assert_eq!((first.public_key, &first.kem_key), (second.public_key, &second.kem_key));
    assert_eq!(second.public_key, third.public_key);
    relay.announced().await;
    assert_eq!(connector.drained().await, Exit::Ok);
}

#[tokio::test]
async fn a_revoked_connector_ends_78() {
    let mut relay = PlayedRelay::start();
    let token = token_for(&[&relay]);
    relay.accept(&token);
    let state = StateDir::temporary().unwrap();
    let connector = Connector::start(start(&[], &state, Some(&token)));
    let member = relay.announced().await;
    relay.plane().remove_peer(member.connection.peer(), CloseCode::Revoked).await;
    let quit = connector.ended().await.unwrap_err();
    assert_eq!(quit.exit, Exit::Config);
    assert!(quit.message.contains("revoked"), "{}", quit.message);
}

#[tokio::test]
async fn a_connector_that_was_revoked_while_away_learns_it_from_its_token() {
    let mut relay = PlayedRelay::start();
    let token = token_for(&[&relay]);
    relay.accept(&token);
    let state = StateDir::temporary().unwrap();
    let connector = Connector::start(start(&[], &state, Some(&token)));
    let member = relay.announced().await;
    assert_eq!(connector.drained().await, Exit::Ok);
    relay.plane().remove_peer(member.connection.peer(), CloseCode::Revoked).await;
    relay.answer(Answer::Revoked(Subject::Connector));
    let quit = Connector::start(start(&[], &state, Some(&token))).ended().await.unwrap_err();
    assert!(quit.exit == Exit::Config && quit.message.contains("revoked"), "{}", quit.message);
    assert_eq!(relay.enrolments(), 2, "asked once: the relay said that it is the key");
}

#[tokio::test]
async fn an_older_relay_is_asked_again_because_its_word_may_be_about_the_token() {
    let mut relay = PlayedRelay::start();
    let token = token_for(&[&relay]);
    relay.accept(&token);
    let state = StateDir::temporary().unwrap();
    let connector = Connector::start(start(&[], &state, Some(&token)));
    let member = relay.announced().await;
    assert_eq!(connector.drained().await, Exit::Ok);
    relay.plane().remove_peer(member.connection.peer(), CloseCode::Revoked).await;
    relay.answer(Answer::Refuse(Refusal::Revoked));
    let quit = Connector::start(start(&[], &state, Some(&token))).ended().await.unwrap_err();
    assert!(quit.exit == Exit::Config && quit.message.contains("revoked"), "{}", quit.message);
    assert_eq!(relay.enrolments(), 3);
}

#[tokio::test]
async fn a_connector_whose_token_was_revoked_stays() {
    let mut relay = PlayedRelay::start();
    let token = token_for(&[&relay]);
    relay.accept(&token);
    let state = StateDir::temporary().unwrap();
    let connector = Connector::start(start(&[], &state, Some(&token)));
    let member = relay.announced().await;
    assert_eq!(connector.drained().await, Exit::Ok);
    relay.plane().remove_peer(member.connection.peer(), CloseCode::Shutdown).await;
    relay.answer(Answer::Revoked(Subject::Token));
    let connector = Connector::start(start(&[], &state, Some(&token)));
    relay.enrolled().await;
    // The relay was only slow to know the key again.
    relay.remember();
    relay.announced().await;
    assert_eq!(connector.drained().await, Exit::Ok);
}

#[tokio::test]
async fn a_connector_that_the_relay_forgot_joins_again_with_its_key() {
    let mut relay = PlayedRelay::start();
    let token = token_for(&[&relay]);
    relay.accept(&token);
    let state = StateDir::temporary().unwrap();
    let connector = Connector::start(Start { store: Store::Memory, ..start(&[], &state, Some(&token)) });
    let member = relay.announced().await;
    relay.plane().remove_peer(member.connection.peer(), CloseCode::Shutdown).await;
    relay.announced().await;
    let keys = relay.keys();
    assert!(keys.len() == 2 && keys[0] == keys[1], "another id, the same key");
    assert_eq!(connector.drained().await, Exit::Ok);
}

#[tokio::test]
async fn a_session_that_breaks_and_a_relay_that_forgot_it_are_come_back_to() {
    let mut relay = PlayedRelay::start();
    let token = token_for(&[&relay]);
    relay.accept(&token);
    let (service, _origin) = origin().await;
    let state = StateDir::temporary().unwrap();
    let connector = Connector::start(start(&[&service], &state, Some(&token)));
    let member = relay.announced().await;
    member.connection.close(CloseCode::Silent);
    let member = relay.announced().await;
    assert!(get(&member.connection).await.ends_with("ok"));
    relay.forget(&member.connection).await;
    let member = relay.announced().await;
    assert!(get(&member.connection).await.ends_with("ok"));
    assert_eq!(connector.drained().await, Exit::Ok);
}

#[tokio::test]
async fn an_origin_that_goes_away_is_told_at_once() {
    let mut relay = PlayedRelay::start();
    let token = token_for(&[&relay]);
    relay.accept(&token);
    let (service, origin) = origin().await;
    let state = StateDir::temporary().unwrap();
    let connector = Connector::start(start(&[&service], &state, Some(&token)));
    let member = relay.announced().await;
    assert!(member.announce.services[0].health.up);
    drop(origin);
    let answer = get(&member.connection).await;
    assert!(answer.to_ascii_lowercase().contains("culvert-failure: origin_refused; sent=0"), "{answer}");
    let health = relay.heard(|message| match message {
        ToRelay::Health { services } if !services[0].health.up => Some(services[0].health.clone()),
        _ => None,
    });
    assert_eq!(health.await.reason.as_deref(), Some("origin_refused"));
    assert_eq!(connector.drained().await, Exit::Ok);
}

#[tokio::test]
async fn the_relay_is_told_before_the_end_and_what_is_in_flight_finishes() {
    let mut relay = PlayedRelay::start();
    let token = token_for(&[&relay]);
    relay.accept(&token);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let service = format!("orders=http://{}", listener.local_addr().unwrap());
    let state = StateDir::temporary().unwrap();
    let connector = Connector::start(start(&[&service], &state, Some(&token)));
    let member = relay.announced().await;
    let mut stream = member.connection.open().await.unwrap();
    stream.write_all(GET).await.unwrap();
    // Health checks connect too, and say nothing.
    let mut asked = loop {
        let (mut asked, _) = listener.accept().await.unwrap();
        let mut head = [0; 1024];
        if asked.read(&mut head).await.unwrap() > 0 {
            break asked;
        }
    };
    connector.drain.begin(PLAN, Instant::now());
    relay.heard(|message| matches!(message, ToRelay::Drain).then_some(())).await;
    // Sent before the relay knew: it is served as well.
    let late = spawn("test.late", async move {
        let mut stream = member.connection.open().await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nculvert-service: nobody\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    });
    assert!(timeout(PATIENCE, late).await.unwrap().unwrap().contains("no_such_service"));
    asked.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an answer").unwrap();
    assert!(answer.ends_with("ok"), "{answer}");
    assert_eq!(connector.ended().await.unwrap(), Exit::Ok);
}

#[tokio::test]
async fn a_reload_announces_the_new_services_on_the_same_session() {
    struct Later(AtomicUsize);
    impl Source for Later {
        fn load(&self) -> Result<(Settled, Vec<String>), Quit> {
            match self.0.fetch_add(1, Ordering::Relaxed) {
                0 => Err(Quit::config("wrong")),
                _ => Ok((settled(&["billing=http://127.0.0.1:1"]), Vec::new())),
            }
        }
    }
    let mut relay = PlayedRelay::start();
    let token = token_for(&[&relay]);
    relay.accept(&token);
    let (service, _origin) = origin().await;
    let state = StateDir::temporary().unwrap();
    let (reload, reloads) = mpsc::channel(1);
    let connector = Connector::start(Start {
        source: Some(Box::new(Later(AtomicUsize::new(0)))),
        reloads: Some(reloads),
        ..start(&[&service], &state, Some(&token))
    });
    let member = relay.announced().await;
    reload.send(()).await.unwrap();
    assert!(get(&member.connection).await.ends_with("ok"), "a bad file changes nothing");
    reload.send(()).await.unwrap();
    let names = relay.heard(|message| match message {
        ToRelay::Announce(announce) => {
            Some(announce.services.iter().map(|one| one.name.to_string()).collect::<Vec<_>>())
        }
        _ => None,
    });
    assert_eq!(names.await, ["billing"]);
    assert!(get(&member.connection).await.contains("no_such_service"), "the former one is gone");
    assert!(!member.connection.is_closed());
    assert_eq!(connector.drained().await, Exit::Ok);
}

#[tokio::test]
async fn another_token_joins_anew_and_the_former_session_drains() {
    let mut old = PlayedRelay::start();
    let first = token_for(&[&old]);
    old.accept(&first);
    let state = StateDir::temporary().unwrap();
    let connector = Connector::start(start(&[], &state, Some(&first)));
    old.announced().await;
    assert_eq!(connector.drained().await, Exit::Ok);

    let mut new = PlayedRelay::start();
    let second = token_for(&[&new]);
    let connector = Connector::start(start(&[], &state, Some(&second)));
    let former = old.announced().await;
    assert_eq!(new.enrolments(), 0, "the new relay does not know the token yet, and the old identity serves meanwhile");
    new.accept(&second);
    new.announced().await;
    old.heard(|message| matches!(message, ToRelay::Drain).then_some(())).await;
    let closed = timeout(PATIENCE, former.connection.closed()).await.expect("the former session ends");
    assert_eq!(closed.code, Some(CloseCode::Shutdown), "{closed:?}");
    assert_ne!(old.keys(), new.keys());
    assert_eq!(connector.drained().await, Exit::Ok);
}

#[tokio::test]
async fn a_token_of_two_relays_is_one_connector_at_both() {
    let mut one = PlayedRelay::start();
    let mut two = PlayedRelay::start();
    let token = token_for(&[&one, &two]);
    one.accept(&token);
    two.accept(&token);
    let state = StateDir::temporary().unwrap();
    let connector = Connector::start(start(&[], &state, Some(&token)));
    let (first, second) = tokio::join!(one.announced(), two.announced());
    assert_eq!(one.keys(), two.keys());
    first.connection.close(CloseCode::Shutdown);
    assert!(!second.connection.is_closed(), "one relay's end is not the other's");
    assert_eq!(connector.drained().await, Exit::Ok);
}

#[tokio::test]
async fn a_relay_that_pings_is_answered_and_a_silent_one_is_left_within_five_seconds() {
    let mut relay = PlayedRelay::start();
    let token = token_for(&[&relay]);
    relay.accept(&token);
    let state = StateDir::temporary().unwrap();
    let connector = Connector::start(start(&[], &state, Some(&token)));
    let member = relay.announced().await;
    member.say(ToConnector::Ping { id: 77 });
    relay.heard(|message| matches!(message, ToRelay::Pong { id: 77 }).then_some(())).await;
    let started = Instant::now();
    relay.fall_silent();
    let closed = timeout(PATIENCE, member.connection.closed()).await.expect("it is left");
    assert_eq!(closed.code, Some(CloseCode::Silent));
    assert!(started.elapsed() < Duration::from_millis(5_500), "{:?}", started.elapsed());
    assert_eq!(connector.drained().await, Exit::Ok);
}

#[tokio::test]
async fn a_relay_that_knows_no_lanes_is_served_over_the_session_alone() {
    let mut relay = PlayedRelay::start();
    let token = token_for(&[&relay]);
    relay.accept(&token);
    let (service, _origin) = origin().await;
    let state = StateDir::temporary().unwrap();
    let mut start = start(&[&service], &state, Some(&token));
    start.settled.lanes = 3;
    let connector = Connector::start(start);
    let member = relay.announced().await;
    let asked = relay.heard(|message| if let ToRelay::Lane(asked) = message { Some(asked) } else { None }).await;
    assert_eq!(asked.number, 1);
    member.say(ToConnector::Unsupported { what: "not here".to_owned() });
    member.say(ToConnector::Ping { id: 77 });
    let next =
        relay.heard(|message| matches!(message, ToRelay::Pong { .. } | ToRelay::Lane(_)).then_some(message)).await;
    assert_eq!(next, ToRelay::Pong { id: 77 }, "it does not ask again");
    assert!(get(&member.connection).await.ends_with("\r\n\r\nok"));
    assert_eq!(connector.drained().await, Exit::Ok);
}
