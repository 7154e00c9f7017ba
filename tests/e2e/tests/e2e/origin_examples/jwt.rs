//! The examples that ask for a token which the connector signed.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use culvert_lab::client::Answer;
use culvert_lab::nginx::Nginx;
use culvert_lab::skip::{Need, unless};
use culvert_lab::{Connector, Origin, Relay, address, binary, client, wait};
use http::Method;

use super::{Language, PATIENCE, serving};

const AUDIENCE: &str = "orders-api";

#[tokio::test]
async fn an_express_app_lets_in_who_has_a_token_that_jose_verified() -> Result<()> {
    let name = "an_express_app_lets_in_who_has_a_token_that_jose_verified";
    lets_in(Language::Node, "express-jwt.mjs", name).await
}

#[tokio::test]
async fn a_wsgi_application_lets_in_who_has_a_token_that_pyjwt_verified() -> Result<()> {
    let name = "a_wsgi_application_lets_in_who_has_a_token_that_pyjwt_verified";
    lets_in(Language::Python, "python-jwt.py", name).await
}

#[tokio::test]
async fn a_go_server_lets_in_who_has_a_token_that_its_standard_library_verified() -> Result<()> {
    let name = "a_go_server_lets_in_who_has_a_token_that_its_standard_library_verified";
    lets_in(Language::Go, "go-jwt.go", name).await
}

/// The relay as issuer, and a connector that signs for these origins.
struct Signing {
    relay: Relay,
    _connector: Connector,
    /// Where gateways have to say who they are.
    guarded: SocketAddr,
}

/// Where keys are served, before there is a relay.
struct Place {
    keys: SocketAddr,
    guarded: SocketAddr,
}

impl Place {
    fn new() -> Self {
        let ip = address::own_loopback();
        Self { keys: address::at(ip, 31_482), guarded: address::at(ip, 31_082) }
    }

    fn issuer(&self) -> String {
        format!("http://{}/main", self.keys)
    }

    /// Services by name, origin and what else `[service.auth]` says.
    async fn signing(self, services: &[(&str, SocketAddr, &str)]) -> Result<Signing> {
        let config = services.iter().map(|(name, origin, auth)| {
            let audience = if auth.contains("audience") { "" } else { "audience = \"orders-api\"\n" };
            format!(
                "[[service]]\nname = \"{name}\"\norigin = \"http://{origin}\"\n[service.auth]\ntype = \"jwt\"\n{audience}{auth}\n"
            )
        });
        let relay_config = format!(
            "[[http.listener]]\nlisten = \"{}\"\ngateways = [\"kong\", \"nginx\"]\n[issuer]\nurl = \"http://{1}\"\nlisten = \"{1}\"\n",
            self.guarded, self.keys
        );
        let last = services.last().context("a service")?.0;
        let (relay, connector) = serving(&config.collect::<String>(), &relay_config, last).await?;
        // A verifier that asks before all are there asks again only after a while.
        let kinds = ["ES256", "RS256"].iter().filter(|kind| config_of(services).contains(**kind)).count() + 1;
        wait::until("all keys are served", PATIENCE, || async {
            let served = client::get(self.keys, "id.example", "/main/.well-known/jwks.json").await.ok()?.json().ok()?;
            (served["keys"].as_array()?.len() == kinds).then_some(())
        })
        .await?;
        Ok(Signing { relay, _connector: connector, guarded: self.guarded })
    }
}

fn config_of(services: &[(&str, SocketAddr, &str)]) -> String {
    services.iter().map(|(_, _, auth)| *auth).collect()
}

/// GET with a token of the caller's own.
async fn with_token(at: SocketAddr, host: &str, path: &str, token: &str) -> Result<Answer> {
    let mut request = client::request(Method::GET, host, path, Bytes::new())?;
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse()?);
    client::send(at, request).await
}

/// The token that an origin which tells everything was sent.
async fn token_for(relay: &Relay, service: &str, path: &str) -> Result<String> {
    let head = relay.get(service, path).await?.json()?;
    let fields = head["headers"].as_array().or(head["fields"].as_array()).context("fields")?;
    let own = fields.iter().find(|field| field[0].as_str().is_some_and(|name| name == "authorization"));
    let token = own.and_then(|field| field[1].as_str()?.strip_prefix("Bearer ")).context("a token")?;
    Ok(token.to_owned())
}

/// Tokens that are not what they say.
fn forged(token: &str) -> Result<Vec<(&'static str, String)>> {
    let mut parts = token.split('.');
    let (Some(head), Some(claims), Some(signature)) = (parts.next(), parts.next(), parts.next()) else {
        anyhow::bail!("{token} is no token");
    };
    let decode =
        |part: &str| -> Result<serde_json::Value> { Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part)?)?) };
    let encode = |part: &serde_json::Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let (own_head, mut own_claims) = (decode(head)?, decode(claims)?);
    own_claims["sub"] = "main/another".into();
    let with_head = |name: &str, value: &str| {
        let mut head = own_head.clone();
        head[name] = value.into();
        encode(&head)
    };
    Ok(vec![
        ("nothing", String::new()),
        ("no token", "x".to_owned()),
        ("other claims", format!("{head}.{}.{signature}", encode(&own_claims))),
        ("unsigned", format!("{}.{}.", with_head("alg", "none"), encode(&own_claims))),
        ("a public key as a secret", format!("{}.{claims}.{signature}", with_head("alg", "HS256"))),
        ("an unknown key", format!("{}.{claims}.{signature}", with_head("kid", "another"))),
        ("another signature", format!("{head}.{claims}.{}", "A".repeat(86))),
    ])
}

