//! What systemd is told (sd_notify(3)) and what it hands over (sd_listen_fds(3)).
//!
//! Must never fail a program that runs without systemd: then nobody is told, and nothing is handed over.

mod inherited;

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::load::Environment;

pub use inherited::{Inherited, Sockets};

/// Tells the service manager where the program stands.
#[derive(Debug, Default)]
pub struct Notifier {
    manager: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Reads `NOTIFY_SOCKET` and `WATCHDOG_USEC`.
    pub fn new(environment: &dyn Environment) -> Self {
        let manager = environment.var("NOTIFY_SOCKET").and_then(|name| connect(&name).ok());
        let ours = environment.var("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let watchdog = environment.var("WATCHDOG_USEC").filter(|_| ours).and_then(|text| text.parse().ok());
        Self { manager, watchdog: watchdog.filter(|us| *us > 0).map(Duration::from_micros) }
    }

    /// Up: listeners are bound, state is loaded.
    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\n{}", line(status)));
    }

    /// Reading the configuration again; to be followed by [`Notifier::ready`].
    pub fn reloading(&self) {
        // The manager must know that this came after its own signal (sd_notify(3), MONOTONIC_USEC).
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}\n", now.as_micros()));
    }

    /// On the way out.
    pub fn stopping(&self, status: &str) {
        self.tell(&format!("STOPPING=1\n{}", line(status)));
    }

    /// One line for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.tell(&line(status));
    }

    /// Alive.
    pub fn watchdog(&self) {
        self.tell("WATCHDOG=1\n");
    }

    /// How often to say so: half of what the manager waits.
    pub fn watchdog_every(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// Asks for more time to stop than the unit gives, counted from now.
    pub fn extend_stop(&self, more: Duration) {
        self.tell(&format!("EXTEND_TIMEOUT_USEC={}\n", more.as_micros()));
    }

    fn tell(&self, text: &str) {
        if let Some((socket, manager)) = &self.manager
            && let Err(error) = socket.send_to_addr(text.as_bytes(), manager)
        {
            tracing::debug!(%error, "the service manager does not listen");
        }
    }
}

fn line(status: &str) -> String {
    format!("STATUS={}\n", status.replace('\n', " "))
}

fn connect(name: &str) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.strip_prefix('@') {
        Some(hidden) => SocketAddr::from_abstract_name(hidden)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that hangs must not hang us.
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn told(manager: &UnixDatagram) -> String {
        let mut buffer = [0; 512];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn the_manager_is_told_each_step() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::new(&env(&[("NOTIFY_SOCKET", path.to_str().unwrap())]));
        notifier.ready("2 connectors");
        assert_eq!(told(&manager), "READY=1\nSTATUS=2 connectors\n");
        notifier.reloading();
        let text = told(&manager);
        let microseconds = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().trim_end();
        assert!(microseconds.parse::<u64>().unwrap() > 0);
        notifier.status("one\ntwo");
        assert_eq!(told(&manager), "STATUS=one two\n");
        notifier.watchdog();
        assert_eq!(told(&manager), "WATCHDOG=1\n");
        notifier.stopping("draining");
        assert_eq!(told(&manager), "STOPPING=1\nSTATUS=draining\n");
    }

    #[test]
    fn an_abstract_socket_is_spoken_to() {
        let name = format!("culvert-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Notifier::new(&env(&[("NOTIFY_SOCKET", &format!("@{name}"))])).watchdog();
        assert_eq!(told(&manager), "WATCHDOG=1\n");
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        Notifier::new(&env(&[])).ready("up");
        Notifier::new(&env(&[("NOTIFY_SOCKET", "/nonexistent/socket")])).ready("up");
    }

    #[test]
    fn the_watchdog_is_fed_at_twice_its_rate_and_only_by_the_process_it_watches() {
        let ours = std::process::id().to_string();
        let every = |pairs: &[(&str, &str)]| Notifier::new(&env(pairs)).watchdog_every();
        assert_eq!(every(&[("WATCHDOG_USEC", "30000000")]), Some(Duration::from_secs(15)));
        assert_eq!(every(&[("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", &ours)]), Some(Duration::from_secs(15)));
        assert_eq!(every(&[("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", "1")]), None);
        assert_eq!(every(&[("WATCHDOG_USEC", "0")]), None);
    }
}
