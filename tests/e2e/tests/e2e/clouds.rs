//! The clouds' tokens through both binaries: vendors' token endpoints that take nothing but what is documented, and that fail.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use culvert_lab::load::Plan;
use culvert_lab::process::Process;
use culvert_lab::skip::{Need, unless};
use culvert_lab::{Connector, Origin, Relay, address, binary, client, wait};
use http::{HeaderName, Method};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);
const NEEDS: [Need; 2] = [Need::Python("jwt, cryptography"), Need::Program("openssl")];
const ACCOUNT: &str = "orders@p.iam.gserviceaccount.com";
const PROVIDER: &str = "projects/12/locations/global/workloadIdentityPools/culvert/providers/relay";

/// The vendors, and the files that they and the connector know.
struct Vendors {
    at: SocketAddr,
    files: tempfile::TempDir,
    _process: Process,
}

impl Vendors {
    async fn start(issuer: &str) -> Result<Self> {
        let (at, files) = (address::at(address::own_loopback(), 31_500), tempfile::tempdir()?);
        let script = "set -e\n\
             openssl req -x509 -newkey rsa:2048 -nodes -keyout app.key -out app.pem -days 90 -subj /CN=app 2>/dev/null\n\
             openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out google.key 2>/dev/null\n\
             openssl pkey -in google.key -pubout -out google.pub\n";
        let made = Command::new("sh").args(["-c", script]).current_dir(files.path()).output()?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let path = |name: &str| files.path().join(name);
        let key_file = json!({
            "type": "service_account", "project_id": "p", "private_key_id": "k1", "client_id": "1", "client_email": ACCOUNT,
            "private_key": std::fs::read_to_string(path("google.key"))?, "token_uri": format!("http://{at}/token"),
        });
        std::fs::write(path("account.json"), key_file.to_string())?;
        replace("first-secret\n", &path("secret"))?;
        let settings = json!({
            "listen": at.to_string(), "issuer": issuer, "subjects": ["shop/federated", "shop/federation"],
            "certificate": path("app.pem"), "google_public": path("google.pub"), "account": ACCOUNT, "provider": PROVIDER,
        });
        std::fs::write(path("settings.json"), settings.to_string())?;
        let mut command = Command::new(binary::PYTHON);
        command.arg(binary::project().join("tests/e2e/vendors/token_endpoints.py")).arg(path("settings.json"));
        let mut process = Process::start("vendors", command)?;
        process.line("vendor listens", PATIENCE).await?;
        Ok(Self { at, files, _process: process })
    }

    async fn play(&self, how: Value) -> Result<()> {
        ensure!(client::post(self.at, "vendor", "/play", how.to_string()).await?.status == 200);
        Ok(())
    }

    /// What was given out: by what, and the token.
    async fn given(&self) -> Result<Vec<(String, String)>> {
        let seen = client::get(self.at, "vendor", "/seen").await?.json()?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(seen.as_array().context("a list")?.iter().map(|one| (text(&one["by"]), text(&one["token"]))).collect())
    }

    /// One service's configuration.
    fn service(&self, name: &str, origin: &Origin, auth: &str) -> String {
        let auth = auth
            .replace("VENDOR", &format!("http://{}", self.at))
            .replace("DIR", &self.files.path().display().to_string());
        format!("[[service]]\nname = \"{name}\"\norigin = \"{}\"\n[service.auth]\n{auth}", origin.url())
    }
}

const ENTRA: &str = "type = \"entra-id\"\nclient_id = \"app-1\"\nscope = \"api://orders/.default\"\n\
                     endpoint = \"VENDOR/tenant-1/oauth2/v2.0/token\"\n";
const ID_TOKEN: &str = "type = \"gcp-id-token\"\naudience = \"https://orders.a.run.app\"\n";

/// Puts a file in the place of another as a whole.
fn replace(text: &str, at: &Path) -> Result<()> {
    let next = at.with_extension("next");
    std::fs::write(&next, text)?;
    Ok(std::fs::rename(next, at)?)
}

