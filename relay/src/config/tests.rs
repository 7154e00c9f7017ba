use std::collections::BTreeMap;
use std::time::Duration;

use culvert_ops::exit::Exit;

use super::*;
use crate::cli::Place;
use crate::router::Ask;

struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn with(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("relay.toml"), text).unwrap();
        Self { dir }
    }

    fn args(&self) -> RunArgs {
        let place = Place { config: Some(self.dir.path().join("relay.toml")), ..Place::default() };
        RunArgs { place, ..RunArgs::default() }
    }
}

fn settled(text: &str) -> Result<Settled, Quit> {
    load(&Host::with(text).args(), &BTreeMap::new()).map(|(_, settled)| settled)
}

fn refused(text: &str) -> Quit {
    match settled(text) {
        Ok(settled) => panic!("accepted: {settled:?}"),
        Err(quit) => quit,
    }
}

#[test]
fn without_a_word_the_documented_defaults_hold() {
    let settled = settled("").unwrap();
    assert_eq!(settled.wireguard.listen, ["0.0.0.0:51820".parse().unwrap(), "[::]:51820".parse().unwrap()]);
    assert!(settled.wireguard.is_default && settled.admin.is_default);
    assert_eq!(settled.admin.listen, "127.0.0.1:9480".parse().unwrap());
    let [listener] = settled.listeners.as_slice() else { panic!("{:?}", settled.listeners) };
    assert_eq!(listener.address, Address::Tcp("127.0.0.1:8080".parse().unwrap()));
    assert_eq!((listener.select, listener.forward), (Select::Host, ForwardPolicy::Append));
    assert_eq!(settled.registry.to_string(), "sqlite:registry.db");
    let ask = Ask { host: Some("orders.internal:8080"), path: "/", header: None };
    assert_eq!(settled.router.service(Select::Host, ask).as_deref(), Some("orders"));
    assert_eq!(settled.access_log, Target::Stdout);
    let seconds = Duration::from_secs;
    assert_eq!(settled.drain, Plan { delay: seconds(0), timeout: seconds(25), streams: seconds(5) });
}

#[test]
fn the_relays_address_toward_stock_peers_is_a_hosts_in_a_network_of_its_own() {
    let inner = |text: &str| settled(&format!("[wireguard]\ninner_ipv4 = \"{text}\"")).map(|s| s.wireguard.inner_ipv4);
    let default = settled("").unwrap().wireguard;
    assert_eq!((default.inner_ipv4.to_string().as_str(), default.peer_mtu), ("100.127.80.1/20", 1408));
    assert_eq!(inner("10.99.0.7/24").unwrap().to_string(), "10.99.0.7/24");
    assert_eq!(inner("10.99.0.7").unwrap().to_string(), "10.99.0.7/24", "an address alone has a small network");
    for bad in ["", "fd00::1/64", "10.99.0.0/24", "10.99.0.255/24", "10.99.0.7/32", "127.0.0.1/24", "relay"] {
        let quit = inner(bad).unwrap_err();
        assert!(quit.exit == Exit::Config && quit.message.contains("wireguard.inner_ipv4"), "{bad}: {}", quit.message);
    }
    assert!(refused("[wireguard]\npeer_mtu = 1200").message.contains("1280"));
}

#[test]
fn flags_replace_the_lists_of_the_file() {
    let host = Host::with("[http]\nlisten = [\"127.0.0.1:1\"]\n[wireguard]\nendpoints = [\"a.example:1\"]");
    let args = RunArgs {
        http_listen: vec!["127.0.0.1:2".into(), "unix:/run/x.sock".into()],
        endpoint: vec!["relay.example.com:51820".into()],
        drain_timeout: Some("3s".into()),
        ..host.args()
    };
    let (_, settled) = load(&args, &BTreeMap::new()).unwrap();
    let addresses: Vec<String> = settled.listeners.iter().map(|listener| listener.address.to_string()).collect();
    assert_eq!(addresses, ["127.0.0.1:2", "unix:/run/x.sock"]);
    assert_eq!(settled.wireguard.endpoints[0].url(), "udp://relay.example.com:51820");
    assert_eq!(settled.drain.timeout, Duration::from_secs(3));
}

