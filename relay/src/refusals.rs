//! Refused attempts on their way into the audit trail: the first of a kind at once, those that follow it as a count.
//!
//! Must never let somebody who is refused fill the disk or the reader's screen: kinds, rows a minute and bytes a row are bounded,
//! and what others said is stripped of everything that is no plain text.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use crate::registry::{AuditRow, Registry};

/// How often repeats of one kind are worth a row.
const EVERY: Duration = Duration::from_secs(60);
/// Rows in that time, whoever is refused.
const ROWS: u32 = 30;
/// Kinds that are told apart.
const KINDS: usize = 1024;
/// Rows that wait while the database is away.
const WAITING: usize = 256;
/// Characters of a row's detail.
const DETAIL: usize = 200;

/// An attempt that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// What was tried, as `connector.refused`.
    pub(crate) action: &'static str,
    /// Who tried, as far as that is known.
    pub(crate) actor: String,
    /// With which token, key or gateway, or on what: attempts of one action and subject are one kind.
    pub(crate) subject: String,
    /// Why it was refused, and from where.
    pub(crate) detail: String,
}

/// A place to tell refused attempts to; clones speak of the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Refusals(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    some: Notify,
}

#[derive(Debug, Default)]
struct State {
    book: Book,
    waiting: Vec<AuditRow>,
}

/// What was refused lately, and what of it has no row yet.
#[derive(Debug, Default)]
struct Book {
    kinds: HashMap<(&'static str, String), Kind>,
    /// Rows since then.
    rows: (Option<Instant>, u32),
    /// Attempts that no row speaks of, because there were too many.
    untold: u64,
}

#[derive(Debug)]
struct Kind {
    told: Instant,
    last: Attempt,
    more: u64,
}

impl Refusals {
    /// Takes note of one; it is written by [`Refusals::write`].
    pub(crate) fn note(&self, attempt: Attempt) {
        let row = {
            let mut state = self.lock();
            let row = state.book.note(attempt, Instant::now());
            row.is_some_and(|attempt| state.wait(attempt))
        };
        if row {
            self.0.some.notify_one();
        }
    }

