//! The front, fed with requests made wrong by chance: what it forwards must mean the one thing that was said.
//!
//! `CULVERT_FUZZ_SECONDS=600 cargo test -p culvert-http-tests --test fuzz` goes on for longer; `CULVERT_FUZZ_SEED=N` draws
//! others. A failure prints the input, cut down to what matters.

use std::time::{Duration, Instant};

use culvert_hop::server::Http2;
use culvert_http_tests::compare::verdict;
use culvert_http_tests::frames::{HEADERS, PREFACE, SETTINGS, frame};
use culvert_http_tests::front::{Came, send};
use culvert_http_tests::logged::Fact;
use culvert_http_tests::mutate::{Mutator, broken_frames};

/// How many inputs without being told.
const INPUTS: u64 = 4_000;

#[test]
fn whatever_is_forwarded_means_what_was_said() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("CULVERT_FUZZ_SEED").unwrap_or(1);
    let until = number("CULVERT_FUZZ_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mutator = Mutator::default();
    let mut forwarded = 0;
    let mut inputs = 0;
    while until.map_or(inputs < INPUTS, |until| Instant::now() < until) {
        let (bytes, cut) = mutator.input(seed, inputs);
        let came = send(&bytes, cut, Http2::Never);
        forwarded += came.facts.len();
        if let Err(why) = verdict(&bytes, &came) {
            let (bytes, why) = smaller(bytes, cut, why);
            panic!("seed {seed}, input {inputs}, pieces of {cut}: {why}\n{:?}", String::from_utf8_lossy(&bytes));
        }
        inputs += 1;
    }
    println!("fuzz: seed {seed}, {inputs} inputs, {forwarded} requests forwarded");
    assert!(
        forwarded as u64 > inputs / 4,
        "only {forwarded} requests of {inputs} inputs were forwarded: nothing is tested"
    );
}

/// Frames made wrong by chance: what comes out of them toward an HTTP/1.1 origin is HTTP/1.1, and no more requests than there
/// were heads.
#[test]
fn no_frame_becomes_two_requests() {
    let seed = std::env::var("CULVERT_FUZZ_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut forwarded = 0;
    for number in 0..INPUTS / 2 {
        let frames = broken_frames(seed, number);
        let heads = frames.iter().filter(|one| one.get(3) == Some(&HEADERS)).count();
        let bytes = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frames.concat()].concat();
        let came = send(&bytes, usize::MAX, Http2::Always);
        let whole = came.facts.iter().filter(|fact| matches!(fact, Fact::Whole(_))).count();
        let flawed = came.facts.iter().find(|fact| matches!(fact, Fact::Flaw(..)));
        assert!(flawed.is_none(), "seed {seed}, input {number}: {flawed:?}");
        assert!(whole <= heads, "seed {seed}, input {number}: {heads} heads became {:?}", came.facts);
        forwarded += whole;
    }
    println!("fuzz of frames: seed {seed}, {} inputs, {forwarded} requests forwarded", INPUTS / 2);
    assert!(forwarded as u64 > INPUTS / 20, "only {forwarded} requests were forwarded: nothing is tested");
}

/// A judge that lets everything pass would find nothing.
#[test]
fn a_changed_request_is_noticed() {
    let said = b"POST /a HTTP/1.1\r\nHost: orders\r\nContent-Length: 5\r\nX-A: b\r\n\r\n12345";
    let came = || send(said, usize::MAX, Http2::Never);
    assert_eq!(verdict(said, &came()), Ok(()));
    let others: [&[u8]; 6] = [
        b"PUT /a HTTP/1.1\r\nHost: orders\r\nContent-Length: 5\r\nX-A: b\r\n\r\n12345",
        b"POST /b HTTP/1.1\r\nHost: orders\r\nContent-Length: 5\r\nX-A: b\r\n\r\n12345",
        b"POST /a HTTP/1.1\r\nHost: other\r\nContent-Length: 5\r\nX-A: b\r\n\r\n12345",
        b"POST /a HTTP/1.1\r\nHost: orders\r\nContent-Length: 5\r\nX-A: c\r\n\r\n12345",
        b"POST /a HTTP/1.1\r\nHost: orders\r\nContent-Length: 5\r\nX-A: b\r\n\r\n12346",
        b"POST /a HTTP/1.1\r\nHost: orders\r\nContent-Length: 5\r\nContent-Length: 5\r\nX-A: b\r\n\r\n12345",
    ];
    for other in others {
        assert!(verdict(other, &came()).is_err(), "{:?}", String::from_utf8_lossy(other));
    }
}

/// Leaves out what the failure does not need.
fn smaller(mut bytes: Vec<u8>, cut: usize, mut why: String) -> (Vec<u8>, String) {
    let mut step = bytes.len() / 2;
    while step > 0 {
        let mut at = 0;
        while at < bytes.len() {
            let mut less = bytes.clone();
            less.drain(at..(at + step).min(less.len()));
            let came: Came = send(&less, cut, Http2::Never);
            match verdict(&less, &came) {
                Err(still) => (bytes, why) = (less, still),
                Ok(()) => at += step,
            }
        }
        step /= 2;
    }
    (bytes, why)
}
