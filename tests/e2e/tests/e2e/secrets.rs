//! Secrets stay where they were put: not on argv, not in logs, not in files that others can read.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use culvert_lab::process::Said;
use culvert_lab::skip::{self, Need};
use culvert_lab::{Connector, Origin, Relay, address, client, wait};
use culvert_model::key::PrivateKey;
use culvert_model::token::Token;
use http::Method;

use crate::Setup;

const PASSPHRASE: &str = "correct horse battery staple";
/// The libraries below are quiet otherwise.
const EVERYTHING: &str = "trace,boringtun=trace,quinn_proto=trace,quinn_udp=trace,hyper=trace,hyper_util=trace,\
                          h2=trace,rustls=trace,tokio_postgres=trace,mio=trace";
/// So much of a secret in a row is no accident.
const TELLING: usize = 12;

#[tokio::test]
async fn a_secret_on_argv_ends_2_and_names_the_right_ways() -> Result<()> {
    let relay = Relay::new()?;
    let connector = Connector::new("", &[])?;
    let token = "culvert_t1_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    for args in [&["run", token][..], &["run", "--token", token], &["run", "--token-file", token]] {
        let said = connector.cli(args).await?;
        assert_eq!(said.status, 2, "{args:?}: {said:?}");
        assert!(said.stderr.contains("CULVERT_TOKEN") && said.stderr.contains("--token-file"), "{args:?}: {said:?}");
        assert!(!said.stderr.contains(token), "the token was repeated: {said:?}");
    }
    let said = connector.cli(&["run", "--service", "orders=http://user:hunter2@127.0.0.1:1"]).await?;
    assert_eq!(said.status, 2, "{said:?}");
    assert!(!said.stderr.contains("hunter2"), "{said:?}");
    let said = relay.cli(&["run", "--registry", "postgres://culvert:hunter2@127.0.0.1/culvert"]).await?;
    assert_eq!(said.status, 2, "{said:?}");
    assert!(!said.stderr.contains("hunter2"), "{said:?}");
    Ok(())
}

