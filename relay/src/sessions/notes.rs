//! What was noticed about connectors and has to be written: collected for a moment, so that many cost one transaction.
//!
//! Must never grow without a bound: past [`MOST`] the oldest are given up, the next handshake tells them again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::registry::Note;

/// So many may wait while the database is away.
const MOST: usize = 65_536;
/// Collected for so long.
const COLLECT_FOR: Duration = Duration::from_millis(200);

/// Notes to be written.
#[derive(Default)]
pub(super) struct Notes {
    waiting: Mutex<Waiting>,
    some: Notify,
}

#[derive(Default)]
struct Waiting {
    notes: Vec<Note>,
    since: Option<Instant>,
}

impl Notes {
    /// Adds one.
    pub(super) fn add(&self, note: Note) {
        let mut waiting = self.lock();
        if waiting.notes.len() >= MOST {
            waiting.notes.drain(..MOST / 2);
        }
        waiting.notes.push(note);
        if waiting.since.is_none() {
            waiting.since = Some(Instant::now());
            self.some.notify_one();
        }
    }

    /// Takes all that wait.
    pub(super) fn take(&self) -> Vec<Note> {
        let mut waiting = self.lock();
        waiting.since = None;
        std::mem::take(&mut waiting.notes)
    }

    /// Waits until some have waited for a moment. Cancel safe.
    pub(super) async fn due(&self) {
        loop {
            let since = self.lock().since;
            match since {
                Some(since) => return tokio::time::sleep_until(since + COLLECT_FOR).await,
                None => self.some.notified().await,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use culvert_model::id::ConnectorId;

    use super::*;

    fn note() -> Note {
        Note::Handshake { connector: ConnectorId::new(), at: std::time::SystemTime::UNIX_EPOCH }
    }

    #[tokio::test(start_paused = true)]
    async fn notes_are_due_a_moment_after_the_first_however_often_one_asks() {
        let notes = Notes::default();
        let start = Instant::now();
        assert!(tokio::time::timeout(COLLECT_FOR * 10, notes.due()).await.is_err(), "nothing to write");
        notes.add(note());
        let added = Instant::now();
        while tokio::time::timeout(COLLECT_FOR / 8, notes.due()).await.is_err() {
            notes.add(note());
        }
        assert_eq!(added.elapsed().as_millis(), COLLECT_FOR.as_millis());
        assert!(added > start);
        assert_eq!(notes.take().len(), 8);
        assert!(tokio::time::timeout(COLLECT_FOR * 10, notes.due()).await.is_err());
    }

    #[test]
    fn notes_that_cannot_be_written_stay_bounded() {
        let notes = Notes::default();
        for _ in 0..2 * MOST {
            notes.add(Note::PskConfirmed {
                connector: "con_aaaaaaaaaaaaaaaa".parse().unwrap(),
                relay: String::new(),
                epoch: 1,
                alone: false,
            });
        }
        assert!(notes.take().len() <= MOST);
    }
}
