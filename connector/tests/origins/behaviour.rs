use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use culvert_model::reason::Reason;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;

use crate::scripted::Scripted;
use crate::stand::{How, Stand, field};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

async fn stand(origin: &Scripted) -> Stand {
    Stand::of(&origin.url(), None, |_| {}, |_| {})
}

fn failure(answer: &str) -> Option<&str> {
    field(answer, "culvert-failure")
}

/// The answer to a GET of an origin that answers so, and then waits.
async fn told(answer: impl AsRef<[u8]> + Clone + Send + Sync + 'static) -> String {
    let origin = Scripted::start(move |mut conn, _| {
        let answer = answer.clone();
        async move {
            conn.head().await?;
            conn.say(answer).await?;
            conn.head().await.map(drop)
        }
    })
    .await;
    stand(&origin).await.get("/").await
}

#[tokio::test]
async fn an_answer_that_comes_early_is_passed_while_the_body_is_still_sent() {
    let whole = Arc::new(Notify::new());
    let told = whole.clone();
    let origin = Scripted::start(move |mut conn, _| {
        let told = told.clone();
        async move {
            conn.head().await?;
            conn.take(10).await?;
            conn.say("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nearly!").await?;
            conn.take(10).await?;
            told.notify_one();
            // The same connection serves the next.
            conn.head().await?;
            conn.say(OK).await
        }
    })
    .await;
    let stand = stand(&origin).await;
    let mut line = stand.line();
    line.ask("POST /", "content-length: 20\r\n", "first half").await;
    assert!(line.answer().await.ends_with("early!"), "before the body was sent");
    line.stream.write_all(b"other half").await.unwrap();
    whole.notified().await;
    line.ask("GET /", "", "").await;
    assert!(line.answer().await.ends_with("ok"));
}

#[tokio::test]
async fn an_origin_that_refuses_a_body_unread_is_heard() {
    let origin = Scripted::start(|mut conn, _| async move {
        conn.head().await?;
        conn.say("HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: 3\r\n\r\nbig").await?;
        conn.0.shutdown().await.ok()?;
        while conn.take(1).await.is_some() {}
        Some(())
    })
    .await;
    let mut line = stand(&origin).await.line();
    line.ask("POST /", "content-length: 1000000000\r\n", "a").await;
    let answer = line.answer().await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with("big"), "{answer}");
    assert_eq!(failure(&answer), None);
}

