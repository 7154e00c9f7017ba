//! Commands against a registry and a relay that is made up.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_model::gateway::Credential;
use culvert_model::id::{ConnectorId, GatewayId, StockPeerId};
use culvert_model::key::PublicKey;
use culvert_model::name::ServiceName;
use culvert_model::token::Token;
use culvert_ops::exit::Exit;
use culvert_ops::state::StateDir;
use serde_json::Value;

use super::*;
use crate::identity::open_state;
use crate::registry::{Candidate, Enrolment, Note, Sealed, Url};
use golden::golden;

#[path = "../../tests/golden/compare.rs"]
mod golden;
mod managed;
mod peers;

const DAY: u64 = 86_400;

#[tokio::test]
async fn a_tunnels_token_is_the_only_data_and_lets_its_holder_in() {
    let relay = Relay::new();
    let outcome = relay.create("dc1", &["orders", "orders"]).await.unwrap();
    let token: Token = outcome.text.trim_end().parse().unwrap();
    assert_eq!(token.relays()[0].endpoint.to_string(), "relay.example.com:51820");
    assert_eq!(token.relays()[0].public_key, relay.identity.public_key());
    assert_eq!(outcome.json["token"], outcome.text.trim_end());
    assert_eq!(outcome.json["services"], serde_json::json!(["orders"]), "named twice, granted once");
    let row = relay.registry.load().await.unwrap().tokens.remove(0);
    assert_eq!(row.bootstrap_key, token.bootstrap_key().public_key());
    assert!(matches!(outcome.changes.as_slice(), [
        Change::TunnelCreated(_),
        Change::TokenAdded(added),
        Change::GrantsChanged(_)
    ] if *added == row.id));
    let said = outcome.notes.join("\n");
    assert!(!said.contains("culvert_t1_") && said.contains(row.id.as_str()), "{said}");
}

#[tokio::test]
async fn the_audit_tells_who_did_what_and_no_secret() {
    let relay = Relay::new();
    let token = relay.create("dc1", &["orders"]).await.unwrap().text;
    relay.ask(Command::TunnelDelete { tunnel: "dc1".to_owned() }).await.unwrap();
    let outcome = relay.ask(Command::Audit { since_seconds: DAY }).await.unwrap();
    let rows = outcome.json.as_array().unwrap();
    let told = |row: &Value| [&row["actor"], &row["action"]].map(|field| field.as_str().unwrap().to_owned());
    let told: Vec<_> = rows.iter().map(told).collect();
    let expected =
        ["tunnel.create", "token.create", "tunnel.delete"].map(|action| ["uid 0", action].map(str::to_owned));
    assert!(expected.iter().all(|line| told.contains(line)), "{told:?}");
    assert!(rows.iter().all(|row| row["time"].as_str().unwrap().ends_with('Z') && row["subject"].is_string()));
    assert!(!outcome.text.contains(token.trim()) && !outcome.text.contains("culvert_t1_"), "{}", outcome.text);
    assert_eq!(outcome.text.lines().count(), rows.len() + 1);
}

#[tokio::test]
async fn an_audit_of_no_time_says_that_nothing_changed() {
    let relay = Relay::new();
    let outcome = relay.ask(Command::Audit { since_seconds: 60 }).await.unwrap();
    assert_eq!((outcome.text.as_str(), outcome.json), ("", serde_json::json!([])));
    assert!(outcome.notes[0].contains("60s"), "{:?}", outcome.notes);
}

#[tokio::test]
async fn without_an_endpoint_nothing_is_created_and_78_says_what_to_set() {
    let relay = Relay { endpoints: Vec::new(), ..Relay::new() };
    let quit = Quit::from(relay.create("dc1", &["orders"]).await.unwrap_err());
    assert_eq!(quit.exit, Exit::Config);
    assert!(quit.hint.unwrap().contains("endpoints = "));
    assert!(relay.registry.load().await.unwrap().tunnels.is_empty());
    let terms = TokenTerms { endpoints: vec!["other.example.com:1".to_owned()], ..terms() };
    let (name, services) = ("dc1".parse().unwrap(), vec!["orders".parse().unwrap()]);
    relay.ask(Command::TunnelCreate { name, services, shared: false, token: terms }).await.unwrap();
    let many: Vec<_> = (1..=17).map(|port| format!("relay.example.com:{port}")).collect();
    let terms = TokenTerms { endpoints: many, ..self::terms() };
    assert!(relay.ask(Command::TokenCreate { tunnel: "dc1".to_owned(), token: terms }).await.is_err());
}

