//! As a hardened container runs it: uid 65534, no capabilities, no_new_privs, read-only root, no IPv6, a token of 0644.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use culvert_lab::skip::{self, Need};
use culvert_lab::{Connector, Namespace, Origin, Relay, client, wait};

/// Everything read-only but `writable`, nothing allowed, nobody's user.
fn cage(namespace: &Namespace, writable: Option<&Path>) -> Vec<String> {
    let keep = writable.map(|path| format!("mount --bind {0} {0} && ", path.display())).unwrap_or_default();
    let script = format!("{keep}mount -o remount,bind,ro / && exec \"$@\"");
    let mut prefix = namespace.prefix();
    prefix.extend(["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, "sh"].map(str::to_owned));
    prefix.extend(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", "--inh-caps=-all"]
            .map(str::to_owned),
    );
    prefix.push("--bounding-set=-all".to_owned());
    prefix
}

#[tokio::test]
async fn both_ends_run_as_nobody_without_capabilities_on_a_read_only_root_without_ipv6() -> Result<()> {
    if skip::unless("uid 65534 on a read-only root", &[Need::Root, Need::Program("setpriv")]) {
        return Ok(());
    }
    let namespace = Namespace::new("cage")?;
    namespace.sysctl("net.ipv6.conf.all.disable_ipv6=1")?;
    let origin = Origin::start_at("caged", ([127, 0, 0, 1], 8081).into(), Some(&namespace)).await?;

    let mut relay = Relay::within(&namespace, [127, 0, 0, 1].into())?;
    let state = relay.state().to_path_buf();
    std::fs::create_dir(&state)?;
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o700))?;
    std::os::unix::fs::chown(&state, Some(65_534), Some(65_534))?;
    relay.prefix = cage(&namespace, Some(&state));
    relay.use_public_copy()?;
    // The defaults listen on IPv6 too; here there is none.
    relay.listen_everywhere();
    relay.launch()?;
    let http = relay.http;
    let answers = |path: &'static str, host: &'static str, to: std::net::SocketAddr| {
        let namespace = &namespace;
        async move {
            let waiting = move || async move {
                wait::until(path, Duration::from_secs(15), || async {
                    let answer = client::get(to, host, path).await.ok()?;
                    (answer.status == 200).then(|| answer.text())
                })
                .await
            };
            namespace.within(waiting).await
        }
    };
    answers("/readyz", "127.0.0.1", relay.admin).await.with_context(|| relay.last_words())?;
    let warned = relay.output().lines().filter(|line| line.contains("IPv6") || line.contains("[::]")).count();
    assert!(warned <= 2, "a missing IPv6 is said in one line:\n{}", relay.output());
    let token = relay.tunnel("main", &["orders"]).await?;

    // A mounted secret: world-readable, root's own.
    let mut connector =
        Connector::within(&namespace, "", &[&format!("orders={}", origin.url()), "extra=http://127.0.0.1:8081"])?;
    connector.env.clear();
    let secret = connector.directory().join("token");
    std::fs::write(&secret, format!("{token}\n"))?;
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644))?;
    std::fs::set_permissions(connector.directory(), std::fs::Permissions::from_mode(0o755))?;
    connector.env.push(("CULVERT_TOKEN_FILE".to_owned(), secret.display().to_string()));
    connector.args.push("--ephemeral".to_owned());
    connector.prefix = cage(&namespace, None);
    connector.no_state();
    connector.use_public_copy()?;
    connector.launch()?;
    let text = answers("/", "orders", http).await;
    let text = text.with_context(|| format!("{}\n{}", relay.last_words(), connector.last_words()))?;
    assert_eq!(text, "hello from caged\n");
    let status = std::fs::read_to_string(format!("/proc/{}/status", connector.process()?.id()))?;
    for line in ["Uid:\t65534", "NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"] {
        assert!(status.contains(line), "not {line}:\n{status}");
    }
    let refused = relay.json(&["connector", "list"]).await?;
    let listed = refused[0]["services"].to_string();
    assert!(listed.contains("orders"), "{listed}");
    assert!(connector.process()?.runs());
    Ok(())
}
