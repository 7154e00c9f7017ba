//! Raw TCP services: bytes both ways, each side's end as it was, and a real PostgreSQL.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use culvert_lab::process::{Process, Said, run};
use culvert_lab::skip::{Need, unless};
use culvert_lab::{Connector, Relay, address, binary, wait};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A relay with a TCP listener that leads to a raw TCP origin through a connector.
struct Wired {
    relay: Relay,
    _connector: Connector,
    listen: SocketAddr,
}

impl Wired {
    async fn to(origin: SocketAddr, more: &str, drain: &[&str]) -> Result<Self> {
        let mut relay = Relay::new()?;
        let listen = address::at(relay.http.ip(), 31_432);
        relay.config(&format!(
            "[http]\nlisten = [\"{}\"]\naccess_log = \"{}\"\n[[tcp]]\nlisten = \"{listen}\"\nservice = \"db\"\n{more}",
            relay.http,
            relay.directory().join("access.log").display()
        ))?;
        relay.args.extend(drain.iter().map(|&arg| arg.to_owned()));
        relay.start().await?;
        let token = relay.tunnel("main", &["db"]).await?;
        let mut connector = Connector::new(&token, &[&format!("db=tcp://{origin}")])?;
        connector.start().await?;
        relay.up("db").await?;
        Ok(Self { relay, _connector: connector, listen })
    }

    /// The access log's lines, once there are so many.
    async fn log(&self, lines: usize) -> Result<Vec<serde_json::Value>> {
        let path = self.relay.directory().join("access.log");
        wait::until("the access log", Duration::from_secs(5), || async {
            let text = std::fs::read_to_string(&path).ok()?;
            let read: Vec<_> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            (read.len() >= lines).then_some(read)
        })
        .await
    }
}

/// An origin that reads until the end, then answers with all it read, once for each connection.
async fn echo_at_the_end() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let at = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                if stream.read_to_end(&mut all).await.is_ok() && !all.is_empty() {
                    let _ = stream.write_all(&all).await;
                    let _ = stream.shutdown().await;
                }
            });
        }
    });
    Ok(at)
}

#[tokio::test]
async fn bytes_pass_both_ways_and_half_a_close_is_half_a_close() -> Result<()> {
    let wired = Wired::to(echo_at_the_end().await?, "", &[]).await?;
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..20_u8 {
        let listen = wired.listen;
        callers.spawn(async move {
            let mut stream = TcpStream::connect(listen).await?;
            let sent: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8 ^ caller).collect();
            stream.write_all(&sent).await?;
            stream.shutdown().await?;
            let mut back = Vec::new();
            stream.read_to_end(&mut back).await?;
            ensure!(back == sent, "{} bytes came back", back.len());
            Ok(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    let lines = wired.log(20).await?;
    let line = lines.iter().find(|line| line["method"] == "TCP").context("a line")?;
    assert_eq!((&line["service"], &line["status"]), (&"db".into(), &101.into()), "{line}");
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&1_000_000.into(), &1_000_000.into()), "{line}");
    assert!(line["reason"].is_null() && line["connector"].is_string(), "{line}");
    let status = wired.relay.json(&["status"]).await?;
    let listeners = status["listeners"].as_array().context("listeners")?;
    assert!(listeners.iter().any(|one| one["what"] == "tcp" && one["address"] == wired.listen.to_string()), "{status}");
    Ok(())
}

#[tokio::test]
async fn what_is_cut_is_a_reset_and_never_a_clean_end() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let wired = Wired::to(listener.local_addr()?, "", &[]).await?;
    let mut caller = TcpStream::connect(wired.listen).await?;
    caller.write_all(b"hello").await?;
    let mut origin = loop {
        // Health checks connect too, and say nothing.
        let (mut stream, _) = listener.accept().await?;
        let mut said = [0; 5];
        if stream.read_exact(&mut said).await.is_ok() {
            break stream;
        }
    };
    origin.write_all(b"half an ans").await?;
    let mut half = [0; 11];
    caller.read_exact(&mut half).await?;
    nix::sys::socket::setsockopt(
        &origin,
        nix::sys::socket::sockopt::Linger,
        &nix::libc::linger { l_onoff: 1, l_linger: 0 },
    )?;
    drop(origin);
    let end = caller.read(&mut half).await;
    assert_eq!(end.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionReset));
    let line = wired.log(1).await?.remove(0);
    assert_eq!((&line["status"], &line["reason"]), (&101.into(), &"origin_closed".into()), "{line}");

    // And the other way round.
    let mut caller = TcpStream::connect(wired.listen).await?;
    caller.write_all(b"hello").await?;
    let mut origin = loop {
        let (mut stream, _) = listener.accept().await?;
        let mut said = [0; 5];
        if stream.read_exact(&mut said).await.is_ok() {
            break stream;
        }
    };
    nix::sys::socket::setsockopt(
        &caller,
        nix::sys::socket::sockopt::Linger,
        &nix::libc::linger { l_onoff: 1, l_linger: 0 },
    )?;
    drop(caller);
    let end = tokio::time::timeout(Duration::from_secs(5), origin.read(&mut half)).await?;
    assert_eq!(end.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionReset));
    let line = wired.log(2).await?.remove(1);
    assert!(line["reason"].is_null(), "a caller that breaks off is no failure of ours: {line}");
    Ok(())
}