#[test]
fn a_listener_off_loopback_is_refused_naming_what_to_set() {
    let long = |rest: &str| format!("[[http.listener]]\nlisten = \"10.0.0.1:80\"\n{rest}");
    let mapped = "[[http.listener]]\nlisten = \"[::ffff:10.0.0.1]:80\"\nopen = true".to_owned();
    for text in ["[http]\nlisten = [\"0.0.0.0:8080\"]".to_owned(), long(""), long("open = true"), mapped] {
        let quit = refused(&text);
        assert_eq!(quit.exit, Exit::Config, "{text}");
        let hint = quit.hint.unwrap_or_default();
        assert!(hint.starts_with("set tls = { cert, key } or cleartext = true in"), "{text}: {hint}");
    }
    let tls = "tls = { cert = \"relay.pem\", key = \"relay.key\" }";
    for (text, identified) in [
        (long("open = true\ncleartext = true"), false),
        (long("cleartext = true"), true),
        (long(tls), true),
        (long(&format!("{tls}\nopen = true")), false),
        ("[[http.listener]]\nlisten = \"[::1]:8080\"".to_owned(), false),
        ("[[http.listener]]\nlisten = \"unix:/run/x.sock\"".to_owned(), false),
        ("[[http.listener]]\nlisten = \"[::1]:8080\"\ngateways = [\"kong\"]".to_owned(), true),
        ("[[http.listener]]\nlisten = \"unix:/run/x.sock\"\ngateways = []".to_owned(), true),
    ] {
        let settled = settled(&text).unwrap_or_else(|quit| panic!("{text}: {quit}"));
        assert_eq!(settled.listeners[0].identified, identified, "{text}");
    }
}

#[test]
fn a_tcp_listener_has_a_service_and_off_loopback_both_words() {
    let tcp = settled("[[tcp]]\nlisten = \"127.0.0.1:5432\"\nservice = \"db\"\nproxy_protocol = true").unwrap().tcp;
    assert_eq!((tcp[0].service.as_str(), tcp[0].proxy_protocol), ("db", true));
    let exposed = "[[tcp]]\nlisten = \"10.0.0.1:5432\"\nservice = \"db\"\n";
    for (rest, named) in [("", "set open = true and cleartext = true in"), ("open = true", "set cleartext = true in")] {
        let quit = refused(&format!("{exposed}{rest}"));
        assert_eq!(quit.exit, Exit::Config);
        assert!(quit.hint.as_deref().unwrap_or_default().starts_with(named), "{:?}", quit.hint);
    }
    assert!(settled(&format!("{exposed}open = true\ncleartext = true")).is_ok());
}

#[test]
fn the_files_of_tls_are_relative_to_the_file_that_names_them() {
    let host = Host::with(
        "[[http.listener]]\nlisten = \"127.0.0.1:1\"\ntls = { cert = \"a.pem\", key = \"/b.key\", client_ca = \"c.pem\" }",
    );
    let (_, settled) = load(&host.args(), &BTreeMap::new()).unwrap();
    let files = settled.listeners[0].tls.clone().unwrap();
    assert_eq!(files.cert, host.dir.path().join("a.pem"));
    assert_eq!(files.key, std::path::Path::new("/b.key"));
    assert_eq!(files.client_ca, Some(host.dir.path().join("c.pem")));
}

#[test]
fn a_flag_that_opens_the_front_is_a_configuration_to_refuse_for_good() {
    let args = RunArgs { http_listen: vec!["0.0.0.0:8080".into()], ..Host::with("").args() };
    assert_eq!(load(&args, &BTreeMap::new()).unwrap_err().exit, Exit::Config);
}

