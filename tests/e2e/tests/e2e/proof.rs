//! Proof to the origin, through both binaries: what real servers demand, what callers forge, and secrets that change.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use culvert_lab::client::Answer;
use culvert_lab::load::Plan;
use culvert_lab::nginx::Nginx;
use culvert_lab::skip::{Need, unless};
use culvert_lab::{Connector, Origin, Relay, address, binary, client, process, wait};
use http::{HeaderName, Method};

const PATIENCE: Duration = Duration::from_secs(15);

/// Puts a file in the place of another as a whole.
fn replace(text: &str, at: &Path) -> Result<()> {
    let next = at.with_extension("next");
    std::fs::write(&next, text)?;
    Ok(std::fs::rename(next, at)?)
}

async fn behind(config: &str) -> Result<(Relay, Connector)> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    let token = relay.tunnel("main", &["orders"]).await?;
    let mut connector = Connector::new(&token, &[])?;
    connector.config(config)?;
    connector.start().await?;
    relay.up("orders").await?;
    Ok((relay, connector))
}

#[tokio::test]
async fn a_server_that_demands_the_header_gets_ours_and_no_spelling_of_the_callers() -> Result<()> {
    if unless("a_server_that_demands_the_header_gets_ours_and_no_spelling_of_the_callers", &[Need::Program("nginx")]) {
        return Ok(());
    }
    let at = address::at(address::own_loopback(), 31_080);
    // As CGI programs see it: every field whose name reads as X_ORIGIN_KEY.
    let site = format!(
        "underscores_in_headers on; ignore_invalid_headers off;\n\
         map $http_x_origin_key $known {{ default 0; new-secret 1; old-secret 1; }}\n\
         server {{ listen {at}; location / {{ if ($known = 0) {{ return 403 \"[$http_x_origin_key]\"; }} \
         return 200 \"[$http_x_origin_key] [$http_authorization] [$http_x_user] [$http_x_internal]\"; }} }}"
    );
    let _nginx = Nginx::start(None, at, &site).await?;
    let secret = tempfile::tempdir()?;
    let file = secret.path().join("key");
    replace("old-secret\n", &file)?;
    let (relay, _connector) = behind(&format!(
        "[[service]]\nname = \"orders\"\norigin = \"http://{at}\"\nremove_headers = [\"x-internal\"]\n\
         authorization = \"remove\"\n[service.rename_headers]\nx-caller = \"x-user\"\n\
         [service.headers]\nx-origin-key = {{ values = [{{ file = \"{}\" }}, \"old-secret\"] }}\n",
        file.display()
    ))
    .await?;
    let forged = || -> Result<_> {
        let mut request = client::request(Method::GET, "orders", "/", Bytes::new())?;
        for (name, value) in [
            ("X-Origin-Key", "forged"),
            ("x_origin_key", "forged"),
            ("X-Origin_Key", "forged"),
            ("authorization", "Bearer theirs"),
            ("x-caller", "ann"),
            ("x-user", "forged"),
            ("X_User", "forged"),
            ("x_internal", "forged"),
        ] {
            request.headers_mut().append(HeaderName::from_bytes(name.as_bytes())?, value.parse()?);
        }
        Ok(request)
    };
    let answer = client::send(relay.http, forged()?).await?;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "[old-secret] [] [ann] []"));

    let load = Plan::gets(relay.http, "orders").start();
    tokio::time::sleep(Duration::from_millis(200)).await;
    replace("new-secret\n", &file)?;
    let replaced = Instant::now();
    wait::until("the new secret is in force", PATIENCE, || async {
        let text = client::send(relay.http, forged().ok()?).await.ok()?.text();
        text.starts_with("[new-secret]").then_some(())
    })
    .await?;
    let took = replaced.elapsed();
    ensure!(took < Duration::from_secs(1), "in force after {took:?}");
    load.finish().await?.all_well(10)?;
    Ok(())
}

#[tokio::test]
async fn a_broken_replacement_of_a_secret_keeps_the_old_one_and_says_so() -> Result<()> {
    let origin = Origin::start("orders").await?;
    let secret = tempfile::tempdir()?;
    let file = secret.path().join("key");
    replace("first\n", &file)?;
    let (relay, mut connector) = behind(&format!(
        "[[service]]\nname = \"orders\"\norigin = \"{}\"\n[service.headers]\nx-origin-key = {{ file = \"{}\" }}\n",
        origin.url(),
        file.display()
    ))
    .await?;
    replace("\n", &file)?;
    let said = connector.process()?.line("nothing was changed", PATIENCE).await?;
    assert!(said.contains("x-origin-key") && !said.contains("first"), "{said}");
    assert!(relay.get("orders", "/head").await?.text().contains("first"));
    replace("second\n", &file)?;
    wait::until("the repaired secret is in force", PATIENCE, || async {
        relay.get("orders", "/head").await.ok()?.text().contains("second").then_some(())
    })
    .await?;
    Ok(())
}

