use std::collections::BTreeMap;
use std::fs;

use culvert_origin::proof::Proof;
use culvert_origin::service::HostPolicy;
use tempfile::TempDir;

use super::*;

struct Host(TempDir);

impl Host {
    fn new(text: &str) -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        fs::write(host.0.path().join("connector.toml"), text).unwrap();
        host
    }

    fn settle(&self, environment: &[(&str, &str)], services: &[&str]) -> Result<Settled, String> {
        let environment: BTreeMap<String, String> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let given = Given {
            config: Some(self.0.path().join("connector.toml")),
            services: services.iter().map(|text| (*text).to_owned()).collect(),
            ..Given::default()
        };
        let loaded = load(&given, &environment).map_err(|error| error.to_string())?;
        settle(&loaded, &environment).map_err(|error| error.to_string())
    }
}

fn settled(text: &str) -> Result<Settled, String> {
    Host::new(text).settle(&[("KEY", "s3cret")], &[])
}

#[test]
fn a_service_has_all_its_parts() {
    let text = r#"
        name = "dc1-a"
        [allow]
        origins = ["http://*.internal:8080", "10.0.0.0/8:443"]
        [[service]]
        name = "Orders"
        origin = "http://orders.internal:8080"
        host = "preserve"
        balance = "cookie:SID"
        [service.headers]
        Authorization = { env = "KEY", prefix = "Bearer " }
        x-plain = "text"
        [service.health]
        path = "/healthz"
        interval = "3s"
        [service.timeouts]
        connect = "2s"
        first_byte = "90s"
        request = "off"
        queue = "500ms"
    "#;
    let settled = settled(text).unwrap();
    assert_eq!(settled.name.unwrap().as_str(), "dc1-a");
    let service = &settled.services[0];
    assert_eq!(
        (service.name.as_str(), service.origin.to_string()),
        ("orders", "http://orders.internal:8080".to_owned())
    );
    assert_eq!(service.host, HostPolicy::Preserve);
    let headers: Vec<_> =
        service.fields.set_fields().iter().map(|set| (set.name.as_str(), set.value.to_str().unwrap())).collect();
    assert_eq!(headers, [("authorization", "Bearer s3cret"), ("x-plain", "text")]);
    assert_eq!(service.health.path.as_ref().unwrap().as_str(), "/healthz");
    assert_eq!(service.health.interval, Duration::from_secs(3));
    assert_eq!(service.timeouts.connect, Duration::from_secs(2));
    let announced = service.timeouts.announced();
    assert_eq!((announced.first_byte_ms, announced.queue_ms, announced.request_ms), (Some(90_000), Some(500), None));
    assert_eq!(service.balance.as_ref().unwrap().to_string(), "cookie:SID");
}

#[test]
fn lanes_are_one_to_sixteen_and_a_few_where_nobody_says() {
    assert!((1..=4).contains(&settled("").unwrap().lanes));
    assert_eq!(settled("lanes = 16").unwrap().lanes, 16);
    assert_eq!(Host::new("lanes = 2").settle(&[("CULVERT_CONNECTOR_LANES", "3")], &[]).unwrap().lanes, 3);
    for wrong in ["0", "17", "-1", "\"two\""] {
        let error = settled(&format!("lanes = {wrong}")).unwrap_err();
        assert!(error.contains("lanes") && error.contains("connector.toml"), "{error}");
    }
}

#[test]
fn defaults_stand_where_nothing_is_said() {
    let settled = settled("[[service]]\nname = \"a\"\norigin = \"http://127.0.0.1:1\"\n").unwrap();
    assert_eq!((settled.admin_listen.to_string().as_str(), settled.admin_chosen), ("127.0.0.1:9481", false));
    assert_eq!(settled.drain_timeout, Duration::from_secs(25));
    assert_eq!(settled.services[0].timeouts, Timeouts::default());
    assert_eq!(settled.services[0].health, HealthCheck::default());
    assert_eq!(settled.services[0].host, HostPolicy::Origin);
}

#[test]
fn services_come_from_flag_and_variable_by_name() {
    let host = Host::new("[[service]]\nname = \"a\"\norigin = \"http://file\"\nhost = \"preserve\"\n");
    let settled =
        host.settle(&[("CULVERT_CONNECTOR_SERVICE", "a=http://env b=http://b")], &["c=unix:/run/c.sock"]).unwrap();
    let all: Vec<_> =
        settled.services.iter().map(|service| format!("{}={}", service.name.as_str(), service.origin)).collect();
    assert_eq!(all, ["a=http://env:80", "b=http://b:80", "c=unix:/run/c.sock"]);
    assert_eq!(settled.services[0].host, HostPolicy::Preserve);
}

