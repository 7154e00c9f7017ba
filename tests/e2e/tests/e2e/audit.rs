//! The audit trail: who changed what, who was refused, and that nobody can fill it or write into it what he likes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use culvert_lab::client::Answer;
use culvert_lab::{Connector, Origin, Relay, address, client, wait};
use http::Method;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

async fn trail(relay: &Relay) -> Result<Vec<Value>> {
    let trail = relay.json(&["audit", "--since", "1h"]).await?;
    Ok(trail.as_array().context("an array")?.clone())
}

/// Waits for a row of this action whose detail contains the words.
async fn row(relay: &Relay, action: &str, words: &str) -> Result<Value> {
    let what = format!("{action}: {words}");
    let found = wait::until(&what, PATIENCE, || async {
        let has =
            |row: &Value| row["action"] == action && row["detail"].as_str().is_some_and(|text| text.contains(words));
        trail(relay).await.ok()?.into_iter().find(has)
    });
    let found = found.await;
    match found {
        Ok(row) => Ok(row),
        Err(error) => Err(error.context(format!("{:#?}\n{}", trail(relay).await?, relay.last_words()))),
    }
}

async fn done(relay: &Relay, args: &[&str]) -> Result<String> {
    let said = relay.cli(args).await?;
    ensure!(said.status == 0, "{args:?}: {said:?}");
    Ok(said.stdout.trim().to_owned())
}

async fn call(relay: &Relay, port: u16, credential: &str) -> Result<Answer> {
    let mut request = client::request(Method::GET, "orders", "/", Bytes::new())?;
    request.headers_mut().insert("culvert-gateway", credential.parse()?);
    client::send(address::at(relay.http.ip(), port), request).await
}

#[tokio::test]
async fn whoever_is_refused_stands_in_the_trail() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.config(&format!(
        "[http]\nlisten = [\"{}\"]\n[[http.listener]]\nlisten = \"{}\"\ngateways = [\"kong\"]\n",
        relay.http,
        address::at(relay.http.ip(), 31_082)
    ))?;
    relay.start().await?;
    let origin = Origin::start("orders").await?;
    let service = format!("orders={}", origin.url());

    // A token for one, a second one who has it, and a name that nobody granted.
    let token = relay.tunnel_with("main", &["orders"], &["--uses", "1"]).await?;
    let mut first = Connector::new(&token, &[&service, &format!("payroll={}", origin.url())])?;
    first.start().await?;
    relay.up("orders").await?;
    let member = relay.json(&["connector", "list"]).await?[0]["id"].as_str().context("an id")?.to_owned();
    let row_of_name = row(&relay, "service.refused", "payroll").await?;
    assert_eq!(
        (&row_of_name["actor"], &row_of_name["subject"]),
        (&Value::from(member.clone()), &Value::from(member.clone()))
    );
    let mut second = Connector::new(&token, &[&service])?;
    second.launch()?;
    assert_eq!(second.process()?.end(PATIENCE).await?.code(), Some(78));
    let spent = row(&relay, "connector.refused", "used up").await?;
    assert!(spent["subject"].as_str().is_some_and(|id| id.starts_with("tok_")), "{spent}");
    assert!(spent["detail"].as_str().is_some_and(|text| text.contains("from 127.")), "{spent}");

    // From the wrong place, and with one that was revoked.
    let elsewhere = done(&relay, &["token", "create", "main", "--from", "192.0.2.0/24"]).await?;
    let made = relay.json(&["token", "create", "main"]).await?;
    let text = |field: &str| made[field].as_str().map(str::to_owned).with_context(|| format!("{field} of {made}"));
    let (revoked, id) = (text("token")?, text("id")?);
    done(&relay, &["token", "revoke", &id]).await?;
    for (token, words) in [(&elsewhere, "may not be used from there"), (&revoked, "the token is revoked")] {
        let mut refused = Connector::new(token, &[&service])?;
        refused.launch()?;
        row(&relay, "connector.refused", words).await?;
    }

    // A member that was revoked comes back under its key, without any token.
    assert_eq!(first.terminate(PATIENCE).await?.code(), Some(0));
    done(&relay, &["connector", "revoke", &member]).await?;
    first.env.clear();
    first.launch()?;
    let back = row(&relay, "connector.refused", "revoked key").await?;
    assert_eq!(back["subject"], member.as_str());

    // A gateway with a wrong secret, again and again.
    let credential = done(&relay, &["gateway", "create", "kong", "--service", "orders"]).await?;
    let other = done(&relay, &["gateway", "create", "other", "--service", "orders"]).await?;
    let wrong = format!("kong:{}", other.split_once(':').context("NAME:SECRET")?.1);
    for _ in 0..3 {
        assert_eq!(call(&relay, 31_082, &wrong).await?.status, 401);
    }
    row(&relay, "gateway.refused", "gateway kong: a wrong secret").await?;
    done(&relay, &["gateway", "revoke", "kong"]).await?;
    assert_eq!(call(&relay, 31_082, &credential).await?.status, 401);

    // Somebody asks for what is another tunnel's.
    let taken = relay.cli(&["tunnel", "create", "thief", "--service", "orders"]).await?;
    assert_eq!(taken.status, 1, "{taken:?}");
    let refused = row(&relay, "command.refused", "belongs to tunnel main").await?;
    assert_eq!(refused["subject"], "tunnel create");
    assert!(refused["actor"].as_str().is_some_and(|who| who.starts_with("uid ")), "{refused}");

    // What operators did is there with who and what.
    done(&relay, &["tunnel", "delete", "main"]).await?;
    let trail = trail(&relay).await?;
    for (action, subject) in [
        ("connector.revoke", member.as_str()),
        ("gateway.revoke", "kong"),
        ("tunnel.delete", "main"),
        ("tunnel.create", "main"),
    ] {
        let line = trail.iter().find(|row| row["action"] == action && row["subject"] == subject);
        let line = line.with_context(|| format!("no {action} of {subject}: {trail:#?}"))?;
        assert!(line["actor"].as_str().is_some_and(|who| who.starts_with("uid ")), "{line}");
    }
    assert!(trail.iter().any(|row| row["action"] == "token.revoke" && row["subject"] == id.as_str()));
    let deleted = trail.iter().find(|row| row["action"] == "tunnel.delete").context("it was deleted")?;
    assert!(deleted["detail"].as_str().is_some_and(|text| text.contains("connectors revoked")), "{deleted}");
    // The gateway tried four times: one row now, the rest as a count later.
    assert_eq!(trail.iter().filter(|row| row["action"] == "gateway.refused").count(), 1);
    for line in &trail {
        for field in ["actor", "action", "subject", "detail"] {
            let text = line[field].as_str().context("a text")?;
            assert!(text.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{line}");
        }
    }
    Ok(())
}