/// An authority, a server's certificate for `ip`, and two certificates of clients: `one` ends in 3 days.
fn certify(directory: &Path, ip: &str) -> Result<()> {
    let script = format!(
        "set -e; new='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'\n\
         openssl req -x509 $new -keyout ca.key -out ca.pem -days 300 -subj /CN=ca\n\
         sign() {{ openssl x509 -req -in $1.csr -CA ca.pem -CAkey ca.key -CAcreateserial -copy_extensions copy -days $2 -out $1.pem; }}\n\
         openssl req $new -keyout site.key -out site.csr -subj /CN=site -addext subjectAltName=DNS:ledger.internal,IP:{ip}; sign site 200\n\
         openssl req $new -keyout one.key -out one.csr -subj /CN=one; sign one 3\n\
         openssl req $new -keyout two.key -out two.csr -subj /CN=two; sign two 200\n\
         openssl x509 -in site.pem -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64 >pin\n"
    );
    let made = Command::new("sh").args(["-c", &script]).current_dir(directory).output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}

#[tokio::test]
async fn a_server_that_demands_a_certificate_gets_ours_and_the_next_one_without_a_failed_request() -> Result<()> {
    let needs = [Need::Program("nginx"), Need::Program("openssl")];
    if unless("a_server_that_demands_a_certificate_gets_ours_and_the_next_one_without_a_failed_request", &needs) {
        return Ok(());
    }
    let files = tempfile::tempdir()?;
    let at = address::at(address::own_loopback(), 31_443);
    certify(files.path(), &at.ip().to_string())?;
    let text = |name: &str| std::fs::read_to_string(files.path().join(name));
    let shown = files.path().display();
    let site = format!(
        "server {{ listen {at} ssl; ssl_certificate {shown}/site.pem; ssl_certificate_key {shown}/site.key; \
         ssl_protocols TLSv1.3; ssl_client_certificate {shown}/ca.pem; ssl_verify_client on; \
         location / {{ return 200 \"$ssl_client_s_dn $ssl_server_name $ssl_protocol\"; }} }}"
    );
    let _nginx = Nginx::start(None, at, &site).await?;
    let show = |name: &str| -> Result<()> {
        replace(&text(&format!("{name}.pem"))?, &files.path().join("client.pem"))?;
        replace(&text(&format!("{name}.key"))?, &files.path().join("client.key"))
    };
    show("one")?;
    let config = |pin: &str| {
        format!(
            "[[service]]\nname = \"orders\"\norigin = \"https://{at}\"\n[service.tls]\nca = \"{shown}/ca.pem\"\n\
             cert = \"{shown}/client.pem\"\nkey = \"{shown}/client.key\"\nmin_version = \"1.3\"\n\
             server_name = \"asked.internal\"\nverify_names = [\"other.internal\", \"ledger.internal\"]\npins = [\"sha256/{pin}\"]\n"
        )
    };
    // What openssl makes by default is of version 1, and a key must be the certificate's all the same.
    replace(&text("two.key")?, &files.path().join("client.key"))?;
    let mut mixed = Connector::new("", &[])?;
    mixed.config(&config(text("pin")?.trim()))?;
    let file = mixed.directory().join("connector.toml").display().to_string();
    let said = mixed.cli(&["check", "--config", &file]).await?;
    assert!(said.status == 78 && said.stderr.contains("cert and key cannot be used"), "{said:?}");
    show("one")?;
    let (relay, mut connector) = behind(&config(text("pin")?.trim())).await?;
    let answer = relay.get("orders", "/").await?;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "CN=one asked.internal TLSv1.3"));
    let said = connector.process()?.line("a certificate ends soon", PATIENCE).await?;
    assert!(said.contains("orders") && said.contains("cert"), "{said}");
    let metrics = connector.ask("/metrics").await?.text();
    let left = metrics
        .lines()
        .find_map(|line| line.strip_prefix("culvert_certificate_expiry_seconds{service=\"orders\",file=\"cert\"} "))
        .and_then(|left| left.parse::<f64>().ok());
    assert!(left.is_some_and(|left| (2.9 * 86_400.0..=3.0 * 86_400.0).contains(&left)), "{left:?}");
    assert!(connector.cli(&["status"]).await?.stdout.contains("cert until "));

    let load = Plan::gets(relay.http, "orders").start();
    show("two")?;
    wait::until("the next certificate is shown", PATIENCE, || async {
        relay.get("orders", "/").await.ok()?.text().starts_with("CN=two").then_some(())
    })
    .await?;
    load.finish().await?.all_well(10)?;

    let other = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    std::fs::write(connector.directory().join("connector.toml"), config(other))?;
    let said = connector.cli(&["reload"]).await?;
    assert_eq!(said.status, 0, "{said:?}");
    let refused = wait::until("another key is refused", PATIENCE, || async {
        relay.get("orders", "/").await.ok().filter(|answer| answer.status == 502)
    })
    .await?;
    assert_eq!(refused.header("proxy-status"), "culvert-relay; error=tls_certificate_error; details=\"origin_tls\"");
    Ok(())
}

