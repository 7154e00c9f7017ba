//! What proves who calls, and what does not.

use culvert_model::name::Grant;
use http::HeaderValue;

use super::*;
use crate::registry::SecretRow;

const NOW: SystemTime = SystemTime::UNIX_EPOCH;
const HOUR: Duration = Duration::from_secs(3_600);

#[test]
fn a_secret_proves_a_gateway_and_nothing_else_does() {
    let (kong, secret) = known("kong", None);
    let (nginx, other) = known("nginx", None);
    let gone = GatewayRow { revoked: Some(NOW), ..known("gone", None).0 };
    let gateways = Gateways::new(&[kong, nginx, gone]);
    let found = |value: &str| said(gateways.identify(&fields(&[value]), None, NOW));
    assert_eq!(found(&format!("kong:{secret}")), "kong");
    assert_eq!(found(&format!("KONG:{secret}")), "kong");
    assert_eq!(found(&format!("nginx:{other}")), "nginx");
    for (value, why) in [
        (format!("nginx:{secret}"), "gateway nginx: a wrong secret"),
        (format!("gone:{secret}"), "gateway gone is revoked"),
        (format!("nobody:{secret}"), "gateway nobody is not known"),
        (secret.clone(), "NAME:SECRET is expected"),
        (format!(":{secret}"), "NAME:SECRET is expected"),
        ("kong:hunter2".to_owned(), "not a gateway secret"),
        (format!("kong:{}", &secret[..secret.len() - 1]), "the gateway secret is damaged"),
        (format!("kong:{secret},nginx:{other}"), "the gateway secret is damaged"),
        (String::new(), "NAME:SECRET is expected"),
    ] {
        let told = found(&value);
        assert!(told.starts_with(why), "{told} is not {why}");
        assert!(!told.contains(&secret[..20]) && !told.contains("hunter2"), "{told}");
    }
    let twice = fields(&[&format!("kong:{secret}"), &format!("kong:{secret}")]);
    assert_eq!(said(gateways.identify(&twice, None, NOW)), "Culvert-Gateway twice");
    let mut binary = Fields::new();
    binary.insert(FIELD, HeaderValue::from_bytes(b"kong:\xff").unwrap());
    assert_eq!(said(gateways.identify(&binary, None, NOW)), "Culvert-Gateway is no text");
    assert!(gateways.identify(&Fields::new(), None, NOW).unwrap().is_none());
}

#[test]
fn a_secret_that_was_rotated_away_works_for_its_grace_and_no_longer() {
    let (mut kong, old) = known("kong", None);
    let (newer, new) = known("kong", None);
    kong.secrets[0].until = Some(NOW + HOUR);
    kong.secrets.extend(newer.secrets);
    let gateways = Gateways::new(&[kong]);
    let found = |secret: &str, at| said(gateways.identify(&fields(&[&format!("kong:{secret}")]), None, at));
    assert_eq!(found(&old, NOW + HOUR - Duration::from_millis(1)), "kong");
    assert_eq!(found(&old, NOW + HOUR), "gateway kong: a secret that was rotated away");
    assert_eq!(found(&new, NOW), "kong");
    assert_eq!(found(&new, NOW + 1_000 * HOUR), "kong");
}

#[test]
fn a_certificate_proves_by_its_digest_first_and_by_one_gateways_names() {
    let (kong, _) = known("kong", Some(Certificate::Sha256([1; 32])));
    let (nginx, secret) = known("nginx", Some(Certificate::San("nginx.example".to_owned())));
    let (caddy, _) = known("caddy", Some(Certificate::San("caddy.example".to_owned())));
    let gateways = Gateways::new(&[kong, nginx, caddy]);
    let certificate = |digest: u8, sans: &[&str]| PeerCertificate {
        sha256: [digest; 32],
        sans: sans.iter().map(|&name| name.to_owned()).collect(),
    };
    let none = Fields::new();
    for (digest, sans, expected) in [
        (1, &[][..], "kong"),
        (1, &["nginx.example"], "kong"),
        (2, &["x.example", "nginx.example", "nginx.example"], "nginx"),
        (2, &["nginx.example", "caddy.example"], "a certificate with the names of several gateways"),
        (2, &["x.example"], "a certificate that no gateway is known by"),
        (2, &[], "a certificate that no gateway is known by"),
    ] {
        let found = said(gateways.identify(&none, Some(&certificate(digest, sans)), NOW));
        assert_eq!(found, expected, "{digest} {sans:?}");
    }
    let field = fields(&[&format!("nginx:{secret}")]);
    let with = |certificate| said(gateways.identify(&field, Some(&certificate), NOW));
    assert_eq!(with(certificate(2, &["nginx.example"])), "nginx");
    assert_eq!(with(certificate(2, &["x.example"])), "nginx", "the secret is proof enough");
    assert_eq!(with(certificate(1, &[])), "the certificate is another gateway's than the secret");
    let wrong = gateways.identify(&fields(&["nginx:x"]), Some(&certificate(1, &[])), NOW);
    assert_eq!(said(wrong), "not a gateway secret: it starts with culvert_g1_", "a wrong secret is not healed");
}

#[test]
fn a_gateway_may_call_what_it_is_granted() {
    let gateways = Gateways::new(&[known("kong", Some(Certificate::Sha256([1; 32]))).0]);
    let certificate = PeerCertificate { sha256: [1; 32], sans: Vec::new() };
    let kong = gateways.identify(&Fields::new(), Some(&certificate), NOW).unwrap().unwrap();
    for (service, may) in [("orders", true), ("billing-eu", true), ("billing", false), ("orders2", false)] {
        assert_eq!(kong.may(&service.parse().unwrap()), may, "{service}");
    }
}