#[tokio::test]
async fn without_a_connector_or_a_service_a_connection_is_reset_and_told() -> Result<()> {
    let mut relay = Relay::new()?;
    let (known, unknown) = (address::at(relay.http.ip(), 31_432), address::at(relay.http.ip(), 31_433));
    let log = relay.directory().join("access.log");
    relay.config(&format!(
        "[http]\nlisten = [\"{}\"]\naccess_log = \"{}\"\n[[tcp]]\nlisten = \"{known}\"\nservice = \"db\"\n\
         [[tcp]]\nlisten = \"{unknown}\"\nservice = \"nothing\"\n",
        relay.http,
        log.display()
    ))?;
    relay.start().await?;
    relay.tunnel("main", &["db"]).await?;
    for (at, reason) in [(known, "no_connector"), (unknown, "no_such_service")] {
        // The reset may be there before the connection is.
        let end = match TcpStream::connect(at).await {
            Ok(mut caller) => caller.read(&mut [0; 1]).await,
            Err(error) => Err(error),
        };
        assert_eq!(end.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionReset), "{reason}");
        wait::until("the line", Duration::from_secs(5), || async {
            let text = std::fs::read_to_string(&log).ok()?;
            text.lines().any(|line| line.contains("\"TCP\"") && line.contains(reason)).then_some(())
        })
        .await?;
    }
    let metrics = relay.ask("/metrics").await?.text();
    assert!(metrics.contains("culvert_errors_total{service=\"db\",reason=\"no_connector\"} 1"), "{metrics}");
    Ok(())
}

#[tokio::test]
async fn in_a_drain_an_open_connection_has_its_time_and_then_a_reset() -> Result<()> {
    let origin = echo_at_the_end().await?;
    let mut wired = Wired::to(origin, "", &["--drain-timeout", "2s", "--drain-streams", "1s"]).await?;
    let mut quick = TcpStream::connect(wired.listen).await?;
    let mut stays = TcpStream::connect(wired.listen).await?;
    quick.write_all(b"quick").await?;
    stays.write_all(b"stays").await?;
    // Both are through: the origin's health is not asked, its connections are.
    wait::until("two connections", Duration::from_secs(5), || async {
        let metrics = wired.relay.ask("/metrics").await.ok()?.text();
        metrics.contains("culvert_inflight_requests{service=\"db\"} 2").then_some(())
    })
    .await?;
    wired.relay.process()?.signal(nix::sys::signal::Signal::SIGTERM)?;
    wait::until("the drain", Duration::from_secs(5), || async {
        TcpStream::connect(wired.listen).await.is_err().then_some(())
    })
    .await?;
    quick.shutdown().await?;
    let mut back = Vec::new();
    quick.read_to_end(&mut back).await?;
    assert_eq!(back, b"quick", "what can end in a drain ends as ever");
    let end = tokio::time::timeout(Duration::from_secs(5), stays.read(&mut [0; 1])).await?;
    assert_eq!(end.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionReset));
    Ok(())
}

#[tokio::test]
async fn past_its_limit_a_tcp_service_refuses_and_a_proxy_header_is_demanded_where_it_is_asked_for() -> Result<()> {
    let limits = "proxy_protocol = true\n[service.db.limits]\nconcurrent = 1\nqueue = 0\n";
    let wired = Wired::to(echo_at_the_end().await?, limits, &[]).await?;
    let header = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 5432\r\n";
    let mut first = TcpStream::connect(wired.listen).await?;
    first.write_all(&[header, &b"first"[..]].concat()).await?;
    wait::until("the first", Duration::from_secs(5), || async {
        let metrics = wired.relay.ask("/metrics").await.ok()?.text();
        metrics.contains("culvert_inflight_requests{service=\"db\"} 1").then_some(())
    })
    .await?;
    let mut second = TcpStream::connect(wired.listen).await?;
    second.write_all(header).await?;
    assert!(second.read(&mut [0; 1]).await.is_err(), "a second one came in");
    let lines = wired.log(1).await?;
    assert!(lines.iter().any(|line| line["reason"] == "overloaded" && line["status"] == 503), "{lines:?}");
    let mut without = TcpStream::connect(wired.listen).await?;
    without.write_all(b"no header at all").await?;
    assert!(matches!(without.read(&mut [0; 1]).await, Ok(0) | Err(_)), "no header was needed");
    first.shutdown().await?;
    let mut back = Vec::new();
    first.read_to_end(&mut back).await?;
    assert_eq!(back, b"first", "the header stays here");
    Ok(())
}