/// The examples' verifiers, in two languages: each knows what a token must say, and Culvert's code is not in them.
const VERIFIERS: [(&str, &str); 2] = [(binary::PYTHON, "verify_jwt.py"), ("node", "verify-jwt.js")];

/// What a verifier says of a token: its claims, or none if it does not take it.
async fn verified(
    verifier: (&str, &str),
    token: &str,
    issuer: &str,
    audience: &str,
) -> Result<Option<serde_json::Value>> {
    let script = binary::project().join("deploy/examples/origins").join(verifier.1);
    let mut command = Command::new(verifier.0);
    command.arg(script).args([issuer, audience]);
    let said = process::run(verifier.1, command, Some(token.as_bytes()), PATIENCE).await?;
    Ok(if said.status == 0 { Some(serde_json::from_str(&said.stdout)?) } else { None })
}

/// The tokens that the origin saw in a request that tried to bring its own.
async fn tokens(relay: &Relay, service: &str, path: &str) -> Result<Vec<String>> {
    let mut request = client::request(Method::GET, service, path, Bytes::new())?;
    for name in ["authorization", "AUTHORIZATION"] {
        request.headers_mut().append(HeaderName::from_bytes(name.as_bytes())?, "Bearer eyJmb3JnZWQ.eyJ9.x".parse()?);
    }
    seen_tokens(&client::send(relay.http, request).await?)
}

/// The tokens that `/head` shows.
fn seen_tokens(answer: &Answer) -> Result<Vec<String>> {
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    let head = answer.json()?;
    let fields = head["headers"].as_array().or(head["fields"].as_array()).context("fields")?;
    let is_own =
        |field: &&serde_json::Value| field[0].as_str().is_some_and(|name| name.eq_ignore_ascii_case("authorization"));
    Ok(fields
        .iter()
        .filter(is_own)
        .filter_map(|field| field[1].as_str()?.strip_prefix("Bearer ").map(str::to_owned))
        .collect())
}

fn seen_token(answer: &Answer) -> Result<String> {
    let mut tokens = seen_tokens(answer)?;
    ensure!(tokens.len() == 1, "{tokens:?}");
    tokens.pop().context("a token")
}