#[test]
fn what_means_nothing_is_refused_with_its_line() {
    let service = "[[service]]\nname = \"a\"\norigin = \"http://127.0.0.1:1\"\n";
    let tcp = "[[service]]\nname = \"a\"\norigin = \"tcp://127.0.0.1:1\"\n";
    for (text, line, says) in [
        ("[[service]]\nname = \"a b\"\norigin = \"http://x\"\n".to_owned(), 2, "is not a name"),
        ("[[service]]\nname = \"a\"\norigin = \"ftp://x:1\"\n".to_owned(), 3, "not available in this version"),
        ("[[service]]\nname = \"a\"\norigin = \"tcp://x\"\n".to_owned(), 3, "needs its port"),
        (format!("{service}proxy_protocol = \"v1\"\n"), 4, "is for tcp:// origins"),
        (format!("{tcp}proxy_protocol = \"v3\"\n"), 4, "v2"),
        (format!("{tcp}host = \"preserve\"\n"), 4, "gets none"),
        (format!("{tcp}[service.headers]\nx-a = \"b\"\n"), 5, "gets none"),
        (format!("{tcp}[service.health]\npath = \"/healthz\"\n"), 5, "gets none"),
        (format!("{tcp}[service.timeouts]\nfirst_byte = \"1s\"\n"), 5, "gets none"),
        (format!("{tcp}[service.tls]\nserver_name = \"db\"\n"), 5, "https"),
        ("[[service]]\nname = \"a\"\n".to_owned(), 2, "service[0].origin: is missing"),
        (format!("{service}{service}"), 5, "twice"),
        (format!("{service}[service.auth]\ntype = \"jwt\"\n"), 5, "audience: is missing"),
        (format!("{service}[service.auth]\ntype = \"saml\"\n"), 5, "jwt"),
        (format!("{service}[service.auth]\naudience = \"a\"\n"), 5, "auth.type: is missing"),
        (
            format!("{service}[service.auth]\ntype = \"jwt\"\nclient_id = \"a\"\n"),
            6,
            "is not for type \"jwt\": take it out",
        ),
        (format!("{service}[service.auth]\ntype = \"jwt\"\naudience = \"a\"\nlifetime = \"2h\"\n"), 7, "10s to 1h"),
        (format!("{service}[service.auth]\ntype = \"jwt\"\naudience = \"a\"\nclaims.iss = \"x\"\n"), 7, "itself"),
        (
            format!("{service}authorization = \"remove\"\n[service.auth]\ntype = \"jwt\"\naudience = \"a\"\n"),
            7,
            "elsewhere too",
        ),
        (format!("{service}[service.headers]\nx-a = \"1\"\nx_a = \"2\"\n"), 6, "elsewhere too"),
        (format!("{service}remove_headers = [\"host\"]\n"), 4, "host = "),
        (format!("{service}[[callback]]\nlisten = \"127.0.0.1:1\"\n"), 4, "unknown key"),
        (
            format!("{service}[service.headers]\nauthorization = {{ env = \"MISSING\" }}\n"),
            5,
            "MISSING is not set, or empty",
        ),
        (format!("{service}[service.headers]\nhost = \"x\"\n"), 5, "host = "),
        (format!("{service}[service.headers]\nConnection = \"x\"\n"), 5, "belongs to the connection"),
        (format!("{service}[service.headers]\nCulvert-Service = \"x\"\n"), 5, "belongs to the connection"),
        (format!("{service}[service.headers]\nx-a = \"a\\nb\"\n"), 5, "characters"),
        (format!("{service}[service.tls]\nca = \"/ca.pem\"\n"), 5, "https"),
        (format!("{service}[service.health]\npath = \"healthz\"\n"), 5, "starts with /"),
        (format!("{service}[service.health]\ninterval = \"0s\"\n"), 5, "more than 0s"),
        (format!("{service}host = \"a b\"\n"), 4, "a host name"),
        (format!("{service}balance = \"sticky\"\n"), 4, "nothing to balance by"),
        ("[allow]\norigins = [\"ftp://x\"]\n".to_owned(), 2, "not a pattern"),
        ("[admin]\nlisten = \"nowhere:1\"\n".to_owned(), 2, "is not ADDRESS:PORT"),
    ] {
        let said = settled(&text).unwrap_err();
        assert!(said.contains(&format!("connector.toml:{line}: ")) && said.contains(says), "{text}\n{said}");
    }
}

