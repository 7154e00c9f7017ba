//! What is asked for once and used for a while: a token, or credentials. Renewed ahead, by one task at a time.
//!
//! INVARIANT: what is held is given out until shortly before it ends, whatever becomes of its renewal; its time is counted
//! from the moment it was asked for on this host's own clock, so that nobody else's matters. Must never ask an endpoint
//! that fails again at once, or have a request wait while there is something good to give it.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use culvert_hop::fault::Fault;
use culvert_model::name::ServiceName;
use culvert_ops::task::{Task, spawn};
use tokio::sync::watch;

use super::trouble::Trouble;
use super::{Proofs, cannot, in_time};
use culvert_ops::runtime::now;

/// How long an endpoint that failed is left alone at first, and at most; twice as long each time.
const REST: Duration = Duration::from_secs(1);
const REST_AT_MOST: Duration = Duration::from_secs(60);
/// And what it can ask for itself at most.
const REST_AS_ASKED: Duration = Duration::from_secs(600);
/// What ends sooner would be asked for without end.
const SHORTEST: Duration = Duration::from_secs(5);
/// And longer than this nobody knows.
const LONGEST: Duration = Duration::from_secs(7 * 86_400);

/// Where it comes from.
pub trait Source: Send + Sync + 'static {
    /// What it gives.
    type Item: Clone + Send + Sync + 'static;

    /// Asks for one.
    fn fetch(
        &self,
        service: &ServiceName,
        proofs: &Proofs,
    ) -> impl Future<Output = Result<Fresh<Self::Item>, Trouble>> + Send;
}

/// Something new.
pub struct Fresh<T> {
    /// It.
    pub item: T,
    /// When it was asked for.
    pub asked: Instant,
    /// How long it lives from then.
    pub life: Duration,
    /// How long it is to be used, where it says so itself; else four fifths of its life.
    pub renew_after: Option<Duration>,
}

/// Holds what a source gave.
pub struct Holder<S: Source> {
    inner: Arc<Inner<S>>,
    renewal: Mutex<Option<Task<()>>>,
}

struct Inner<S: Source> {
    source: S,
    state: watch::Sender<State<S::Item>>,
}

struct State<T> {
    held: Option<Held<T>>,
    /// Why the last attempt gave nothing, and whether there was something to use all the same.
    trouble: Option<(Trouble, bool)>,
    /// Whether the endpoint is left alone now.
    is_resting: bool,
}

#[derive(Clone)]
struct Held<T> {
    item: T,
    renew: Instant,
    end: Instant,
}

/// What there is, for those who look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// How long what is held is good for; none: there is nothing.
    pub left: Option<Duration>,
    /// Why it could not be renewed.
    pub trouble: Option<String>,
}

impl<S: Source> Holder<S> {
    /// Holds nothing yet.
    pub fn new(source: S) -> Self {
        let state = watch::Sender::new(State { held: None, trouble: None, is_resting: false });
        Self { inner: Arc::new(Inner { source, state }), renewal: Mutex::new(None) }
    }

    /// Where it comes from.
    pub fn source(&self) -> &S {
        &self.inner.source
    }

    /// Takes over what another held that is for the same purpose, got in another way: it is good until there is a new one.
    pub fn take_over(&self, other: &Self) {
        let held = other.inner.state.borrow().held.clone();
        if let Some(held) = held {
            let renew = now();
            self.inner.state.send_modify(|state| state.held = Some(Held { renew, ..held }));
        }
    }

    /// What is held, or what comes within [`super::PATIENCE`].
    ///
    /// # Errors
    /// A [`Fault`] `origin_auth`.
    pub async fn get(&self, service: &ServiceName, proofs: &Proofs) -> Result<S::Item, Fault> {
        match self.at_hand(service, proofs) {
            Some(item) => Ok(item),
            None => in_time(self.wait()).await,
        }
    }

    /// Sees to it that there is something before it is needed; what is held, if it is good.
    pub fn at_hand(&self, service: &ServiceName, proofs: &Proofs) -> Option<S::Item> {
        let now = now();
        let (item, is_due) = match &self.inner.state.borrow().held {
            Some(held) if now < held.end => (Some(held.item.clone()), held.renew <= now),
            Some(_) | None => (None, true),
        };
        if is_due {
            self.renew(service, proofs);
        }
        item
    }

