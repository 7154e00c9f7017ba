//! Services that are managed here, as commands show and change them.

use culvert_model::control::RefusedService;

use super::*;

#[tokio::test]
async fn a_managed_service_stands_beside_what_connectors_declare_and_shows_who_refuses_it() {
    let mut relay = Relay::populated().await;
    let [up, ..] = relay.ids();
    let set = |service: &str, origin: &str| Command::ServiceSet {
        service: service.parse().unwrap(),
        tunnel: Some("dc1".to_owned()),
        peer: None,
        origin: origin.to_owned(),
        host: None,
        health_path: Some("/healthz".to_owned()),
        ca: None,
    };
    let outcome = relay.ask(set("orders", "http://orders.internal:8080")).await.unwrap();
    assert_eq!(outcome.changes, [Change::ServiceSet("orders".parse().unwrap())]);
    assert_eq!(outcome.json["origin"], "http://orders.internal:8080");
    assert!(outcome.notes[1].starts_with("2 live connectors are told"), "{:?}", outcome.notes);
    relay.ask(set("billing-eu", "http://billing.internal:8080")).await.unwrap();
    let not_granted = Quit::from(relay.ask(set("elsewhere", "http://a:1")).await.unwrap_err());
    assert!(not_granted.message.contains("is not granted elsewhere"), "{}", not_granted.message);
    assert!(not_granted.hint.unwrap().contains("tunnel set dc1 --add-service elsewhere"));
    assert!(relay.ask(set("orders", "tcp://db.internal:5432")).await.is_err(), "raw TCP has no health path");

    let why = "http://billing.internal:8080 is not within this connector's [allow] origins";
    let live = relay.live.connectors.get_mut(&up).unwrap();
    let refused = |name: &str, why: &str| RefusedService { name: name.parse().unwrap(), why: why.to_owned() };
    live.not_served = vec![refused("billing-eu", why), refused("orders", "this connector declares orders itself")];
    live.services.push(LiveServiceOfConnector {
        name: "billing-eu".parse().unwrap(),
        up: false,
        reason: Some("origin_denied".to_owned()),
        source: "relay",
    });
    let managed = LiveService { total: 1, managed: 1, ..LiveService::default() };
    relay.live.services.insert("billing-eu".parse().unwrap(), managed);
    let listed = relay.ask(Command::ServiceList).await.unwrap().json;
    let told = |one: &Value| format!("{} {} {}/{}", one["name"], one["source"], one["up"], one["total"]);
    let told: Vec<String> = listed.as_array().unwrap().iter().map(told).collect();
    let expected = [
        r#""billing-eu" "relay" 0/1"#,
        r#""orders" "connector" 1/2"#,
        r#""orders" "relay" 0/0"#,
        r#""users" "connector" 0/2"#,
    ];
    assert_eq!(told, expected, "both where both exist");
    let mut text = String::new();
    for service in ["billing-eu", "orders"] {
        let outcome = relay.ask(Command::ServiceShow { service: service.to_owned() }).await.unwrap();
        assert_eq!(outcome.json["managed"][0]["health_path"], "/healthz");
        text.push_str(&format!("$ culvert-relay service show {service}\n{}\n", relay.made_plain(&outcome.text)));
    }
    golden("managed.txt", &text);
    let shown = relay.ask(Command::ServiceShow { service: "orders".to_owned() }).await.unwrap().json;
    assert_eq!((&shown["source"], shown["sources"].as_array().unwrap().len()), (&Value::from("connector"), 2));

    let deleted = relay.ask(Command::ServiceDelete { service: "orders".to_owned() }).await.unwrap();
    assert!(deleted.notes[0].contains("declare it themselves"), "{:?}", deleted.notes);
    assert!(matches!(deleted.changes.as_slice(), [Change::ServiceDeleted(_), Change::GrantsChanged(_)]));
    relay.ask(Command::ServiceDelete { service: "billing-eu".to_owned() }).await.unwrap();
    assert!(relay.registry.load().await.unwrap().managed.is_empty());
    let gone = relay.ask(Command::ServiceDelete { service: "orders".to_owned() }).await;
    assert!(gone.is_err(), "what connectors declare is theirs");
}