#[tokio::test]
async fn a_rival_is_refused_with_the_owners_name() {
    let relay = Relay::new();
    relay.create("dc1", &["orders"]).await.unwrap();
    let quit = Quit::from(relay.create("dc2", &["users", "orders"]).await.unwrap_err());
    assert_eq!((quit.exit, quit.message.as_str()), (Exit::Failed, "service orders belongs to tunnel dc1"));
    assert!(quit.hint.unwrap().contains("--shared"));
    let quit = Quit::from(relay.create("DC1".to_ascii_lowercase().as_str(), &["x"]).await.unwrap_err());
    assert_eq!(quit.message, "a tunnel named dc1 exists");
}

#[tokio::test]
async fn an_exact_grant_tells_whose_pattern_it_takes_the_name_from() {
    let relay = Relay::new();
    relay.create("dc1", &["*"]).await.unwrap();
    let dc1 = relay.registry.load().await.unwrap().tunnels.remove(0).id;
    relay.registry.announce(dc1, vec!["orders".parse().unwrap()], now()).await.unwrap();
    let outcome = relay.create("dc2", &["orders"]).await.unwrap();
    assert!(outcome.notes.iter().any(|note| note == "orders belongs to tunnel dc2 now; dc1 served it by a pattern"));
}

#[tokio::test]
async fn what_is_revoked_deleted_or_drained_is_told_to_the_running_relay() {
    let relay = Relay::populated().await;
    let [up, lost, ..] = relay.ids();
    let text = |id: &ConnectorId| id.to_string();
    let changes = |command| async { relay.ask(command).await.unwrap().changes };
    assert_eq!(
        changes(Command::ConnectorDrain { connector: text(&up) }).await,
        [Change::ConnectorDrained(up.clone(), true)]
    );
    assert_eq!(
        changes(Command::ConnectorUndrain { connector: text(&up) }).await,
        [Change::ConnectorDrained(up.clone(), false)]
    );
    assert_eq!(
        changes(Command::ConnectorRevoke { connector: text(&lost) }).await,
        [Change::ConnectorRevoked(lost.clone())]
    );
    let set = Command::TunnelSet {
        tunnel: "dc1".to_owned(),
        add: vec!["x".parse().unwrap()],
        remove: vec!["orders".parse().unwrap()],
    };
    assert!(matches!(changes(set).await.as_slice(), [Change::GrantsChanged(_)]));
    let deleted = changes(Command::TunnelDelete { tunnel: "dc1".to_owned() }).await;
    assert!(deleted.contains(&Change::ConnectorRevoked(up)), "{deleted:?}");
    assert!(!deleted.contains(&Change::ConnectorRevoked(lost)), "it was revoked before");
    assert!(matches!(deleted.last(), Some(Change::TunnelDeleted(_))));
    assert_eq!(deleted.iter().filter(|change| matches!(change, Change::TokenRevoked(_))).count(), 2);
}

#[tokio::test]
async fn a_name_stands_for_an_id_where_it_is_unique() {
    let relay = Relay::populated().await;
    let show = |connector: &str| relay.ask(Command::ConnectorShow { connector: connector.to_owned() });
    assert_eq!(show("WEB-1").await.unwrap().json["name"], "web-1");
    let quit = Quit::from(show("twin").await.unwrap_err());
    assert_eq!(quit.message, "2 connectors are named twin");
    assert_eq!(quit.hint.unwrap().matches("con_").count(), 2);
    assert_eq!(Quit::from(show("nobody").await.unwrap_err()).exit, Exit::Failed);
    let tunnel = relay.ask(Command::TunnelShow { tunnel: "dc1".to_owned() }).await.unwrap().json;
    let by_id = relay.ask(Command::TunnelShow { tunnel: tunnel["id"].as_str().unwrap().to_owned() }).await.unwrap();
    assert_eq!(by_id.json["name"], "dc1");
}

