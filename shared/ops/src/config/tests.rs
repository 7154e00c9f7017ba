use std::fs;
use std::time::Duration;

use serde::Deserialize;
use tempfile::TempDir;

use super::*;

const SETTINGS: &[Setting] = &[
    Setting::new("wireguard.listen", Kind::List(&Kind::Address), "where").or("0.0.0.0:51820 [::]:51820").restart(),
    Setting::new("wireguard.endpoints", Kind::List(&Kind::Text), "endpoints"),
    Setting::new("http.domain", Kind::Text, "domain").or("internal"),
    Setting::new("http.listener[].listen", Kind::Address, "where").restart(),
    Setting::new("http.listener[].select", Kind::Choice(&["host", "header"]), "how").or("host"),
    Setting::new("http.listener[].tls.cert", Kind::Path, "certificate"),
    Setting::new("service", Kind::Entries { name: "name", value: "origin" }, "services"),
    Setting::new("service[].name", Kind::Text, "name"),
    Setting::new("service[].origin", Kind::Url, "origin"),
    Setting::new("service[].host", Kind::Text, "host"),
    Setting::new("service[].headers.*", Kind::Secret, "header"),
    Setting::new("pool.*.limits.concurrent", Kind::Integer { min: 1, max: 1000 }, "limit").or("100"),
    Setting::new("registry.url", Kind::Url, "registry").or("sqlite:registry.db").restart(),
    Setting::new("registry.password", Kind::Secret, "password"),
    Setting::new("drain.timeout", Kind::Duration, "drain").or("25s"),
    Setting::new("log.idle", Kind::OptionalDuration, "idle").or("off"),
    Setting::new("limits.body", Kind::OptionalSize, "body").or("off"),
    Setting::new("admin.pin", Kind::Text, "pin").secret(),
];

#[test]
fn a_flag_wins_over_the_environment_over_the_file_over_the_default() {
    let host = Host::new("[http]\ndomain = \"file\"\n");
    let load = |env: &[(&str, &str)], flag: Option<&str>| {
        let env = vars(env);
        let flags = Flags::new().value("--domain", "http.domain", flag);
        let loaded = host.load(&env, flags).unwrap();
        (loaded.table()["http"]["domain"].as_str().unwrap().to_owned(), loaded.source("http.domain").to_string())
    };
    let variable = ("CULVERT_RELAY_HTTP_DOMAIN", "env");
    let line = format!("{}:2", host.file().display());
    assert_eq!(load(&[variable], Some("flag")), ("flag".into(), "--domain".into()));
    assert_eq!(load(&[variable], None), ("env".into(), "CULVERT_RELAY_HTTP_DOMAIN".into()));
    assert_eq!(load(&[("CULVERT_RELAY_HTTP_DOMAIN", "")], None), ("file".into(), line));
    let empty = Host::new("");
    let loaded = empty.load(&vars(&[]), Flags::new()).unwrap();
    assert_eq!(loaded.table()["http"]["domain"].as_str(), Some("internal"));
    assert_eq!(loaded.source("http.domain"), Source::Default);
}

#[test]
fn an_unknown_key_is_an_error_with_file_line_and_the_nearest_key() {
    for (text, line, key, nearest) in [
        ("[wireguard]\nlistn = []\n", 2, "wireguard.listn", "wireguard.listen"),
        ("\n\n[wiregard]\nlisten = []\n", 3, "wiregard", "wireguard"),
        ("[[service]]\nname = \"a\"\norigins = \"http://x\"\n", 3, "service.origins", "service.origin"),
        (
            "[http]\nlistener = [{ listen = \"a:1\", tls = { crt = \"x\" } }]\n",
            2,
            "http.listener.tls.crt",
            "http.listener.tls.cert",
        ),
        ("[pool.orders.limits]\nconcurent = 1\n", 2, "pool.orders.limits.concurent", "pool.*.limits.concurrent"),
        ("listen = []", 1, "listen", "wireguard.listen"),
    ] {
        let host = Host::new(text);
        let quit = Quit::from(host.load(&vars(&[]), Flags::new()).unwrap_err());
        assert_eq!(quit.exit, Exit::Config);
        let expected = format!("{}:{line}: unknown key {key:?}; did you mean {nearest:?}?", host.file().display());
        assert_eq!(quit.message, expected);
    }
}

#[test]
fn every_problem_of_a_file_is_named_with_its_line() {
    let host = Host::new(
        "[http]\ndomain = 5\n[drain]\ntimeout = \"soon\"\n[service]\nname = \"x\"\n[wireguard]\nlisten = [\"nowhere\"]\n",
    );
    let quit = Quit::from(host.load(&vars(&[]), Flags::new()).unwrap_err());
    let said: Vec<&str> = quit.message.lines().map(|line| line.split_once(".toml:").unwrap().1).collect();
    assert_eq!(said.len(), 4, "{said:#?}");
    for start in
        ["2: http.domain: a text", "4: drain.timeout: \"soon\" is not a duration", "8: wireguard.listen: HOST:PORT"]
    {
        assert!(said.iter().any(|line| line.starts_with(start)), "{start}: {said:#?}");
    }
    assert!(said.iter().any(|line| line.ends_with("service is a list of tables: write [[service]]")), "{said:#?}");
    let broken = Host::new("[http]\ndomain = \"open\n");
    let quit = Quit::from(broken.load(&vars(&[]), Flags::new()).unwrap_err());
    assert!(quit.message.starts_with(&format!("{}:2: ", broken.file().display())), "{}", quit.message);
}

