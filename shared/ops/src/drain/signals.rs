//! What the signals of a host mean: end, end now, read the configuration again.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::{Drain, Plan};
use crate::task::{Task, spawn};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT.
    End,
    /// SIGHUP.
    Reload,
}

/// The signals of this process.
#[derive(Debug)]
pub struct Signals {
    received: mpsc::Receiver<Signal>,
    _listens: Option<Task<()>>,
}

impl Signals {
    /// Takes SIGTERM, SIGINT and SIGHUP from the system's hands: from now on they end nothing by themselves.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn install() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let (send, received) = mpsc::channel(8);
        let listens = spawn("ops.signals", async move {
            loop {
                let signal = tokio::select! {
                    Some(()) = terminate.recv() => Signal::End,
                    Some(()) = interrupt.recv() => Signal::End,
                    Some(()) = hang_up.recv() => Signal::Reload,
                    else => return,
                };
                if send.send(signal).await.is_err() {
                    return;
                }
            }
        });
        Ok(Self { received, _listens: Some(listens) })
    }

    /// Signals that somebody sends by hand: for `dev` and tests.
    pub fn by_hand() -> (mpsc::Sender<Signal>, Self) {
        let (send, received) = mpsc::channel(8);
        (send, Self { received, _listens: None })
    }

    /// The next one. Cancel safe.
    pub async fn next(&mut self) -> Option<Signal> {
        self.received.recv().await
    }
}

/// Does what signals say: the first end begins the drain, the second stops it, a reload goes to `reload` (one that is
/// already waiting there is enough).
pub async fn obey(mut signals: Signals, drain: Drain, plan: Plan, reload: mpsc::Sender<()>) {
    while let Some(signal) = signals.next().await {
        match signal {
            Signal::Reload => {
                let _ = reload.try_send(());
            }
            Signal::End if drain.is_draining() => {
                tracing::info!("ending at once");
                drain.stop();
            }
            Signal::End => {
                tracing::info!(in_flight = drain.in_flight(), "draining");
                drain.begin(plan, tokio::time::Instant::now().into_std());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal as Number, raise};

    use super::*;

    #[tokio::test]
    async fn the_hosts_signals_arrive_as_what_they_ask_for() {
        let mut signals = Signals::install().unwrap();
        for (number, asked) in
            [(Number::SIGHUP, Signal::Reload), (Number::SIGTERM, Signal::End), (Number::SIGINT, Signal::End)]
        {
            raise(number).unwrap();
            assert_eq!(signals.next().await, Some(asked));
        }
    }
}
