//! What is typed, and what it asks for.

use clap::CommandFactory as _;

use super::*;
use crate::command::{GatewaySet, PeerConfigWanted, PeerWanted};
use crate::registry::Certificate;

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn commands_read_as_they_are_typed() {
    let terms = |uses, hours: Option<u64>| TokenTerms {
        services: Vec::new(),
        uses,
        expires_seconds: hours.map(|hours| hours * 3600),
        from: Vec::new(),
        endpoints: Vec::new(),
    };
    let id = || "con_x".to_owned();
    for (line, expected) in [
        (
            "tunnel create dc1 --service orders --service billing-* --shared --uses 3 --expires 7d",
            Command::TunnelCreate {
                name: "dc1".parse().unwrap(),
                services: vec!["orders".parse().unwrap(), "billing-*".parse().unwrap()],
                shared: true,
                token: terms(Some(3), Some(168)),
            },
        ),
        ("token create dc1", Command::TokenCreate { tunnel: "dc1".to_owned(), token: terms(Some(1), Some(24)) }),
        (
            "token create dc1 --uses unlimited --expires never",
            Command::TokenCreate { tunnel: "dc1".to_owned(), token: terms(None, None) },
        ),
        (
            "token create dc1 --from 192.0.2.7/24 --from 2001:db8::1",
            Command::TokenCreate {
                tunnel: "dc1".to_owned(),
                token: TokenTerms {
                    from: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::1/128".parse().unwrap()],
                    ..terms(Some(1), Some(24))
                },
            },
        ),
        ("tunnel ls", Command::TunnelList),
        ("tunnel describe dc1", Command::TunnelShow { tunnel: "dc1".to_owned() }),
        ("tunnel rm dc1", Command::TunnelDelete { tunnel: "dc1".to_owned() }),
        ("tunnel remove dc1", Command::TunnelDelete { tunnel: "dc1".to_owned() }),
        ("connector revoke con_x", Command::ConnectorRevoke { connector: id() }),
        ("connector undrain con_x --json", Command::ConnectorUndrain { connector: id() }),
        ("service ls", Command::ServiceList),
        ("service rm orders", Command::ServiceDelete { service: "orders".to_owned() }),
        (
            "service set legacy --peer branch --origin http://10.20.0.5:8080",
            Command::ServiceSet {
                service: "legacy".parse().unwrap(),
                tunnel: None,
                peer: Some("branch".to_owned()),
                origin: "http://10.20.0.5:8080".to_owned(),
                host: None,
                health_path: None,
                ca: None,
            },
        ),
        (
            "peer add branch --public-key xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg= --allowed-ips \
             10.20.0.0/16,fd00:20::/48 --allowed-ips 10.21.0.7 --endpoint branch.example:51820 \
             --persistent-keepalive 25 --dns 10.20.0.53",
            Command::PeerAdd {
                peer: PeerWanted {
                    name: "branch".parse().unwrap(),
                    public_key: Some("xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=".parse().unwrap()),
                    allowed_ips: ["10.20.0.0/16", "fd00:20::/48", "10.21.0.7/32"].map(|n| n.parse().unwrap()).into(),
                    endpoint: Some("branch.example:51820".to_owned()),
                    psk: None,
                    keepalive: std::num::NonZeroU16::new(25),
                    dns: Some("10.20.0.53".parse().unwrap()),
                },
            },
        ),
        ("peer ls", Command::PeerList),
        ("peer describe branch --json", Command::PeerShow { peer: "branch".to_owned() }),
        (
            "peer config branch --generate-key",
            Command::PeerConfig {
                peer: "branch".to_owned(),
                wanted: PeerConfigWanted { generate_key: true, ..PeerConfigWanted::default() },
            },
        ),
        ("peer rm branch", Command::PeerDelete { peer: "branch".to_owned() }),
        ("peer remove branch", Command::PeerDelete { peer: "branch".to_owned() }),
        ("status", Command::Status),
        ("audit", Command::Audit { since_seconds: 86_400 }),
        ("audit --since 30d --json", Command::Audit { since_seconds: 30 * 86_400 }),
        (
            "gateway create Kong --service orders --service billing-*",
            Command::GatewayCreate {
                name: "kong".parse().unwrap(),
                services: vec!["orders".parse().unwrap(), "billing-*".parse().unwrap()],
                certificate: None,
            },
        ),
        (
            "gateway create kong --cert-sha256 sha256=01:FF:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:02",
            Command::GatewayCreate {
                name: "kong".parse().unwrap(),
                services: Vec::new(),
                certificate: Some(Certificate::Sha256(std::array::from_fn(|place| match place {
                    0 => 1,
                    1 => 255,
                    31 => 2,
                    _ => 0,
                }))),
            },
        ),
        (
            "gateway set kong --add-service a --remove-service b --cert-san Kong.example.com",
            Command::GatewaySet {
                gateway: "kong".to_owned(),
                change: GatewaySet {
                    add: vec!["a".parse().unwrap()],
                    remove: vec!["b".parse().unwrap()],
                    certificate: Some(Certificate::San("kong.example.com".to_owned())),
                    ..GatewaySet::default()
                },
            },
        ),
        ("gateway rotate kong", Command::GatewayRotate { gateway: "kong".to_owned(), grace_seconds: 86_400 }),
        ("gateway rotate kong --grace 0s", Command::GatewayRotate { gateway: "kong".to_owned(), grace_seconds: 0 }),
        ("gateway ls", Command::GatewayList),
        ("gateway rm kong", Command::GatewayRevoke { gateway: "kong".to_owned() }),
    ] {
        let words = std::iter::once("culvert-relay").chain(line.split(' '));
        let Verb::Relay(verb) = Cli::try_parse_from(words).unwrap().verb else { panic!("{line}") };
        let (command, _) = verb.into_command().unwrap();
        assert_eq!(command, expected, "{line}");
    }
}