#[test]
fn an_https_origin_needs_readable_files() {
    let host = Host::new("[[service]]\nname = \"a\"\norigin = \"https://x\"\n[service.tls]\nca = \"ca.pem\"\n");
    let said = host.settle(&[], &[]).unwrap_err();
    assert!(said.contains(":5: service[0].tls.ca: cannot read") && said.contains("ca.pem"), "{said}");
    fs::write(host.0.path().join("ca.pem"), "hello").unwrap();
    let said = host.settle(&[], &[]).unwrap_err();
    assert!(said.contains("ca holds no PEM certificate"), "{said}");
    let host = Host::new("[[service]]\nname = \"a\"\norigin = \"https://x\"\n[service.tls]\nkey = \"own.key\"\n");
    let said = host.settle(&[], &[]).unwrap_err();
    assert!(said.contains(":5: service[0].tls.key: ") && said.contains("own.key"), "{said}");
    fs::write(host.0.path().join("own.key"), "hello\n").unwrap();
    let said = host.settle(&[], &[]).unwrap_err();
    assert!(said.contains("cert and key go together"), "{said}");
}

#[test]
fn every_kind_of_origin_is_read() {
    let text = r#"
        [[service]]
        name = "grpc"
        origin = "h2c://grpc.internal:50051"
        [[service]]
        name = "db"
        origin = "tcp://db.internal:5432"
        proxy_protocol = "v2"
        balance = "client-ip"
        [service.timeouts]
        connect = "1s"
        idle = "2h"
    "#;
    let settled = settled(text).unwrap();
    let all: Vec<_> = settled.services.iter().map(|service| service.origin.to_string()).collect();
    assert_eq!(all, ["h2c://grpc.internal:50051", "tcp://db.internal:5432"]);
    assert_eq!(settled.services[1].proxy_protocol, Some(culvert_origin::proxy_protocol::ProxyProtocol::V2));
}

#[test]
fn an_https_origins_name_is_one_that_a_certificate_can_have() {
    let with = |name: &str| {
        settled(&format!(
            "[[service]]\nname = \"a\"\norigin = \"https://10.0.0.1\"\n[service.tls]\nserver_name = \"{name}\"\n"
        ))
    };
    let wrong = with("a b").unwrap_err();
    assert!(wrong.contains(":5: service[0].tls.server_name: is no name"), "{wrong}");
    let tls = with("orders.internal").unwrap().services.remove(0).tls.unwrap();
    assert_eq!(tls.name_of(&"10.0.0.1".parse().unwrap()).unwrap().to_str(), "orders.internal");
}

#[test]
fn files_of_secrets_are_watched() {
    let host =
        Host::new("[[service]]\nname = \"a\"\norigin = \"http://x\"\n[service.headers]\nx-key = { file = \"key\" }\n");
    fs::write(host.0.path().join("key"), "one\n").unwrap();
    let settled = host.settle(&[], &[]).unwrap();
    assert_eq!(settled.watched, [host.0.path().join("key")]);
    assert_eq!(settled.services[0].fields.set_fields()[0].value, "one");
}