/// The values that the origin saw in this field of a request whose caller tried every spelling of it.
async fn seen(relay: &Relay, service: &str, field: &str) -> Result<Vec<String>> {
    let mut request = client::request(Method::GET, service, "/head", Bytes::new())?;
    for name in [field.to_owned(), field.to_uppercase(), field.replace('-', "_")] {
        request.headers_mut().append(HeaderName::from_bytes(name.as_bytes())?, "Bearer forged".parse()?);
    }
    let answer = client::send(relay.http, request).await?;
    ensure!(answer.status == 200, "{service}: {} {}", answer.status, answer.text());
    let head = answer.json()?;
    let fields = head["headers"].as_array().or(head["fields"].as_array()).context("fields")?;
    let like = |name: &str| name.to_ascii_lowercase().replace('_', "-");
    let own = fields.iter().filter(|one| one[0].as_str().is_some_and(|name| like(name) == field));
    Ok(own.filter_map(|one| one[1].as_str().map(str::to_owned)).collect())
}

#[tokio::test]
async fn every_way_to_a_clouds_token_is_taken_by_its_vendor_and_is_all_that_the_origin_sees() -> Result<()> {
    if unless("every_way_to_a_clouds_token_is_taken_by_its_vendor_and_is_all_that_the_origin_sees", &NEEDS) {
        return Ok(());
    }
    let origin = Origin::start("orders").await?;
    let at = address::at(address::own_loopback(), 31_482);
    let mut relay = Relay::new()?;
    relay.config(&format!(
        "[http]\nlisten = [\"{}\"]\n[issuer]\nurl = \"http://{at}\"\nlisten = \"{at}\"\n",
        relay.http
    ))?;
    relay.start().await?;
    let vendors = Vendors::start(&format!("http://{at}/shop")).await?;
    let federation = format!(
        "{ID_TOKEN}provider = \"{PROVIDER}\"\nservice_account = \"{ACCOUNT}\"\nendpoint = \"VENDOR/v1/token\"\n\
         impersonation_endpoint = \"VENDOR\"\n"
    );
    let metadata = "VENDOR/computeMetadata/v1/instance/service-accounts/default/identity";
    let services = [
        ("secret", format!("{ENTRA}client_secret = {{ file = \"DIR/secret\" }}\n"), "secret:first-secret"),
        (
            "certificate",
            format!("{ENTRA}certificate = \"DIR/app.pem\"\nkey = {{ file = \"DIR/app.key\" }}\n"),
            "certificate",
        ),
        ("federated", format!("{ENTRA}federated = true\n"), "federated:shop/federated"),
        (
            "key",
            format!("{ID_TOKEN}key = {{ file = \"DIR/account.json\" }}\nheader = \"x-serverless-authorization\"\n"),
            "key",
        ),
        ("federation", federation, "federation"),
        ("metadata", format!("{ID_TOKEN}metadata = true\nendpoint = \"{metadata}\"\n"), "metadata"),
        (
            "alone",
            "type = \"gcp-service-account\"\naudience = \"https://orders\"\nkey = { file = \"DIR/account.json\" }\n"
                .to_owned(),
            "nobody",
        ),
    ];
    let names: Vec<&str> = services.iter().map(|(name, _, _)| *name).collect();
    let token = relay.tunnel("shop", &names).await?;
    let mut connector = Connector::new(&token, &[])?;
    connector
        .config(&services.iter().map(|(name, auth, _)| vendors.service(name, &origin, auth)).collect::<String>())?;
    connector.start().await?;
    for (service, _, by) in &services {
        relay.up(service).await?;
        let field = if *service == "key" { "x-serverless-authorization" } else { "authorization" };
        let seen = seen(&relay, service, field).await.with_context(|| connector.last_words())?;
        let [value] = seen.as_slice() else { panic!("{service}: {seen:?}") };
        let own = value.strip_prefix("Bearer ").context("Bearer")?;
        let given = vendors.given().await?;
        let own_are: Vec<_> = given.iter().filter(|(way, _)| way == by).map(|(_, token)| token.as_str()).collect();
        match *by {
            "nobody" => assert!(own.split('.').count() == 3 && own_are.is_empty(), "{own}"),
            _ => assert_eq!(own_are, [own], "{service} has its own, and it was asked for once"),
        }
    }
    let status: Value = serde_json::from_str(&connector.cli(&["status", "--json"]).await?.stdout)?;
    for service in status["services"].as_array().context("services")? {
        assert!(service["proof"]["left_seconds"].as_u64().is_some_and(|left| left > 3000), "{service}");
    }
    let metrics = connector.ask("/metrics").await?.text();
    assert!(metrics.contains("culvert_proof_left_seconds{service=\"federated\"} 3"), "{metrics}");
    let end = "culvert_certificate_expiry_seconds{service=\"certificate\",file=\"certificate\"} 7";
    assert!(metrics.contains(end), "90 days: {metrics}");
    Ok(())
}