#[test]
fn lists_in_variables_are_separated_by_spaces_and_flags_replace_them() {
    let host = Host::new("[wireguard]\nendpoints = [\"file:1\"]\n");
    let env = vars(&[
        ("CULVERT_RELAY_WIREGUARD_LISTEN", "127.0.0.1:1  [::1]:2"),
        ("CULVERT_RELAY_WIREGUARD_ENDPOINTS", "env:1"),
    ]);
    let loaded = host.load(&env, Flags::new().list("--endpoint", "wireguard.endpoints", ["a:1", "b:2"])).unwrap();
    assert_eq!(loaded.table()["wireguard"]["listen"].to_string(), "[\"127.0.0.1:1\", \"[::1]:2\"]");
    assert_eq!(loaded.table()["wireguard"]["endpoints"].to_string(), "[\"a:1\", \"b:2\"]");
}

#[test]
fn services_given_by_name_are_added_to_those_of_the_file() {
    let host = Host::new("[[service]]\nname = \"a\"\norigin = \"http://file\"\nhost = \"kept\"\n");
    let env = vars(&[("CULVERT_RELAY_SERVICE", "A=http://env b=http://x/?q=1")]);
    let loaded = host.load(&env, Flags::new().list("--service", "service", ["b=tcp://flag", "c=http://c"])).unwrap();
    let services = loaded.table()["service"].as_array().unwrap();
    let shown: Vec<_> = services.iter().map(|s| (s["name"].as_str().unwrap(), s["origin"].as_str().unwrap())).collect();
    assert_eq!(shown, [("a", "http://env"), ("b", "tcp://flag"), ("c", "http://c")]);
    assert_eq!(services[0]["host"].as_str(), Some("kept"));
    assert_eq!(loaded.source("service[1].origin"), Source::Flag("--service"));
    let wrong = host.load(&vars(&[]), Flags::new().list("--service", "service", ["orders"])).unwrap_err();
    assert_eq!(wrong.to_string(), "--service: \"orders\" is not NAME=ORIGIN");
    assert_eq!(Quit::from(wrong).exit, Exit::Usage);
}

#[test]
fn a_variable_that_looks_mistyped_is_a_warning_and_kubernetes_links_are_none() {
    let host = Host::new("");
    let env = vars(&[
        ("CULVERT_RELAY_WIREGARD_LISTEN", "127.0.0.1:1"),
        ("CULVERT_RELAY_STATE_DIR", "/x"),
        ("CULVERT_RELAY_SERVICE_HOST", "10.0.0.1"),
        ("CULVERT_RELAY_PORT", "udp://10.0.0.1:51820"),
        ("CULVERT_RELAY_PORT_51820_UDP_ADDR", "10.0.0.1"),
        ("CULVERT_RELAY_METRICS_SERVICE_PORT", "9480"),
        ("CULVERT_CONNECTOR_NAME", "x"),
        ("CULVERT_TOKEN", "x"),
    ]);
    let loaded = host.load(&env, Flags::new()).unwrap();
    assert_eq!(
        loaded.warnings,
        ["the variable CULVERT_RELAY_WIREGARD_LISTEN is no setting; did you mean CULVERT_RELAY_WIREGUARD_LISTEN?"]
    );
}

#[test]
fn no_secret_is_ever_shown() {
    let host = Host::new(
        "[registry]\nurl = \"postgres://u:hunter2@db/x\"\n[admin]\npin = \"hunter2\"\n[[service]]\nname = \"a\"\norigin = \"http://u:hunter2@x\"\n[service.headers]\nauthorization = \"hunter2\"\nx-key = { values = [\"hunter2\", { env = \"OLD\" }], prefix = \"Bearer \" }\n",
    );
    let env = vars(&[("CULVERT_RELAY_REGISTRY_PASSWORD", "hunter2")]);
    let loaded = host.load(&env, Flags::new()).unwrap();
    let lines: Vec<String> = loaded.values().iter().map(ToString::to_string).collect();
    assert!(!lines.concat().contains("hunter2"), "{lines:#?}");
    for part in [
        "registry.password = (hidden)  # CULVERT_RELAY_REGISTRY_PASSWORD",
        "{ env = \"OLD\" }",
        "postgres://u:(hidden)@db/x",
    ] {
        assert!(lines.concat().contains(part), "{part}: {lines:#?}");
    }
    assert!(loaded.table()["registry"]["password"].as_str() == Some("hunter2"), "the program still gets it");
}