    /// What there is.
    pub fn holding(&self) -> Holding {
        let state = self.inner.state.borrow();
        let left = state.held.as_ref().map(|held| held.end.saturating_duration_since(now()));
        Holding {
            left: left.filter(|left| !left.is_zero()),
            trouble: state.trouble.as_ref().map(|(trouble, _)| trouble.to_string()),
        }
    }

    fn renew(&self, service: &ServiceName, proofs: &Proofs) {
        let mut renewal = self.renewal.lock().unwrap_or_else(PoisonError::into_inner);
        if renewal.as_ref().is_none_or(Task::is_finished) {
            let (inner, service, proofs) = (self.inner.clone(), service.clone(), proofs.clone());
            self.inner.state.send_modify(|state| state.is_resting = false);
            *renewal = Some(spawn("connector.proof_renewal", async move { inner.renew(&service, &proofs).await }));
        }
    }

    async fn wait(&self) -> Result<S::Item, Fault> {
        let mut state = self.inner.state.subscribe();
        loop {
            {
                let state = state.borrow_and_update();
                if let Some(held) = state.held.as_ref().filter(|held| now() < held.end) {
                    return Ok(held.item.clone());
                }
                if state.is_resting {
                    return Err(match &state.trouble {
                        Some((trouble, _)) => cannot(trouble),
                        None => cannot("the last attempt failed"),
                    });
                }
            }
            state.changed().await.map_err(|_| cannot("the connector goes down"))?;
        }
    }
}

impl<S: Source> Inner<S> {
    /// Asks until there is an answer.
    async fn renew(&self, service: &ServiceName, proofs: &Proofs) {
        let mut rest = REST;
        loop {
            let trouble = match self.source.fetch(service, proofs).await {
                Ok(fresh) if fresh.life < SHORTEST => {
                    Trouble::Here(format!("what came ends {} s after it was asked for", fresh.life.as_secs()))
                }
                Ok(fresh) => return self.keep(service, fresh),
                Err(trouble) => trouble,
            };
            let pause = trouble.rest().unwrap_or(rest).clamp(rest, REST_AS_ASKED);
            self.note(service, &trouble);
            // Those who failed together do not come back together.
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.75..1.0))).await;
            rest = (rest * 2).min(REST_AT_MOST);
            self.state.send_modify(|state| state.is_resting = false);
        }
    }

    fn keep(&self, service: &ServiceName, fresh: Fresh<S::Item>) {
        let Fresh { item, asked, life, renew_after } = fresh;
        let life = life.min(LONGEST);
        // Time for the way to the origin, and for what its clock is ahead.
        let end = asked + (life - (life / 10).min(Duration::from_secs(30)));
        let renew = asked + renew_after.unwrap_or(life / 5 * 4).clamp(SHORTEST / 2, life / 5 * 4);
        let mut was_in_trouble = false;
        self.state.send_modify(|state| {
            was_in_trouble = state.trouble.take().is_some();
            *state = State { held: Some(Held { item, renew, end }), trouble: None, is_resting: false };
        });
        if was_in_trouble {
            tracing::info!(%service, "the proof to the origin can be made again");
        } else {
            tracing::debug!(%service, life_seconds = life.as_secs(), "what proves to the origin was renewed");
        }
    }

    fn note(&self, service: &ServiceName, trouble: &Trouble) {
        let mut is_news = false;
        let mut is_held = false;
        self.state.send_modify(|state| {
            is_held = state.held.as_ref().is_some_and(|held| now() < held.end);
            is_news =
                !state.trouble.as_ref().is_some_and(|(old, was_held)| old.is_like(trouble) && *was_held == is_held);
            state.trouble = Some((trouble.clone(), is_held));
            state.is_resting = true;
        });
        match (is_news, is_held) {
            (true, true) => {
                tracing::warn!(%service, why = %trouble, "the proof to the origin is not renewed: the old one is still used");
            }
            (true, false) => {
                tracing::warn!(%service, why = %trouble, "the proof to the origin cannot be made: requests fail");
            }
            (false, _) => tracing::debug!(%service, why = %trouble, "the proof to the origin still cannot be made"),
        }
    }
}

#[cfg(test)]
mod tests;