#[tokio::test]
async fn a_gateways_secret_is_the_only_data_and_proves_who_it_is() {
    let relay = Relay::new();
    let outcome = relay.gateway("kong", &["orders", "orders"], None).await.unwrap();
    let line = outcome.text.trim_end();
    let credential: Credential = line.parse().unwrap();
    assert_eq!((credential.name.as_str(), outcome.text.lines().count()), ("kong", 1));
    let row = relay.registry.load().await.unwrap().gateways.remove(0);
    assert!(row.secrets.len() == 1 && row.secrets[0].verifier.is_of(&credential.secret));
    assert_eq!(outcome.json["services"], serde_json::json!(["orders"]), "named twice, granted once");
    assert_eq!(format!("kong:{}", outcome.json["secret"].as_str().unwrap()), line);
    assert_eq!(outcome.changes, [Change::GatewayChanged(row.id)]);
    assert!(!outcome.notes.join(" ").contains("culvert_g1_"));
    let quit = Quit::from(relay.gateway("kong", &[], None).await.unwrap_err());
    assert_eq!((quit.exit, quit.message.as_str()), (Exit::Failed, "a gateway named kong exists"));

    let any = relay.gateway("any", &[], None).await.unwrap();
    assert_eq!(any.json["services"], serde_json::json!(["*"]));
    let san = Certificate::San("nginx.example".to_owned());
    let certified = relay.gateway("nginx", &["orders"], Some(san.clone())).await.unwrap();
    assert_eq!((certified.text.as_str(), certified.json.get("secret")), ("", None), "no secret that nobody needs");
    assert_eq!(certified.json["certificate"], "san:nginx.example");
    let quit = Quit::from(relay.gateway("caddy", &[], Some(san)).await.unwrap_err());
    assert_eq!(quit.message, "the certificate san:nginx.example is gateway nginx's");
}

#[tokio::test]
async fn a_rotated_secret_overlaps_with_the_one_before_and_a_revoked_gateway_is_gone() {
    let relay = Relay::new();
    let first = relay.gateway("kong", &["orders"], None).await.unwrap().text;
    let rotate = |grace_seconds| relay.ask(Command::GatewayRotate { gateway: "KONG".to_owned(), grace_seconds });
    let second = rotate(DAY).await.unwrap();
    assert_ne!(second.text, first);
    assert!(second.text.trim_end().parse::<Credential>().is_ok());
    assert_eq!(second.json["secrets"], 2);
    assert!(second.notes[0].ends_with("works for another 24h (until 2026-01-02T00:00:00Z)"), "{:?}", second.notes);
    let third = rotate(0).await.unwrap();
    assert_eq!(third.json["secrets"], 1, "at once");
    let set = GatewaySet { no_certificate: true, add: vec!["users".parse().unwrap()], ..GatewaySet::default() };
    let set = relay.ask(Command::GatewaySet { gateway: "kong".to_owned(), change: set }).await.unwrap();
    assert_eq!((set.text.as_str(), &set.json["services"]), ("", &serde_json::json!(["orders", "users"])));
    let revoked = relay.ask(Command::GatewayRevoke { gateway: "kong".to_owned() }).await.unwrap();
    assert!(matches!(revoked.changes.as_slice(), [Change::GatewayChanged(_)]));
    assert!(rotate(0).await.is_err());
    assert_eq!(relay.ask(Command::GatewayList).await.unwrap().json, serde_json::json!([]));

    let san = Certificate::San("nginx.example".to_owned());
    relay.gateway("nginx", &["orders"], Some(san)).await.unwrap();
    let bare = GatewaySet { no_certificate: true, ..GatewaySet::default() };
    let quit =
        Quit::from(relay.ask(Command::GatewaySet { gateway: "nginx".to_owned(), change: bare }).await.unwrap_err());
    assert!(quit.hint.unwrap().contains("gateway rotate nginx"));
}