#[test]
fn a_secret_may_come_from_a_file_that_a_variable_names() {
    let host = Host::new("[registry]\npassword = { env = \"OTHER\" }\n");
    let env = vars(&[("CULVERT_RELAY_REGISTRY_PASSWORD_FILE", "/run/secrets/db")]);
    let loaded = host.load(&env, Flags::new()).unwrap();
    assert_eq!(loaded.table()["registry"]["password"]["file"].as_str(), Some("/run/secrets/db"));
    assert!(loaded.warnings.is_empty());
}

#[test]
fn a_missing_default_file_is_fine_and_a_missing_config_ends_78() {
    let host = Host::new("");
    let env = vars(&[]);
    fs::remove_file(host.file()).unwrap();
    assert_eq!(host.load(&env, Flags::new()).unwrap().file, None);
    let missing = host.0.path().join("missing.toml");
    let error = Load::new(Program::Relay, SETTINGS, &env).config(Some(&missing)).load().unwrap_err();
    assert!(matches!(error, ConfigError::Missing(_)));
    assert_eq!(Quit::from(error).exit, Exit::Config);
    let env = vars(&[("CULVERT_RELAY_CONFIG", missing.to_str().unwrap())]);
    assert!(host.load(&env, Flags::new()).is_err());
}

#[test]
fn the_users_file_is_read_where_the_host_has_none() {
    let host = Host::new("");
    fs::remove_file(host.file()).unwrap();
    let home = host.0.path().join("home");
    fs::create_dir_all(home.join("culvert")).unwrap();
    fs::write(home.join("culvert/relay.toml"), "[http]\ndomain = \"mine\"\n").unwrap();
    let loaded = host.load(&vars(&[("XDG_CONFIG_HOME", home.to_str().unwrap())]), Flags::new()).unwrap();
    assert_eq!(loaded.table()["http"]["domain"].as_str(), Some("mine"));
}

#[test]
fn paths_are_relative_to_the_file_they_stand_in() {
    let host = Host::new("[[http.listener]]\nlisten = \"unix:x.sock\"\ntls = { cert = \"relay.pem\" }\n");
    let loaded = host.load(&vars(&[]), Flags::new()).unwrap();
    let listener = &loaded.table()["http"]["listener"][0];
    assert_eq!(listener["tls"]["cert"].as_str(), host.0.path().join("relay.pem").to_str());
    assert_eq!(listener["listen"].as_str(), Some(format!("unix:{}/x.sock", host.0.path().display()).as_str()));
    assert_eq!(listener["select"].as_str(), Some("host"), "defaults reach into lists");
}

#[test]
fn a_program_reads_its_own_type() {
    #[derive(Deserialize)]
    struct Raw {
        drain: Drain,
        log: Log,
        limits: Limits,
        pool: BTreeMap<String, toml::Value>,
    }
    #[derive(Deserialize)]
    struct Drain {
        #[serde(with = "duration")]
        timeout: Duration,
    }
    #[derive(Deserialize)]
    struct Log {
        #[serde(with = "optional_duration")]
        idle: Option<Duration>,
    }
    #[derive(Deserialize)]
    struct Limits {
        #[serde(with = "optional_size")]
        body: Option<u64>,
    }
    let host = Host::new("[limits]\nbody = \"64KiB\"\n[pool.orders.limits]\n");
    let raw: Raw = host.load(&vars(&[]), Flags::new()).unwrap().settle().unwrap();
    assert_eq!(raw.drain.timeout, Duration::from_secs(25));
    assert_eq!((raw.log.idle, raw.limits.body), (None, Some(65_536)));
    assert_eq!(raw.pool["orders"]["limits"]["concurrent"].as_integer(), Some(100));
}

#[test]
fn a_program_names_the_place_of_what_it_refuses() {
    let host = Host::new("[[service]]\nname = \"a b\"\norigin = \"http://x\"\n[http]\ndomain = \"-\"\n");
    let loaded = host.load(&vars(&[]), Flags::new()).unwrap();
    let said = |key: &str| loaded.wrong(key, "no").to_string();
    assert_eq!(said("service[0].name"), format!("{}:2: service[0].name: no", host.file().display()));
    assert!(said("service[0].health.path").starts_with(host.file().to_str().unwrap()), "the entry it is missing from");
    assert_eq!(said("registry.url"), "registry.url: no");
}

#[test]
fn a_reload_names_the_keys_that_need_a_restart() {
    let env = vars(&[]);
    let old =
        Host::new("[http]\ndomain = \"a\"\n[[http.listener]]\nlisten = \"a:1\"\n").load(&env, Flags::new()).unwrap();
    let new = Host::new("[http]\ndomain = \"b\"\n[registry]\nurl = \"sqlite:b\"\n").load(&env, Flags::new()).unwrap();
    assert_eq!(old.restart_needed(&new), ["http.listener[0].listen", "registry.url"]);
    assert!(old.restart_needed(&old).is_empty());
}

struct Host(TempDir);

impl Host {
    fn new(text: &str) -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        fs::write(host.file(), text).unwrap();
        host
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("relay.toml")
    }

    fn load(&self, env: &dyn Environment, flags: Flags) -> Result<Loaded, ConfigError> {
        Load::new(Program::Relay, SETTINGS, env).etc(self.0.path()).flags(flags).load()
    }
}

fn vars(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