#[tokio::test(start_paused = true)]
async fn wrong_secrets_wait_and_a_right_one_beside_them_does_not() {
    let (kong, secret) = known("kong", None);
    let gateways = Gateways::new(&[kong]);
    let from = (None, Some(IpAddr::from([192, 0, 2, 1])));
    let took = async |value: &str| {
        let start = tokio::time::Instant::now();
        let admitted = gateways.admit(&fields(&[value]), from, None).await;
        (admitted.is_ok(), start.elapsed())
    };
    let right = format!("kong:{secret}");
    for _ in 0..20 {
        assert!(!took("kong:x").await.0);
    }
    assert_eq!(took(&right).await, (true, Duration::ZERO));
    let (admitted, waited) = took("kong:x").await;
    assert!(!admitted && waited >= Duration::from_secs(5), "{waited:?}");
    // Who gives no proof guesses nothing.
    let start = tokio::time::Instant::now();
    let none = gateways.admit(&Fields::new(), from, None).await.unwrap_err();
    assert_eq!((none.reason, start.elapsed()), (Reason::Unauthenticated, Duration::ZERO));
}

#[tokio::test]
async fn a_listener_admits_those_it_names() {
    let (kong, secret) = known("kong", None);
    let gateways = Gateways::new(&[kong]);
    let field = fields(&[&format!("kong:{secret}")]);
    let admit = async |names: Option<&[&str]>| {
        let names: Option<Vec<Label>> = names.map(|names| names.iter().map(|name| name.parse().unwrap()).collect());
        gateways.admit(&field, (None, None), names.as_deref()).await.map_err(|fault| fault.reason)
    };
    assert!(admit(None).await.is_ok());
    assert!(admit(Some(&["nginx", "kong"])).await.is_ok());
    assert_eq!(admit(Some(&["nginx"])).await.unwrap_err(), Reason::NotAllowed);
    assert_eq!(admit(Some(&[])).await.unwrap_err(), Reason::NotAllowed);
    let names: [Label; 2] = ["kong", "kongg"].map(|name| name.parse().unwrap());
    assert_eq!(gateways.missing(&names).collect::<Vec<_>>(), [&names[1]]);
}

#[tokio::test]
async fn when_a_gateway_called_is_told_once_and_outlives_a_change() {
    let (kong, secret) = known("kong", None);
    let gateways = Gateways::new(std::slice::from_ref(&kong));
    assert!(gateways.notes().is_empty() && gateways.last_used().is_empty());
    let field = fields(&[&format!("kong:{secret}")]);
    gateways.admit(&field, (None, None), None).await.unwrap();
    let notes = gateways.notes();
    assert!(matches!(notes.as_slice(), [Note::GatewayUsed { gateway, .. }] if *gateway == kong.id), "{notes:?}");
    assert!(gateways.notes().is_empty());
    gateways.set(std::slice::from_ref(&kong));
    assert!(gateways.last_used().contains_key(&kong.id));
    let another = GatewayRow { id: GatewayId::new(), ..kong };
    gateways.set(&[another]);
    assert!(gateways.last_used().is_empty(), "another gateway of the same name is another");
}

#[tokio::test]
async fn what_runs_for_a_gateway_is_told_of_its_end_and_of_no_other_change() {
    use futures_util::FutureExt as _;
    let (kong, secret) = known("kong", None);
    let gateways = Gateways::new(std::slice::from_ref(&kong));
    let field = fields(&[&format!("kong:{secret}")]);
    let caller = gateways.admit(&field, (None, None), None).await.unwrap();
    let mut revoked = Box::pin(caller.revoked());
    assert!(revoked.as_mut().now_or_never().is_none());
    let changed = GatewayRow { grants: Vec::new(), secrets: Vec::new(), ..kong.clone() };
    gateways.set(&[changed, known("nginx", None).0]);
    assert!(revoked.as_mut().now_or_never().is_none());
    gateways.set(&[GatewayRow { revoked: Some(NOW), ..kong.clone() }]);
    assert!(revoked.now_or_never().is_some());
    assert!(caller.revoked().now_or_never().is_some(), "and whoever asks later");
    assert_eq!(gateways.admit(&field, (None, None), None).await.unwrap_err().reason, Reason::Unauthenticated);
}

/// A gateway that may call `orders` and `billing-*`, and its secret.
fn known(name: &str, certificate: Option<Certificate>) -> (GatewayRow, String) {
    let secret = GatewaySecret::generate();
    let row = GatewayRow {
        id: GatewayId::new(),
        name: name.parse().unwrap(),
        grants: ["orders", "billing-*"].map(|grant| grant.parse::<Grant>().unwrap()).to_vec(),
        secrets: vec![SecretRow { verifier: SecretVerifier::new(&secret), created: NOW, until: None }],
        certificate,
        created: NOW,
        last_used: None,
        revoked: None,
    };
    (row, secret.to_text().to_string())
}

fn fields(values: &[&str]) -> Fields {
    let mut fields = Fields::new();
    values.iter().for_each(|value| fields.append(FIELD, HeaderValue::from_str(value).unwrap()));
    fields
}

/// The gateway's name, or why not.
fn said(result: Result<Option<Arc<Gateway>>, Fault>) -> String {
    match result {
        Ok(found) => found.map_or_else(|| "nobody".to_owned(), |gateway| gateway.name.to_string()),
        Err(fault) => {
            assert_eq!(fault.reason, Reason::Unauthenticated);
            fault.detail().unwrap().to_owned()
        }
    }
}