#[tokio::test]
async fn a_service_is_forgotten_when_nobody_serves_it() {
    let relay = Relay::populated().await;
    let delete = |service: &str| relay.ask(Command::ServiceDelete { service: service.to_owned() });
    let why = async |service| Quit::from(delete(service).await.unwrap_err()).message;
    assert_eq!(why("orders").await, "service orders is announced by 2 live connectors");
    assert_eq!(why("nowhere").await, "no service \"nowhere\"");
    let tunnel = relay.registry.load().await.unwrap().tunnels.remove(0).id;
    let names = vec!["billing-eu".parse().unwrap(), "users".parse().unwrap()];
    relay.registry.announce(tunnel.clone(), names, now()).await.unwrap();
    let deleted = delete("Billing-EU").await.unwrap();
    assert_eq!(deleted.changes, [Change::ServiceDeleted("billing-eu".parse().unwrap())]);
    assert_eq!(why("billing-eu").await, "no service \"billing-eu\"");
    let set = Command::TunnelSet { tunnel: "dc1".to_owned(), add: vec!["quiet".parse().unwrap()], remove: Vec::new() };
    relay.ask(set).await.unwrap();
    let quit = Quit::from(delete("quiet").await.unwrap_err());
    assert!(quit.message.contains("granted") && quit.hint.unwrap().contains("tunnel set dc1 --remove-service quiet"));
    relay.registry.announce(tunnel, vec!["quiet".parse().unwrap()], now()).await.unwrap();
    assert!(delete("quiet").await.unwrap().notes[1].contains("stays known"));
}