#[test]
fn the_long_form_stands_alone_unless_the_short_one_is_written_too() {
    let long = "[[http.listener]]\nlisten = \"127.0.0.1:1\"\nselect = \"header\"\nforwarded = \"replace\"\n";
    let alone = settled(long).unwrap().listeners;
    assert_eq!(alone.len(), 1);
    assert_eq!((alone[0].select, alone[0].forward), (Select::Header, ForwardPolicy::Replace));
    assert_eq!(settled(&format!("[http]\nlisten = [\"127.0.0.1:2\"]\n{long}")).unwrap().listeners.len(), 2);
    let open = settled("[[http.listener]]\nlisten = \"127.0.0.1:1\"\nopen = true\nservices = [\"billing-*\"]").unwrap();
    assert_eq!(open.listeners[0].forward, ForwardPolicy::Replace, "strangers' fields are not believed");
    let proxied = "[[http.listener]]\nlisten = \"127.0.0.1:1\"\nproxy_protocol = true\n";
    for (more, expected) in [
        ("", ForwardPolicy::Replace),
        ("forwarded = \"append\"", ForwardPolicy::Append),
        ("gateways = [\"kong\"]", ForwardPolicy::Append),
    ] {
        assert_eq!(settled(&format!("{proxied}{more}")).unwrap().listeners[0].forward, expected, "{more}");
    }
    assert!(open.listeners[0].services.as_ref().unwrap()[0].matches(&"billing-eu".parse().unwrap()));
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    for (text, line, words) in [
        ("[http]\nlisten = [\"somewhere:80\"]", 2, "http.listen: \"somewhere:80\": an address and a port"),
        ("[http]\n\nlisten = [\"127.0.0.1:1\", \"127.0.0.1:1\"]", 3, "127.0.0.1:1 is there twice"),
        ("[wireguard]\nendpoints = [\"nowhere\"]", 2, "wireguard.endpoints: "),
        ("[[route]]\nhost = \"a\"", 2, "a route needs a service"),
        ("[[route]]\nservice = \"a\"", 2, "a route needs a host, a path or both"),
        ("[[route]]\nhost = \"a:80\"\nservice = \"a\"", 2, "ports are ignored"),
        ("[[route]]\npath = \"orders\"\nservice = \"a\"", 2, "a path starts with /"),
        ("[[route]]\npath = \"/o\"\nservice = \"A_B\"", 3, "is not a name"),
        ("[issuer]\nlisten = \"127.0.0.1:1\"", 2, "needs issuer.url"),
        ("[issuer]\nurl = \"https://id\"\ntls = { cert = \"a\", key = \"b\" }", 3, "needs issuer.listen"),
        (
            "[issuer]\nurl = \"https://id\"\nlisten = \"127.0.0.1:1\"\ntls = { cert = \"a\" }",
            4,
            "cert and key are needed",
        ),
        ("[registry]\nurl = \"mysql://x\"", 2, "sqlite:FILE or postgres:"),
        ("[http]\ndomian = \"x\"", 2, "unknown key \"http.domian\"; did you mean \"http.domain\"?"),
        ("[[http.listener]]\nlisten = \"127.0.0.1:1\"\nproxy_protocl = true", 3, "unknown key"),
        ("[[http.listener]]\nlisten = \"127.0.0.1:1\"\ntls = { cert = \"a\" }", 3, "cert and key are needed"),
        ("[[http.listener]]\nlisten = \"127.0.0.1:1\"\ngateways = [\"a\"]\nopen = true", 3, "either open = true or"),
        ("[[http.listener]]\nlisten = \"127.0.0.1:1\"\ngateways = [\"A_B\"]", 3, "is not a name"),
        ("[[tcp]]\nlisten = \"127.0.0.1:1\"", 2, "a TCP listener needs a service"),
        ("[[tcp]]\nservice = \"db\"", 2, "a listener needs an address"),
        ("[service.Orders-]\nlimits = { queue = 1 }", 2, "is not a name"),
        ("[log]\nfilter = \"relay=loud\"", 2, "is not a log filter"),
        ("[limits]\nconcurrent = 0", 2, "limits.concurrent"),
    ] {
        let quit = refused(text);
        assert_eq!(quit.exit, Exit::Config, "{text}");
        let place = format!("relay.toml:{line}: ");
        assert!(quit.message.contains(&place) && quit.message.contains(words), "{text}: {}", quit.message);
    }
}

