//! A steady stream of requests, and an account of every one that did not end well.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::Method;

use crate::client;

/// What to send.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where.
    pub to: SocketAddr,
    /// Under which host.
    pub host: String,
    /// Which path.
    pub path: String,
    /// How many a second.
    pub per_second: u32,
    /// How long one may take.
    pub deadline: Duration,
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Report>,
}

/// What became of it.
#[derive(Debug, Default, Clone)]
pub struct Report {
    /// Answered 200 within the deadline.
    pub answered: usize,
    /// Everything else, in words, with the moment since the start.
    pub failed: Vec<String>,
    /// The slowest good answer.
    pub slowest: Duration,
}

impl Plan {
    /// GETs of `/` at 50 a second, 10 s each, as the promises are stated.
    pub fn gets(to: SocketAddr, host: &str) -> Self {
        Self { to, host: host.to_owned(), path: "/".to_owned(), per_second: 50, deadline: Duration::from_secs(10) }
    }

    /// Another rate.
    pub fn per_second(mut self, rate: u32) -> Self {
        self.per_second = rate;
        self
    }

    /// Starts; an open loop, so that a stall is seen by every request that falls into it.
    pub fn start(self) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(run(self, Arc::clone(&stop)));
        Load { stop, task }
    }
}

impl Load {
    /// Sends no more, waits for what is under way, and tells.
    ///
    /// # Errors
    /// The load itself broke.
    pub async fn finish(self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.task.await?)
    }
}

impl Report {
    /// Nothing failed, and something happened.
    ///
    /// # Errors
    /// Names the first failures.
    pub fn all_well(&self, at_least: usize) -> Result<()> {
        let total = self.failed.len() + self.answered;
        let mut kinds: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
        for failure in &self.failed {
            let kind = failure.split_once(": ").map_or(failure.as_str(), |(_, why)| why);
            kinds.entry(kind.get(..120).unwrap_or(kind)).or_insert((0, failure)).0 += 1;
        }
        ensure!(self.failed.is_empty(), "{} of {total} requests failed: {kinds:#?}", self.failed.len());
        ensure!(self.answered >= at_least, "only {} answers", self.answered);
        Ok(())
    }
}

async fn run(plan: Plan, stop: Arc<AtomicBool>) -> Report {
    let start = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / plan.per_second.max(1));
    let mut requests = tokio::task::JoinSet::new();
    let mut report = Report::default();
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let plan = plan.clone();
        let at = start.elapsed();
        requests.spawn(async move { (at, Instant::now(), one(&plan).await, Instant::now()) });
        while let Some(done) = requests.try_join_next() {
            note(&mut report, done);
        }
    }
    while let Some(done) = requests.join_next().await {
        note(&mut report, done);
    }
    report
}

type Done = (Duration, Instant, std::result::Result<(), String>, Instant);

fn note(report: &mut Report, done: std::result::Result<Done, tokio::task::JoinError>) {
    match done {
        Ok((_, sent, Ok(()), ended)) => {
            report.answered += 1;
            report.slowest = report.slowest.max(ended - sent);
        }
        Ok((at, sent, Err(why), ended)) => {
            report.failed.push(format!("at {at:.2?}, after {:.2?}: {why}", ended - sent));
        }
        Err(error) => report.failed.push(error.to_string()),
    }
}

async fn one(plan: &Plan) -> std::result::Result<(), String> {
    let request = client::request(Method::GET, &plan.host, &plan.path, Bytes::new()).map_err(|e| e.to_string())?;
    let exchange = async {
        let mut sender = client::connect(plan.to).await?;
        client::whole(sender.send_request(request).await?).await
    };
    match tokio::time::timeout(plan.deadline, exchange).await {
        Err(_) => Err(format!("no answer within {:?}", plan.deadline)),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Ok(Ok(answer)) if answer.status == 200 => Ok(()),
        Ok(Ok(answer)) => Err(format!("{} {} {}", answer.status, answer.header("proxy-status"), answer.text())),
    }
}
