//! The examples that ask for the connector's certificate.

use std::process::Command;

use anyhow::{Result, ensure};
use culvert_lab::binary;
use culvert_lab::skip::{Need, unless};

use super::{Language, serving};

#[tokio::test]
async fn a_node_server_lets_in_who_has_the_connectors_certificate() -> Result<()> {
    let name = "a_node_server_lets_in_who_has_the_connectors_certificate";
    lets_in(Language::Node, "node-client-certificate.js", name).await
}

#[tokio::test]
async fn a_python_server_lets_in_who_has_the_connectors_certificate() -> Result<()> {
    let name = "a_python_server_lets_in_who_has_the_connectors_certificate";
    lets_in(Language::Python, "python-client-certificate.py", name).await
}

#[tokio::test]
async fn a_go_server_lets_in_who_has_the_connectors_certificate() -> Result<()> {
    let name = "a_go_server_lets_in_who_has_the_connectors_certificate";
    lets_in(Language::Go, "go-client-certificate.go", name).await
}

async fn lets_in(language: Language, file: &str, test: &str) -> Result<()> {
    if language.is_missing(test) || unless(test, &[Need::Program("openssl")]) {
        return Ok(());
    }
    let (ours, theirs) = (tempfile::tempdir()?, tempfile::tempdir()?);
    for directory in [&ours, &theirs] {
        let mut make = Command::new(binary::project().join("deploy/examples/origins/make-certificates.sh"));
        let made = make.arg(directory.path()).arg("ledger.internal").output()?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    // Of the right authority, and somebody else's.
    let sign = "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -keyout neighbour.key -out neighbour.csr \
                -subj /CN=neighbour -addext subjectAltName=DNS:neighbour -addext extendedKeyUsage=clientAuth && \
                openssl x509 -req -in neighbour.csr -CA ca.pem -CAkey ca.key -CAcreateserial -copy_extensions copy \
                -days 3 -out neighbour.pem";
    let signed = Command::new("sh").args(["-c", sign]).current_dir(ours.path()).output()?;
    ensure!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
    let (ours, theirs) = (ours.path().display().to_string(), theirs.path().display().to_string());
    let origin = language.start(file, &[("CERTIFICATES", &ours)]).await?;
    let shown = [
        ("known", format!("cert = \"{ours}/connector.pem\"\nkey = \"{ours}/connector.key\"\n")),
        ("neighbour", format!("cert = \"{ours}/neighbour.pem\"\nkey = \"{ours}/neighbour.key\"\n")),
        ("stranger", format!("cert = \"{theirs}/connector.pem\"\nkey = \"{theirs}/connector.key\"\n")),
        ("server", format!("cert = \"{ours}/origin.pem\"\nkey = \"{ours}/origin.key\"\n")),
        ("nobody", String::new()),
    ];
    let config = shown.iter().map(|(name, tls)| {
        format!(
            "[[service]]\nname = \"{name}\"\norigin = \"https://{}\"\n[service.tls]\nca = \"{ours}/ca.pem\"\n\
             server_name = \"ledger.internal\"\n{tls}",
            origin.at
        )
    });
    let (relay, _connector) = serving(&config.collect::<String>(), "", "known").await?;
    for (service, _) in shown {
        let answer = relay.get(service, "/").await?;
        let (status, text) = (answer.status.as_u16(), answer.text());
        let is_right = match service {
            "known" => (status, text.as_str()) == (200, "in\n"),
            _ => matches!(status, 403 | 502) && !text.contains("in\n"),
        };
        assert!(is_right, "{service}: {status} {text} {}", origin.process.output());
    }
    Ok(())
}