#[tokio::test]
async fn independent_verifiers_take_our_tokens_by_the_keys_that_the_relay_serves_and_no_others() -> Result<()> {
    let needs = [Need::Python("jwt, cryptography"), Need::Program("node")];
    let name = "independent_verifiers_take_our_tokens_by_the_keys_that_the_relay_serves_and_no_others";
    if unless(name, &needs) {
        return Ok(());
    }
    let origin = Origin::start("orders").await?;
    let at = address::at(address::own_loopback(), 31_482);
    let base = format!("http://{at}");
    let mut relay = Relay::new()?;
    let guarded = address::at(relay.http.ip(), 31_082);
    relay.config(&format!(
        "[http]\nlisten = [\"{}\"]\n[[http.listener]]\nlisten = \"{guarded}\"\ngateways = [\"kong\"]\n\
         [issuer]\nurl = \"{base}/\"\nlisten = \"{at}\"\n",
        relay.http
    ))?;
    relay.start().await?;
    let token = relay.tunnel("shop", &["orders", "billing", "ledger"]).await?;
    let mut connector = Connector::new(&token, &[])?;
    connector.config(&format!(
        "[[service]]\nname = \"orders\"\norigin = \"{0}\"\n[service.auth]\ntype = \"jwt\"\naudience = \"orders-api\"\n\
         [[service]]\nname = \"billing\"\norigin = \"{0}\"\n[service.auth]\ntype = \"jwt\"\naudience = \"billing-api\"\n\
         algorithm = \"ES256\"\nbind = \"request\"\nlifetime = \"30s\"\nclaims.env = \"test\"\n\
         [[service]]\nname = \"ledger\"\norigin = \"{0}\"\n[service.auth]\ntype = \"jwt\"\naudience = \"ledger-api\"\n\
         algorithm = \"RS256\"\n",
        origin.url()
    ))?;
    connector.start().await?;
    for service in ["orders", "billing", "ledger"] {
        relay.up(service).await?;
    }
    // An RSA key takes a while to make, and after any new key all tokens are made anew.
    tokens(&relay, "ledger", "/head").await?;
    let issuer = format!("{base}/shop");
    let mut seen = Vec::new();
    for (service, audience, path) in
        [("orders", "orders-api", "/head"), ("billing", "billing-api", "/head?b=c"), ("ledger", "ledger-api", "/head")]
    {
        let own = tokens(&relay, service, path).await?;
        let [token] = own.as_slice() else { panic!("{own:?}") };
        for verifier in VERIFIERS {
            let claims = verified(verifier, token, &issuer, audience).await?;
            let claims = claims.with_context(|| format!("{} takes {service}'s token", verifier.1))?;
            assert_eq!((&claims["sub"], &claims["aud"]), (&format!("shop/{service}").into(), &audience.into()));
            if service == "billing" {
                assert_eq!((&claims["culvert_method"], &claims["culvert_path"]), (&"GET".into(), &path.into()));
                assert_eq!(
                    (&claims["env"], &claims["exp"]),
                    (&"test".into(), &(claims["iat"].as_u64().unwrap_or(0) + 30).into())
                );
            }
            let (signed, _) = token.rsplit_once('.').context("a token")?;
            let unsigned = format!("{signed}.{}", "A".repeat(86));
            for (what, token, audience) in [("audience", token, "other-api"), ("signature", &unsigned, audience)] {
                assert_eq!(verified(verifier, token, &issuer, audience).await?, None, "{}: another {what}", verifier.1);
            }
        }
        seen.push((service, path, own));
    }
    let (_, _, orders) = &seen[0];
    assert_eq!(tokens(&relay, "orders", "/head").await?, *orders, "one serves for a while");
    let (_, path, billing) = &seen[1];
    assert_ne!(tokens(&relay, "billing", path).await?, *billing, "each request has its own");

    let said = relay.cli(&["gateway", "create", "kong", "--service", "orders"]).await?;
    let mut request = client::request(Method::GET, "orders", "/head", Bytes::new())?;
    request.headers_mut().insert("culvert-gateway", said.stdout.trim_end().parse()?);
    request.headers_mut().insert("culvert-caller", "forged".parse()?);
    let of_kong = seen_token(&client::send(guarded, request).await?)?;
    let claims = verified(VERIFIERS[0], &of_kong, &issuer, "orders-api").await?.context("taken")?;
    assert_eq!(claims["culvert_gateway"], "kong");
    let mut request = client::request(Method::GET, "orders", "/head", Bytes::new())?;
    request.headers_mut().insert("culvert-caller", "forged".parse()?);
    let of_nobody = seen_token(&client::send(relay.http, request).await?)?;
    assert_eq!(of_nobody, orders[0], "whom the relay did not ask is named nowhere");

    let keys = |tunnel: &'static str| async move {
        client::get(at, "id.example", &format!("/{tunnel}/.well-known/jwks.json")).await
    };
    let shop = keys("shop").await?;
    assert_eq!(shop.json()?["keys"].as_array().map(Vec::len), Some(3));
    assert!(!shop.text().contains("\"d\""), "public halves alone: {}", shop.text());
    relay.tunnel("other", &["else"]).await?;
    assert_eq!(keys("other").await?.json()?["keys"].as_array().map(Vec::len), Some(0), "an issuer of its own");
    assert_eq!(keys("none").await?.status, 404);

    // The same keys after restarts of both: tokens of before are still good, and those of after too.
    connector.kill()?;
    relay.kill()?;
    relay.start().await?;
    connector.start().await?;
    relay.up("orders").await?;
    wait::until("the keys are served again", PATIENCE, || async {
        (keys("shop").await.ok()?.json().ok()?["keys"].as_array()?.len() == 3).then_some(())
    })
    .await?;
    for token in orders.iter().chain(&tokens(&relay, "orders", "/head").await?) {
        assert!(verified(VERIFIERS[0], token, &issuer, "orders-api").await?.is_some(), "{token}");
    }
    Ok(())
}

