//! systemd's part of socket activation: a listening socket that outlives the process it is handed to.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::spawner;

/// Holds a listener; callers wait in its backlog while no process accepts.
#[derive(Debug)]
pub struct Activator {
    listener: TcpListener,
    name: String,
}

impl Activator {
    /// Listens at `at`; `name` is what `FileDescriptorName=` says in the socket unit.
    ///
    /// # Errors
    /// It could not bind.
    pub fn listen(at: SocketAddr, name: &str) -> Result<Self> {
        let listener = TcpListener::bind(at).with_context(|| format!("bind {at}"))?;
        // The descriptor's flags are shared with whoever accepts.
        listener.set_nonblocking(true)?;
        Ok(Self { listener, name: name.to_owned() })
    }

    /// Where callers connect.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// A command that gets the listener as descriptor 3 (sd_listen_fds(3)).
    ///
    /// The shell puts its own process id into `LISTEN_PID` and then becomes the program, which nobody else can do
    /// between fork and exec without unsafe code.
    ///
    /// # Errors
    /// The descriptor could not be copied.
    pub fn command(&self, program: &std::path::Path) -> Result<Command> {
        let copy: OwnedFd = self.listener.try_clone()?.into();
        let mut command = spawner::command("/bin/sh");
        command
            .arg("-c")
            .arg(r#"LISTEN_PID=$$ exec "$0" "$@" 3<&0 </dev/null"#)
            .arg(program)
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDNAMES", &self.name)
            .stdin(Stdio::from(copy));
        Ok(command)
    }
}
