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
/// The first after a pause is written at once, so that a relay that is killed then knows whom to call back; those that
/// follow it are collected for so long.
const COLLECT_FOR: Duration = Duration::from_millis(200);
/// What could not be written is tried again after so long.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Notes to be written.
#[derive(Default)]
pub(super) struct Notes {
    waiting: Mutex<Waiting>,
    some: Notify,
}

#[derive(Default)]
struct Waiting {
    notes: Vec<Note>,
    /// When to write.
    due: Option<Instant>,
    written: Option<Instant>,
}

impl Notes {
    /// Adds one.
    pub(super) fn add(&self, note: Note) {
        let mut waiting = self.lock();
        if waiting.notes.len() >= MOST {
            waiting.notes.drain(..MOST / 2);
        }
        waiting.notes.push(note);
        if waiting.due.is_none() {
            let now = Instant::now();
            waiting.due = Some(waiting.written.map_or(now, |written| now.max(written + COLLECT_FOR)));
            self.some.notify_one();
        }
    }

    /// Takes all that wait.
    pub(super) fn take(&self) -> Vec<Note> {
        let mut waiting = self.lock();
        (waiting.due, waiting.written) = (None, Some(Instant::now()));
        std::mem::take(&mut waiting.notes)
    }

    /// Takes back what could not be written: it comes before what was noticed since, as far as there is room.
    pub(super) fn give_back(&self, mut older: Vec<Note>) {
        let mut waiting = self.lock();
        let room = MOST.saturating_sub(waiting.notes.len());
        older.drain(..older.len().saturating_sub(room));
        older.append(&mut waiting.notes);
        waiting.notes = older;
        waiting.due = Some(Instant::now() + AGAIN_AFTER);
        self.some.notify_one();
    }

    /// Waits until some have waited for a moment. Cancel safe.
    pub(super) async fn due(&self) {
        loop {
            let due = self.lock().due;
            match due {
                Some(due) => return tokio::time::sleep_until(due).await,
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
    async fn the_first_note_is_due_at_once_and_the_next_a_moment_later_however_often_one_asks() {
        let notes = Notes::default();
        assert!(tokio::time::timeout(COLLECT_FOR * 10, notes.due()).await.is_err(), "nothing to write");
        let start = Instant::now();
        notes.add(note());
        notes.due().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(notes.take().len(), 1);
        notes.add(note());
        while tokio::time::timeout(COLLECT_FOR / 8, notes.due()).await.is_err() {
            notes.add(note());
        }
        assert_eq!(start.elapsed(), COLLECT_FOR);
        assert_eq!(notes.take().len(), 8);
        assert!(tokio::time::timeout(COLLECT_FOR * 10, notes.due()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_written_is_due_again_before_what_came_since_and_stays_bounded() {
        let notes = Notes::default();
        let numbered = |number| Note::PskConfirmed {
            connector: "con_aaaaaaaaaaaaaaaa".parse().unwrap(),
            relay: String::new(),
            epoch: number,
            alone: false,
        };
        notes.add(numbered(1));
        let taken = notes.take();
        notes.add(numbered(2));
        notes.give_back(taken);
        let start = Instant::now();
        notes.due().await;
        assert_eq!(start.elapsed(), AGAIN_AFTER);
        assert_eq!(notes.take(), [numbered(1), numbered(2)]);
        notes.add(numbered(3));
        notes.give_back(vec![numbered(0); 2 * MOST]);
        let kept = notes.take();
        assert_eq!((kept.len(), kept.last()), (MOST, Some(&numbered(3))), "the oldest are given up");
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
