//! Secrets stay where they were put: not on argv, not in logs, not in files that others can read.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Result;
use culvert_lab::{Connector, Relay};

use crate::Setup;

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

#[tokio::test]
async fn no_key_or_token_is_ever_written_to_a_log_or_listing() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.env.push(("CULVERT_LOG".to_owned(), "trace".to_owned()));
    relay.start().await?;
    let origin = culvert_lab::Origin::start("orders").await?;
    let token = relay.tunnel("main", &["orders"]).await?;
    let mut connector = Connector::new(&token, &[&format!("orders={}", origin.url())])?;
    connector.env.push(("CULVERT_LOG".to_owned(), "trace".to_owned()));
    connector.start().await?;
    relay.up("orders").await?;
    relay.get("orders", "/").await?;
    let mut said = relay.output() + &connector.output();
    for args in [&["tunnel", "list"][..], &["token", "list"], &["connector", "list"], &["status"], &["check"]] {
        for json in [false, true] {
            let mut args = args.to_vec();
            if json && !matches!(args[0], "status" | "check") {
                args.push("--json");
            }
            let all = relay.cli(&args).await?;
            said += &all.stdout;
            said += &all.stderr;
        }
    }
    said += &connector.cli(&["check"]).await?.stdout;
    let mut secrets = vec![token.trim_start_matches("culvert_t1_").to_owned()];
    for directory in [relay.state(), connector.state()] {
        for file in files(directory) {
            if file.extension().is_some_and(|extension| extension == "key") {
                secrets.push(std::fs::read_to_string(&file).unwrap_or_default().trim().to_owned());
            }
        }
    }
    secrets.retain(|secret| secret.len() >= 20);
    assert!(secrets.len() >= 3, "too few secrets to look for: {}", secrets.len());
    for secret in secrets {
        assert!(!said.contains(&secret), "a secret was written");
    }
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