#[tokio::test]
async fn without_an_issuer_no_request_reaches_the_origin_and_the_caller_is_told_no_more_than_that() -> Result<()> {
    let origin = Origin::start("orders").await?;
    let (relay, mut connector) = behind(&format!(
        "[[service]]\nname = \"orders\"\norigin = \"{}\"\n[service.auth]\ntype = \"jwt\"\naudience = \"orders-api\"\n",
        origin.url()
    ))
    .await?;
    let answer = relay.get("orders", "/").await?;
    assert_eq!(answer.status, 502);
    assert_eq!(answer.header("proxy-status"), "culvert-relay; error=proxy_internal_error; details=\"origin_auth\"");
    assert!(!answer.text().contains("issuer") && !answer.text().contains("orders-api"), "{}", answer.text());
    assert_eq!(origin.all_requests(), 0);
    assert!(connector.process()?.runs());
    Ok(())
}

/// The text of an example for nginx, as it listens at `at` and finds its files in `files`.
fn example(name: &str, at: std::net::SocketAddr, files: &Path) -> Result<String> {
    let text = std::fs::read_to_string(binary::project().join("deploy/examples/origins").join(name))?;
    Ok(text.replace("LISTEN", &at.to_string()).replace("DIR", &files.display().to_string()))
}

#[tokio::test]
async fn the_examples_let_the_connector_in_and_nobody_else() -> Result<()> {
    let needs = [Need::Program("nginx"), Need::Program("openssl")];
    if unless("the_examples_let_the_connector_in_and_nobody_else", &needs) {
        return Ok(());
    }
    let files = tempfile::tempdir()?;
    let shown = files.path().display();
    let mut make = Command::new(binary::project().join("deploy/examples/origins/make-certificates.sh"));
    let made = make.arg(files.path()).arg("ledger.internal").output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let ip = address::own_loopback();
    let (secret, certificate) = (address::at(ip, 31_080), address::at(ip, 31_443));
    let _secret = Nginx::start(None, secret, &example("nginx-shared-secret.conf", secret, files.path())?).await?;
    let site = example("nginx-client-certificate.conf", certificate, files.path())?;
    let _certificate = Nginx::start(None, certificate, &site).await?;
    let services = [
        ("old", format!("http://{secret}"), "[service.headers]\nauthorization = \"Bearer OLD-SECRET\"\n".to_owned()),
        ("new", format!("http://{secret}"), "[service.headers]\nauthorization = \"Bearer NEW-SECRET\"\n".to_owned()),
        ("none", format!("http://{secret}"), String::new()),
        (
            "known",
            format!("https://{certificate}"),
            format!("cert = \"{shown}/connector.pem\"\nkey = \"{shown}/connector.key\"\n"),
        ),
        (
            "other",
            format!("https://{certificate}"),
            format!("cert = \"{shown}/origin.pem\"\nkey = \"{shown}/origin.key\"\n"),
        ),
        ("nobody", format!("https://{certificate}"), String::new()),
    ];
    let config = services.iter().map(|(name, origin, rest)| {
        let tls = match origin.starts_with("https") {
            true => format!("[service.tls]\nca = \"{shown}/ca.pem\"\nserver_name = \"ledger.internal\"\n"),
            false => String::new(),
        };
        format!("[[service]]\nname = \"{name}\"\norigin = \"{origin}\"\n{tls}{rest}")
    });
    let mut relay = Relay::new()?;
    relay.start().await?;
    let token = relay.tunnel("main", &["*"]).await?;
    let mut connector = Connector::new(&token, &[])?;
    connector.config(&config.collect::<String>())?;
    connector.start().await?;
    relay.up("new").await?;
    for (service, is_let_in) in
        [("old", true), ("new", true), ("none", false), ("known", true), ("other", false), ("nobody", false)]
    {
        let answer = relay.get(service, "/").await?;
        let (status, text) = (answer.status.as_u16(), answer.text());
        // nginx tells of a missing certificate by 400: TLS itself is up by then.
        let is_refused = matches!(status, 400 | 403 | 502) && text != "in\n";
        assert!(if is_let_in { status == 200 && text == "in\n" } else { is_refused }, "{service}: {status} {text}");
    }
    Ok(())
}