    /// Writes what was noted, as long as the relay runs.
    pub(crate) async fn write(self, registry: Arc<dyn Registry>) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.0.some.notified() => {}
                _ = ticks.tick() => {
                    let mut state = self.lock();
                    for attempt in state.book.due(Instant::now()) {
                        state.wait(attempt);
                    }
                }
            }
            self.flush(&*registry).await;
        }
    }

    /// Writes what waits. What the database does not take waits on.
    pub(crate) async fn flush(&self, registry: &dyn Registry) {
        loop {
            let Some(row) = self.lock().waiting.first().cloned() else { return };
            if let Err(error) = registry.audit(row.clone()).await {
                debug!(%error, "refused attempt not written");
                return;
            }
            let mut state = self.lock();
            if state.waiting.first() == Some(&row) {
                state.waiting.remove(0);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wait(&mut self, attempt: Attempt) -> bool {
        if self.waiting.len() >= WAITING {
            self.book.untold += 1;
            return false;
        }
        let Attempt { action, actor, subject, detail } = attempt;
        let (actor, subject, detail) = (plain(&actor), plain(&subject), plain(&detail));
        self.waiting.push(AuditRow { at: SystemTime::now(), actor, action: action.to_owned(), subject, detail });
        true
    }
}

impl Book {
    /// The attempt, when it is to be told now.
    fn note(&mut self, attempt: Attempt, now: Instant) -> Option<Attempt> {
        let kind = (attempt.action, attempt.subject.clone());
        if let Some(known) = self.kinds.get_mut(&kind) {
            known.more += 1;
            known.last = attempt;
            return None;
        }
        if self.kinds.len() >= KINDS || !self.has_room(now) {
            self.untold += 1;
            return None;
        }
        self.kinds.insert(kind, Kind { told: now, last: attempt.clone(), more: 0 });
        Some(attempt)
    }

    /// What came since, to be told now: how often each kind, and that there was more.
    fn due(&mut self, now: Instant) -> Vec<Attempt> {
        let mut due = Vec::new();
        // A kind that was quiet is news when it comes again.
        self.kinds.retain(|_, kind| kind.more > 0 || now.duration_since(kind.told) < EVERY);
        let mut repeated: Vec<_> = self
            .kinds
            .iter()
            .filter(|(_, kind)| kind.more > 0 && now.duration_since(kind.told) >= EVERY)
            .map(|(key, _)| key.clone())
            .collect();
        repeated.sort_unstable();
        for key in repeated {
            if !self.has_room(now) {
                break;
            }
            let Some(kind) = self.kinds.get_mut(&key) else { continue };
            let detail = format!("{} times more, last: {}", kind.more, kind.last.detail);
            due.push(Attempt { detail, ..kind.last.clone() });
            (kind.more, kind.told) = (0, now);
        }
        if self.untold > 0 {
            due.push(Attempt {
                action: "attempts.refused",
                actor: "relay".to_owned(),
                subject: "others".to_owned(),
                detail: format!("{} more, of too many kinds to name", self.untold),
            });
            self.untold = 0;
        }
        due
    }

    fn has_room(&mut self, now: Instant) -> bool {
        let (since, rows) = &mut self.rows;
        if since.is_none_or(|since| now.duration_since(since) >= EVERY) {
            (*since, *rows) = (Some(now), 0);
        }
        *rows += 1;
        *rows <= ROWS
    }
}

/// A text that others had a hand in, fit for a line: printable ASCII, and not long.
fn plain(text: &str) -> String {
    let shown = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    text.chars().take(DETAIL).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use culvert_ops::state::StateDir;

    use super::*;
    use crate::registry::Url;

    fn attempt(subject: &str) -> Attempt {
        Attempt {
            action: "connector.refused",
            actor: subject.to_owned(),
            subject: subject.to_owned(),
            detail: "token used up, from 192.0.2.9".to_owned(),
        }
    }

    #[test]
    fn the_first_is_told_at_once_and_its_repeats_are_counted_once_a_minute() {
        let (mut book, start) = (Book::default(), Instant::now());
        assert_eq!(book.note(attempt("tok_a"), start), Some(attempt("tok_a")));
        for second in 0..59 {
            assert_eq!(book.note(attempt("tok_a"), start + Duration::from_secs(second)), None);
        }
        assert_eq!(book.due(start + EVERY / 2), []);
        let due = book.due(start + EVERY);
        assert_eq!(due.len(), 1);
        assert_eq!(due[0].detail, "59 times more, last: token used up, from 192.0.2.9");
        assert_eq!(book.note(attempt("tok_a"), start + EVERY), None);
        assert_eq!(book.due(start + EVERY + EVERY / 2), []);
        assert!(book.due(start + 2 * EVERY)[0].detail.starts_with("1 times more"));
        assert_eq!(book.due(start + 3 * EVERY), [], "a quiet minute says nothing");
        assert!(book.note(attempt("tok_a"), start + 3 * EVERY).is_some(), "and then it is news again");
    }

    #[test]
    fn whoever_invents_subjects_gets_no_more_rows_than_there_are_a_minute() {
        let (mut book, start) = (Book::default(), Instant::now());
        let (mut rows, mut untold) = (0, 0);
        let minutes = 10;
        for second in 0..minutes * 60 {
            let now = start + Duration::from_secs(second);
            for number in 0..200 {
                rows += usize::from(book.note(attempt(&format!("{second}-{number}")), now).is_some());
                assert!(book.kinds.len() <= KINDS);
            }
            if second % 60 == 59 {
                let due = book.due(now);
                rows += due.len();
                untold += due.iter().filter(|attempt| attempt.action == "attempts.refused").count();
            }
        }
        let most = (ROWS as usize + 1) * minutes as usize + ROWS as usize;
        assert!((minutes as usize * 20..=most).contains(&rows), "{rows} rows");
        assert_eq!(untold, minutes as usize, "and the trail says that there were more");
    }

    #[tokio::test]
    async fn what_was_noted_is_written_as_one_plain_line() {
        let state = StateDir::temporary().unwrap();
        let registry = Url::default().open(&state).unwrap();
        let refusals = Refusals::default();
        let detail = format!("\u{1b}[2Jorders\r\nfake row\u{202e}{}", "x".repeat(1000));
        refusals.note(Attempt { detail, ..attempt("con_a") });
        refusals.note(attempt("con_a"));
        refusals.flush(&*registry).await;
        let trail = registry.audit_since(SystemTime::UNIX_EPOCH).await.unwrap();
        assert_eq!(trail.len(), 1);
        assert!(trail[0].detail.starts_with("?[2Jorders??fake row?x"), "{:?}", trail[0].detail);
        assert_eq!(trail[0].detail.len(), DETAIL);
    }

    #[tokio::test]
    async fn rows_wait_for_a_database_that_is_away_and_stay_bounded() {
        let state = StateDir::temporary().unwrap();
        let registry = Url::default().open(&state).unwrap();
        let path = state.path().join("registry.db");
        let moved = state.path().join("moved.db");
        std::fs::rename(&path, &moved).unwrap();
        let refusals = Refusals::default();
        refusals.note(attempt("tok_a"));
        refusals.flush(&*registry).await;
        assert_eq!(refusals.lock().waiting.len(), 1);
        for number in 0..2 * WAITING {
            refusals.lock().wait(attempt(&number.to_string()));
        }
        assert_eq!(refusals.lock().waiting.len(), WAITING);
        std::fs::rename(&moved, &path).unwrap();
        refusals.flush(&*registry).await;
        assert_eq!(refusals.lock().waiting.len(), 0);
        assert_eq!(registry.audit_since(SystemTime::UNIX_EPOCH).await.unwrap().len(), WAITING);
    }
}