#[test]
fn the_ages_of_keys_have_defaults_and_bounds() {
    let day = Duration::from_secs(86_400);
    let usual = settled("").unwrap().key;
    assert_eq!((usual.rotate_after, usual.renew_psk_after), (Some(30 * day), Duration::from_secs(3600)));
    assert_eq!(usual, KeyAges::default(), "`dev` too");
    let given = settled("[key]\nrotate_after = \"90d\"\nrenew_psk_after = \"10m\"").unwrap().key;
    assert_eq!((given.rotate_after, given.renew_psk_after), (Some(90 * day), Duration::from_secs(600)));
    for off in ["never", "off", "0s"] {
        assert_eq!(settled(&format!("[key]\nrotate_after = {off:?}")).unwrap().key.rotate_after, None, "{off}");
    }
    for (text, part) in [
        ("rotate_after = \"10m\"", "rotate_after: must be an hour or more"),
        ("renew_psk_after = \"9s\"", "renew_psk_after: must be from 10s to 7d"),
        ("renew_psk_after = \"8d\"", "must be from 10s to 7d"),
        ("renew_psk_after = \"never\"", "renew_psk_after"),
    ] {
        let error = settled(&format!("[key]\n{text}")).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn what_a_cloud_would_refuse_later_is_refused_at_once() {
    let entra = "type = \"entra-id\"\nclient_id = \"app\"\n";
    let whole = "tenant = \"t\"\nscope = \"api://x/.default\"\n";
    let id = "type = \"gcp-id-token\"\naudience = \"https://x\"\n";
    let pool = "provider = \"projects/1/locations/global/workloadIdentityPools/a/providers/b\"\n";
    let account = "service_account = \"a@p.iam.gserviceaccount.com\"\n";
    for (text, says) in [
        ("type = \"entra-id\"\n".to_owned(), "auth.client_id: is missing"),
        (entra.to_owned(), "auth: one of scope, resource is needed"),
        (format!("{entra}scope = \"a\"\nresource = \"b\"\n"), "auth.resource: cannot stand beside scope"),
        (format!("{entra}scope = \"a\"\n"), "auth.tenant: is missing"),
        (format!("{entra}scope = \"a\"\ntenant = \"a/b\"\n"), "auth.tenant: is no directory"),
        (format!("{entra}{whole}"), "auth: one of client_secret, certificate, federated is needed"),
        (
            format!("{entra}{whole}client_secret = \"s\"\nfederated = true\n"),
            "auth.federated: cannot stand beside client_secret",
        ),
        (
            format!("{entra}{whole}client_secret = {{ env = \"NONE\" }}\n"),
            "auth.client_secret: the variable NONE is not set, or empty",
        ),
        (format!("{entra}{whole}client_secret = \"s\"\nkey = \"k\"\n"), "auth.key: does nothing without certificate"),
        (
            format!("{entra}{whole}client_secret = \"s\"\nissuer = \"https://x\"\n"),
            "auth.issuer: does nothing without federated",
        ),
        (format!("{entra}{whole}certificate = \"none.pem\"\n"), "auth.certificate: cannot read"),
        (
            format!("{entra}{whole}federated = true\nendpoint = \"https://x/token\"\n"),
            "auth.tenant: does nothing beside endpoint",
        ),
        (
            format!("{entra}scope = \"a\"\nfederated = true\nendpoint = \"http://login.example/token\"\n"),
            "auth.endpoint: tokens are asked for over https://",
        ),
        (format!("{entra}{whole}federated = true\nprovider = \"x\"\n"), "auth.provider: is not for type \"entra-id\""),
        ("type = \"gcp-id-token\"\nmetadata = true\n".to_owned(), "auth.audience: is missing"),
        (id.to_owned(), "auth: one of key, provider, metadata is needed"),
        (format!("{id}{pool}metadata = true\n"), "auth.metadata: cannot stand beside provider"),
        (format!("{id}{pool}"), "auth.service_account: is missing"),
        (format!("{id}{pool}service_account = \"a\"\n"), "auth.service_account: \"a\" is no service account"),
        (format!("{id}{account}provider = \"b\"\n"), "auth.provider: \"b\" is no provider"),
        (format!("{id}{account}metadata = true\n"), "auth.service_account: does nothing without provider"),
        (format!("{id}key = \"{{}}\"\n"), "auth.key: is no key file of a service account"),
        (format!("{id}metadata = true\ntenant = \"t\"\n"), "auth.tenant: is not for type \"gcp-id-token\""),
        ("type = \"gcp-service-account\"\naudience = \"https://x\"\n".to_owned(), "auth.key: is missing"),
    ] {
        let service = "[[service]]\nname = \"a\"\norigin = \"http://127.0.0.1:1\"\n[service.auth]\n";
        let said = settled(&format!("{service}{text}")).unwrap_err();
        assert!(said.contains("connector.toml:") && said.contains(says), "{text}\n{said}");
        assert!(!said.contains("\"s\""), "{said}");
    }
    for text in [
        format!("{entra}{whole}client_secret = {{ env = \"KEY\" }}\n"),
        format!("{entra}resource = \"https://x\"\ntenant = \"contoso.com\"\nfederated = true\n"),
        format!("{id}{pool}{account}"),
        format!("{id}metadata = true\nheader = \"x-serverless-authorization\"\n"),
    ] {
        let service = "[[service]]\nname = \"a\"\norigin = \"http://127.0.0.1:1\"\n[service.auth]\n";
        let settled = settled(&format!("{service}{text}")).unwrap();
        assert_ne!(settled.services[0].auth.as_ref().unwrap().kind(), "jwt");
    }
}

#[test]
fn what_no_signature_of_a_request_can_be_is_refused_with_its_line() {
    let service = "[[service]]\nname = \"a\"\norigin = \"http://127.0.0.1:1\"\n";
    let signed = &format!("{service}[service.auth]\ntype = \"http-signature\"\n");
    let hmac = &format!("{signed}algorithm = \"hmac-sha256\"\n");
    let key = "key = \"0123456789abcdef\"\n";
    for (text, line, says) in [
        (signed.clone(), 5, "auth.algorithm: is missing: hmac-sha256"),
        (format!("{signed}algorithm = \"ES256\"\n"), 6, "must be hmac-sha256"),
        (hmac.clone(), 6, "auth.key: is missing"),
        (format!("{hmac}key = \"hunter2\"\n"), 7, "shorter than 16 bytes"),
        (format!("{hmac}key = \"hunter2\"\nencoding = \"base64\"\n"), 7, "no base64"),
        (format!("{hmac}{key}label = \"A\"\n"), 8, "small letters"),
        (format!("{hmac}{key}keyid = \"\u{e9}\"\n"), 8, "characters"),
        (format!("{hmac}{key}lifetime = \"2h\"\n"), 8, "10s to 1h"),
        (format!("{hmac}{key}components = [\"@status\"]\n"), 8, "nothing that can be covered"),
        (format!("{hmac}{key}components = [\"te\"]\n"), 8, "cannot be covered"),
        (format!("{hmac}{key}components = [\"@path\", \"@path\"]\n"), 8, "twice"),
        (format!("{hmac}{key}components = [\"@path\"]\n"), 8, "lacks content-digest"),
        (format!("{hmac}{key}digest = \"none\"\ncomponents = []\n"), 9, "is of nothing"),
        (format!("{hmac}{key}digest = \"none\"\ncomponents = [\"content-digest\"]\n"), 9, "is the caller's"),
        (format!("{hmac}{key}digest = \"none\"\npayload_limit = \"1MiB\"\n"), 9, "take it out"),
        (format!("{hmac}{key}payload_limit = \"1GiB\"\n"), 8, "1 to 64MiB"),
        (format!("{hmac}{key}audience = \"a\"\n"), 8, "is not for type \"http-signature\""),
        (format!("{signed}algorithm = \"ed25519\"\nkey = \"hunter2\"\n"), 7, "openssl genpkey -algorithm ed25519"),
        (format!("{signed}algorithm = \"ed25519\"\nencoding = \"base64\"\n"), 7, "in PEM"),
        (
            format!(
                "{service}remove_headers = [\"content_digest\"]\n[service.auth]\ntype = \"http-signature\"\nalgorithm = \"ed25519\"\n"
            ),
            7,
            "elsewhere too",
        ),
    ] {
        let said = settled(&text).unwrap_err();
        assert!(said.contains(&format!("connector.toml:{line}: ")) && said.contains(says), "{text}\n{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[test]
fn what_cannot_sign_for_aws_is_refused_with_its_line() {
    let service = "[[service]]\nname = \"a\"\norigin = \"http://127.0.0.1:1\"\n";
    let typed = format!("{service}[service.auth]\ntype = \"aws-sigv4\"\n");
    let aws = format!("{typed}region = \"eu-west-1\"\nservice = \"execute-api\"\n");
    let role = "role_arn = \"arn:aws:iam::1:role/x\"\n";
    let keys = "access_key_id = \"AKID\"\nsecret_access_key = \"hunter2\"\n";
    for (text, line, says) in [
        (typed.clone(), 5, "auth.service: is missing"),
        (format!("{typed}service = \"lambda\"\n"), 6, "auth.region: is missing"),
        (format!("{typed}service = \"Execute API\"\nregion = \"r\"\n"), 6, "small letters"),
        (format!("{aws}credentials = \"environment\"\n"), 8, "AWS_ACCESS_KEY_ID is not set"),
        (format!("{aws}access_key_id = \"AKID\"\n"), 8, "go together"),
        (format!("{aws}{keys}credentials = \"profile\"\n"), 8, "is not for credentials that come from \"profile\""),
        (format!("{aws}role_arn = \"role/x\"\n"), 8, "arn:aws:iam"),
        (format!("{aws}credentials = \"web-identity\"\n"), 8, "auth.role_arn: is missing"),
        (format!("{aws}{role}session_name = \"a b\"\n"), 9, "2 to 64 letters"),
        (format!("{aws}{role}session_lifetime = \"5m\"\n"), 9, "15m to 12h"),
        (format!("{aws}{role}algorithm = \"EdDSA\"\n"), 9, "RS256 or ES256"),
        (format!("{aws}{role}token_file = \"t\"\nsubject = \"s\"\n"), 10, "take one out"),
        (format!("{aws}{role}endpoint = \"http://sts.example\"\n"), 9, "https://"),
        (format!("{aws}{role}profile = \"x\"\n"), 8, "take it out"),
        (format!("{aws}{keys}endpoint = \"https://sts.example\"\n"), 10, "take it out"),
        (format!("{aws}credentials = \"container\"\n"), 8, "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
        (format!("{aws}access_key_id = \"A B\"\nsecret_access_key = \"hunter2\"\n"), 9, "no key has"),
        (format!("{aws}profile = \"x\"\ncredentials = \"environment\"\n"), 8, "take it out"),
        (format!("{aws}profile_file = \"none\"\n"), 8, "cannot read"),
        (format!("{aws}{keys}payload = \"chunked\"\n"), 10, "S3 alone"),
        (format!("{aws}{keys}payload = \"unsigned\"\npayload_limit = \"1KiB\"\n"), 11, "take it out"),
        (format!("{aws}{keys}payload_limit = \"0\"\n"), 10, "1 to 64MiB"),
        (format!("{aws}{keys}signed_headers = [\"te\"]\n"), 10, "cannot be signed"),
        (format!("{aws}{keys}tenant = \"a\"\n"), 10, "is not for type \"aws-sigv4\""),
    ] {
        let said = settled(&text).unwrap_err();
        assert!(said.contains(&format!("connector.toml:{line}: ")) && said.contains(says), "{text}\n{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[test]
fn aws_credentials_are_found_in_the_order_of_awss_own_tools() {
    let host = Host::new(
        "[[service]]\nname = \"a\"\norigin = \"http://127.0.0.1:1\"\n[service.auth]\ntype = \"aws-sigv4\"\nservice = \"lambda\"\n",
    );
    let home = host.0.path().display().to_string();
    let region = ("AWS_REGION", "eu-west-1");
    let lent = |env: &[(&str, &str)]| {
        let settled = host.settle(&[&[region, ("HOME", &home)], env].concat(), &[]).unwrap();
        format!("{:?}", settled.services[0].auth)
    };
    assert!(lent(&[]).contains("Instance"), "the last resort");
    let container = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/x");
    assert!(lent(&[container]).contains("http://169.254.170.2/v2/x"));
    let token = [("AWS_WEB_IDENTITY_TOKEN_FILE", "/token"), ("AWS_ROLE_ARN", "arn:aws:iam::1:role/x"), container];
    let shown = lent(&token);
    assert!(shown.contains("https://sts.eu-west-1.amazonaws.com/") && shown.contains("/token"), "{shown}");
    fs::create_dir(host.0.path().join(".aws")).unwrap();
    fs::write(
        host.0.path().join(".aws/credentials"),
        "[default]\naws_access_key_id = AKIDDEFAULT\naws_secret_access_key = s\n[b]\naws_access_key_id = AKIDB\naws_secret_access_key = s\n",
    )
    .unwrap();
    let found = |env: &[(&str, &str)]| {
        let settled = host.settle(&[&[region, ("HOME", &home)], env].concat(), &[]).unwrap();
        let watched = settled.watched.iter().any(|path| path.ends_with(".aws/credentials"));
        match settled.services[0].auth.as_deref() {
            Some(Proof::AwsSigV4(signing)) => (signing.key_id().unwrap_or_default().to_owned(), watched),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(found(&[]), ("AKIDDEFAULT".to_owned(), true));
    assert_eq!(found(&[("AWS_PROFILE", "b")]), ("AKIDB".to_owned(), true));
    let keys = [("AWS_ACCESS_KEY_ID", "AKIDENV"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_PROFILE", "b")];
    assert_eq!(found(&keys), ("AKIDENV".to_owned(), false));
}
