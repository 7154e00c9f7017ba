//! Origins' names as addresses, asked of this host's own resolver and kept for a few seconds.
//!
//! The resolver's interface tells no TTL, so an answer is kept for [`KEPT`] only, which is below the TTLs that name
//! servers are run with: what is asked again goes to the resolver of the host, which does know them. `/etc/hosts` and
//! whatever else `nsswitch.conf` names work. Must never keep a failure, or answer with what it kept too long.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// How long an answer is used again.
pub const KEPT: Duration = Duration::from_secs(5);
/// Names kept before those that nobody asks for any more are forgotten.
const SWEEP_AT: usize = 1024;

/// How a name becomes addresses. The port of what it returns means nothing.
pub trait Resolve: Send + Sync {
    /// Looks `name` up.
    fn resolve(&self, name: &str) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;
}

/// The names that were asked for lately. Clones share them.
#[derive(Clone)]
pub struct Names {
    resolver: Arc<dyn Resolve>,
    known: Arc<Mutex<HashMap<String, Slot>>>,
}

type Found = Result<Arc<[SocketAddr]>, String>;

/// One name.
#[derive(Default)]
struct Slot {
    /// The last answer that was no failure, and when it came.
    answer: Option<(Instant, Arc<[SocketAddr]>)>,
    /// The question that the resolver is busy with. It goes on when who asked gives up, so that a resolver which hangs is
    /// asked once and not by each request anew.
    asking: Option<watch::Receiver<Option<Found>>>,
}

/// The resolver of this host.
struct System;

impl Names {
    /// Asks this host's resolver.
    pub fn system() -> Self {
        Self::by(Arc::new(System))
    }

    /// Asks this one.
    pub fn by(resolver: Arc<dyn Resolve>) -> Self {
        Self { resolver, known: Arc::default() }
    }

    /// The addresses of `name`, in the order of preference (RFC 6724), families in turn (RFC 8305 §4). Cancel safe.
    ///
    /// # Errors
    /// Why there is none, in the resolver's words.
    pub async fn addresses(&self, name: &str) -> Found {
        let mut asking = match self.look(name, Instant::now()) {
            Ok(known) => return Ok(known),
            Err(asking) => asking,
        };
        let found = asking.wait_for(Option::is_some).await;
        found.ok().and_then(|found| found.clone()).unwrap_or_else(|| Err("the look-up was broken off".to_owned()))
    }

    /// Forgets a name's answer: nothing there could be reached, so the next who asks is told anew.
    pub fn forget(&self, name: &str) {
        if let Some(slot) = self.lock().get_mut(name) {
            slot.answer = None;
        }
    }

    /// What is known, or the question that will tell.
    fn look(&self, name: &str, now: Instant) -> Result<Arc<[SocketAddr]>, watch::Receiver<Option<Found>>> {
        let mut known = self.lock();
        if !known.contains_key(name) {
            if known.len() >= SWEEP_AT {
                known.retain(|_, slot| slot.asking.is_some() || slot.fresh(now).is_some());
            }
            known.insert(name.to_owned(), Slot::default());
        }
        let Some(slot) = known.get_mut(name) else { return Ok(Arc::default()) };
        if let Some(answer) = slot.fresh(now) {
            return Ok(answer);
        }
        // One whose task is gone would never be answered.
        let asking = slot.asking.take().filter(|asking| asking.has_changed().is_ok()).unwrap_or_else(|| self.ask(name));
        slot.asking = Some(asking.clone());
        Err(asking)
    }

    fn ask(&self, name: &str) -> watch::Receiver<Option<Found>> {
        let (tell, told) = watch::channel(None);
        let (names, name) = (self.clone(), name.to_owned());
        tokio::spawn(async move {
            let found = match names.resolver.resolve(&name).await {
                Ok(found) if found.is_empty() => Err("it has no address".to_owned()),
                Ok(found) => Ok(in_turn(&found).into()),
                Err(error) => Err(error.to_string()),
            };
            if let Some(slot) = names.lock().get_mut(&name) {
                slot.asking = None;
                slot.answer = found.as_ref().ok().map(|found: &Arc<[SocketAddr]>| (Instant::now(), found.clone()));
            }
            tell.send_replace(Some(found));
        });
        told
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn fresh(&self, now: Instant) -> Option<Arc<[SocketAddr]>> {
        let (at, found) = self.answer.as_ref()?;
        (now.saturating_duration_since(*at) < KEPT).then(|| found.clone())
    }
}

impl Default for Names {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names")
    }
}

impl Resolve for System {
    fn resolve(&self, name: &str) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>> {
        let name = name.to_owned();
        Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.collect()) })
    }
}