#[test]
fn nonsense_is_wrong_usage() {
    for line in [
        "",
        "tunnel",
        "tunnel create dc1",
        "tunnel create UPPER_case --service orders",
        "tunnel create dc1 --service localhost",
        "tunnel create dc1 --service orders --uses 0",
        "tunnel create dc1 --service orders --expires 0s",
        "tunnel create dc1 --service orders --expires soon",
        "tunnel set dc1",
        "token create dc1 --endpoint nowhere",
        "token create dc1 --from nowhere",
        "completion tcsh",
        "gateway create kong --cert-sha256 00:11",
        "gateway create kong --cert-san *.example.com",
        "gateway create kong --cert-san a --cert-sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "gateway set kong",
        "gateway set kong --service a --add-service b",
        "gateway set kong --no-cert --cert-san a",
        "gateway rotate kong --grace never",
        "gateway rotate kong --grace 366d",
        "audit --since never",
        "service set legacy --origin http://10.20.0.5:8080",
        "service set legacy --tunnel dc1 --peer branch --origin http://10.20.0.5:8080",
        "service set legacy --tunnel dc1 --origin https://a --ca ca.pem",
        "peer",
        "peer add branch --allowed-ips 10.20.0.0/16",
        "peer add branch --public-key short --allowed-ips 10.20.0.0/16",
        "peer add branch --public-key xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg= --generate-key --allowed-ips 10.20.0.0/16",
        "peer add branch --generate-key",
        "peer add branch --generate-key --allowed-ips 10.20.0.0/33",
        "peer add branch --generate-key --allowed-ips ,",
        "peer add branch --generate-key --allowed-ips 10.20.0.0/16 --persistent-keepalive 0",
        "peer add branch --generate-key --allowed-ips 10.20.0.0/16 --persistent-keepalive 70000",
        "peer add branch --generate-key --allowed-ips 10.20.0.0/16 --endpoint branch.example",
        "peer add branch --generate-key --allowed-ips 10.20.0.0/16 --dns resolver.internal",
        "peer add UPPER_case --generate-key --allowed-ips 10.20.0.0/16",
    ] {
        let words = std::iter::once("culvert-relay").chain(line.split(' ').filter(|word| !word.is_empty()));
        let error = Cli::try_parse_from(words).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}
