//! The first thing anybody tries.

use std::net::{TcpListener, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use culvert_lab::process::{Process, code};
use culvert_lab::{binary, spawner};
use nix::sys::signal::Signal;

async fn dev(args: &[&str]) -> Result<(Process, String)> {
    let mut command = spawner::command(binary::own("culvert-relay")?);
    command.arg("dev").args(args).env("CULVERT_LOG_FORMAT", "human");
    let mut process = Process::start("dev", command)?;
    let line = process.line("curl ", Duration::from_secs(20)).await?;
    let start = line.find("curl ").context("no curl")?;
    Ok((process, line[start..].trim_end_matches('`').to_owned()))
}

fn answer(curl: &str) -> Result<String> {
    let output = Command::new("sh").arg("-c").arg(format!("{curl} -sS --max-time 10")).output()?;
    assert!(output.status.success(), "{curl}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test]
async fn dev_prints_a_line_that_works_with_its_ports_taken_and_twice_at_once() -> Result<()> {
    // Whoever holds them already serves the purpose as well.
    let _http = TcpListener::bind("127.0.0.1:8080");
    let _admin = TcpListener::bind("127.0.0.1:9480");
    let _connector = TcpListener::bind("127.0.0.1:9481");
    let _udp = UdpSocket::bind("0.0.0.0:51820");
    let (mut first, first_line) = dev(&[]).await?;
    let (mut second, second_line) = dev(&[]).await?;
    assert_ne!(first_line, second_line, "both print the same port");
    for line in [&first_line, &second_line] {
        assert!(!answer(line)?.is_empty(), "{line}");
    }
    for process in [&mut first, &mut second] {
        process.signal(Signal::SIGINT)?;
        assert_eq!(code(process.end(Duration::from_secs(10)).await?), 0, "{}", process.output());
    }
    Ok(())
}

#[tokio::test]
async fn dev_serves_what_it_is_given() -> Result<()> {
    let origin = culvert_lab::Origin::start("mine").await?;
    let (mut process, line) = dev(&["--service", &format!("orders={}", origin.url())]).await?;
    assert!(line.contains("orders"), "{line}");
    assert_eq!(answer(&line)?, "hello from mine\n");
    process.signal(Signal::SIGTERM)?;
    assert_eq!(code(process.end(Duration::from_secs(10)).await?), 0);
    Ok(())
}