/// Families in turn, beginning with the family of the first, as the system sorted them; each address once.
fn in_turn(found: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut once: Vec<SocketAddr> = Vec::with_capacity(found.len());
    for address in found {
        if !once.contains(address) {
            once.push(*address);
        }
    }
    let first_is_six = once.first().is_some_and(SocketAddr::is_ipv6);
    let (one, two): (Vec<_>, Vec<_>) = once.into_iter().partition(|at| at.is_ipv6() == first_is_six);
    let (mut one, mut two) = (one.into_iter(), two.into_iter());
    let mut turns = Vec::with_capacity(found.len());
    loop {
        let pair = [one.next(), two.next()];
        if pair == [None, None] {
            return turns;
        }
        turns.extend(pair.into_iter().flatten());
    }
}

#[cfg(test)]
pub(crate) mod played {
    use super::*;

    /// A resolver that says what a test wants, after some time.
    #[derive(Default)]
    pub(crate) struct Played {
        answers: Mutex<HashMap<String, Vec<SocketAddr>>>,
        questions: Mutex<usize>,
        takes: Mutex<Duration>,
    }

    impl Played {
        pub(crate) fn says(self: &Arc<Self>, name: &str, addresses: &[&str]) {
            let addresses = addresses.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 0)).collect();
            self.answers.lock().unwrap().insert(name.to_owned(), addresses);
        }

        pub(crate) fn takes(&self, time: Duration) {
            *self.takes.lock().unwrap() = time;
        }

        pub(crate) fn questions(&self) -> usize {
            *self.questions.lock().unwrap()
        }
    }

    impl Resolve for Played {
        fn resolve(&self, name: &str) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>> {
            *self.questions.lock().unwrap() += 1;
            let answer = self.answers.lock().unwrap().get(name).cloned();
            let takes = *self.takes.lock().unwrap();
            Box::pin(async move {
                tokio::time::sleep(takes).await;
                answer.ok_or_else(|| io::Error::other("no such name"))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::played::Played;
    use super::*;

    fn names() -> (Names, Arc<Played>) {
        let played = Arc::new(Played::default());
        (Names::by(played.clone()), played)
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_moved_is_followed_within_seconds() {
        let (names, played) = names();
        played.says("orders", &["10.0.0.1"]);
        for _ in 0..10 {
            assert_eq!(names.addresses("orders").await.unwrap()[0].ip().to_string(), "10.0.0.1");
        }
        assert_eq!(played.questions(), 1, "asked once while the answer is kept");
        played.says("orders", &["10.0.0.2"]);
        tokio::time::advance(KEPT).await;
        assert_eq!(names.addresses("orders").await.unwrap()[0].ip().to_string(), "10.0.0.2");
        played.says("orders", &["10.0.0.3"]);
        names.forget("orders");
        assert_eq!(names.addresses("orders").await.unwrap()[0].ip().to_string(), "10.0.0.3");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_not_kept_and_an_old_answer_does_not_stand_in() {
        let (names, played) = names();
        assert_eq!(names.addresses("orders").await.unwrap_err(), "no such name");
        tokio::time::advance(Duration::from_millis(1)).await;
        played.says("orders", &["10.0.0.1"]);
        assert!(names.addresses("orders").await.is_ok());
        played.says("orders", &[]);
        tokio::time::advance(KEPT).await;
        assert_eq!(names.addresses("orders").await.unwrap_err(), "it has no address");
    }

    #[tokio::test(start_paused = true)]
    async fn many_who_ask_at_once_ask_the_resolver_once() {
        let (names, played) = names();
        played.takes(Duration::from_secs(1));
        for (name, fails) in [("orders", false), ("billing", true)] {
            if !fails {
                played.says(name, &["10.0.0.1"]);
            }
            let before = played.questions();
            let all = futures_util::future::join_all((0..100).map(|_| names.addresses(name))).await;
            assert!(all.iter().all(|found| found.is_err() == fails), "{name}");
            assert_eq!(played.questions() - before, 1, "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_resolver_that_hangs_is_asked_once_by_all_who_give_up() {
        let (names, played) = names();
        played.says("orders", &["10.0.0.1"]);
        played.takes(Duration::from_secs(10));
        for _ in 0..9 {
            assert!(tokio::time::timeout(Duration::from_secs(1), names.addresses("orders")).await.is_err());
        }
        let found = tokio::time::timeout(Duration::from_millis(1001), names.addresses("orders")).await;
        assert!(found.expect("the first question's answer").is_ok());
        assert_eq!(played.questions(), 1);
    }

    #[test]
    fn families_take_turns() {
        let sorted = |texts: &[&str]| -> Vec<String> {
            let all: Vec<SocketAddr> = texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 0)).collect();
            in_turn(&all).iter().map(|at| at.ip().to_string()).collect()
        };
        assert_eq!(sorted(&["::1", "::2", "::3", "10.0.0.1"]), ["::1", "10.0.0.1", "::2", "::3"]);
        assert_eq!(sorted(&["10.0.0.1", "10.0.0.2", "::1", "10.0.0.1"]), ["10.0.0.1", "::1", "10.0.0.2"]);
    }

    #[tokio::test]
    async fn the_hosts_own_file_is_asked_too() {
        assert!(Names::system().addresses("localhost").await.is_ok());
        assert!(Names::system().addresses("no-such-host.invalid").await.is_err());
    }
}