/// Everything that is done with secrets in a day, at trace level: none of them stands anywhere but in the files that keep it.
#[tokio::test]
async fn no_secret_is_written_or_shown_anywhere_in_any_form() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.env.push(("CULVERT_LOG".to_owned(), EVERYTHING.to_owned()));
    let (guarded, log) = (address::at(relay.http.ip(), 31_082), relay.directory().join("access.log"));
    relay.config(&format!(
        "[http]\nlisten = [\"{}\"]\naccess_log = \"{}\"\n[[http.listener]]\nlisten = \"{guarded}\"\ngateways = [\"kong\"]\n",
        relay.http,
        log.display()
    ))?;
    relay.start().await?;
    let origin = Origin::start("orders").await?;
    let token = relay.tunnel("main", &["orders"]).await?;
    let mut secrets = Secrets::default();
    secrets.token(&token)?;
    let mut connector = Connector::new(&token, &[&format!("orders={}", origin.url())])?;
    connector.env.push(("CULVERT_LOG".to_owned(), EVERYTHING.to_owned()));
    connector.config("[key]\nrenew_psk_after = \"10s\"\n")?;
    connector.start().await?;
    relay.up("orders").await?;

    let mut shown = Shown::default();
    let credential = shown.stdout(relay.cli(&["gateway", "create", "kong", "--service", "orders"]).await?)?;
    let rotated = shown.stdout(relay.cli(&["gateway", "rotate", "kong"]).await?)?;
    let spare = shown.stdout(relay.cli(&["token", "create", "main", "--uses", "1"]).await?)?;
    secrets.gateway(&credential)?;
    secrets.gateway(&rotated)?;
    secrets.token(&spare)?;
    for (field, status) in
        [(credential.as_str(), 200), (rotated.as_str(), 200), (&credential.replace("kong", "nginx"), 401)]
    {
        let mut request = client::request(Method::GET, "orders", "/?key=in-a-query", Bytes::new())?;
        request.headers_mut().insert("culvert-gateway", field.parse()?);
        let answer = client::send(guarded, request).await?;
        assert_eq!(answer.status, status);
        shown.add("a caller", &answer.text());
    }
    secrets.files(relay.state())?;
    secrets.files(connector.state())?;

    // Keys change at both ends, and a backup takes them along.
    let passphrase = relay.directory().join("passphrase");
    std::fs::write(&passphrase, format!("{PASSPHRASE}\n"))?;
    secrets.bytes("the passphrase", PASSPHRASE.as_bytes());
    let file = relay.directory().join("relay.backup").display().to_string();
    for args in [
        &["key", "rotate", "--grace", "1h"][..],
        &["backup", &file, "--passphrase-file", &passphrase.display().to_string()],
        &["restore", &file, "--passphrase-file", &passphrase.display().to_string()],
        &["token", "revoke", "tok_aaaaaaaaaaaaaaaa"],
    ] {
        shown.said(&format!("{args:?}"), &relay.cli(args).await?);
    }
    shown.said("key rotate", &connector.cli(&["key", "rotate"]).await?);
    let path = connector.state().join("preshared.key");
    let before = std::fs::read(&path)?;
    wait::until("another pre-shared key", Duration::from_secs(30), || async {
        (std::fs::read(&path).ok()? != before).then_some(())
    })
    .await
    .with_context(|| connector.last_words())?;
    relay.up("orders").await?;
    secrets.files(relay.state())?;
    secrets.files(connector.state())?;
    relay.get("orders", "/").await?;

    for (name, id) in [("relay", relay.id()), ("connector", connector.id())] {
        shown.process(name, id.context("it runs")?)?;
    }
    let listing = std::process::Command::new("ps").args(["axeww", "-o", "pid,args"]).output()?;
    shown.bytes("ps", &listing.stdout);
    for words in [
        "tunnel list",
        "tunnel show main",
        "token list",
        "connector list",
        "service list",
        "service show orders",
        "gateway list",
        "key show",
        "status",
        "audit",
        "ready",
    ] {
        let args: Vec<&str> = words.split(' ').collect();
        shown.said(words, &relay.cli(&args).await?);
        shown.said(words, &relay.cli(&[&args[..], &["--json"]].concat()).await?);
    }
    let id = relay.json(&["connector", "list"]).await?[0]["id"].as_str().context("an id")?.to_owned();
    shown.said("connector show", &relay.cli(&["connector", "show", &id, "--json"]).await?);
    for args in [&["check"][..], &["check", "--json"]] {
        shown.said("check", &relay.cli(args).await?);
        shown.said("check", &connector.cli(args).await?);
    }
    for args in [&["status"][..], &["status", "--json"], &["key", "show"], &["key", "show", "--json"]] {
        shown.said("connector", &connector.cli(args).await?);
    }
    for path in
        ["/metrics", "/readyz", "/", "/api/v1/status", "/api/v1/tunnels", "/api/v1/connectors", "/api/v1/gateways"]
    {
        shown.add(path, &relay.ask(path).await?.text());
        shown.add(path, &connector.ask(path).await?.text());
    }
    let trail = shown.texts.iter().filter(|(from, _)| from == "audit").map(|(_, text)| text.len()).sum::<usize>();
    assert!(trail > 500, "the audit is part of what is looked through");
    for file in ["registry.db", "registry.db-wal"] {
        shown.bytes(file, &std::fs::read(relay.state().join(file)).unwrap_or_default());
    }
    shown.bytes("the backup", &std::fs::read(&file)?);
    shown.bytes("the access log", &std::fs::read(&log)?);
    shown.add("the connector's log", &connector.output());
    shown.add("the relay's log", &relay.output());
    assert!(
        shown.of("the relay's log").len() > 10_000 && shown.of("the connector's log").len() > 10_000,
        "trace says much"
    );
    // Three keys of the relay and its new one, two of the connector, its pre-shared keys, two tokens with what they derive, two
    // secrets of a gateway, a passphrase.
    assert!(secrets.0.len() >= 18, "too few secrets to look for: {:?}", secrets.0.keys());
    secrets.look_for_in(&shown)
}

#[tokio::test]
async fn a_process_leaves_no_core_and_its_environment_is_closed_and_empty_of_the_token() -> Result<()> {
    let setup = Setup::new().await?;
    for (name, id) in [("relay", setup.relay.id()), ("connector", setup.connector.id())] {
        let id = id.context("it runs")?;
        let limits = std::fs::read_to_string(format!("/proc/{id}/limits"))?;
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).context("a core limit")?;
        assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{name}: {core}");
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        assert!(status.lines().any(|line| line == "NoNewPrivs:\t1"), "{name}: {status}");
        let children = children(id)?;
        assert!(children.is_empty(), "{name} has children: {children:?}");
    }
    let environ = std::fs::read(format!("/proc/{}/environ", setup.connector.id().context("it runs")?))?;
    let variable = environ.split(|byte| *byte == 0).find(|entry| entry.starts_with(b"CULVERT_TOKEN"));
    // The name may stay; what it held is wiped.
    assert_eq!(variable.map(|entry| entry.trim_ascii_end()), Some(b"CULVERT_TOKEN=".as_slice()));
    Ok(())
}

