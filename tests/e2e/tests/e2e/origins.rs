//! Origins behind TLS, through both binaries: what callers and operators are told, and files that change.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use culvert_lab::nginx::Nginx;
use culvert_lab::skip::{Need, unless};
use culvert_lab::{Connector, Relay, address, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PATIENCE: Duration = Duration::from_secs(15);

/// Makes `NAME-ca.pem`, and `NAME.pem` and `NAME.key` for 127.0.0.0/8's `ip`.
fn certify(directory: &Path, name: &str, ip: &str) -> Result<()> {
    let script = format!(
        "set -e; new='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'\n\
         openssl req -x509 $new -keyout {name}-ca.key -out {name}-ca.pem -days 30 -subj /CN={name}-ca\n\
         openssl req $new -keyout {name}.key -out {name}.csr -subj /CN={name} -addext subjectAltName=IP:{ip}\n\
         openssl x509 -req -in {name}.csr -CA {name}-ca.pem -CAkey {name}-ca.key -copy_extensions copy -days 30 -out {name}.pem"
    );
    let made = Command::new("sh").args(["-c", &script]).current_dir(directory).output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}

/// Puts a file in the place of another as a whole.
fn replace(from: &Path, to: &Path) -> Result<()> {
    let next = to.with_extension("next");
    std::fs::copy(from, &next)?;
    Ok(std::fs::rename(next, to)?)
}

#[tokio::test]
async fn an_origins_new_authority_is_trusted_without_a_restart_and_its_lack_is_told() -> Result<()> {
    let needs = [Need::Program("nginx"), Need::Program("openssl")];
    if unless("an_origins_new_authority_is_trusted_without_a_restart_and_its_lack_is_told", &needs) {
        return Ok(());
    }
    let files = tempfile::tempdir()?;
    let file = |name: &str| files.path().join(name);
    let at = address::at(address::own_loopback(), 31_443);
    for name in ["old", "new"] {
        certify(files.path(), name, &at.ip().to_string())?;
    }
    let shown = files.path().display();
    let show = |name: &str| -> Result<()> {
        replace(&file(&format!("{name}.pem")), &file("site.pem"))?;
        replace(&file(&format!("{name}.key")), &file("site.key"))
    };
    show("old")?;
    let site = format!(
        "server {{ listen {at} ssl http2; ssl_certificate {shown}/site.pem; ssl_certificate_key {shown}/site.key; \
         location / {{ return 200 \"$server_protocol\"; }} }}"
    );
    let nginx = Nginx::start(None, at, &site).await?;
    replace(&file("old-ca.pem"), &file("ca.pem"))?;

    let mut relay = Relay::new()?;
    relay.start().await?;
    let token = relay.tunnel("main", &["orders"]).await?;
    let mut connector = Connector::new(&token, &[])?;
    connector.config(&format!(
        "[[service]]\nname = \"orders\"\norigin = \"https://{at}\"\n[service.tls]\nca = \"{shown}/ca.pem\"\n\
         [service.health]\ninterval = \"500ms\"\n"
    ))?;
    connector.start().await?;
    relay.up("orders").await?;
    let answer = relay.get("orders", "/").await?;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "HTTP/2.0"));

    show("new")?;
    let master = nginx.ids().first().copied().unwrap_or_default();
    kill(Pid::from_raw(i32::try_from(master)?), Signal::SIGHUP)?;
    let refused = wait::until("the new certificate is refused", PATIENCE, || async {
        relay.get("orders", "/").await.ok().filter(|answer| answer.status == 502)
    })
    .await?;
    let told = refused.header("proxy-status").to_owned();
    assert_eq!(told, "culvert-relay; error=tls_certificate_error; details=\"origin_tls\"");
    assert!(!refused.text().contains(&at.ip().to_string()), "{}", refused.text());
    wait::until("status says what to do", PATIENCE, || async {
        let status = connector.cli(&["status"]).await.ok()?.stdout;
        (status.contains("origin_tls_certificate") && status.contains("ca in [service.tls]")).then_some(())
    })
    .await?;

    std::fs::write(file("ca.pem"), "not a certificate\n")?;
    connector.process()?.line("nothing was changed", PATIENCE).await?;
    replace(&file("new-ca.pem"), &file("ca.pem"))?;
    wait::until("the new authority is trusted", PATIENCE, || async {
        relay.get("orders", "/").await.ok().filter(|answer| answer.status == 200)
    })
    .await?;
    Ok(())
}
