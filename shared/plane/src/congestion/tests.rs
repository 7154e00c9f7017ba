//! The window by itself, by chance losses, and beside others on a full way.

use std::collections::{BTreeMap, VecDeque};

use super::*;

const MTU: u64 = 1200;
const RTT: Duration = Duration::from_millis(50);

fn shares(streams: u32) -> (Shares, Instant) {
    let now = Instant::now();
    let shares = Shares::new(32 * MTU, now, MTU as u16);
    shares.flows.counted.store(streams, Ordering::Relaxed);
    (shares, now)
}

/// Losses of that many packets, all sent before the first was noticed.
fn lose(shares: &mut Shares, now: Instant, packets: u64) {
    for _ in 0..packets {
        shares.on_congestion_event(now, now, false, MTU);
    }
}

#[test]
fn one_stream_is_cut_as_cubic_and_many_by_the_shares_that_were_hit() {
    for (streams, lost, left) in
        [(1, 1, 0.7), (1, 5, 0.7), (4, 1, 0.925), (4, 2, 0.85), (4, 9, 0.7), (300, 8, 0.7), (300, 1, 0.9625)]
    {
        let (mut shares, now) = shares(streams);
        shares.window = 1000.0 * MTU as f64;
        lose(&mut shares, now, lost);
        assert!((shares.window / (1000.0 * MTU as f64) - left).abs() < 1e-9, "{streams} {lost}: {}", shares.window);
    }
}

#[test]
fn losses_of_one_round_trip_are_one_event_and_later_ones_the_next() {
    let (mut shares, now) = shares(1);
    lose(&mut shares, now + RTT, 3);
    shares.on_congestion_event(now + RTT * 3 / 2, now + RTT, false, MTU);
    assert_eq!(Controller::window(&shares), 32 * MTU * 7 / 10);
    shares.on_congestion_event(now + 3 * RTT, now + 2 * RTT, false, MTU);
    assert_eq!(Controller::window(&shares), 32 * MTU * 49 / 100);
}

#[test]
fn persistent_congestion_collapses_the_window_of_many_streams_too() {
    let (mut shares, mut now) = shares(64);
    shares.on_congestion_event(now + RTT, now + RTT, true, MTU);
    assert_eq!(Controller::window(&shares), 2 * MTU);
    for _ in 0..3 {
        now += 2 * RTT;
        shares.handle_ack(now, now, 2 * MTU, false, RTT);
    }
    assert_eq!(Controller::window(&shares), 8 * MTU, "slow start");
    for _ in 0..50 {
        now += 2 * RTT;
        lose(&mut shares, now, 64);
    }
    assert_eq!(Controller::window(&shares), 2 * MTU);
}

#[test]
fn streams_count_while_they_send_and_a_while_longer() {
    let (mut shares, mut now) = shares(0);
    let flows = shares.flows();
    let mut seen = [None; 5];
    for _ in 0..3 {
        seen.iter_mut().for_each(|seen| flows.note(seen, 1));
    }
    assert_eq!(shares.streams(), 5);
    for left in [5, 1] {
        now += PERIOD * RTT;
        shares.handle_ack(now, now, MTU, true, RTT);
        assert_eq!(shares.streams(), left);
    }
}

#[test]
fn something_long_is_known_for_a_while_after_it_has_ended() {
    let (mut shares, mut now) = shares(0);
    let flows = shares.flows();
    let mut seen = None;
    flows.note(&mut seen, LONG + 1);
    for short in [false, true] {
        now += PERIOD * RTT;
        shares.handle_ack(now, now, MTU, true, RTT);
        flows.note(&mut seen, LONG);
        assert_eq!(flows.are_short(), short);
    }
}

#[test]
fn a_window_that_is_not_used_does_not_grow() {
    let (mut shares, mut now) = shares(1);
    lose(&mut shares, now, 1);
    let cut = shares.window;
    for _ in 0..1000 {
        now += RTT;
        shares.handle_ack(now, now, MTU, true, RTT);
    }
    assert!((shares.window - cut).abs() < 0.5);
    now += RTT;
    shares.handle_ack(now, now, MTU, false, RTT);
    assert!(shares.window <= cut + MTU as f64, "idle time is not caught up with: {}", shares.window);
}

#[test]
fn losses_by_chance_leave_many_streams_the_window_of_as_many_connections() {
    let alone = random_loss(1);
    let together = random_loss(8);
    assert!((8.0..20.0).contains(&alone), "RFC 9438 §5.1 gives about 12 packets at 1 %: {alone}");
    assert!((5.0..9.0).contains(&(together / alone)), "{together} for 8 streams, {alone} for one");
}

