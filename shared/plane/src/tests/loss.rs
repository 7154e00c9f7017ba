//! Many callers over a long way that loses packets, by a clock that only the way moves.

use tokio::time::Instant;

use super::*;
use crate::memory::Way;

const ROUND_TRIP_MS: u64 = 50;
const REQUEST: usize = 300;
const ANSWER: usize = 1300;
/// The other end sends without end when it reads this first.
const BULK: u8 = b'B';

#[tokio::test(start_paused = true)]
async fn many_callers_hardly_notice_that_one_packet_in_a_hundred_is_lost() {
    let met = ask(Trip { loss: 0.01, callers: 64, ..TRIP }).await;
    assert!(met.quantile(0.5) < Duration::from_millis(55), "{:?}", met.quantile(0.5));
    // QUIC alone takes a round trip and an eighth to send again, 107 ms in all. That meets 27 to 31 exchanges of a
    // thousand, and with copies 5 to 12.
    let late = met.later_than(Duration::from_millis(80));
    assert!(late < 0.02, "{late}");
}

#[tokio::test(start_paused = true)]
async fn callers_do_not_wait_for_a_transfer_over_a_way_that_loses_some() {
    let met = ask(Trip { loss: 0.01, callers: 16, transfers: 1, ..TRIP }).await;
    assert!(met.quantile(0.5) < Duration::from_millis(65), "{:?}", met.quantile(0.5));
    assert!(met.transferred > 10_000_000, "6 Mbit/s and more: {}", met.transferred);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_twice_where_nothing_is_lost_or_a_queue_grows() {
    let met = ask(Trip { callers: 64, ..TRIP }).await;
    assert_eq!(met.copies, 0);
    // 64 callers want 14 Mbit/s of 8.
    let link = Some((1_000_000, 100_000));
    let met = ask(Trip { loss: 0.01, callers: 64, way: Way { link, ..TRIP.way }, ..TRIP }).await;
    assert!(met.copies < met.times.len() as u64 / 20, "{} copies for {} exchanges", met.copies, met.times.len());
    assert!(met.quantile(0.5) < Duration::from_millis(120), "{:?}", met.quantile(0.5));
}

/// Who asks for how long, over which way.
struct Trip {
    way: Way,
    loss: f64,
    callers: usize,
    transfers: usize,
    run: Duration,
}

const TRIP: Trip = Trip {
    way: Way { delay: Duration::from_millis(ROUND_TRIP_MS / 2), link: None },
    loss: 0.0,
    callers: 0,
    transfers: 0,
    run: Duration::from_secs(12),
};

/// What callers met.
struct Met {
    times: Vec<Duration>,
    transferred: u64,
    /// Datagrams that both ends sent twice.
    copies: u64,
}

impl Met {
    fn quantile(&self, share: f64) -> Duration {
        self.times[((self.times.len() - 1) as f64 * share) as usize]
    }

    /// The share of exchanges that took longer.
    fn later_than(&self, bound: Duration) -> f64 {
        self.times.iter().filter(|time| **time > bound).count() as f64 / self.times.len() as f64
    }
}

/// Callers ask one small thing after the other, each on a stream of its own, beside transfers.
async fn ask(trip: Trip) -> Met {
    let Trip { way, loss, callers, transfers, run } = trip;
    let network = Network::new();
    network.set_way(way);
    let (relay, far, connector, near, _) = joined(&network).await;
    far.permit_streams(1024);
    near.permit_streams(1024);
    let mut chance = 0x9e37_79b9_7f4a_7c15_u64;
    network.set_rule(move |_, _, _| {
        chance ^= chance >> 12;
        chance ^= chance << 25;
        chance ^= chance >> 27;
        (chance.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64 >= loss
    });
    tokio::spawn(async move {
        while let Ok(mut stream) = near.accept().await {
            tokio::spawn(async move {
                let mut request = [0; REQUEST];
                while stream.read_exact(&mut request).await.is_ok() {
                    while request[0] == BULK && stream.write_all(&[0; 16 << 10]).await.is_ok() {}
                    if stream.write_all(&[1; ANSWER]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for caller in 0..callers + transfers {
        let far = far.clone();
        tasks.spawn(async move {
            let mut times = Vec::new();
            let mut transferred = 0;
            let mut stream = far.open().await.unwrap();
            if caller >= callers {
                stream.write_all(&[BULK; REQUEST]).await.unwrap();
                let mut buffer = vec![0; 64 << 10];
                while start.elapsed() < run {
                    transferred += stream.read(&mut buffer).await.unwrap() as u64;
                }
            }
            while start.elapsed() < run {
                let asked = Instant::now();
                stream.write_all(&[0; REQUEST]).await.unwrap();
                stream.read_exact(&mut [0; ANSWER]).await.unwrap();
                if start.elapsed() > run / 4 {
                    times.push(asked.elapsed());
                }
            }
            (times, transferred)
        });
    }
    let mut met = Met { times: Vec::new(), transferred: 0, copies: 0 };
    while let Some(done) = tasks.join_next().await {
        let (times, transferred) = done.unwrap();
        met.times.extend(times);
        met.transferred += transferred;
    }
    met.times.sort();
    met.copies = relay.plane.stats().plane.spares + connector.plane.stats().plane.spares;
    met
}
