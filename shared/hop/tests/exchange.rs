//! Exchanges through a hop: bodies, trailers, early answers, those who go away, deadlines, retries.

mod rig;

use std::time::Duration;

use culvert_hop::body::{Ending, Outcome};
use culvert_hop::exchange::Deadlines;
use culvert_hop::fault::Retry;
use culvert_model::reason::Reason;
use rig::{Options, Rig, exactly, head, is_gone, rest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

const GET: &str = "GET /a HTTP/1.1\r\nHost: orders\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test(start_paused = true)]
async fn a_connection_is_used_again_and_again() {
    let mut rig = Rig::new();
    rig.say(GET).await;
    let mut origin = rig.origin().await;
    for round in 0..5 {
        assert!(head(&mut origin).await.starts_with("GET /a HTTP/1.1\r\n"), "{round}");
        origin.write_all(OK.as_bytes()).await.unwrap();
        let answer = head(&mut rig.caller).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert_eq!(exactly(&mut rig.caller, 2).await, "ok");
        rig.say(GET).await;
    }
    assert!(rig.origins.try_recv().is_err(), "a second connection was opened");
    assert_eq!(rig.endings.lock().unwrap().len(), 5);
    assert!(rig.endings.lock().unwrap().iter().all(|ending| *ending == Ending { bytes: 2, outcome: Outcome::Whole }));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_the_origin_closed_while_idle_fails_no_request() {
    let mut rig = Rig::new();
    for _ in 0..3 {
        // A POST: it may not be sent twice, so it must not have been sent at all.
        rig.say("POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 1\r\n\r\nx").await;
        let mut origin = rig.origin().await;
        head(&mut origin).await;
        assert_eq!(exactly(&mut origin, 1).await, "x");
        origin.write_all(OK.as_bytes()).await.unwrap();
        assert!(head(&mut rig.caller).await.starts_with("HTTP/1.1 200 OK\r\n"));
        assert_eq!(exactly(&mut rig.caller, 2).await, "ok");
        assert_eq!(rig.pool.idle(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_asked_for_poisons_no_other_exchange() {
    let mut rig = Rig::new();
    rig.say(GET).await;
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    origin.write_all(format!("{OK}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil").as_bytes()).await.unwrap();
    assert!(head(&mut rig.caller).await.starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!(exactly(&mut rig.caller, 2).await, "ok");
    rig.say(GET).await;
    let mut second = rig.origin().await;
    head(&mut second).await;
    second.write_all(OK.as_bytes()).await.unwrap();
    head(&mut rig.caller).await;
    assert_eq!(exactly(&mut rig.caller, 2).await, "ok");
}

#[tokio::test(start_paused = true)]
async fn chunks_and_trailers_pass_both_ways() {
    let mut rig = Rig::new();
    rig.say(
        "PUT / HTTP/1.1\r\nHost: orders\r\nTE: trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n\
         3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n",
    )
    .await;
    let mut origin = rig.origin().await;
    let request = head(&mut origin).await;
    assert!(request.contains("Transfer-Encoding: chunked\r\n"), "{request}");
    let body = "3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n";
    assert_eq!(exactly(&mut origin, body.len()).await, body);
    origin
        .write_all(
            b"HTTP/1.1 200 OK\r\nTrailer: x-end\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-end: 9\r\n\r\n",
        )
        .await
        .unwrap();
    head(&mut rig.caller).await;
    let body = "2\r\nhi\r\n0\r\nx-end: 9\r\n\r\n";
    assert_eq!(exactly(&mut rig.caller, body.len()).await, body);
    assert_eq!(rig.pool.idle(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_chunked_body_of_a_get_is_sent() {
    let mut rig = Rig::new();
    rig.say("GET / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n").await;
    let mut origin = rig.origin().await;
    assert!(head(&mut origin).await.contains("Transfer-Encoding: chunked\r\n"));
    assert_eq!(exactly(&mut origin, 11).await, "1\r\nx\r\n0\r\n\r\n");
}

#[tokio::test(start_paused = true)]
async fn events_pass_as_they_come() {
    let mut rig = Rig::new();
    rig.say(GET).await;
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    origin.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    head(&mut rig.caller).await;
    let start = Instant::now();
    for _ in 0..100 {
        origin.write_all(b"9\r\ndata: x\n\n\r\n").await.unwrap();
        assert_eq!(exactly(&mut rig.caller, 14).await, "9\r\ndata: x\n\n\r\n");
        assert_eq!(start.elapsed(), Duration::ZERO, "an event was held back");
    }
}

#[tokio::test(start_paused = true)]
async fn lengths_stay_as_they_were_sent() {
    for (request, status, fields, expected) in [
        ("GET", "200 OK", "content-length: 0\r\n", "content-length: 0"),
        ("HEAD", "200 OK", "content-length: 1234\r\n", "content-length: 1234"),
        ("GET", "304 Not Modified", "content-length: 1234\r\n", "content-length: 1234"),
        ("GET", "304 Not Modified", "etag: \"a\"\r\n", "etag: \"a\""),
        ("GET", "204 No Content", "x: y\r\n", "x: y"),
        ("HEAD", "200 OK", "transfer-encoding: chunked\r\n", ""),
    ] {
        let mut rig = Rig::new();
        rig.say(format!("{request} / HTTP/1.1\r\nHost: orders\r\n\r\n")).await;
        let mut origin = rig.origin().await;
        assert!(!head(&mut origin).await.contains("content-length"));
        origin.write_all(format!("HTTP/1.1 {status}\r\n{fields}\r\n").as_bytes()).await.unwrap();
        let answer = head(&mut rig.caller).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
        assert!(answer.contains(expected), "{request} {status}: {answer}");
        assert_eq!(answer.contains("content-length"), expected.starts_with("content-length"), "{answer}");
        assert!(!answer.contains("date:"), "a date was invented: {answer}");
        // The next exchange follows on the same connections.
        rig.say(GET).await;
        assert!(head(&mut origin).await.starts_with("GET /a "), "{request} {status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_post_without_a_body_keeps_its_zero() {
    let mut rig = Rig::new();
    rig.say("POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 0\r\n\r\n").await;
    assert!(head(&mut rig.origin().await).await.contains("Content-Length: 0\r\n"));
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_come_while_the_body_is_still_sent() {
    let mut rig = Rig::new();
    rig.say("POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 6\r\n\r\nabc").await;
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    assert_eq!(exactly(&mut origin, 3).await, "abc");
    origin.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n").await.unwrap();
    head(&mut rig.caller).await;
    assert_eq!(exactly(&mut rig.caller, 6).await, "1\r\nx\r\n");
    // Both directions go on, in any order.
    rig.say("d").await;
    assert_eq!(exactly(&mut origin, 1).await, "d");
    origin.write_all(b"1\r\ny\r\n").await.unwrap();
    assert_eq!(exactly(&mut rig.caller, 6).await, "1\r\ny\r\n");
    rig.say("ef").await;
    assert_eq!(exactly(&mut origin, 2).await, "ef");
    origin.write_all(b"0\r\n\r\n").await.unwrap();
    assert_eq!(exactly(&mut rig.caller, 5).await, "0\r\n\r\n");
    rig.say(GET).await;
    assert!(head(&mut origin).await.starts_with("GET /a "), "the connection was not used again");
}

#[tokio::test(start_paused = true)]
async fn an_upload_goes_on_while_its_answer_is_not_read() {
    let mut rig = Rig::with(Options { buffer: 1024, ..Options::default() });
    rig.say("POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 1000000\r\n\r\n").await;
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    let (mut from_hop, mut to_hop) = tokio::io::split(origin);
    // More than every buffer on the way holds.
    let answer = tokio::spawn(async move {
        to_hop.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n").await.unwrap();
        to_hop.write_all(&vec![b'd'; 1_000_000]).await.unwrap();
        to_hop
    });
    let upload = tokio::spawn(async move {
        let mut got = 0;
        let mut buffer = vec![0; 4096];
        while got < 1_000_000 {
            got += from_hop.read(&mut buffer).await.unwrap();
        }
        got
    });
    let body = vec![b'u'; 1_000_000];
    let sent = tokio::time::timeout(Duration::from_secs(10), rig.caller.write_all(&body)).await;
    sent.expect("the upload waits for its answer to be read").unwrap();
    assert_eq!(upload.await.unwrap(), 1_000_000);
    head(&mut rig.caller).await;
    let mut down = vec![0; 1_000_000];
    rig.caller.read_exact(&mut down).await.unwrap();
    answer.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refused_upload_ends_soon() {
    let mut rig = Rig::new();
    rig.say("POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 6\r\n\r\nabc").await;
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    exactly(&mut origin, 3).await;
    origin.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
    assert!(head(&mut rig.caller).await.starts_with("HTTP/1.1 403 "));
    assert_eq!(exactly(&mut rig.caller, 2).await, "no");
    let start = Instant::now();
    assert!(is_gone(&mut origin).await);
    assert!(is_gone(&mut rig.caller).await);
    assert!(start.elapsed() <= culvert_hop::exchange::LINGER, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_cut_answer_is_cut_for_the_caller_too() {
    for answer in [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
    ] {
        let mut rig = Rig::new();
        rig.say(GET).await;
        let mut origin = rig.origin().await;
        head(&mut origin).await;
        origin.write_all(answer.as_bytes()).await.unwrap();
        drop(origin);
        let heard = rig.rest().await;
        assert!(heard.contains("abc") && !heard.ends_with("0\r\n\r\n"), "{heard}");
        assert!(rig.server.is_finished());
        let endings = rig.endings.lock().unwrap();
        assert!(matches!(endings[..], [Ending { outcome: Outcome::Cut(Reason::OriginClosed), .. }]), "{endings:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_request_is_cut_for_the_origin_too() {
    for request in [
        "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 10\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ] {
        let mut rig = Rig::new();
        rig.say(request).await;
        let mut origin = rig.origin().await;
        head(&mut origin).await;
        let start = Instant::now();
        drop(std::mem::replace(&mut rig.caller, tokio::io::duplex(1).0));
        let heard = rest(&mut origin).await;
        assert!(heard.contains("abc") && !heard.contains("0\r\n\r\n"), "{heard}");
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_cancels_the_origins_work() {
    // Before the answer, and in the middle of it.
    for answer in ["", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"] {
        let mut rig = Rig::new();
        rig.say(GET).await;
        let mut origin = rig.origin().await;
        head(&mut origin).await;
        if !answer.is_empty() {
            origin.write_all(answer.as_bytes()).await.unwrap();
            head(&mut rig.caller).await;
        }
        let start = Instant::now();
        drop(std::mem::replace(&mut rig.caller, tokio::io::duplex(1).0));
        assert!(is_gone(&mut origin).await, "{answer:?}");
        assert!(start.elapsed() <= Duration::from_secs(1), "{:?}", start.elapsed());
        assert_eq!(rig.pool.idle(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_only_stops_sending_is_answered() {
    let mut rig = Rig::new();
    rig.say(GET).await;
    rig.caller.shutdown().await.unwrap();
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    tokio::time::advance(Duration::from_millis(900)).await;
    origin.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab").await.unwrap();
    head(&mut rig.caller).await;
    tokio::time::advance(Duration::from_millis(900)).await;
    origin.write_all(b"cd").await.unwrap();
    assert_eq!(rig.rest().await, "abcd");
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_says_nothing_ends_in_time() {
    let mut rig = Rig::new();
    rig.say(GET).await;
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    let start = Instant::now();
    let answer = head(&mut rig.caller).await;
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    assert!(
        answer.contains("proxy-status: culvert-relay; error=http_response_timeout; details=\"origin_timeout\"\r\n")
    );
    assert_eq!(start.elapsed(), Duration::from_secs(60));
    assert!(is_gone(&mut origin).await, "the origin still works for nobody");
}

#[tokio::test(start_paused = true)]
async fn a_slow_upload_is_not_a_silent_origin() {
    let mut rig = Rig::new();
    rig.say("POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 5\r\n\r\n").await;
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(100)).await;
        rig.say("x").await;
        assert_eq!(exactly(&mut origin, 1).await, "x");
    }
    let start = Instant::now();
    assert!(head(&mut rig.caller).await.starts_with("HTTP/1.1 504 "));
    let waited = start.elapsed().as_secs();
    assert!((20..=120).contains(&waited), "{waited}");
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_does_not_read_is_a_silent_origin() {
    let mut rig = Rig::with(Options { buffer: 1024, ..Options::default() });
    rig.say("POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 1000000\r\n\r\n").await;
    let _origin = rig.origin().await;
    let Rig { caller, .. } = rig;
    let (mut hears, mut says) = tokio::io::split(caller);
    tokio::spawn(async move { says.write_all(&vec![b'u'; 1_000_000]).await });
    let mut answer = vec![0; 12];
    tokio::time::timeout(Duration::from_secs(130), hears.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, b"HTTP/1.1 504");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_ends_after_the_idle_time_and_no_sooner() {
    let mut rig = Rig::new();
    rig.say(GET).await;
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    origin.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    head(&mut rig.caller).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(3500)).await;
        origin.write_all(b"1\r\nx\r\n").await.unwrap();
        assert_eq!(exactly(&mut rig.caller, 6).await, "1\r\nx\r\n");
    }
    let start = Instant::now();
    let mut more = Vec::new();
    rig.caller.read_to_end(&mut more).await.unwrap();
    assert_eq!((more.len(), start.elapsed()), (0, Duration::from_secs(3600)));
    let endings = rig.endings.lock().unwrap();
    assert_eq!(endings[..], [Ending { bytes: 3, outcome: Outcome::Cut(Reason::OriginTimeout) }]);
}

#[tokio::test(start_paused = true)]
async fn the_whole_exchange_has_its_deadline() {
    let deadlines = Deadlines { request: Some(Duration::from_secs(10)), ..Deadlines::default() };
    let mut rig = Rig::with(Options { deadlines, ..Options::default() });
    rig.say(GET).await;
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    let start = Instant::now();
    let answer = head(&mut rig.caller).await;
    assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("details=\"deadline\""), "{answer}");
    assert_eq!(start.elapsed(), Duration::from_secs(10));

    let mut rig = Rig::with(Options { deadlines, ..Options::default() });
    rig.say(GET).await;
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    let start = Instant::now();
    tokio::spawn(async move {
        let _ = origin.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        while origin.write_all(b"1\r\nx\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    });
    assert!(!rig.rest().await.ends_with("0\r\n\r\n"));
    assert!(start.elapsed() <= Duration::from_secs(11), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_body_waits_for_100_and_so_does_the_caller() {
    let mut rig = Rig::new();
    rig.say("PUT / HTTP/1.1\r\nHost: orders\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n").await;
    let mut origin = rig.origin().await;
    assert!(head(&mut origin).await.contains("Expect: 100-continue\r\n"));
    let early = tokio::time::timeout(Duration::from_millis(900), rig.caller.read_u8()).await;
    assert!(early.is_err(), "the caller was told to go on before the origin was");
    origin.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
    assert_eq!(head(&mut rig.caller).await, "HTTP/1.1 100 Continue\r\n\r\n");
    rig.say("hi").await;
    assert_eq!(exactly(&mut origin, 2).await, "hi");
    origin.write_all(OK.as_bytes()).await.unwrap();
    assert!(head(&mut rig.caller).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(rig.pool.idle(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_refused_is_never_asked_for() {
    let mut rig = Rig::new();
    rig.say("PUT / HTTP/1.1\r\nHost: orders\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n").await;
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    let start = Instant::now();
    origin.write_all(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
    let heard = rig.rest().await;
    assert!(heard.starts_with("HTTP/1.1 417 ") && heard.ends_with("no"), "{heard}");
    assert!(is_gone(&mut origin).await);
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_knows_no_100_gets_the_body_after_a_second() {
    let mut rig = Rig::new();
    rig.say("PUT / HTTP/1.1\r\nHost: orders\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nhi").await;
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    let start = Instant::now();
    assert_eq!(exactly(&mut origin, 2).await, "hi");
    assert_eq!(start.elapsed(), Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn what_was_not_sent_says_so() {
    let mut rig = Rig::new();
    *rig.pool.opener().refuses.lock().unwrap() = true;
    rig.say("POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 0\r\n\r\n").await;
    let answer = head(&mut rig.caller).await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("details=\"origin_refused\""), "{answer}");
    assert!(!answer.contains("10.0.0.7"));
    let faults = rig.faults.lock().unwrap();
    assert_eq!((faults[0].retry, faults[0].detail()), (Retry::Safe, Some("10.0.0.7:80")));
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_closes_without_an_answer_has_seen_the_request() {
    let mut rig = Rig::new();
    rig.say(GET).await;
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    drop(origin);
    let answer = head(&mut rig.caller).await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("details=\"origin_closed\""), "{answer}");
    assert_eq!(rig.faults.lock().unwrap()[0].retry, Retry::IfIdempotent);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_no_http_is_named() {
    for nonsense in ["SSH-2.0-OpenSSH_9.6\r\n", "HTTP/1.1 200 OK\r\nA b: c\r\n\r\n", "HTTP/1.1 2x0 OK\r\n\r\n"] {
        let mut rig = Rig::new();
        rig.say(GET).await;
        let mut origin = rig.origin().await;
        head(&mut origin).await;
        origin.write_all(nonsense.as_bytes()).await.unwrap();
        let answer = head(&mut rig.caller).await;
        assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("details=\"origin_protocol\""), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idempotent_request_is_tried_once_more_with_its_body_whole() {
    let mut rig = Rig::with(Options { retries: true, ..Options::default() });
    rig.say("PUT / HTTP/1.1\r\nHost: orders\r\nContent-Length: 6\r\n\r\nabc").await;
    let mut origin = rig.origin().await;
    let first = head(&mut origin).await;
    assert_eq!(exactly(&mut origin, 3).await, "abc");
    drop(origin);
    let mut origin = rig.origin().await;
    assert_eq!(head(&mut origin).await, first);
    assert_eq!(exactly(&mut origin, 3).await, "abc");
    rig.say("def").await;
    assert_eq!(exactly(&mut origin, 3).await, "def");
    origin.write_all(OK.as_bytes()).await.unwrap();
    assert!(head(&mut rig.caller).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test(start_paused = true)]
async fn a_post_that_may_have_been_acted_on_is_not_tried_again() {
    let mut rig = Rig::with(Options { retries: true, ..Options::default() });
    rig.say("POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 0\r\n\r\n").await;
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    drop(origin);
    assert!(head(&mut rig.caller).await.starts_with("HTTP/1.1 502 "));
    assert!(rig.origins.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_body_over_its_bound_is_not_kept() {
    let mut rig = Rig::with(Options { retries: true, buffer: 1 << 20, ..Options::default() });
    let body = "x".repeat(culvert_hop::retry::MAX_KEPT + 1);
    rig.say(format!("PUT / HTTP/1.1\r\nHost: orders\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    exactly(&mut origin, body.len()).await;
    drop(origin);
    assert!(head(&mut rig.caller).await.starts_with("HTTP/1.1 502 "));
    assert!(rig.origins.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn draining_ends_a_connection_after_its_exchange() {
    let mut rig = Rig::new();
    rig.say(GET).await;
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    rig.drain.send_replace(true);
    tokio::time::sleep(Duration::from_secs(3)).await;
    origin.write_all(OK.as_bytes()).await.unwrap();
    let heard = rig.rest().await;
    assert!(heard.contains("connection: close\r\n") && heard.ends_with("ok"), "{heard}");
    assert!(rig.server.is_finished());
}

#[tokio::test(start_paused = true)]
async fn idle_connections_end_in_time() {
    let mut rig = Rig::new();
    rig.say(GET).await;
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    origin.write_all(OK.as_bytes()).await.unwrap();
    head(&mut rig.caller).await;
    exactly(&mut rig.caller, 2).await;
    assert_eq!(rig.pool.idle(), 1);
    rig.pool.sweep(Instant::now() + Duration::from_secs(59));
    assert_eq!(rig.pool.idle(), 1);
    rig.pool.sweep(Instant::now() + Duration::from_secs(60));
    assert_eq!(rig.pool.idle(), 0);
    assert!(is_gone(&mut origin).await);
    let start = Instant::now();
    let mut more = Vec::new();
    rig.caller.read_to_end(&mut more).await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 120, "{}", String::from_utf8_lossy(&more));
    assert!(more.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_gets_408_and_no_more_time() {
    let mut rig = Rig::new();
    tokio::time::sleep(Duration::from_secs(100)).await;
    rig.say("GET / HTTP/1.1\r\n").await;
    let start = Instant::now();
    let (mut hears, mut says) = tokio::io::split(std::mem::replace(&mut rig.caller, tokio::io::duplex(1).0));
    tokio::spawn(async move {
        while says.write_all(b"X: y\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    });
    let mut heard = String::new();
    hears.read_to_string(&mut heard).await.unwrap();
    assert!(heard.starts_with("HTTP/1.1 408 ") && heard.contains("details=\"request_timeout\""), "{heard}");
    let waited = start.elapsed().as_secs();
    assert!((30..=36).contains(&waited), "{waited}");
}