#[tokio::test]
async fn listings_have_the_promised_fields() {
    let relay = Relay::populated().await;
    for (command, fields) in [
        (Command::TunnelList, "id name services connectors_up created"),
        (Command::TokenList { tunnel: None }, "id tunnel uses_left expires last_used state"),
        (
            Command::ConnectorList { tunnel: Some("dc1".to_owned()) },
            "id name tunnel public_key inner_address endpoint last_handshake version state services",
        ),
        (Command::ServiceList, "name source tunnels up total"),
        (Command::GatewayList, "id name services created last_used"),
    ] {
        let json = relay.ask(command).await.unwrap().json;
        for row in json.as_array().unwrap() {
            for field in fields.split(' ') {
                assert!(row.get(field).is_some(), "{field} in {row}");
            }
        }
        assert!(!json.as_array().unwrap().is_empty());
    }
    let connectors = relay.ask(Command::ConnectorList { tunnel: None }).await.unwrap().json;
    let states: Vec<_> = connectors.as_array().unwrap().iter().map(|one| one["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["up", "lost", "draining", "revoked"]);
    let first = &connectors[0];
    assert_eq!(
        first["services"][1],
        serde_json::json!({"name": "users", "up": false, "reason": "origin_refused", "source": "connector"})
    );
    assert_eq!(first["endpoint"], "192.0.2.7:4000");
    assert_eq!(first["last_handshake"], "2026-01-01T00:00:00Z");
    assert_eq!(connectors[1]["last_handshake"], Value::Null);
    let created = relay.ask(Command::TokenCreate { tunnel: "dc1".to_owned(), token: terms() }).await.unwrap().json;
    assert!(created["token"].as_str().unwrap().starts_with("culvert_t1_"));
}

#[tokio::test]
async fn a_key_in_two_places_is_said_wherever_one_looks() {
    let mut relay = Relay::populated().await;
    let id = relay.ids()[0].clone();
    let places = ["192.0.2.1:1", "198.51.100.1:2"];
    relay.live.flapping.insert(id.clone(), places.map(|place| place.parse().unwrap()));
    let list = relay.ask(Command::ConnectorList { tunnel: None }).await.unwrap();
    let show = relay.ask(Command::ConnectorShow { connector: id.to_string() }).await.unwrap();
    let status = relay.ask(Command::Status).await.unwrap();
    for text in [list.notes.join("\n"), show.text, status.text, status.json["alarms"].to_string()] {
        assert!(places.iter().all(|place| text.contains(place)) && text.contains("stolen?"), "{text}");
    }
    assert_eq!((&list.json[0]["flapping"], &list.json[1]["flapping"]), (&serde_json::json!(places), &Value::Null));
}

#[tokio::test]
async fn listings_read_well() {
    let relay = Relay::populated().await;
    let id = relay.ids()[0].to_string();
    let mut text = String::new();
    for (typed, command) in [
        ("tunnel list", Command::TunnelList),
        ("tunnel show dc1", Command::TunnelShow { tunnel: "dc1".to_owned() }),
        ("token list", Command::TokenList { tunnel: None }),
        ("connector list", Command::ConnectorList { tunnel: None }),
        ("connector show web-1", Command::ConnectorShow { connector: id }),
        ("service list", Command::ServiceList),
        ("service show users", Command::ServiceShow { service: "users".to_owned() }),
        ("gateway list", Command::GatewayList),
        ("status", Command::Status),
    ] {
        let outcome = relay.ask(command).await.unwrap();
        text.push_str(&format!("$ culvert-relay {typed}\n{}\n", relay.made_plain(&outcome.text)));
    }
    golden("listings.txt", &text);
}

#[tokio::test]
async fn an_empty_listing_is_an_empty_array_and_words_on_stderr() {
    let relay = Relay::new();
    for command in [
        Command::TunnelList,
        Command::TokenList { tunnel: None },
        Command::ConnectorList { tunnel: None },
        Command::ServiceList,
        Command::GatewayList,
    ] {
        let outcome = relay.ask(command).await.unwrap();
        assert_eq!((outcome.json, outcome.text.as_str(), outcome.notes.len()), (serde_json::json!([]), "", 1));
    }
}

#[tokio::test]
async fn no_listing_shows_a_secret() {
    let relay = Relay::populated().await;
    let outcome = relay.create("dc9", &["zzz"]).await.unwrap();
    let token = outcome.text.trim_end();
    for command in [
        Command::TunnelList,
        Command::TunnelShow { tunnel: "dc9".to_owned() },
        Command::TokenList { tunnel: None },
        Command::ConnectorList { tunnel: None },
        Command::GatewayList,
        Command::Status,
        Command::KeyShow,
    ] {
        let shown = relay.ask(command).await.unwrap();
        let all = format!("{}{}{:?}", shown.json, shown.text, shown.notes);
        assert!(!all.contains(token) && !all.contains("culvert_t1_") && !all.contains("culvert_g1_"));
        assert!(!all.contains(relay.identity.private_key().to_base64().as_str()));
    }
}

#[test]
fn a_request_survives_its_way_to_the_running_relay_and_its_actor_does_not() {
    let command = Command::TokenRevoke { token: "tok_x".to_owned() };
    let sent = serde_json::to_vec(&Request { actor: "uid 0".to_owned(), command: command.clone() }).unwrap();
    let read: Request = serde_json::from_slice(&sent).unwrap();
    assert_eq!(read, Request { actor: String::new(), command });
}

struct Relay {
    _state: StateDir,
    identity: Identity,
    registry: Arc<dyn Registry>,
    endpoints: Vec<Endpoint>,
    live: Made,
    members: Vec<ConnectorId>,
}

/// A relay that runs, as far as commands can see.
#[derive(Default)]
struct Made {
    connectors: HashMap<ConnectorId, LiveConnector>,
    services: BTreeMap<ServiceName, LiveService>,
    gateways: HashMap<GatewayId, SystemTime>,
    peers: HashMap<StockPeerId, LivePeer>,
    tun_unavailable: Option<String>,
    flapping: HashMap<ConnectorId, [std::net::SocketAddr; 2]>,
}

impl Relay {
    fn new() -> Self {
        let state = StateDir::temporary().unwrap();
        let (identity, registry) = open_state(&state, &Url::default()).unwrap();
        let endpoints = vec!["relay.example.com:51820".parse().unwrap()];
        Self { _state: state, identity, registry, endpoints, live: Made::default(), members: Vec::new() }
    }

    /// One tunnel, two tokens, and four connectors: up, lost, draining, revoked.
    async fn populated() -> Self {
        let mut relay = Self::new();
        relay.create("dc1", &["orders", "users", "billing-*"]).await.unwrap();
        let unlimited = TokenTerms { uses: None, expires_seconds: None, ..terms() };
        // Listings are in the order of creation.
        let later = now() + Duration::from_secs(1);
        relay.ask_at(Command::TokenCreate { tunnel: "dc1".to_owned(), token: unlimited }, later).await.unwrap();
        let snapshot = relay.registry.load().await.unwrap();
        let token = snapshot.tokens.iter().find(|token| token.uses_left.is_none()).unwrap();
        for (number, name) in ["web-1", "twin", "twin", "gone"].into_iter().enumerate() {
            let number = u8::try_from(number).unwrap();
            let candidate = Candidate {
                token: token.id.clone(),
                id: ConnectorId::new(),
                public_key: PublicKey::from_bytes([number + 1; 32]),
                relay: relay.identity.relay_tag(),
                psk: Sealed(vec![number; 72]),
                name: Some(name.parse().unwrap()),
                ephemeral: false,
                program: "0.1.0".to_owned(),
                source: "192.0.2.9:4000".parse().unwrap(),
                now: now() + Duration::from_secs(u64::from(number)) - Duration::from_secs(600),
            };
            let joined = relay.registry.enrol(candidate).await.unwrap();
            let Enrolment::Joined { connector, .. } = joined else { panic!("{joined:?}") };
            relay.members.push(connector.id);
        }
        let [up, _, draining, revoked] = relay.ids();
        relay.registry.revoke_connector(revoked, Actor("uid 0".to_owned()), now()).await.unwrap();
        let endpoint = Note::Endpoint {
            connector: up.clone(),
            relay: relay.identity.relay_tag(),
            remote: "192.0.2.1:1".parse().unwrap(),
            local: "192.0.2.2:51820".parse().unwrap(),
        };
        relay.registry.note(vec![endpoint]).await.unwrap();
        let service = |name: &str, reason: Option<&str>| LiveServiceOfConnector {
            name: name.parse().unwrap(),
            up: reason.is_none(),
            reason: reason.map(str::to_owned),
            source: "connector",
        };
        let lane =
            |number| LiveLane { number, shard: number, in_flight: 2, requests: 345, rx_bytes: 617, tx_bytes: 28 };
        let live = LiveConnector {
            endpoint: Some("192.0.2.7:4000".parse().unwrap()),
            last_handshake: Some(now()),
            version: Some("0.1.0".to_owned()),
            name: None,
            draining: false,
            services: vec![service("orders", None), service("users", Some("origin_refused"))],
            notes: vec!["its clock is behind".to_owned()],
            not_served: Vec::new(),
            psk_epoch: Some(3),
            rx_bytes: 1234,
            tx_bytes: 56,
            lanes: vec![lane(0), lane(1)],
        };
        let leaving = LiveConnector { draining: true, notes: Vec::new(), lanes: vec![lane(0)], ..live.clone() };
        relay.live.connectors.extend([(up, live), (draining, leaving)]);
        relay.gateway("kong", &["orders", "billing-*"], None).await.unwrap();
        let rotate = Command::GatewayRotate { gateway: "kong".to_owned(), grace_seconds: DAY };
        relay.ask(rotate).await.unwrap();
        relay.gateway("caddy", &[], Some(Certificate::Sha256([0xc5; 32]))).await.unwrap();
        relay.gateway("nginx", &["orders"], Some(Certificate::San("nginx.example".to_owned()))).await.unwrap();
        let kong = relay.registry.load().await.unwrap().gateways.into_iter().find(|row| row.name.as_str() == "kong");
        relay.live.gateways.insert(kong.unwrap().id, now() - Duration::from_secs(30));
        relay.live.services.insert("orders".parse().unwrap(), declared(1, 2));
        relay.live.services.insert("users".parse().unwrap(), declared(0, 2));
        relay
    }

    async fn ask(&self, command: Command) -> Result<Outcome, CommandError> {
        self.ask_at(command, now()).await
    }

    async fn ask_at(&self, command: Command, at: SystemTime) -> Result<Outcome, CommandError> {
        let facts = Facts { endpoints: self.endpoints.clone(), ..Facts::plain(&self.identity) };
        let request = Request { actor: "uid 0".to_owned(), command };
        carry_out(request, self.registry.as_ref(), &self.live, &facts, at).await
    }

    async fn create(&self, name: &str, services: &[&str]) -> Result<Outcome, CommandError> {
        let services = services.iter().map(|service| service.parse().unwrap()).collect();
        let name = name.parse().unwrap();
        self.ask(Command::TunnelCreate { name, services, shared: false, token: terms() }).await
    }

    async fn gateway(
        &self,
        name: &str,
        services: &[&str],
        certificate: Option<Certificate>,
    ) -> Result<Outcome, CommandError> {
        let services = services.iter().map(|service| service.parse().unwrap()).collect();
        self.ask(Command::GatewayCreate { name: name.parse().unwrap(), services, certificate }).await
    }

    /// Up, lost, draining, revoked.
    fn ids(&self) -> [ConnectorId; 4] {
        self.members.clone().try_into().unwrap()
    }

    /// Without what differs from run to run; as wide as before.
    fn made_plain(&self, text: &str) -> String {
        let mut plain = text.replace(&self.identity.public_key().to_string(), &"k".repeat(44));
        for prefix in ["tnl_", "tok_", "con_", "gtw_", "per_"] {
            let parts: Vec<String> = plain.split(prefix).map(str::to_owned).collect();
            let rest = parts.iter().skip(1).map(|part| format!("{prefix}{}{}", "x".repeat(16), &part[16..]));
            plain = parts[0].clone() + &rest.collect::<String>();
        }
        plain
            .lines()
            .map(|line| match line.split_once("inner address:") {
                Some(_) => "inner address:   fd43:554c:5645:…".to_owned(),
                None => line.to_owned(),
            })
            .map(|line| line + "\n")
            .collect()
    }
}

impl Live for Made {
    fn status(&self) -> Option<LiveStatus> {
        Some(LiveStatus {
            pid: 4711,
            version: "0.1.0".to_owned(),
            started: now() - Duration::from_secs(3 * DAY),
            ready: true,
            draining: false,
            reasons: Vec::new(),
            shards: vec![LiveShard { peers_up: 1, peers_total: 1, callers: 0, passed_on: 0 }],
            listeners: vec![
                ("wireguard".to_owned(), "0.0.0.0:51820".to_owned()),
                ("http".to_owned(), "127.0.0.1:8080".to_owned()),
            ],
        })
    }

    fn connectors(&self) -> HashMap<ConnectorId, LiveConnector> {
        self.connectors.clone()
    }

    fn services(&self) -> BTreeMap<ServiceName, LiveService> {
        self.services.clone()
    }

    fn flapping(&self) -> HashMap<ConnectorId, [std::net::SocketAddr; 2]> {
        self.flapping.clone()
    }

    fn gateways(&self) -> HashMap<GatewayId, SystemTime> {
        self.gateways.clone()
    }

    fn peers(&self) -> HashMap<StockPeerId, LivePeer> {
        self.peers.clone()
    }

    fn tun_unavailable(&self) -> Option<String> {
        self.tun_unavailable.clone()
    }

    fn proofs(&self) -> HashMap<ServiceName, &'static str> {
        HashMap::from([("legacy".parse().unwrap(), "http-signature")])
    }
}

fn terms() -> TokenTerms {
    let (services, from, endpoints) = (Vec::new(), Vec::new(), Vec::new());
    TokenTerms { uses: Some(1), expires_seconds: Some(DAY), services, from, endpoints }
}

fn declared(up: usize, total: usize) -> LiveService {
    LiveService { up, total, ..LiveService::default() }
}

fn now() -> SystemTime {
    culvert_ops::time::parse_rfc3339("2026-01-01T00:00:00Z").unwrap()
}
