use std::sync::atomic::{AtomicUsize, Ordering};

use culvert_model::reason::Reason;
use tokio::sync::Semaphore;

use super::*;

/// An endpoint that answers with the number of the question.
struct Played {
    asked: AtomicUsize,
    /// Each answer takes one.
    leave: Semaphore,
    fails: Mutex<Option<Trouble>>,
    life: Duration,
}

impl Source for Arc<Played> {
    type Item = usize;

    async fn fetch(&self, _: &ServiceName, _: &Proofs) -> Result<Fresh<usize>, Trouble> {
        let (item, asked) = (self.asked.fetch_add(1, Ordering::SeqCst), now());
        self.leave.acquire().await.unwrap().forget();
        match &*self.fails.lock().unwrap() {
            Some(trouble) => Err(trouble.clone()),
            None => Ok(Fresh { item, asked, life: self.life, renew_after: None }),
        }
    }
}

struct Stand {
    played: Arc<Played>,
    holder: Arc<Holder<Arc<Played>>>,
    service: ServiceName,
    proofs: Proofs,
}

impl Stand {
    fn new(life_seconds: u64, leave: usize) -> Self {
        let life = Duration::from_secs(life_seconds);
        let leave = Semaphore::new(leave);
        let played = Arc::new(Played { asked: AtomicUsize::new(0), leave, fails: Mutex::new(None), life });
        let holder = Arc::new(Holder::new(played.clone()));
        Self { played, holder, service: "orders".parse().unwrap(), proofs: Proofs::default() }
    }

    async fn get(&self) -> Result<usize, Reason> {
        self.holder.get(&self.service, &self.proofs).await.map_err(|fault| fault.reason)
    }

    fn asked(&self) -> usize {
        self.played.asked.load(Ordering::SeqCst)
    }

    fn fail(&self, trouble: Option<Trouble>) {
        *self.played.fails.lock().unwrap() = trouble;
    }
}

fn away() -> Trouble {
    Trouble::Away { by: "https://x".into(), why: "refused".to_owned() }
}

async fn after(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn fifty_requests_at_once_ask_once_and_later_ones_not_at_all() {
    let stand = Arc::new(Stand::new(3600, 1));
    let requests: Vec<_> = (0..50).map(|_| stand.get()).collect();
    for got in futures_util::future::join_all(requests).await {
        assert_eq!(got, Ok(0));
    }
    after(2800).await;
    assert_eq!((stand.get().await, stand.asked()), (Ok(0), 1));
}

#[tokio::test(start_paused = true)]
async fn the_old_one_is_used_until_the_new_one_is_there_and_nobody_waits() {
    let stand = Stand::new(100, 1);
    assert_eq!(stand.get().await, Ok(0));
    after(81).await;
    for _ in 0..50 {
        let before = now();
        assert_eq!(stand.get().await, Ok(0));
        assert_eq!(now(), before, "nobody waits");
    }
    after(5).await;
    assert_eq!((stand.get().await, stand.asked()), (Ok(0), 2), "one renewal at a time");
    stand.played.leave.add_permits(1);
    after(1).await;
    assert_eq!((stand.get().await, stand.asked()), (Ok(1), 2));
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_down_costs_nothing_before_the_old_one_ends_and_then_it_is_said_at_once() {
    let stand = Stand::new(100, 100);
    assert_eq!(stand.get().await, Ok(0));
    stand.fail(Some(away()));
    after(85).await;
    assert_eq!(stand.get().await, Ok(0));
    after(4).await;
    assert_eq!(stand.get().await, Ok(0), "to its end");
    let held = stand.holder.holding();
    assert!(held.left.is_some() && held.trouble.unwrap().contains("https://x"), "both are shown");
    after(60).await;
    let before = now();
    assert_eq!(stand.get().await, Err(Reason::OriginAuth));
    assert!(now() - before < Duration::from_millis(10), "who is known to be down is not waited for");
    stand.fail(None);
    after(70).await;
    let before = stand.asked();
    assert_eq!((stand.get().await, stand.asked()), (Ok(before - 1), before), "it came back by itself");
    assert_eq!(stand.holder.holding().trouble, None);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_fails_is_left_alone_longer_each_time() {
    let stand = Arc::new(Stand::new(100, 1000));
    stand.fail(Some(away()));
    for second in 0..600 {
        assert_eq!(stand.get().await, Err(Reason::OriginAuth), "{second}");
        after(1).await;
    }
    // 1, 2, 4, 8, 16, 32 seconds and then 60 each, less a quarter at most.
    assert!((14..=20).contains(&stand.asked()), "{} attempts in ten minutes", stand.asked());
    let rest = Some(Duration::from_secs(500));
    let busy = Trouble::Refused { by: "https://x".into(), status: 429, words: String::new(), rest };
    let stand = Stand::new(100, 1000);
    stand.fail(Some(busy));
    for _ in 0..350 {
        assert_eq!(stand.get().await, Err(Reason::OriginAuth));
        after(1).await;
    }
    assert_eq!(stand.asked(), 1, "it said for how long");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_answer_is_not_waited_for_without_end() {
    let stand = Stand::new(100, 0);
    let before = now();
    assert_eq!(stand.get().await, Err(Reason::OriginAuth));
    assert_eq!(now() - before, super::super::PATIENCE);
}

#[tokio::test(start_paused = true)]
async fn what_has_ended_when_it_comes_is_not_used() {
    for life in [0, 4] {
        let stand = Stand::new(life, 100);
        assert_eq!(stand.get().await, Err(Reason::OriginAuth));
    }
    let stand = Stand::new(10, 100);
    assert_eq!(stand.get().await, Ok(0));
    let stand = Stand::new(u64::MAX, 100);
    assert_eq!(stand.get().await, Ok(0), "nor is a life that nobody can count with an end");
}

#[tokio::test(start_paused = true)]
async fn another_way_to_the_same_thing_starts_with_what_the_old_one_held() {
    let (old, new) = (Stand::new(1000, 1), Stand::new(1000, 0));
    assert_eq!(old.get().await, Ok(0));
    new.played.asked.store(7, Ordering::SeqCst);
    new.holder.take_over(&old.holder);
    assert_eq!(new.get().await, Ok(0));
    after(1).await;
    assert_eq!((new.get().await, new.asked()), (Ok(0), 8), "and gets its own at once");
    new.played.leave.add_permits(1);
    after(1).await;
    assert_eq!(new.get().await, Ok(7));
}

#[test]
fn what_changes_in_an_explanation_is_no_news() {
    let refused = |words: &str| Trouble::Refused { by: "x".into(), status: 401, words: words.to_owned(), rest: None };
    assert!(refused("invalid_client: trace 1").is_like(&refused("invalid_client: trace 2")));
    assert!(!refused("invalid_client: trace 1").is_like(&refused("invalid_grant: trace 1")));
    assert!(!refused("a").is_like(&away()));
}