#[tokio::test]
async fn an_answer_that_is_cut_never_ends_cleanly() {
    let closed = Reason::OriginClosed;
    for (what, part, is_reset, reason) in [
        ("a length, reset", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", true, closed),
        ("a length, closed", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", false, closed),
        ("in a chunk, reset", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\nhalf", true, closed),
        ("in a chunk, closed", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\nhalf", false, closed),
        ("between chunks, closed", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", false, closed),
        (
            "before the last CRLF",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
            false,
            closed,
        ),
        ("no length, reset", "HTTP/1.1 200 OK\r\n\r\nhalf", true, closed),
        (
            "no chunk's size",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n",
            false,
            Reason::OriginProtocol,
        ),
    ] {
        let sent = Arc::new(Notify::new());
        let read = sent.clone();
        let origin = Scripted::start(move |mut conn, _| {
            let read = read.clone();
            async move {
                conn.head().await?;
                conn.say(part).await?;
                // Not before what was sent arrived: a reset overtakes it.
                read.notified().await;
                if is_reset {
                    conn.reset();
                }
                Some(())
            }
        })
        .await;
        let mut line = stand(&origin).await.line();
        line.ask("GET /", "", "").await;
        let head = line.head().await;
        let is_chunked = field(&head, "transfer-encoding").is_some();
        let half = line.bytes(if is_chunked { "4\r\nhalf".len() } else { 4 }).await;
        assert!(half.ends_with(b"half"), "{what}: {half:?}");
        sent.notify_one();
        let (rest, how) = line.end().await;
        assert!(!rest.contains("0\r\n\r\n"), "{what}: {rest:?}");
        assert_eq!(how, How::Reset(Some(reason)), "{what}");
    }
}

#[tokio::test]
async fn a_body_without_a_length_ends_with_its_connection() {
    let origin = Scripted::start(|mut conn, _| async move {
        conn.head().await?;
        conn.say("HTTP/1.1 200 OK\r\n\r\nall of it").await
    })
    .await;
    let mut line = stand(&origin).await.line();
    line.ask("GET /", "", "").await;
    assert!(line.chunked().await.contains("9\r\nall of it\r\n"));
    line.ask("GET /", "", "").await;
    line.chunked().await;
}

#[tokio::test]
async fn hints_come_before_the_answer_and_do_not_disturb_it() {
    let origin = Scripted::start(|mut conn, _| async move {
        conn.head().await?;
        conn.say(
            "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n\
             HTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        )
        .await
    })
    .await;
    let mut line = stand(&origin).await.line();
    line.ask("GET /", "", "").await;
    for early in [
        "HTTP/1.1 102 Processing\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\n\r\n",
    ] {
        assert_eq!(line.head().await, early);
    }
    let head = line.head().await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && !head.contains("css"), "{head}");
    assert_eq!(line.bytes(2).await, b"ok");
}

#[tokio::test]
async fn who_waits_for_100_gets_it_only_from_the_origin() {
    let origin = Scripted::start(|mut conn, _| async move {
        let head = conn.head().await?;
        assert!(head.to_ascii_lowercase().contains("expect: 100-continue"), "{head}");
        conn.say("HTTP/1.1 100 Continue\r\n\r\n").await?;
        let body = conn.take(4).await?;
        conn.say("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n").await?;
        conn.say(body).await?;
        conn.head().await?;
        conn.say("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n").await?;
        conn.head().await.map(drop)
    })
    .await;
    let stand = stand(&origin).await;
    let mut line = stand.line();
    line.ask("POST /", "content-length: 4\r\nexpect: 100-continue\r\n", "").await;
    assert!(line.head().await.starts_with("HTTP/1.1 100 "));
    line.stream.write_all(b"body").await.unwrap();
    assert!(line.answer().await.ends_with("\r\n\r\nbody"));
    let mut line = stand.line();
    line.ask("POST /", "content-length: 4\r\nexpect: 100-continue\r\n", "").await;
    assert!(line.head().await.starts_with("HTTP/1.1 417 "), "no 100 of our own");
}

#[tokio::test]
async fn answers_without_a_body_leave_the_connection_to_the_next() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let origin = Scripted::start(move |mut conn, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            loop {
                let head = conn.head().await?;
                conn.say(match head.split(' ').nth(1)? {
                    "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
                    "/304" => "HTTP/1.1 304 Not Modified\r\ncontent-length: 1234\r\netag: \"x\"\r\n\r\n",
                    "/head" => "HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n",
                    "/head-chunked" => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
                    "/empty" => "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
                    _ => OK,
                })
                .await?;
            }
        }
    })
    .await;
    let mut line = stand(&origin).await.line();
    for (what, status, length) in [
        ("GET /204", "204", None),
        ("GET /304", "304", Some("1234")),
        ("HEAD /head", "200", Some("1234")),
        ("HEAD /head-chunked", "200", None),
        ("GET /empty", "200", Some("0")),
        ("GET /ok", "200", Some("2")),
    ] {
        line.ask(what, "", "").await;
        let head = line.head().await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {head}");
        assert_eq!(field(&head, "content-length"), length, "{what}: {head}");
    }
    assert_eq!(line.bytes(2).await, b"ok", "nothing came in between");
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_part_is_passed_as_it_is() {
    let answer = told(
        "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 2-5/10\r\nAccept-Ranges: bytes\r\nContent-Length: 4\r\n\r\n2345",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 206 ") && answer.ends_with("\r\n\r\n2345"), "{answer}");
    assert!(answer.contains("Content-Range: bytes 2-5/10\r\n"), "{answer}");
}

#[tokio::test]
async fn large_heads_pass_and_too_large_ones_are_named() {
    let of = |count: usize, length: usize| -> String {
        let fields: String = (0..count).map(|at| format!("x-{at}: {}\r\n", "v".repeat(length))).collect();
        format!("HTTP/1.1 200 OK\r\n{fields}content-length: 2\r\n\r\nok")
    };
    for (count, length) in [(1, 60_000), (90, 600)] {
        let answer = told(of(count, length)).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.len() > count * length, "{count} of {length}");
    }
    for (count, length) in [(1, 140_000), (200, 10), (90, 1500)] {
        let answer = told(of(count, length)).await;
        assert_eq!(failure(&answer), Some("origin_protocol; sent=1"), "{count} of {length}");
    }
}

#[tokio::test]
async fn what_is_not_http_is_named_and_never_passed() {
    for bad in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/1.1 200\x01OK\r\n\r\n",
        "HTTP/2 200\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
    ] {
        let answer = told(bad).await;
        assert_eq!(failure(&answer), Some("origin_protocol; sent=1"), "{bad:?}: {answer}");
    }
    let unasked = told("HTTP/1.1 101 Switching Protocols\r\nupgrade: echo\r\nconnection: upgrade\r\n\r\n").await;
    assert_eq!(failure(&unasked), Some("upgrade_refused; sent=1"), "{unasked}");
}

#[tokio::test]
async fn an_origin_that_closes_after_each_answer_fails_no_request() {
    let connections = Arc::new(AtomicUsize::new(0));
    for says_so in [true, false] {
        let counted = connections.clone();
        let origin = Scripted::start(move |mut conn, _| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move {
                conn.head().await?;
                let close = if says_so { "connection: close\r\n" } else { "" };
                conn.say(format!("HTTP/1.1 200 OK\r\n{close}content-length: 2\r\n\r\nok")).await
            }
        })
        .await;
        let stand = stand(&origin).await;
        let mut line = stand.line();
        for _ in 0..50 {
            line.ask("GET /", "", "").await;
            let answer = line.answer().await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{says_so}: {answer}");
            assert!(field(&answer, "connection").is_none(), "the tunnel's stream goes on: {answer}");
        }
    }
    assert_eq!(connections.load(Ordering::Relaxed), 100);
}

#[tokio::test]
async fn an_origin_that_speaks_unasked_is_not_believed() {
    let said = Arc::new(Notify::new());
    let tell = said.clone();
    let origin = Scripted::start(move |mut conn, count| {
        let tell = tell.clone();
        async move {
            conn.head().await?;
            conn.say(OK).await?;
            if count == 0 {
                conn.say("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged").await?;
                tell.notify_one();
                return Some(());
            }
            conn.head().await.map(drop)
        }
    })
    .await;
    let stand = stand(&origin).await;
    assert!(stand.get("/").await.ends_with("ok"));
    said.notified().await;
    assert!(stand.get("/").await.ends_with("ok"), "the answer to nothing is nobody's answer");
}

#[tokio::test]
async fn an_origin_that_closes_without_a_word_is_named_and_not_asked_twice() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let origin = Scripted::start(move |mut conn, _| {
        let counted = counted.clone();
        async move {
            conn.head().await?;
            counted.fetch_add(1, Ordering::Relaxed);
            Some(())
        }
    })
    .await;
    let stand = stand(&origin).await;
    for (number, what) in ["POST /", "GET /"].into_iter().enumerate() {
        let mut line = stand.line();
        line.ask(what, "content-length: 0\r\n", "").await;
        assert_eq!(failure(&line.answer().await), Some("origin_closed; sent=1"), "{what}");
        assert_eq!(asked.load(Ordering::Relaxed), number + 1, "{what}");
    }
}

