//! Which relay a command talks to.

use std::time::Duration;

use anyhow::Result;
use culvert_lab::Relay;
use culvert_lab::process;
use culvert_lab::skip::{self, Need};
use culvert_lab::{binary, spawner};

#[tokio::test]
async fn a_root_shells_command_reaches_the_running_services_registry_and_no_other() -> Result<()> {
    if skip::unless("a root shell's tunnel create", &[Need::Root]) {
        return Ok(());
    }
    // The service's directory, in a mount namespace of its own: /var/lib stands for a fresh one, owned by its user.
    let mut relay = Relay::new()?;
    let fake = relay.directory().join("var-lib");
    let service = fake.join("culvert-relay");
    std::fs::create_dir_all(&service)?;
    std::fs::set_permissions(&fake, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    std::fs::set_permissions(&service, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    std::os::unix::fs::chown(&service, Some(65_534), Some(65_534))?;
    let own_user = relay.directory().join(".local/state/culvert/relay");
    std::fs::create_dir_all(&own_user)?;
    std::fs::set_permissions(&own_user, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let script = format!("mount --bind {} /var/lib && exec \"$@\"", fake.display());
    let inside = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, "sh"].map(str::to_owned);
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"].map(str::to_owned);
    relay.prefix = [inside.to_vec(), user.to_vec()].concat();
    relay.set_state(std::path::Path::new("/var/lib/culvert-relay"));
    relay.use_public_copy()?;
    relay.start().await?;

    let mut shell = spawner::command(&inside[0]);
    shell.args(&inside[1..]).arg(binary::own("culvert-relay")?).args([
        "tunnel",
        "create",
        "main",
        "--service",
        "orders",
    ]);
    shell.env("HOME", relay.directory()).env_remove("CULVERT_RELAY_STATE_DIR").env_remove("XDG_STATE_HOME");
    let said = process::run("root shell", shell, None, Duration::from_secs(10)).await?;
    assert_eq!(said.status, 0, "{said:?}");
    assert!(said.stdout.starts_with("culvert_t1_"), "{said:?}");
    assert!(said.stderr.contains("/var/lib/culvert-relay"), "the directory used is not said: {said:?}");
    // The running relay knows it at once.
    let body = relay.ask("/readyz?service=orders").await?;
    assert_eq!(body.status, 503);
    assert!(own_user.read_dir()?.next().is_none(), "the shell's own directory was used");
    for entry in std::fs::read_dir(&service)?.flatten() {
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!(entry.metadata()?.uid(), 65_534, "{} belongs to another", entry.path().display());
    }
    Ok(())
}

#[tokio::test]
async fn without_any_directory_a_command_ends_1_and_names_where_it_looked() -> Result<()> {
    if std::path::Path::new("/var/lib/culvert-relay").exists() {
        skip::unless("a command without any relay", &[Need::Program("a machine without an installed relay")]);
        return Ok(());
    }
    let relay = Relay::new()?;
    let said = relay.cli_bare(&["tunnel", "list"]).await?;
    assert_eq!(said.status, 1, "{said:?}");
    for place in ["/var/lib/culvert-relay", &relay.directory().join(".local/state/culvert/relay").display().to_string()]
    {
        assert!(said.stderr.contains(place), "{place} is not named: {said:?}");
    }
    assert!(said.stdout.is_empty());
    Ok(())
}

#[tokio::test]
async fn commands_work_on_the_registry_itself_when_no_relay_runs() -> Result<()> {
    let mut relay = Relay::new()?;
    relay.env.push(("CULVERT_RELAY_WIREGUARD_ENDPOINTS".to_owned(), relay.endpoint.clone()));
    relay.start().await?;
    relay.tunnel("main", &["orders"]).await?;
    relay.terminate(Duration::from_secs(5)).await?;
    assert_eq!(relay.json(&["tunnel", "list"]).await?[0]["name"], "main");
    relay.tunnel("second", &["billing-*"]).await?;
    assert_eq!(relay.cli(&["status"]).await?.status, 1, "status of a relay that does not run");
    assert_eq!(relay.cli(&["ready"]).await?.status, 1);
    relay.start().await?;
    assert_eq!(relay.json(&["tunnel", "list"]).await?.as_array().map(Vec::len), Some(2));
    // Owners: an exact name belongs to its tunnel.
    let said = relay.cli(&["tunnel", "create", "third", "--service", "orders"]).await?;
    assert_eq!(said.status, 1, "{said:?}");
    assert!(said.stderr.contains("main"), "the owner is not named: {said:?}");
    Ok(())
}