async fn lets_in(language: Language, file: &str, test: &str) -> Result<()> {
    if language.is_missing(test) {
        return Ok(());
    }
    let place = Place::new();
    let issuer = place.issuer();
    let common = [("ISSUER", issuer.as_str()), ("AUDIENCE", AUDIENCE)];
    let free = language.start(file, &common).await?;
    let bound = language.start(file, &[&common[..], &[("BOUND", "yes")]].concat()).await?;
    let of_kong = language.start(file, &[&common[..], &[("GATEWAYS", "kong,caddy")]].concat()).await?;
    let shown = Origin::start("shown").await?;
    let shown_at: SocketAddr = shown.url().trim_start_matches("http://").parse()?;
    let signing = place
        .signing(&[
            ("eddsa", free.at, ""),
            ("es256", free.at, "algorithm = \"ES256\""),
            ("rs256", free.at, "algorithm = \"RS256\""),
            ("other-audience", free.at, "audience = \"other-api\""),
            ("other-issuer", free.at, "issuer = \"https://id.example/main\""),
            ("other-field", free.at, "header = \"x-culvert-token\""),
            ("bound", bound.at, "algorithm = \"ES256\"\nbind = \"request\""),
            ("unbound", bound.at, ""),
            ("of-kong", of_kong.at, ""),
            ("shown", shown_at, "bind = \"request\""),
        ])
        .await?;
    let relay = &signing.relay;
    let words = || format!("{}\n{}\n{}", free.process.output(), bound.process.output(), of_kong.process.output());
    for (service, path, status) in [
        ("eddsa", "/", 200),
        ("es256", "/a/b", 200),
        ("rs256", "/", 200),
        ("other-audience", "/", 401),
        ("other-issuer", "/", 401),
        ("other-field", "/", 401),
        ("bound", "/a%2Fb/c?d=e&f=%20", 200),
        ("bound", "/", 200),
        ("unbound", "/", 401),
        ("of-kong", "/", 401),
    ] {
        for own in ["", "forged.forged.forged"] {
            let answer = match own {
                "" => relay.get(service, path).await?,
                own => with_token(relay.http, service, path, own).await?,
            };
            let expected = if status == 200 { "in\n" } else { "" };
            assert_eq!((answer.status.as_u16(), answer.text().as_str()), (status, expected), "{service}: {}", words());
        }
    }
    for (name, status) in [("kong", 200), ("nginx", 401)] {
        let said = relay.cli(&["gateway", "create", name, "--service", "*"]).await?;
        ensure!(said.status == 0, "{said:?}");
        let mut request = client::request(Method::GET, "of-kong", "/", Bytes::new())?;
        request.headers_mut().insert("culvert-gateway", said.stdout.trim_end().parse()?);
        assert_eq!(client::send(signing.guarded, request).await?.status, status, "{name}: {}", words());
    }
    // A token that was seen on the way is good for what it was made for, and for nothing else.
    let token = token_for(relay, "shown", "/head?a=b").await?;
    for (path, status) in [("/head?a=b", 200), ("/head?a=c", 401), ("/", 401)] {
        assert_eq!(with_token(bound.at, "orders", path, &token).await?.status, status, "{path}: {}", words());
    }
    for (what, token) in forged(&token)? {
        assert_eq!(with_token(free.at, "orders", "/", &token).await?.status, 401, "{what}: {}", words());
    }
    assert_eq!(client::get(free.at, "orders", "/").await?.status, 401, "straight to it");
    Ok(())
}

#[tokio::test]
async fn an_nginx_lets_in_who_has_a_token_that_the_verifier_beside_it_took() -> Result<()> {
    let test = "an_nginx_lets_in_who_has_a_token_that_the_verifier_beside_it_took";
    if Language::Python.is_missing(test) || unless(test, &[Need::Program("nginx")]) {
        return Ok(());
    }
    let place = Place::new();
    let issuer = place.issuer();
    let settings = [("ISSUER", issuer.as_str()), ("AUDIENCE", AUDIENCE), ("BOUND", "yes")];
    let verifier = Language::Python.start("python-jwt.py", &settings).await?;
    let app = Origin::start("app").await?;
    let at = address::at(address::own_loopback(), 31_080);
    let text = std::fs::read_to_string(binary::project().join("deploy/examples/origins/nginx-jwt.conf"))?;
    let site = text.replace("LISTEN", &at.to_string()).replace("http://VERIFIER", &format!("http://{}", verifier.at));
    let nginx = Nginx::start(None, at, &site.replace("http://APP", app.url().trim_end_matches('/'))).await?;
    let services = [("orders", at, "bind = \"request\""), ("unbound", at, "")];
    let signing = place.signing(&services).await?;
    let words = || format!("{}\n{}", verifier.process.output(), nginx.output());
    for method in [Method::GET, Method::POST, Method::HEAD, Method::DELETE] {
        let body = if method == Method::POST { "some" } else { "" };
        for (service, status) in [("orders", 200), ("unbound", 401)] {
            let request = client::request(method.clone(), service, "/head?a=%2Fb", Bytes::from(body))?;
            let answer = client::send(signing.relay.http, request).await?;
            assert_eq!(answer.status, status, "{method} {service}: {}", words());
        }
    }
    let before = app.all_requests();
    assert_eq!(client::get(at, "orders", "/").await?.status, 401, "straight to it");
    assert_eq!(app.all_requests(), before, "the application saw none of it");
    Ok(())
}