/// A process that its user's other processes could look into would lose its keys to any of them; and a core file of it would hold
/// them. The kernel gives both to root alone once a process says that it is not to be dumped.
#[tokio::test]
async fn another_process_of_the_same_user_cannot_look_into_the_relay() -> Result<()> {
    let needs = [Need::Root, Need::Program("setpriv")];
    if skip::unless("another_process_of_the_same_user_cannot_look_into_the_relay", &needs) {
        return Ok(());
    }
    const NOBODY: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let mut relay = Relay::new()?;
    std::fs::create_dir(relay.state())?;
    std::fs::set_permissions(relay.state(), std::fs::Permissions::from_mode(0o700))?;
    std::os::unix::fs::chown(relay.state(), Some(65_534), Some(65_534))?;
    relay.prefix = NOBODY.map(str::to_owned).to_vec();
    relay.use_public_copy()?;
    relay.start().await?;
    let id = relay.id().context("it runs")?;
    for file in ["environ", "mem", "maps"] {
        let path = format!("/proc/{id}/{file}");
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&path)?), 0, "{path} is not root's");
        let read =
            std::process::Command::new(NOBODY[0]).args(&NOBODY[1..]).args(["head", "-c", "1", &path]).output()?;
        assert!(!read.status.success() && read.stdout.is_empty(), "{path} can be read by the relay's user");
    }
    let own = std::process::Command::new(NOBODY[0])
        .args(&NOBODY[1..])
        .args(["head", "-c", "1", "/proc/self/environ"])
        .output()?;
    assert!(own.status.success(), "the way to look works for a process that allows it");
    Ok(())
}

#[tokio::test]
async fn what_the_programs_write_is_for_their_owner_only() -> Result<()> {
    let setup = Setup::new().await?;
    for directory in [setup.relay.state(), setup.connector.state()] {
        assert_eq!(std::fs::metadata(directory)?.permissions().mode() & 0o777, 0o700);
        let files = files(directory);
        assert!(files.iter().any(|file| file.ends_with("private.key")), "{files:?}");
        for file in files {
            let mode = std::fs::metadata(&file)?.permissions().mode() & 0o777;
            assert_eq!(mode & 0o077, 0, "{} is {mode:o}", file.display());
        }
    }
    // `wg`-style files: 44 characters of base64 and a newline.
    let key = std::fs::read_to_string(setup.connector.state().join("private.key"))?;
    assert_eq!(key.trim_end().len(), 44);
    Ok(())
}

fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Secrets by what they are, as bytes.
#[derive(Default)]
struct Secrets(BTreeMap<String, Vec<u8>>);

/// What anybody could come to see, and where.
#[derive(Default)]
struct Shown {
    texts: Vec<(String, Vec<u8>)>,
}

impl Secrets {
    fn bytes(&mut self, name: &str, bytes: &[u8]) {
        if !self.0.values().any(|known| known == bytes) {
            self.0.insert(format!("{name} ({})", self.0.len()), bytes.to_vec());
        }
    }

    /// Its secret part, and what is derived from that.
    fn token(&mut self, text: &str) -> Result<()> {
        let token: Token = text.parse()?;
        let content = URL_SAFE_NO_PAD.decode(text.trim_start_matches("culvert_t1_"))?;
        self.bytes("a token's secret", &content[content.len() - 36..content.len() - 4]);
        self.bytes("a bootstrap key", token.bootstrap_key().as_bytes());
        self.bytes("a bootstrap psk", token.bootstrap_psk().as_bytes());
        Ok(())
    }

    fn gateway(&mut self, credential: &str) -> Result<()> {
        let body = credential.rsplit_once("culvert_g1_").context("a gateway's secret")?.1;
        self.bytes("a gateway's secret", &URL_SAFE_NO_PAD.decode(body)?[..32]);
        Ok(())
    }

    /// Every key in the files of a state directory that is no public key of another one.
    fn files(&mut self, directory: &Path) -> Result<()> {
        let mut found = BTreeMap::new();
        for file in files(directory) {
            if file.extension().is_none_or(|extension| extension != "key") {
                continue;
            }
            let text = std::fs::read(&file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())?;
            let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "+/=".contains(c)));
            for key in words.filter(|word| word.len() == 44).filter_map(|word| word.parse::<PrivateKey>().ok()) {
                found.insert(*key.as_bytes(), file.file_name().unwrap_or_default().to_string_lossy().into_owned());
            }
        }
        ensure!(found.len() >= 2, "no keys in {}", directory.display());
        let public: Vec<_> = found.keys().map(|key| PrivateKey::from_bytes(*key).public_key()).collect();
        for (key, name) in found.iter().filter(|(key, _)| !public.iter().any(|public| public.as_bytes() == *key)) {
            self.bytes(name, key);
        }
        Ok(())
    }

    fn look_for_in(&self, shown: &Shown) -> Result<()> {
        for (name, bytes) in &self.0 {
            for (form, text) in forms(bytes) {
                for (from, content) in &shown.texts {
                    let found = content.windows(text.len()).any(|window| window == text);
                    ensure!(!found, "{name} stands in {from}, {form}");
                }
            }
        }
        Ok(())
    }
}

