//! Fifty connectors with one token of one use, all at once: one joins, and the others are told why they did not.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use culvert_lab::skip::{self, Need};
use culvert_lab::{Connector, Postgres, Relay, token, wait};

const CONNECTORS: usize = 50;

/// Starts fifty at once, half of them with the token as `turned` has it, and finds exactly one member.
async fn fifty_at_once(relay: &Relay, token: &str, turned: &str) -> Result<()> {
    let mut connectors = Vec::new();
    for place in 0..CONNECTORS {
        let token = if place % 2 == 0 { token } else { turned };
        connectors.push(Connector::new(token, &["orders=http://127.0.0.1:1"])?);
    }
    for connector in &mut connectors {
        connector.launch()?;
    }
    let mut left = connectors.len();
    let start = std::time::Instant::now();
    while left > 1 {
        ensure!(start.elapsed() < Duration::from_secs(60), "{left} still run:\n{}", relay.last_words());
        tokio::time::sleep(Duration::from_millis(50)).await;
        left = 0;
        for connector in &mut connectors {
            left += usize::from(connector.process()?.runs());
        }
    }
    wait::until("the one to be up", Duration::from_secs(20), || async {
        let listed = relay.json(&["connector", "list"]).await.ok()?;
        (listed.as_array()?.iter().filter(|one| one["state"] == "up").count() == 1).then_some(())
    })
    .await
    .with_context(|| relay.last_words())?;
    let mut members = 0;
    for connector in &mut connectors {
        if connector.process()?.runs() {
            members += 1;
            continue;
        }
        let status = connector.process()?.end(Duration::from_secs(5)).await?;
        let said = connector.output();
        assert_eq!(status.code(), Some(78), "{said}");
        assert!(said.contains("used up"), "it was not told that the token is used up:\n{said}");
    }
    assert_eq!(members, 1);
    let listed = relay.json(&["connector", "list"]).await?;
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    let tokens = relay.json(&["token", "list"]).await?;
    assert_eq!((&tokens[0]["uses_left"], &tokens[0]["state"]), (&0.into(), &"used_up".into()), "{tokens}");
    Ok(())
}

#[tokio::test]
async fn of_fifty_connectors_with_a_one_use_token_one_joins_and_the_rest_are_told_that_it_is_used_up() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.start().await?;
    let token = relay.tunnel_with("main", &["orders"], &["--uses", "1"]).await?;
    fifty_at_once(&relay, &token, &token).await
}

#[tokio::test]
async fn of_fifty_at_two_relays_with_one_database_one_joins_too() -> Result<()> {
    if skip::unless("fifty redemptions at two relays", &[Need::Postgres]) {
        return Ok(());
    }
    let postgres = Postgres::start().await?;
    let (mut one, mut two) = (Relay::sharing(&postgres)?, Relay::sharing(&postgres)?);
    one.start().await?;
    two.start().await?;
    let token = one.tunnel_with("main", &["orders"], &["--uses", "1"]).await?;
    let turned = token::turned(&token)?;
    fifty_at_once(&one, &token, &turned).await?;
    let refused = |relay: &Relay| relay.output().matches("joining refused").count();
    assert!(refused(&one) > 5 && refused(&two) > 5, "both were asked: {} and {}", refused(&one), refused(&two));
    Ok(())
}
