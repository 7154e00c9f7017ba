//! The table: one row for each kind of exchange, one cell for each front and origin; its rendering.
//!
//! Must never leave a cell out: each one passes, fails, is waited for aloud, or is known to be impossible and tried all
//! the same, so that the day it becomes possible is noticed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::{Mutex, Semaphore, mpsc};

use crate::caller::{Ask, Call};
use crate::origin::{CELL, Taken};
use crate::site::{Front, Kind, Site};

/// No cell takes longer: the largest bodies between programs that are not optimized.
const LIMIT: Duration = Duration::from_secs(90);
/// Cells that run at once.
const AT_ONCE: usize = 12;

/// What a cell must show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    Works,
    /// Tried, and seen to fail.
    Impossible(&'static str),
    /// The question does not arise there.
    Moot(&'static str),
}

/// A test of one cell.
pub type Test = fn(Cell) -> Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// A kind of exchange.
#[derive(Clone, Copy)]
pub struct Row {
    pub name: &'static str,
    pub test: Test,
    pub expect: fn(Front, Kind) -> Expect,
}

/// One exchange under test, with both its ends.
pub struct Cell {
    pub front: Front,
    pub kind: Kind,
    pub site: Arc<Site>,
    id: String,
    requests: Mutex<mpsc::UnboundedReceiver<Taken>>,
}

/// How a cell ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    Passed,
    Failed(String),
    Impossible(&'static str),
    Moot(&'static str),
    Pending(&'static str),
}

/// Every cell's outcome, by row.
pub type Outcomes = Vec<(&'static str, Vec<(Front, Kind, Outcome)>)>;

impl Cell {
    /// Sends a request for this cell on a connection of its own.
    ///
    /// # Errors
    /// The relay is not there.
    pub async fn call(&self, ask: Ask) -> Result<Call> {
        self.site.call(self.front, &self.mark(ask)).await
    }

    /// Makes a request this cell's.
    pub fn mark(&self, mut ask: Ask) -> Ask {
        if ask.host.is_empty() {
            ask.host = self.kind.service().to_owned();
        }
        ask.with(CELL, &self.id)
    }

    /// The next request that reached the origin.
    ///
    /// # Errors
    /// None came in time.
    pub async fn taken(&self) -> Result<Taken> {
        let mut requests = self.requests.lock().await;
        let next = tokio::time::timeout(Duration::from_secs(10), requests.recv()).await;
        next.context("nothing reached the origin")?.context("the origin ended")
    }

    /// Whether nothing (more) reached the origin.
    pub async fn is_quiet(&self) -> bool {
        self.requests.lock().await.try_recv().is_err()
    }

    /// Both ends and everything between speak HTTP/1.1.
    pub fn is_one(&self) -> bool {
        !self.front.is_two() && !self.kind.is_two()
    }
}

/// Runs every cell of every row.
pub async fn run(site: Arc<Site>, rows: &'static [Row], only: Option<&str>) -> Outcomes {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = Vec::new();
    for (at, row) in rows.iter().enumerate().filter(|(_, row)| only.is_none_or(|only| row.name.contains(only))) {
        let mut cells = Vec::new();
        for front in Front::ALL {
            for kind in Kind::ALL {
                let id = format!("{at}-{}-{}", front as u8, kind as u8);
                let (site, room) = (Arc::clone(&site), Arc::clone(&room));
                cells.push((front, kind, tokio::spawn(try_one(site, room, row, front, kind, id))));
            }
        }
        running.push((row.name, cells));
    }
    let mut outcomes = Outcomes::new();
    for (name, cells) in running {
        let mut row = Vec::new();
        for (front, kind, task) in cells {
            let outcome = task.await.unwrap_or_else(|error| Outcome::Failed(error.to_string()));
            row.push((front, kind, outcome));
        }
        outcomes.push((name, row));
    }
    outcomes
}

async fn try_one(site: Arc<Site>, room: Arc<Semaphore>, row: &Row, front: Front, kind: Kind, id: String) -> Outcome {
    if let Some(why) = front.pending().or(kind.pending()) {
        return Outcome::Pending(why);
    }
    let expect = (row.expect)(front, kind);
    if let Expect::Moot(why) = expect {
        return Outcome::Moot(why);
    }
    let _one = room.acquire().await;
    let requests = Mutex::new(site.desk.open(&id));
    let cell = Cell { front, kind, site, id, requests };
    let ended = match tokio::time::timeout(LIMIT, tokio::spawn((row.test)(cell))).await {
        Ok(Ok(ended)) => ended,
        Ok(Err(panic)) => Err(panic.into()),
        Err(_) => Err(anyhow::anyhow!("not done within {LIMIT:?}")),
    };
    match (ended, expect) {
        (Ok(()), Expect::Impossible(_)) => Outcome::Failed("works, and is listed as impossible".to_owned()),
        (Ok(()), _) => Outcome::Passed,
        (Err(_), Expect::Impossible(why)) => Outcome::Impossible(why),
        (Err(error), _) => Outcome::Failed(format!("{error:#}")),
    }
}

/// Counts of passed, failed, impossible, moot and pending cells.
pub fn count(outcomes: &Outcomes) -> [usize; 5] {
    let mut counts = [0; 5];
    for (_, _, outcome) in outcomes.iter().flat_map(|(_, cells)| cells) {
        let at = match outcome {
            Outcome::Passed => 0,
            Outcome::Failed(_) => 1,
            Outcome::Impossible(_) => 2,
            Outcome::Moot(_) => 3,
            Outcome::Pending(_) => 4,
        };
        counts[at] += 1;
    }
    counts
}

/// The page.
pub fn render(outcomes: &Outcomes) -> String {
    let [passed, failed, impossible, moot, pending] = count(outcomes);
    let mut page = String::from(
        "# What HTTP does through Culvert\n\n\
         Written by the test `table` of this crate, which runs every cell against the real programs and fails when this page is\n\
         out of date (`CULVERT_ACCEPT=1` writes it). The caller and the origin are played by the test and compare bytes.\n\n",
    );
    let _ = writeln!(
        page,
        "{passed} cells pass, {failed} fail, {impossible} are not possible, in {moot} the question does not arise, {pending} are waited for.\n"
    );
    page += "`yes`: passes. `–`: the question does not arise. A number: the note below. Columns: front version, then the origins\n";
    page += "`http`, `h2c`, `https` by HTTP/1.1, `https` by HTTP/2, `unix` in this order.\n\n";
    let mut notes: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut order = Vec::new();
    let mut note = |text: &'static str| {
        *notes.entry(text).or_insert_with(|| {
            order.push(text);
            order.len()
        })
    };
    page += "| Exchange |";
    for front in Front::ALL {
        let _ = write!(page, " {} |", front.name());
    }
    page += "\n|---|";
    page += &"---|".repeat(Front::ALL.len());
    page += "\n";
    for (name, cells) in outcomes {
        let _ = write!(page, "| {name} |");
        for front in Front::ALL {
            let marks: Vec<String> = cells
                .iter()
                .filter(|(own, ..)| *own == front)
                .map(|(_, _, outcome)| match outcome {
                    Outcome::Passed => "yes".to_owned(),
                    Outcome::Failed(_) => "**no**".to_owned(),
                    Outcome::Moot(_) => "–".to_owned(),
                    Outcome::Impossible(why) => note(why).to_string(),
                    Outcome::Pending(why) => format!("({})", note(why)),
                })
                .collect();
            let alike = marks.windows(2).all(|two| two.first() == two.last());
            let marks = if alike { marks.first().cloned().unwrap_or_default() } else { marks.join(" ") };
            let _ = write!(page, " {marks} |");
        }
        page += "\n";
    }
    page += "\n";
    for (at, text) in order.iter().enumerate() {
        let _ = writeln!(page, "{}. {text}", at + 1);
    }
    page += "\nWhere the question does not arise:\n\n";
    for (name, cells) in outcomes {
        let mut reasons: Vec<&str> = Vec::new();
        for (_, _, outcome) in cells {
            if let Outcome::Moot(why) = outcome
                && !reasons.contains(why)
            {
                reasons.push(why);
            }
        }
        if !reasons.is_empty() {
            let _ = writeln!(page, "- {name}: {}", reasons.join("; "));
        }
    }
    page
}
