use super::*;

#[test]
fn a_message_survives_the_wire_in_pieces() {
    let mut bytes = Vec::new();
    encode(&ToRelay::Ping { id: 7 }, &mut bytes).unwrap();
    for cut in 0..bytes.len() {
        assert_eq!(decode::<ToRelay>(&bytes[..cut]), Ok(None));
    }
    assert_eq!(decode(&bytes), Ok(Some((ToRelay::Ping { id: 7 }, bytes.len()))));
}

#[test]
fn a_message_of_a_later_version_reads_as_unknown() {
    let mut bytes = Vec::new();
    encode(&serde_json::json!({"type": "teleport", "to": "mars"}), &mut bytes).unwrap();
    assert_eq!(decode(&bytes).map(|read| read.map(|(m, _)| m)), Ok(Some(ToConnector::Unknown)));
}

#[test]
fn messages_about_several_relays_survive_the_wire() {
    let key = crate::key::PrivateKey::from_bytes([7; 32]).public_key();
    let place = RelayPlace { tag: "ab".to_owned(), public_key: key, endpoints: vec!["r:1".to_owned()] };
    let told = [
        ToConnector::Relays { own: "cd".to_owned(), relays: vec![place] },
        ToConnector::Introduced {
            relay: "ab".to_owned(),
            public_key: key,
            relay_key: key,
            ciphertext: "AA==".to_owned(),
            psk_epoch: 1,
        },
    ];
    for message in told {
        let mut bytes = Vec::new();
        encode(&message, &mut bytes).unwrap();
        assert_eq!(decode(&bytes), Ok(Some((message, bytes.len()))));
    }
    let asked = serde_json::json!({"type": "introduce", "relay": "ab", "kem_key": "AA=="});
    let expected = ToRelay::Introduce { relay: "ab".to_owned(), kem_key: "AA==".to_owned() };
    assert_eq!(serde_json::from_value::<ToRelay>(asked).ok(), Some(expected));
}

#[test]
fn a_refusal_says_what_it_is_about_and_an_older_one_need_not() {
    let older = serde_json::json!({"type": "refused", "refusal": "revoked", "at": null});
    let newer = serde_json::json!({"type": "refused", "refusal": "revoked", "at": null, "of": "connector"});
    let later = serde_json::json!({"type": "refused", "refusal": "revoked", "at": null, "of": "planet"});
    for (json, expected) in [(older, None), (newer, Some(Subject::Connector)), (later, Some(Subject::Other))] {
        let read: ToConnector = serde_json::from_value(json).unwrap();
        assert_eq!(read, ToConnector::Refused { refusal: Refusal::Revoked, at: None, of: expected });
    }
    let silent = ToConnector::Refused { refusal: Refusal::Expired, at: None, of: None };
    assert!(serde_json::to_value(silent).unwrap().get("of").is_none());
}

#[test]
fn messages_about_keys_and_managed_services_survive_the_wire_under_their_names() {
    let public_key = PublicKey::from_bytes([7; 32]);
    let kem = || "a2Vt".to_owned();
    let service = ManagedService {
        name: "orders".parse().unwrap(),
        origin: "http://orders.internal:8080".to_owned(),
        host: None,
        health_path: Some("/healthz".to_owned()),
    };
    let refused = vec![RefusedService { name: "orders".parse().unwrap(), why: "not allowed".to_owned() }];
    for (name, message) in [
        ("rekey", ToRelay::Rekey(Rekey { public_key, kem_key: kem() })),
        ("renew", ToRelay::Renew { kem_key: kem() }),
        ("retire", ToRelay::Retire { public_key }),
        ("lane", ToRelay::Lane(LaneKeys { number: 1, public_key, kem_key: kem() })),
        ("managed", ToRelay::Managed { refused }),
    ] {
        assert_eq!(serde_json::to_value(&message).unwrap()["type"], name);
        assert_eq!(over_the_wire(&message), message);
    }
    let until = Some("2030-01-01T00:00:00Z".to_owned());
    for (name, message) in [
        ("rekeyed", ToConnector::Rekeyed(Rekeyed { public_key, ciphertext: kem(), psk_epoch: 4, relay_key: None })),
        ("rekey_refused", ToConnector::RekeyRefused { public_key, why: "it is another connector's".to_owned() }),
        (
            "renewed",
            ToConnector::Renewed { ciphertext: kem(), psk_epoch: 5, relay_key: Some(public_key), public_key: None },
        ),
        (
            "lane",
            ToConnector::Lane(Lane {
                number: 1,
                public_key,
                inner_address: "fd43:554c:5645::9".parse().unwrap(),
                ciphertext: kem(),
                psk_epoch: 1,
                relay_key: public_key,
            }),
        ),
        ("lane_refused", ToConnector::LaneRefused { number: 16, why: "too many".to_owned() }),
        ("relay_key", ToConnector::RelayKey { public_key, previous_until: until }),
        ("relay_key", ToConnector::RelayKey { public_key, previous_until: None }),
        ("manage", ToConnector::Manage { services: vec![service] }),
    ] {
        assert_eq!(serde_json::to_value(&message).unwrap()["type"], name);
        assert_eq!(over_the_wire(&message), message);
    }
}

fn over_the_wire<M: Serialize + DeserializeOwned>(message: &M) -> M {
    let mut bytes = Vec::new();
    encode(message, &mut bytes).unwrap();
    decode(&bytes).unwrap().unwrap().0
}

#[test]
fn a_length_over_the_bound_is_refused_at_once() {
    assert_eq!(decode::<ToRelay>(&[0, 2, 0, 0]), Err(BadMessage::TooLong(131_072)));
    assert_eq!(decode::<ToRelay>(&[0, 0, 0, 1, b'x']), Err(BadMessage::Malformed));
}
