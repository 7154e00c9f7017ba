//! The processes that hold a crowd, each at an address of its own: one process has too few descriptors for 10,000
//! connectors, and the relay's bounds for one address are not what many hosts meet.

use std::io::Write as _;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use culvert_lab::{Namespace, spawner, usage};

use crate::crowd;
use crate::site::FETCH;

/// Connectors of one process.
const EACH: usize = 500;
/// Users of the processes, and tables of routes: whoever has them on the machine is not in the namespace.
const USERS: u32 = 71_000;
/// The way to the gateway's side, and the network of the processes' addresses.
const DEVICES: [&str; 2] = ["toward-vpc", "toward-gw"];
const GATEWAYS: &str = "10.99.0.0/24";
const CROWD: [&str; 2] = ["10.99.1.0/24", "10.99.1."];

/// Some processes full of connectors. Dropped: ended.
pub(super) struct Crowd {
    pub(super) connectors: usize,
    started: usize,
    processes: Vec<Child>,
}

impl Crowd {
    /// Starts the processes, without a connector yet.
    pub(super) fn start(
        gateway: &Namespace,
        private: &Namespace,
        connectors: usize,
        service: &str,
        token: &str,
    ) -> Result<Self> {
        // What is there already, from a crowd before, says so.
        let _ = gateway.ip(&["route", "add", CROWD[0], "dev", DEVICES[0]]);
        let mut crowd = Self { connectors, started: 0, processes: Vec::new() };
        for number in 1..=u32::try_from(connectors.div_ceil(EACH)).unwrap_or(u32::MAX) {
            let user = USERS + number;
            address(private, number, user)?;
            crowd.processes.push(process(private, service, token, Some(user))?);
        }
        Ok(crowd)
    }

    /// One process with one connector, at the private side's own address.
    pub(super) fn one(private: &Namespace, service: &str, token: &str) -> Result<Self> {
        let mut crowd = Self { connectors: 1, started: 0, processes: vec![process(private, service, token, None)?] };
        crowd.start_up_to(1)?;
        Ok(crowd)
    }

    /// Starts connectors until so many were, by turns in each process.
    pub(super) fn start_up_to(&mut self, count: usize) -> Result<()> {
        while self.started < count.min(self.connectors) {
            let process = self.started % self.processes.len();
            let asks = self.processes.get_mut(process).and_then(|process| process.stdin.as_mut());
            asks.context("a process of the crowd takes no orders")?.write_all(b"+").context("ask for a connector")?;
            self.started += 1;
        }
        Ok(())
    }

    pub(super) fn cpu(&self) -> Result<Duration> {
        self.processes.iter().map(|process| usage::cpu(process.id())).sum()
    }

    pub(super) fn rss_bytes(&self) -> Result<u64> {
        self.processes.iter().map(|process| Ok(usage::of(process.id())?.rss_bytes)).sum()
    }

    pub(super) fn each(&self, total: f64) -> f64 {
        total / self.connectors.max(1) as f64
    }
}

/// Has what this user sends to the gateway's side leave from an address of its own.
fn address(private: &Namespace, number: u32, user: u32) -> Result<()> {
    let (own, users, table) = (format!("{}{number}", CROWD[1]), format!("{user}-{user}"), user.to_string());
    private.ip(&["addr", "add", &format!("{own}/32"), "dev", DEVICES[1]])?;
    private.ip(&["rule", "add", "uidrange", &users, "lookup", &table])?;
    private.ip(&["route", "add", GATEWAYS, "dev", DEVICES[1], "src", &own, "table", &table])?;
    Ok(())
}

fn process(private: &Namespace, service: &str, token: &str, user: Option<u32>) -> Result<Child> {
    let own = std::env::current_exe().context("where is this program?")?;
    let mut command = spawner::command("nsenter");
    command.args(private.prefix().iter().skip(1)).arg(own).arg("crowd");
    command.args(["--service", &format!("{service}=http://127.0.0.1:{FETCH}")]);
    command.args(user.map(|user| format!("--user={user}")));
    command.env(crowd::TOKEN, token).stdin(Stdio::piped()).stdout(Stdio::null());
    spawner::spawn(command)
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