#[test]
fn a_service_inherits_the_limits_that_it_does_not_set() {
    let limits =
        settled("[limits]\nconcurrent = 50\nqueue_time = \"2s\"\n[service.orders.limits]\nqueue = 0\nbody = \"1MiB\"")
            .unwrap()
            .limits;
    let orders = limits.of(&"orders".parse().unwrap());
    assert_eq!(orders.bounds, Bounds { running: 50, waiting: 0, wait: Duration::from_secs(2) });
    assert_eq!(orders.body, Some(1 << 20));
    let other = limits.of(&"other".parse().unwrap());
    assert_eq!((other.bounds.waiting, other.body), (1_000, None));
}

#[test]
fn addresses_need_a_restart_and_routes_do_not() {
    let loaded = |text: &str| load(&Host::with(text).args(), &BTreeMap::new()).unwrap().0;
    let old = loaded("");
    assert!(
        old.restart_needed(&loaded("[http]\ndomain = \"x\"\naccess_log = \"off\"\n[limits]\nqueue = 5")).is_empty()
    );
    assert_eq!(old.restart_needed(&loaded("[http]\nlisten = [\"127.0.0.1:1\"]")), ["http.listen"]);
}

#[test]
fn the_example_is_right_with_what_it_has_commented_out_too() {
    let text = include_str!("../../../deploy/examples/relay.toml");
    // A setting that is off has its # at its very start; words have a space after it.
    let whole: Vec<&str> = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(off) if !off.starts_with(' ') => off,
            Some(_) | None => line,
        })
        .collect();
    assert!(whole.iter().any(|line| line.starts_with("tls = ")));
    let settled = settled(&whole.join("\n")).unwrap_or_else(|quit| panic!("{quit}"));
    assert_eq!((settled.listeners.len(), settled.tcp.len()), (4, 1));
    assert!(settled.listeners[1].identified && settled.listeners[1].tls.is_some());
}

#[test]
fn what_origins_behind_peers_get_is_settled_and_nonsense_is_refused_by_name() {
    let text = "[service.legacy]\nremove_headers = [\"x-debug\"]\n[service.legacy.headers]\nX-Key = { env = \"KEY\" }\n\
                [service.legacy.tls]\ncert = \"/c.pem\"\nkey = \"/k.pem\"\nmin_version = \"1.3\"\n\
                [service.legacy.timeouts]\nfirst_byte = \"7s\"\n";
    let behind = settled(text).unwrap().behind.remove(&"legacy".parse().unwrap()).unwrap();
    assert_eq!(behind.headers[0].0, "x-key");
    assert_eq!(behind.removed, ["x-debug"]);
    assert!(behind.tls.tls13_only && behind.tls.identity.is_some());
    assert_eq!(behind.timeouts.first_byte, Some(Duration::from_secs(7)));
    let no = |text: &str| settled(text).unwrap_err().to_string();
    assert!(no("[service.legacy.auth]\ntype = \"saml\"\n").contains("jwt"));
    assert!(no("[service.legacy.headers]\nHost = \"a\"\n").contains("host = "));
    assert!(no("[service.legacy.tls]\ncert = \"/c.pem\"\n").contains("go together"));
    assert!(no("[service.legacy.tls]\npins = [\"x\"]\n").contains("is no pin"));
}