async fn with_secret(vendors: &Vendors, origin: &Origin) -> Result<(Relay, Connector)> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    let token = relay.tunnel("main", &["orders"]).await?;
    let mut connector = Connector::new(&token, &[])?;
    let auth = format!("{ENTRA}client_secret = {{ file = \"DIR/secret\" }}\n");
    connector.config(&vendors.service("orders", origin, &auth))?;
    connector.start().await?;
    relay.up("orders").await?;
    Ok((relay, connector))
}

#[tokio::test]
async fn a_replaced_secret_is_in_force_within_a_second_without_a_failed_request_and_a_broken_one_changes_nothing()
-> Result<()> {
    let name =
        "a_replaced_secret_is_in_force_within_a_second_without_a_failed_request_and_a_broken_one_changes_nothing";
    if unless(name, &NEEDS) {
        return Ok(());
    }
    let origin = Origin::start("orders").await?;
    let vendors = Vendors::start("http://nobody").await?;
    vendors.play(json!({ "delay": 0.5 })).await?;
    let (relay, mut connector) = with_secret(&vendors, &origin).await?;
    let many = futures_util::future::join_all((0..50).map(|_| seen(&relay, "orders", "authorization"))).await;
    for one in many {
        assert_eq!(one?, ["Bearer entra-0-secret-first-secret"]);
    }
    assert_eq!(vendors.given().await?.len(), 1, "fifty requests and one token");

    vendors.play(json!({ "delay": 0, "secrets": ["first-secret", "second-secret"] })).await?;
    let load = Plan::gets(relay.http, "orders").start();
    let secret = vendors.files.path().join("secret");
    replace("second-secret\n", &secret)?;
    let replaced = Instant::now();
    wait::until("the new secret's token is sent", PATIENCE, || async {
        let value = seen(&relay, "orders", "authorization").await.ok()?;
        (value == ["Bearer entra-1-secret-second-secret"]).then_some(())
    })
    .await?;
    let took = replaced.elapsed();
    ensure!(took < Duration::from_secs(1), "in force after {took:?}");

    replace("\n", &secret)?;
    let said = connector.process()?.line("nothing was changed", PATIENCE).await?;
    assert!(said.contains("client_secret") && !said.contains("second-secret"), "{said}");
    // One that the vendor does not know: the token of the one before is good until it ends.
    replace("third-secret\n", &secret)?;
    let said = connector.process()?.line("the old one is still used", PATIENCE).await?;
    assert!(said.contains("AADSTS7000215") && !said.contains("third-secret"), "{said}");
    assert_eq!(seen(&relay, "orders", "authorization").await?, ["Bearer entra-1-secret-second-secret"]);
    load.finish().await?.all_well(10)?;
    Ok(())
}

#[tokio::test]
async fn an_endpoint_that_is_down_is_a_502_that_tells_nothing_and_it_comes_back_by_itself() -> Result<()> {
    if unless("an_endpoint_that_is_down_is_a_502_that_tells_nothing_and_it_comes_back_by_itself", &NEEDS) {
        return Ok(());
    }
    let origin = Origin::start("orders").await?;
    let vendors = Vendors::start("http://nobody").await?;
    vendors.play(json!({ "status": 500 })).await?;
    let (relay, mut connector) = with_secret(&vendors, &origin).await?;
    connector.process()?.line("the proof to the origin cannot be made", PATIENCE).await?;
    for _ in 0..20 {
        let answer = relay.get("orders", "/").await?;
        assert_eq!(answer.status, 502);
        assert_eq!(answer.header("proxy-status"), "culvert-relay; error=proxy_internal_error; details=\"origin_auth\"");
        let text = answer.text();
        for detail in ["hidden-detail", "31500", "tenant-1", "app-1", "secret"] {
            assert!(!text.contains(detail), "{text}");
        }
    }
    assert_eq!(origin.all_requests(), 0, "never a request without proof");
    vendors.play(json!({ "status": 200 })).await?;
    wait::until("it comes back by itself", PATIENCE, || async {
        relay.get("orders", "/").await.ok().filter(|answer| answer.status == 200)
    })
    .await?;
    let words = connector.output();
    assert_eq!(words.matches("the proof to the origin cannot be made").count(), 1, "one line on change: {words}");
    assert!(words.contains("the proof to the origin can be made again") && !words.contains("first-secret"), "{words}");
    Ok(())
}