/// The start of a secret, as it could be written. In base64 at each of the three places where it may begin in a longer text.
fn forms(bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let start = &bytes[..TELLING];
    let hex: String = start.iter().map(|byte| format!("{byte:02x}")).collect();
    let list: Vec<String> = start.iter().map(ToString::to_string).collect();
    let mut forms = vec![
        ("raw", start.to_vec()),
        ("in hex", hex.clone().into_bytes()),
        ("in hex", hex.to_uppercase().into_bytes()),
        ("as a list", list.join(", ").into_bytes()),
        ("as a list", list.join(",").into_bytes()),
        ("escaped", start.escape_ascii().to_string().into_bytes()),
    ];
    for shift in 0..3 {
        let padded = [&[0; 2][..shift], start].concat();
        // Whole groups of the secret's own bytes alone.
        let (from, to) = (shift.div_ceil(3) * 4, padded.len() / 3 * 4);
        for text in [STANDARD.encode(&padded), URL_SAFE_NO_PAD.encode(&padded)] {
            forms.push(("in base64", text.as_bytes()[from..to].to_vec()));
        }
    }
    forms
}

impl Shown {
    fn bytes(&mut self, from: &str, bytes: &[u8]) {
        self.texts.push((from.to_owned(), bytes.to_vec()));
    }

    fn add(&mut self, from: &str, text: &str) {
        self.bytes(from, text.as_bytes());
    }

    fn said(&mut self, from: &str, said: &Said) {
        self.add(from, &said.stdout);
        self.add(from, &said.stderr);
    }

    /// What a command prints on purpose: its words are shown, its data are the secret.
    fn stdout(&mut self, said: Said) -> Result<String> {
        ensure!(said.status == 0, "{said:?}");
        self.add("stderr", &said.stderr);
        Ok(said.stdout.trim().to_owned())
    }

    /// What other processes see of one, and of those that it started.
    fn process(&mut self, name: &str, id: u32) -> Result<()> {
        for id in children(id)?.into_iter().chain([id]) {
            for file in ["cmdline", "environ", "comm", "status", "limits"] {
                self.bytes(&format!("{file} of the {name}"), &std::fs::read(format!("/proc/{id}/{file}"))?);
            }
        }
        Ok(())
    }

    fn of(&self, from: &str) -> &[u8] {
        self.texts.iter().find(|(name, _)| name == from).map_or(&[], |(_, text)| text)
    }
}

/// The processes that one started, and those that these started.
fn children(id: u32) -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{id}/task"))?.flatten() {
        let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in text.split_whitespace().filter_map(|child| child.parse().ok()) {
            all.push(child);
            all.extend(children(child)?);
        }
    }
    Ok(all)
}

#[test]
fn what_is_looked_for_would_be_found() {
    let secret: Vec<u8> = (0..32).map(|n: u8| n.wrapping_mul(37).wrapping_add(200)).collect();
    let mut secrets = Secrets::default();
    secrets.bytes("it", &secret);
    let prefix = |length: usize| [&b"xyz"[..length], &secret].concat();
    let written = [
        String::from_utf8_lossy(STANDARD.encode(&secret).as_bytes()).into_owned().into_bytes(),
        URL_SAFE_NO_PAD.encode(prefix(1)).into_bytes(),
        STANDARD.encode(prefix(2)).into_bytes(),
        format!("{secret:?}").into_bytes(),
        format!("{secret:02x?}").replace(", ", "").into_bytes(),
        format!("{:?}", Bytes::from(secret.clone())).into_bytes(),
        prefix(3),
    ];
    for text in written {
        let mut shown = Shown::default();
        shown.bytes("a text", &[b"before ".as_slice(), &text, b" after"].concat());
        assert!(secrets.look_for_in(&shown).is_err(), "{}", String::from_utf8_lossy(&text));
    }
    let mut shown = Shown::default();
    shown.add("a text", "nothing of it");
    assert!(secrets.look_for_in(&shown).is_ok());
}
