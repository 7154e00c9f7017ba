//! What `deploy/` ships is true: examples parse, units are as hardened as they say.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use culvert_lab::skip::{self, Need};
use culvert_lab::{Connector, Relay, binary};

fn examples(kind: &str) -> Result<Vec<PathBuf>> {
    let directory = binary::project().join("deploy/examples");
    let entries = std::fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
    let is_of_kind = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extension == "toml")
            && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(kind))
    };
    Ok(entries.flatten().map(|entry| entry.path()).filter(is_of_kind).collect())
}

#[tokio::test]
async fn every_example_is_a_configuration_that_check_accepts() -> Result<()> {
    let relay = Relay::new()?;
    let connector = Connector::new("", &[])?;
    let (relays, connectors) = (examples("relay")?, examples("connector")?);
    assert!(!relays.is_empty() && !connectors.is_empty());
    // origins/ is for origins: origin_examples.rs and proof.rs run it.
    let all = std::fs::read_dir(binary::project().join("deploy/examples"))?.flatten();
    let all = all.filter(|entry| entry.path().is_file()).count();
    assert_eq!(all, relays.len() + connectors.len(), "an example that no test parses");
    for path in relays {
        let said = relay.cli(&["check", "--config", &path.display().to_string()]).await?;
        assert_eq!(said.status, 0, "{}: {said:?}", path.display());
    }
    let mut connector = connector;
    connector.env.extend([("ORDERS_KEY", "an-example")].map(|(name, value)| (name.to_owned(), value.to_owned())));
    for path in connectors {
        let said = connector.cli(&["check", "--config", &path.display().to_string()]).await?;
        assert_eq!(said.status, 0, "{}: {said:?}", path.display());
        assert!(!said.stdout.contains("an-example"), "check shows a secret: {said:?}");
    }
    Ok(())
}

#[tokio::test]
async fn every_service_that_the_page_for_origins_shows_is_one_that_check_accepts() -> Result<()> {
    let test = "every_service_that_the_page_for_origins_shows_is_one_that_check_accepts";
    if skip::unless(test, &[Need::Program("openssl")]) {
        return Ok(());
    }
    let origins = binary::project().join("deploy/examples/origins");
    let page = std::fs::read_to_string(origins.join("README.md"))?;
    let shown: Vec<&str> = page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(shown.len() >= 3, "{shown:?}");
    let connector = Connector::new("", &[])?;
    let made = Command::new(origins.join("make-certificates.sh"))
        .arg(connector.directory())
        .arg("ledger.internal")
        .output()?;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::write(connector.directory().join("orders.key"), "an-example\n")?;
    let file = connector.directory().join("connector.toml");
    for service in &shown {
        std::fs::write(&file, service)?;
        let said = connector.cli(&["check", "--config", &file.display().to_string()]).await?;
        assert_eq!(said.status, 0, "{service}: {said:?}");
    }
    // And every server's file is in its table, which names none that is not there.
    let servers = ["nginx-", "express-", "node-", "python-", "go-"];
    for entry in std::fs::read_dir(&origins)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_told = page.contains(&format!("`{name}`"));
        assert!(is_told || !servers.iter().any(|server| name.starts_with(server)), "README.md does not tell of {name}");
    }
    for name in
        page.split('`').filter(|word| [".conf", ".js", ".mjs", ".py", ".go"].iter().any(|end| word.ends_with(end)))
    {
        assert!(origins.join(name).exists(), "{name}");
    }
    Ok(())
}

#[test]
fn every_systemd_unit_is_exposed_less_than_two_of_ten() -> Result<()> {
    if skip::unless("systemd-analyze security", &[Need::Program("systemd-analyze")]) {
        return Ok(());
    }
    let directory = binary::project().join("deploy/systemd");
    for unit in ["culvert-relay.service", "culvert-connector.service"] {
        let path = directory.join(unit);
        let text = std::fs::read_to_string(&path)?;
        for line in
            ["DynamicUser=yes", "RestartPreventExitStatus=2 78", "CapabilityBoundingSet=", "NoNewPrivileges=yes"]
        {
            assert!(text.lines().any(|own| own == line), "{unit} has no {line}");
        }
        let output = Command::new("systemd-analyze")
            .args(["security", "--no-pager", "--offline=true", "--threshold=20"])
            .arg(&path)
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("Overall exposure"), "{unit}: {said}");
        // systemd looks into UNIT.d beside the unit by itself: the drop-in is in what was just judged.
        let has_tun = said.contains("/dev/net/tun:rw") && said.contains("Service may create user namespaces");
        assert_eq!(has_tun, directory.join(format!("{unit}.d")).exists(), "{unit}: {said}");
    }
    Ok(())
}