#[test]
fn a_window_of_which_half_is_used_grows_as_one_that_is_full() {
    for (in_flight, grows) in [(16, true), (15, false)] {
        let (mut shares, mut now) = shares(8);
        shares.ssthresh = shares.window;
        let before = shares.window;
        for _ in 0..10 {
            now += RTT;
            shares.on_sent(now, in_flight * MTU, 0);
            (0..in_flight).for_each(|_| shares.handle_ack(now, now, MTU, true, RTT));
            shares.on_end_acks(now, 0, true, None);
            shares.most = [0, in_flight * MTU];
        }
        assert_eq!(shares.window > before, grows, "{in_flight} packets in flight: {}", shares.window);
    }
}

#[test]
fn copies_are_for_chance_losses_and_fit_in_what_the_window_has_left() {
    let (mut shares, mut now) = shares(8);
    let flows = shares.flows();
    let room = |shares: &mut Shares, in_flight: u64, now: Instant| {
        shares.handle_ack(now, now, MTU, true, RTT);
        shares.on_end_acks(now, in_flight, true, None);
        std::iter::from_fn(|| flows.take_spare(MTU as usize)).take(1000).count() as u64
    };
    shares.chance.count(500, 0);
    now += RTT;
    assert_eq!(room(&mut shares, 0, now), 0, "nothing is lost");
    shares.chance.count(0, 5);
    now += RTT;
    let window = Controller::window(&shares) / MTU;
    assert_eq!(room(&mut shares, 0, now), window);
    now += RTT;
    assert_eq!(room(&mut shares, (window - 4) * MTU, now), 4);
    now += RTT / 2;
    assert!((1..=2).contains(&room(&mut shares, (window - 4) * MTU, now)));
    now += RTT;
    assert_eq!(room(&mut shares, 2 * window * MTU, now), 0, "a transfer uses it up");
}

#[test]
fn a_full_way_is_shared_with_connections_as_among_connections() {
    // Five CUBIC connections, and one that carries what five would.
    let taken = bottleneck(&[1, 1, 1, 1, 1, 5], 600.0, 60);
    let (others, ours) = (taken[..5].iter().sum::<f64>(), taken[5]);
    assert!(others + ours > 0.95, "the way is used: {taken:?}");
    assert!((0.3..0.62).contains(&(ours / (others + ours))), "{taken:?}");
}

/// The mean window in packets, of a sender that always has data, where one packet in a hundred is lost.
fn random_loss(streams: u32) -> f64 {
    let (mut shares, mut now) = shares(streams);
    let (mut sum, mut sent) = (0.0, 0_u64);
    for _ in 0..4000 {
        let started = now;
        now += RTT;
        shares.flows.counted.store(streams, Ordering::Relaxed);
        let packets = Controller::window(&shares) / MTU;
        sum += packets as f64;
        for _ in 0..packets {
            sent += 1;
            match sent % 100 {
                0 => shares.on_congestion_event(now, started, false, MTU),
                _ => shares.handle_ack(now, started + Duration::from_nanos(1), MTU, false, RTT),
            }
        }
    }
    sum / 4000.0
}

/// Senders that always have data over a link of `rate` packets a second with a queue: the share that each gets.
fn bottleneck(streams: &[u32], rate: f64, queue: usize) -> Vec<f64> {
    let start = Instant::now();
    let mut senders: Vec<_> = streams.iter().map(|streams| shares(*streams).0).collect();
    let mut in_flight = vec![0_u64; senders.len()];
    let mut done = vec![0_u64; senders.len()];
    let mut waiting: VecDeque<(usize, Instant)> = VecDeque::new();
    // By time: whose packet, sent when, and whether it arrived.
    let mut news: BTreeMap<(Instant, usize), (usize, Instant, bool)> = BTreeMap::new();
    let ticks = (rate * 300.0) as usize;
    for tick in 0..ticks {
        let now = start + Duration::from_secs_f64(tick as f64 / rate);
        if let Some((owner, sent)) = waiting.pop_front() {
            news.insert((now + RTT, news.len() + 2 * tick), (owner, sent, true));
        }
        while let Some(first) = news.first_entry().filter(|first| first.key().0 <= now) {
            let (owner, sent, arrived) = first.remove();
            in_flight[owner] -= 1;
            let sender = &mut senders[owner];
            sender.flows.counted.store(streams[owner], Ordering::Relaxed);
            if arrived {
                done[owner] += u64::from(tick > ticks / 3);
                sender.handle_ack(now, sent, MTU, false, now - sent);
            } else {
                sender.on_congestion_event(now, sent, false, MTU);
            }
        }
        for turn in 0..senders.len() {
            let owner = (turn + tick) % senders.len();
            while in_flight[owner] < Controller::window(&senders[owner]) / MTU {
                in_flight[owner] += 1;
                if waiting.len() < queue {
                    waiting.push_back((owner, now));
                } else {
                    let noticed = now + RTT + Duration::from_secs_f64(queue as f64 / rate);
                    news.insert((noticed, usize::MAX - news.len()), (owner, now, false));
                    // It finds out a round trip later: it does not send into a full queue without end.
                    break;
                }
            }
        }
    }
    done.iter().map(|done| *done as f64 / (rate * 200.0)).collect()
}