#[tokio::test]
async fn nobody_reaches_a_raw_service_through_the_http_front() -> Result<()> {
    let wired = Wired::to(echo_at_the_end().await?, "", &[]).await?;
    let ask = b"GET / HTTP/1.1\r\nhost: db\r\nconnection: upgrade\r\nupgrade: culvert-tcp\r\nculvert-peer: 1.1.1.1:1 2.2.2.2:2\r\n\r\n";
    let answer = culvert_lab::client::raw(wired.relay.http, ask, Duration::from_secs(3)).await?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("upgrade_refused"), "{answer}");
    let plain = wired.relay.get("db", "/").await?;
    assert_eq!(plain.status, 404, "{}", plain.text());
    Ok(())
}

/// A PostgreSQL of its own, which does not run as root.
struct Postgres {
    _process: Process,
    at: SocketAddr,
}

impl Postgres {
    async fn start(directory: &Path) -> Result<Self> {
        let programs =
            std::fs::read_dir("/usr/lib/postgresql")?.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
        let programs = programs.max().context("PostgreSQL's programs")?;
        let data = directory.join("postgres");
        std::fs::create_dir(&data)?;
        // Whoever it runs as has to come to its files.
        std::fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let user = if nix::unistd::geteuid().is_root() { nix::unistd::User::from_name("nobody")? } else { None };
        if let Some(user) = &user {
            nix::unistd::chown(&data, Some(user.uid), Some(user.gid))?;
        }
        let command = |program: &str| {
            let program = programs.join(program);
            let mut command = match &user {
                Some(_) => Command::new(binary::on_path("setpriv").unwrap_or_else(|| "setpriv".into())),
                None => Command::new(&program),
            };
            if user.is_some() {
                command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(&program);
            }
            command.current_dir("/");
            command
        };
        let mut init = command("initdb");
        init.args(["--auth=trust", "--no-sync", "--username=culvert", "-D"]).arg(&data);
        let said = run("initdb", init, None, Duration::from_secs(60)).await?;
        ensure!(said.status == 0, "{said:?}");
        let at = SocketAddr::new(address::own_loopback(), 31_432);
        let mut serve = command("postgres");
        serve.arg("-D").arg(&data).args(["-c", "fsync=off", "-c", "unix_socket_directories="]);
        serve.arg("-h").arg(at.ip().to_string()).arg("-p").arg(at.port().to_string());
        let process = Process::start("postgres", serve)?;
        let postgres = Self { _process: process, at };
        wait::until("PostgreSQL", Duration::from_secs(20), || async {
            let said = psql(postgres.at, "select 1", None).await.ok()?;
            (said.status == 0).then_some(())
        })
        .await?;
        Ok(postgres)
    }
}

async fn psql(at: SocketAddr, sql: &str, input: Option<&[u8]>) -> Result<Said> {
    let mut command = Command::new("psql");
    command.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "culvert", "-d", "postgres", "-c", sql]);
    command.arg("-h").arg(at.ip().to_string()).arg("-p").arg(at.port().to_string()).env("PGCONNECT_TIMEOUT", "10");
    run("psql", command, input, Duration::from_secs(30)).await
}

#[tokio::test]
async fn a_real_database_works_through_the_tunnel() -> Result<()> {
    let needs = [Need::Program("psql"), Need::Program("pg_lsclusters"), Need::Program("setpriv")];
    if unless("a real database works through the tunnel", &needs) {
        return Ok(());
    }
    let directory = tempfile::Builder::new().prefix("culvert-postgres-").tempdir()?;
    let postgres = Postgres::start(directory.path()).await?;
    let wired = Wired::to(postgres.at, "", &[]).await?;
    let rows: String = (0..20_000).map(|row| format!("{row}\tsome text for row {row}\n")).collect();
    for (sql, input, expected) in [
        ("create table things (id int, words text)", None, "CREATE TABLE"),
        ("copy things from stdin", Some(rows.as_bytes()), "COPY 20000"),
        ("select count(*), sum(id) from things", None, "20000|199990000"),
        ("select sum(length(words)) from (select repeat(words, 50) as words from things) t", None, ""),
    ] {
        let said = psql(wired.listen, sql, input).await?;
        ensure!(said.status == 0 && said.stdout.contains(expected), "{sql}: {said:?}");
    }
    let said = psql(wired.listen, "select id, repeat('x', 1000) from things", None).await?;
    ensure!(said.stdout.lines().count() == 20_000, "{} rows", said.stdout.lines().count());
    let said = psql(wired.listen, "select 1/0", None).await?;
    ensure!(said.status != 0 && said.stderr.contains("division by zero"), "{said:?}");
    let lines = wired.log(6).await?;
    ensure!(lines.iter().all(|line| line["status"] == 101 && line["reason"].is_null()), "{lines:?}");
    Ok(())
}
