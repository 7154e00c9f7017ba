//! The names users type and see, held against `promises.toml`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use culvert_e2e::promises;
use culvert_lab::{Connector, Origin, Relay, wait};
use culvert_model::reason::Reason;

#[tokio::test]
async fn every_promised_command_has_help_with_its_flags() -> Result<()> {
    let promises = promises();
    let relay = Relay::new()?;
    let connector = Connector::new("", &[])?;
    let help = async |program: &str, command: &str| -> Result<String> {
        let mut args: Vec<&str> = command.split_whitespace().collect();
        args.push("--help");
        let said = if program == "relay" { relay.cli(&args).await? } else { connector.cli(&args).await? };
        assert_eq!(said.status, 0, "{program} {command}: {said:?}");
        assert!(said.stdout.contains("Usage") && said.stderr.is_empty(), "{program} {command}: {said:?}");
        Ok(said.stdout)
    };
    let mut missing = Vec::new();
    for (program, commands) in [("relay", &promises.commands.relay), ("connector", &promises.commands.connector)] {
        for command in commands {
            if let Err(error) = help(program, command).await {
                missing.push(format!("{program} {command}: {error:#}"));
            }
        }
        let top = help(program, "").await?;
        for later in &promises.commands.later {
            assert!(!top.contains(later), "{program} shows {later}, which does not work yet");
        }
        let said = if program == "relay" {
            relay.cli_bare(&["--version"]).await?
        } else {
            connector.cli_bare(&["--version"]).await?
        };
        assert!(said.status == 0 && said.stdout.contains(env!("CARGO_PKG_VERSION")), "{said:?}");
    }
    for line in &promises.commands.flags {
        let (command, flags) = line.split_once(": ").context("a colon")?;
        let (program, command) = command.split_once(' ').context("a program")?;
        let text = help(program, command).await?;
        missing.extend(
            flags.split(' ').filter(|flag| !text.contains(*flag)).map(|flag| format!("{program} {command} {flag}")),
        );
    }
    for line in &promises.commands.aliases {
        let (old, new) = line.split_once(" = ").context("an equals sign")?;
        let strip = |text: &str| text.trim_start_matches("relay ").to_owned();
        let usage = |text: String| text.lines().find(|line| line.contains("Usage")).map(str::to_owned);
        let (old_help, new_help) = (help("relay", &strip(old)).await?, help("relay", &strip(new)).await?);
        if usage(old_help) != usage(new_help) {
            missing.push(format!("{old} is not {new}"));
        }
    }
    assert!(missing.is_empty(), "promised and not there: {missing:#?}");
    for shell in ["bash", "zsh", "fish"] {
        for said in [relay.cli_bare(&["completion", shell]).await?, connector.cli_bare(&["completion", shell]).await?] {
            assert!(said.status == 0 && said.stdout.contains("culvert-"), "completion {shell}: {said:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn every_listing_and_metric_has_what_was_promised() -> Result<()> {
    let promises = promises();
    let mut relay = Relay::new()?;
    relay.start().await?;
    let origin = Origin::start("orders").await?;
    let token = relay.tunnel("main", &["orders", "down"]).await?;
    let mut connector = Connector::new(&token, &[&format!("orders={}", origin.url()), "down=http://127.0.0.1:1"])?;
    connector.start().await?;
    relay.up("orders").await?;
    relay.get("orders", "/").await?;
    relay.get("down", "/").await?;
    let mut missing = Vec::new();
    for listing in &promises.listing {
        let args: Vec<&str> = listing.command.split_whitespace().collect();
        let json = relay.json(&args).await?;
        let elements = match (listing.shape.as_str(), &json) {
            ("array", serde_json::Value::Array(elements)) if !elements.is_empty() => elements.clone(),
            ("object", serde_json::Value::Object(_)) => vec![json.clone()],
            _ => {
                missing.push(format!("{}: not a filled {}: {json}", listing.command, listing.shape));
                continue;
            }
        };
        for element in elements {
            for field in &listing.fields {
                if element.get(field).is_none() {
                    missing.push(format!("{}: {field} in {element}", listing.command));
                }
            }
        }
    }
    let one = &relay.json(&["connector", "list"]).await?[0];
    assert_eq!(one["state"], "up");
    let inner = one["inner_address"].as_str().unwrap_or_default();
    assert!(inner.starts_with("fd43:554c:5645:") && !inner.contains('/'), "{inner}");
    assert!(one["last_handshake"].as_str().is_some_and(|time| time.ends_with('Z')), "{one}");
    let services = one["services"].as_array().context("services")?;
    assert!(services.iter().all(|service| ["name", "up", "reason"].iter().all(|field| service.get(field).is_some())));
    wait::until("the origin that is down is known to be", Duration::from_secs(5), || async {
        let metrics = relay.ask("/metrics").await.ok()?.text();
        metrics.contains("culvert_service_up{service=\"down\"} 0").then_some(())
    })
    .await?;
    let metrics = relay.ask("/metrics").await?.text();
    missing.extend(promises.metrics.relay.iter().filter(|metric| !metrics.contains(*metric)).cloned());
    assert!(missing.is_empty(), "promised and not there: {missing:#?}\n{metrics}");
    for (words, status) in [("status", 0), ("ready", 0), ("check", 0)] {
        let said = connector.cli(&[words]).await?;
        assert_eq!(said.status, status, "{words}: {said:?}");
        let said = relay.cli(&[words]).await?;
        assert_eq!(said.status, status, "{words}: {said:?}");
    }
    assert_eq!(relay.json(&["key", "show"]).await?["public_key"].as_str().map(str::len), Some(44));
    Ok(())
}

#[test]
fn every_reason_has_the_promised_status_and_types() {
    let promises = promises();
    let mut unseen: Vec<&str> = promises.reason.iter().map(|reason| reason.name.as_str()).collect();
    for reason in Reason::ALL {
        let promised = promises.reason.iter().find(|promised| promised.name == reason.name());
        let promised = promised.unwrap_or_else(|| panic!("{reason} is not promised"));
        assert!(promised.status.contains(&reason.status()), "{reason}: {}", reason.status());
        assert!(promised.error.iter().any(|error| error == reason.proxy_error()), "{reason}: {}", reason.proxy_error());
        assert_eq!(promised.grpc, reason.grpc_status(), "{reason}");
        unseen.retain(|name| *name != reason.name());
    }
    assert!(unseen.is_empty(), "promised and not there: {unseen:?}");
}

#[tokio::test]
async fn wireguards_own_key_commands_read_and_write_as_wg_does() -> Result<()> {
    let relay = Relay::new()?;
    let private = relay.cli_bare(&["genkey"]).await?;
    assert!(private.status == 0 && private.stdout.trim().len() == 44, "{}", private.status);
    let public = relay.cli_input(&["pubkey"], private.stdout.as_bytes()).await?;
    assert!(public.status == 0 && public.stdout.trim().len() == 44, "{public:?}");
    let expected = private.stdout.trim().parse::<culvert_model::key::PrivateKey>()?.public_key().to_string();
    assert_eq!(public.stdout.trim(), expected);
    assert_eq!(relay.cli_bare(&["genpsk"]).await?.stdout.trim().len(), 44);
    assert_eq!(relay.cli_input(&["pubkey"], b"nonsense\n").await?.status, 1);
    Ok(())
}
