//! The link's table of states, by scenes.

use super::*;

const FOUR: &str = "192.0.2.1:51820";
const SIX: &str = "[2001:db8::1]:51820";

struct Run {
    link: Link,
    now: Instant,
}

impl Run {
    fn new() -> Self {
        let now = Instant::now();
        Self { link: Link::new(7, now), now }
    }

    fn poll(&mut self) -> Step {
        self.link.poll(self.now)
    }

    fn after(&mut self, time: Duration) -> &mut Self {
        self.now += time;
        self
    }

    /// Polls through waits until something is to be done, and tells how long that took.
    fn next(&mut self) -> (Duration, Step) {
        let from = self.now;
        loop {
            match self.link.poll(self.now) {
                Step::Wait(until) if until > self.now => self.now = until,
                step => return (self.now - from, step),
            }
        }
    }

    fn resolved(&mut self, addresses: &[&str]) {
        assert_eq!(self.next().1, Step::Resolve);
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        self.link.handle_resolved(Ok(addresses), self.now);
    }

    fn up(&mut self, steady: Duration) {
        self.link.handle_up(None, self.now);
        self.after(steady);
    }

    fn ended(&mut self, ended: Ended) -> Duration {
        self.link.handle_ended(ended, self.now);
        self.next().0
    }
}

fn lost() -> Ended {
    Ended::Lost("timed out".to_owned())
}

