//! The examples that ask for the shared secret.

use anyhow::Result;
use bytes::Bytes;
use culvert_lab::client;
use http::Method;

use super::{Language, serving};

#[tokio::test]
async fn an_express_app_lets_in_who_has_one_of_its_two_secrets() -> Result<()> {
    lets_in(Language::Node, "express-shared-secret.js", "an_express_app_lets_in_who_has_one_of_its_two_secrets").await
}

#[tokio::test]
async fn a_wsgi_application_lets_in_who_has_one_of_its_two_secrets() -> Result<()> {
    let name = "a_wsgi_application_lets_in_who_has_one_of_its_two_secrets";
    lets_in(Language::Python, "python-shared-secret.py", name).await
}

#[tokio::test]
async fn a_go_server_lets_in_who_has_one_of_its_two_secrets() -> Result<()> {
    lets_in(Language::Go, "go-shared-secret.go", "a_go_server_lets_in_who_has_one_of_its_two_secrets").await
}

async fn lets_in(language: Language, file: &str, test: &str) -> Result<()> {
    if language.is_missing(test) {
        return Ok(());
    }
    let origin = language.start(file, &[("ORIGIN_KEYS", "NEW-SECRET,OLD-SECRET")]).await?;
    let secrets = [
        // As in a rotation: both are known, the first is sent.
        (
            "new",
            "[service.headers]\nauthorization = { values = [\"NEW-SECRET\", \"OLD-SECRET\"], prefix = \"Bearer \" }\n",
        ),
        ("old", "[service.headers]\nauthorization = \"Bearer OLD-SECRET\"\n"),
        ("wrong", "[service.headers]\nauthorization = \"Bearer NEW-SECRET-\"\n"),
        ("part", "[service.headers]\nauthorization = \"Bearer NEW\"\n"),
        ("empty", "[service.headers]\nauthorization = \"Bearer \"\n"),
        ("none", "authorization = \"remove\"\n"),
    ];
    let config = secrets
        .iter()
        .map(|(name, headers)| format!("[[service]]\nname = \"{name}\"\norigin = \"http://{}\"\n{headers}", origin.at));
    let (relay, _connector) = serving(&config.collect::<String>(), "", "none").await?;
    for (service, _) in secrets {
        let is_known = matches!(service, "new" | "old");
        // What the caller brings itself changes nothing, right or wrong.
        for own in [None, Some("Bearer forged"), Some("Bearer NEW-SECRET")] {
            let mut request = client::request(Method::GET, service, "/", Bytes::new())?;
            if let Some(own) = own {
                request.headers_mut().insert("authorization", own.parse()?);
            }
            let answer = client::send(relay.http, request).await?;
            let (status, text) = (answer.status.as_u16(), answer.text());
            let expected = if is_known { (200, "in\n") } else { (401, "") };
            assert_eq!((status, text.as_str()), expected, "{service}, {own:?}: {}", origin.process.output());
        }
    }
    assert_eq!(client::get(origin.at, "orders", "/").await?.status, 401, "straight to it");
    Ok(())
}