#[tokio::test]
async fn trailers_of_the_origin_arrive() {
    let origin = Scripted::start(|mut conn, _| async move {
        let head = conn.head().await?;
        assert!(head.to_ascii_lowercase().contains("te: trailers"), "{head}");
        conn.say(
            "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n",
        )
        .await?;
        conn.head().await.map(drop)
    })
    .await;
    let mut line = stand(&origin).await.line();
    line.ask("GET /", "te: trailers\r\nconnection: te\r\n", "").await;
    line.head().await;
    let rest = String::from_utf8(line.bytes("2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n".len()).await).unwrap();
    assert_eq!(rest, "2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n");
}

#[tokio::test]
async fn connections_to_an_address_that_is_left_serve_their_exchange_and_no_other() {
    let (left, half) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, go_on) = (left.clone(), half.clone());
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let origin = Scripted::start(move |mut conn, count| {
        let (tell, go_on) = (tell.clone(), go_on.clone());
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            conn.head().await?;
            if count > 0 {
                return conn.say(OK).await;
            }
            conn.say(OK).await?;
            conn.head().await?;
            conn.say("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nha").await?;
            go_on.notified().await;
            conn.say("lf").await?;
            assert!(conn.head().await.is_none(), "nothing more comes on it");
            tell.notify_one();
            Some(())
        }
    })
    .await;
    let stand = stand(&origin).await;
    assert!(stand.get("/").await.ends_with("ok"));
    let mut line = stand.line();
    line.ask("GET /", "", "").await;
    line.head().await;
    assert_eq!(line.bytes(2).await, b"ha");
    assert_eq!(connections.load(Ordering::Relaxed), 1, "kept and used again");
    stand.renew();
    half.notify_one();
    assert_eq!(line.bytes(2).await, b"lf");
    left.notified().await;
    assert!(stand.get("/").await.ends_with("ok"));
    assert_eq!(connections.load(Ordering::Relaxed), 2);
}