#[test]
fn both_families_are_knocked_at_in_turn_and_the_last_good_one_first() {
    let all = [FOUR, "192.0.2.2:1", SIX, FOUR].map(|text| text.parse().unwrap()).to_vec();
    let order = |last: Option<&str>| {
        let last = last.map(|text| text.parse().unwrap());
        in_order(all.clone(), last).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(order(None), [SIX, FOUR, "192.0.2.2:1"]);
    assert_eq!(order(Some("192.0.2.2:1")), ["192.0.2.2:1", SIX, FOUR]);
    assert_eq!(order(Some("192.0.2.9:1")), [SIX, FOUR, "192.0.2.2:1"]);
}

#[test]
fn a_silent_relay_is_diagnosed_within_ten_seconds_and_tried_for_ever() {
    let mut run = Run::new();
    let start = run.now;
    run.resolved(&[FOUR, SIX]);
    let mut knocks = Vec::new();
    let address = loop {
        match run.next().1 {
            Step::Knock(address) => knocks.push(address.to_string()),
            Step::Diagnose(address) => break address,
            step => panic!("{step:?}"),
        }
    };
    assert!(knocks.len() > 2 && knocks[..2] == [SIX, FOUR], "both families, more than once: {knocks:?}");
    assert!(run.now - start < Duration::from_secs(5), "{:?}", run.now - start);
    run.link.handle_finding(address, Finding::Silence, run.now);
    assert_eq!(run.link.poll_say(run.now), Some(&Problem::Silent(address)));
    assert_eq!(run.link.poll_say(run.now), None, "said once");
    let mut rebuilt = 0;
    for _ in 0..500 {
        match run.next() {
            (waited, Step::Resolve) => {
                assert!(waited <= (BACKOFF_MAX + PATIENCE[2]).mul_f64(1.25), "{waited:?}");
                run.link.handle_resolved(Ok(vec![address]), run.now);
            }
            (_, Step::Rebuild) => rebuilt += 1,
            (_, Step::Knock(_) | Step::Diagnose(_)) => {}
            (_, step) => panic!("{step:?}"),
        }
    }
    assert!(rebuilt > 1);
}

#[test]
fn an_abandoned_look_up_is_made_again() {
    let mut run = Run::new();
    assert_eq!(run.poll(), Step::Resolve);
    assert!(matches!(run.poll(), Step::Wait(_)));
    run.link.handle_abandoned(run.now);
    assert_eq!(run.poll(), Step::Resolve);
}

#[test]
fn a_lasting_problem_is_said_once_a_minute() {
    let mut run = Run::new();
    assert_eq!(run.poll(), Step::Resolve);
    run.link.handle_resolved(Err(Problem::Dns("no such name".to_owned())), run.now);
    let mut said = 0;
    let end = run.now + Duration::from_secs(600);
    while run.now < end {
        said += usize::from(run.link.poll_say(run.now).is_some());
        run.after(Duration::from_secs(1));
    }
    assert_eq!(said, 10);
}

#[test]
fn a_steady_session_that_is_lost_is_redialled_at_once() {
    for ended in [lost(), Ended::ByRelay(CloseCode::Shutdown), Ended::ByRelay(CloseCode::Silent)] {
        let mut run = Run::new();
        run.up(STEADY);
        assert!(run.ended(ended) <= AT_ONCE);
    }
}

#[test]
fn a_loss_that_heals_at_once_wakes_nobody() {
    let mut run = Run::new();
    run.up(STEADY);
    run.link.handle_ended(lost(), run.now);
    assert_eq!(run.link.poll_say(run.now), None);
    run.after(HEALED);
    assert!(run.link.poll_say(run.now).is_some(), "one that lasts does");
    run.up(STEADY);
    assert_eq!(run.link.poll_say(run.now), None);
}

#[test]
fn sessions_that_end_at_once_back_off_up_to_five_seconds() {
    let mut run = Run::new();
    let mut waits = Vec::new();
    for _ in 0..10 {
        run.up(Duration::ZERO);
        waits.push(run.ended(lost()));
    }
    assert!(waits[0] <= BACKOFF_MIN.mul_f64(1.25) && waits[9] >= BACKOFF_MAX.mul_f64(0.75), "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= BACKOFF_MAX.mul_f64(1.25)));
    run.up(STEADY);
    assert!(run.ended(lost()) <= AT_ONCE, "a steady session forgives");
}

#[test]
fn a_displaced_link_waits_from_half_a_minute_to_ten_and_is_not_woken() {
    let mut run = Run::new();
    let mut waits = Vec::new();
    for _ in 0..7 {
        run.up(STEADY);
        run.link.handle_ended(Ended::ByRelay(CloseCode::Replaced), run.now);
        run.link.handle_woken(run.now);
        assert_eq!(run.link.problem(), Some(&Problem::Replaced));
        let (waited, step) = run.next();
        assert_eq!(step, Step::Resolve, "no rebuild while it waits");
        waits.push(waited);
    }
    assert!(waits[0] >= REPLACED_MIN.mul_f64(0.75) && waits[0] <= REPLACED_MIN.mul_f64(1.25), "{waits:?}");
    assert!(waits[6] >= REPLACED_MAX.mul_f64(0.75) && waits[6] <= REPLACED_MAX.mul_f64(1.25), "{waits:?}");
    run.up(REPLACED_MAX);
    assert!(run.ended(Ended::ByRelay(CloseCode::Replaced)) <= REPLACED_MIN.mul_f64(1.25), "forgiven");
}

#[test]
fn a_revoked_key_ends_the_link_for_good() {
    let mut run = Run::new();
    run.up(STEADY);
    run.link.handle_ended(Ended::ByRelay(CloseCode::Revoked), run.now);
    run.link.handle_woken(run.now);
    assert_eq!(run.after(REPLACED_MAX).poll(), Step::Revoked);
}

#[test]
fn a_handshake_without_a_connection_is_stuck_and_knocked_at_again() {
    let mut run = Run::new();
    run.resolved(&[FOUR]);
    assert_eq!(run.poll(), Step::Knock(FOUR.parse().unwrap()));
    run.link.handle_session(FOUR.parse().unwrap(), run.now);
    let (waited, step) = run.next();
    assert_eq!((waited, step), (DIAL_PATIENCE, Step::Knock(FOUR.parse().unwrap())));
    assert_eq!(run.link.problem(), Some(&Problem::Stuck));
}

#[test]
fn a_displaced_link_keeps_its_wait_when_the_relay_shakes_hands() {
    let mut run = Run::new();
    run.up(STEADY);
    run.link.handle_ended(Ended::ByRelay(CloseCode::Replaced), run.now);
    run.link.handle_session(FOUR.parse().unwrap(), run.now);
    assert!(!run.link.wants_connection());
    assert!(run.next().0 >= REPLACED_MIN.mul_f64(0.75));
}

#[test]
fn a_relay_that_calls_back_interrupts_the_wait() {
    let mut run = Run::new();
    assert_eq!(run.poll(), Step::Resolve);
    run.link.handle_resolved(Err(Problem::NoAddress), run.now);
    run.link.handle_session(FOUR.parse().unwrap(), run.now);
    assert!(run.link.wants_connection() && matches!(run.poll(), Step::Wait(_)));
    run.up(STEADY);
    assert!(run.link.is_up() && run.link.problem().is_none());
}

#[test]
fn a_change_of_addresses_ends_the_wait() {
    let mut run = Run::new();
    for _ in 0..6 {
        assert_eq!(run.next().1, Step::Resolve);
        run.link.handle_resolved(Err(Problem::NoAddress), run.now);
    }
    run.link.handle_woken(run.now);
    assert_eq!(run.poll(), Step::Resolve);
}
