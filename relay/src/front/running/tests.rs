use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use culvert_ops::drain::Plan;
use tokio::time::{sleep, timeout};

use super::*;

const PLAN: Plan = Plan { delay: Duration::ZERO, timeout: Duration::from_secs(25), streams: Duration::from_secs(5) };
const FOR_EVER: Duration = Duration::from_secs(3_600);

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// When a connection is cut after the drain began, if its exchange began `age` before; none = not at all.
async fn cut_after(age: Option<u64>, streaming: bool) -> Option<Duration> {
    let (drain, running) = (Drain::new(), Arc::new(Running::default()));
    let turn = age.map(|_| running.begin(false, now()));
    if let (Some(turn), true) = (&turn, streaming) {
        turn.streaming();
    }
    sleep(Duration::from_secs(age.unwrap_or(0))).await;
    let start = now();
    drain.begin(PLAN, start);
    let cut = timeout(FOR_EVER, running.cut(&drain, &Arc::default())).await;
    cut.is_ok().then(|| now() - start)
}

#[tokio::test(start_paused = true)]
async fn old_streams_end_first_requests_have_the_whole_drain_and_idle_connections_are_not_cut() {
    assert_eq!(cut_after(Some(6), true).await, Some(PLAN.streams));
    assert_eq!(cut_after(Some(4), true).await, Some(PLAN.timeout));
    assert_eq!(cut_after(Some(60), false).await, Some(PLAN.timeout));
    assert_eq!(cut_after(None, false).await, None);
}

#[tokio::test(start_paused = true)]
async fn an_exchange_that_ends_in_time_takes_the_cut_with_it() {
    let (drain, running) = (Drain::new(), Arc::new(Running::default()));
    let turn = running.begin(false, now());
    turn.streaming();
    sleep(Duration::from_secs(60)).await;
    drain.begin(PLAN, now());
    let ends = async {
        sleep(Duration::from_secs(2)).await;
        drop(turn);
    };
    let long = Arc::default();
    let cut = timeout(FOR_EVER, running.cut(&drain, &long));
    let (cut, ()) = tokio::join!(cut, ends);
    assert!(cut.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_cuts_at_once() {
    let (drain, running) = (Drain::new(), Arc::new(Running::default()));
    let _turn = running.begin(false, now());
    let start = now();
    drain.begin(PLAN, start);
    drain.stop();
    running.cut(&drain, &Arc::default()).await;
    assert_eq!(now(), start);
}

/// An answer that never ends, and whether it was cut.
fn endless(turn: &Turn) -> (impl Future<Output = Duration> + use<>, Arc<AtomicBool>) {
    struct Silent;
    impl HttpBody for Silent {
        type Data = Bytes;
        type Error = Fault;
        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
            Poll::Pending
        }
    }
    turn.streaming();
    let mut body = turn.cuttable().expect("it shares its connection").over(Body::boxed(Silent));
    let is_cut = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&is_cut);
    let start = now();
    let reading = async move {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        assert_eq!(frame.and_then(Result::err).map(|fault| fault.reason), Some(Reason::Draining));
        told.store(true, Ordering::Relaxed);
        now() - start
    };
    (reading, is_cut)
}

#[tokio::test(start_paused = true)]
async fn of_many_on_one_connection_the_old_stream_ends_alone_and_the_others_have_the_whole_drain() {
    let (drain, running) = (Drain::new(), Arc::new(Running::default()));
    let old = running.begin(true, now());
    sleep(Duration::from_secs(6)).await;
    let young = running.begin(true, now());
    let asking = running.begin(true, now());
    let (old_reads, old_is_cut) = endless(&old);
    let (young_reads, young_is_cut) = endless(&young);
    let start = now();
    drain.begin(PLAN, start);
    let long = Arc::new(LongRunning::default());
    let old_ends = async {
        assert_eq!(old_reads.await, PLAN.streams);
        drop(old);
        // A listener of the service manager's waits for old streams only.
        long.none().await;
        assert!(now() - start < PLAN.timeout);
        drop(asking);
    };
    let (cut, ()) = tokio::join!(
        async {
            tokio::select! {
                () = running.cut(&drain, &long) => now() - start,
                _ = young_reads => panic!("the young one was cut alone"),
            }
        },
        old_ends
    );
    assert_eq!(cut, PLAN.timeout, "the connection goes with what is left at the deadline");
    assert!(old_is_cut.load(Ordering::Relaxed) && !young_is_cut.load(Ordering::Relaxed));
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_exchanges_all_ended_is_not_cut() {
    let (drain, running) = (Drain::new(), Arc::new(Running::default()));
    let turns: Vec<Turn> = (0..100).map(|_| running.begin(true, now())).collect();
    sleep(Duration::from_secs(6)).await;
    drain.begin(PLAN, now());
    let ends = async {
        for turn in turns {
            sleep(Duration::from_millis(10)).await;
            drop(turn);
        }
    };
    let long = Arc::default();
    let (cut, ()) = tokio::join!(timeout(FOR_EVER, running.cut(&drain, &long)), ends);
    assert!(cut.is_err());
}
