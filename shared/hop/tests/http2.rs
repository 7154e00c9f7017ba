//! HTTP/2 messages from a caller, through one hop or two, to origins of both versions.

mod rig;
#[path = "rig/two.rs"]
mod two;

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use culvert_hop::body::{Ending, Outcome};
use culvert_hop::pool::{PoolSettings, Speak};
use culvert_model::reason::Reason;
use http::{Method, Response, StatusCode};
use rig::{Options, Rig, connect, exactly, head, pool};
use tokio::io::AsyncWriteExt;
use two::{Caller, data, origin, reset_of, soon, speaking, to, trailers};

#[tokio::test(start_paused = true)]
async fn a_request_reaches_an_http1_origin_as_http1() {
    let mut caller = Caller::toward(Speak::Never).await;
    let request = to("//a?b=%2F")
        .method("POST")
        .header("x-request-id", "abc")
        .header("cookie", "a=1")
        .header("x-b", "1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .header("culvert-service", "other")
        .body(())
        .unwrap();
    let (answer, mut body) = caller.ask(request).await;
    body.send_data("hello".into(), false).unwrap();
    body.send_trailers(trailers("x-sum", "7")).unwrap();
    let mut origin = caller.rig.origin().await;
    assert_eq!(
        head(&mut origin).await,
        "POST //a?b=%2F HTTP/1.1\r\nhost: orders\r\nx-request-id: abc\r\ncookie: a=1; b=2\r\nx-b: 1\r\nte: trailers\r\n\
         x-forwarded-for: 192.0.2.7\r\nx-forwarded-proto: http\r\nx-forwarded-host: orders\r\nx-forwarded-port: 8080\r\n\
         forwarded: for=192.0.2.7;by=_culvert-r1;host=orders;proto=http\r\nvia: 1.1 culvert\r\nconnection: te\r\n\
         transfer-encoding: chunked\r\n\r\n"
    );
    assert_eq!(exactly(&mut origin, 10).await, "5\r\nhello\r\n");
    origin
        .write_all(
            b"HTTP/1.1 201 Made\r\nConnection: x-gone\r\nX-Gone: 1\r\nKeep-Alive: timeout=5\r\nSet-Cookie: a\r\n\
              Set-Cookie: b\r\nTrailer: x-end\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-end: 9\r\n\r\n",
        )
        .await
        .unwrap();
    let (parts, mut body) = soon(answer).await.unwrap().into_parts();
    assert_eq!(parts.status, StatusCode::CREATED);
    let fields: Vec<_> =
        parts.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    assert_eq!(fields, ["set-cookie: a", "set-cookie: b", "trailer: x-end"]);
    assert_eq!(data(&mut body).await.unwrap(), "ok");
    assert_eq!(soon(body.trailers()).await.unwrap().unwrap()["x-end"], "9");
}

#[tokio::test(start_paused = true)]
async fn a_body_of_known_length_stays_one_and_an_empty_one_gets_no_framing() {
    let mut caller = Caller::toward(Speak::Never).await;
    let (_answer, mut body) = caller.ask(to("/").method("PUT").header("content-length", "2").body(()).unwrap()).await;
    let mut origin = caller.rig.origin().await;
    body.send_data("hi".into(), true).unwrap();
    let request = head(&mut origin).await;
    assert!(request.contains("\r\ncontent-length: 2\r\n") && !request.contains("transfer-encoding"), "{request}");
    assert_eq!(exactly(&mut origin, 2).await, "hi");
    let mut other = caller.send.clone();
    let _get = other.send_request(to("/").body(()).unwrap(), true).unwrap();
    let mut origin = caller.rig.origin().await;
    let request = head(&mut origin).await;
    assert!(!request.contains("content-length") && !request.contains("transfer-encoding"), "{request}");
}

#[tokio::test(start_paused = true)]
async fn answers_without_a_body_keep_their_length() {
    let mut caller = Caller::toward(Speak::Never).await;
    for (method, status, length) in [("HEAD", 200, "5"), ("GET", 304, "7"), ("GET", 200, "0")] {
        let asking = caller.send.clone().send_request(to("/").method(method).body(()).unwrap(), true).unwrap().0;
        let mut origin = caller.rig.origin().await;
        head(&mut origin).await;
        origin.write_all(format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = soon(asking).await.unwrap();
        assert_eq!(answer.status(), status);
        assert_eq!(answer.headers()["content-length"], length, "{method} {status}");
        assert_eq!(data(answer.body_mut()).await.unwrap(), "");
        drop(origin);
    }
}

#[tokio::test(start_paused = true)]
async fn both_bodies_stream_at_once_through_both_hops_with_their_trailers() {
    let (mut caller, mut origins, _) = Caller::through(Speak::Always).await;
    let request = to("/echo").method("POST").header("te", "trailers").header("x-request-id", "abc").body(()).unwrap();
    let (answer, mut up) = caller.ask(request).await;
    let mut exchanges = origin(soon(origins.recv()).await.unwrap());
    let (request, mut respond) = soon(exchanges.recv()).await.unwrap();
    assert_eq!(request.uri(), "http://orders/echo");
    assert_eq!(request.headers()["te"], "trailers");
    assert_eq!(request.headers()["x-request-id"], "abc");
    assert_eq!(request.headers()["via"], "1.1 culvert");
    for name in ["host", "connection", "transfer-encoding", "culvert-service"] {
        assert!(!request.headers().contains_key(name), "{name}");
    }
    let mut request = request.into_body();
    let mut out = respond.send_response(Response::new(()), false).unwrap();
    let mut down = soon(answer).await.unwrap().into_body();
    for round in 0..20 {
        let word = format!("word {round}");
        up.send_data(word.clone().into(), false).unwrap();
        let heard = soon(request.data()).await.unwrap().unwrap();
        assert_eq!(heard, word);
        out.send_data(heard, false).unwrap();
        assert_eq!(soon(down.data()).await.unwrap().unwrap(), word);
    }
    out.send_trailers(trailers("grpc-status", "0")).unwrap();
    assert!(soon(down.data()).await.is_none());
    assert_eq!(soon(down.trailers()).await.unwrap().unwrap()["grpc-status"], "0");
    up.send_trailers(trailers("x-sum", "7")).unwrap();
    assert!(soon(request.data()).await.is_none());
    assert_eq!(soon(request.trailers()).await.unwrap().unwrap()["x-sum"], "7");
    assert_eq!(caller.rig.endings.lock().unwrap()[0].outcome, Outcome::Whole);
}

#[tokio::test(start_paused = true)]
async fn a_grpc_call_that_fails_at_once_passes_as_it_is() {
    let (mut caller, mut origins, _) = Caller::through(Speak::Always).await;
    let request = to("/a.B/C").method("POST").header("content-type", "application/grpc").body(()).unwrap();
    let (answer, _up) = caller.ask(request).await;
    let mut exchanges = origin(soon(origins.recv()).await.unwrap());
    let (_request, mut respond) = soon(exchanges.recv()).await.unwrap();
    let head = Response::builder().header("content-type", "application/grpc").header("grpc-status", "5").body(());
    respond.send_response(head.unwrap(), true).unwrap();
    let answer = soon(answer).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "5");
    assert!(answer.body().is_end_stream());
    assert!(!answer.headers().contains_key("proxy-status"));
}

#[tokio::test(start_paused = true)]
async fn a_grpc_caller_is_told_our_failures_in_a_head_that_ends_the_stream() {
    let (mut caller, _origins, pool) = Caller::through(Speak::Always).await;
    *pool.opener().refuses.lock().unwrap() = true;
    let request = to("/a.B/C").method("POST").header("content-type", "application/grpc+proto").body(()).unwrap();
    let (answer, _up) = caller.ask(request).await;
    let answer = soon(answer).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["grpc-status"], "14");
    assert!(answer.headers()["proxy-status"].to_str().unwrap().ends_with("details=\"origin_refused\""));
    assert!(answer.body().is_end_stream());
    assert_eq!(answer.headers()["content-type"], "application/grpc");
}

#[tokio::test(start_paused = true)]
async fn who_takes_a_request_back_takes_it_back_at_the_origin() {
    for is_answered in [false, true] {
        let (mut caller, mut origins, pool) = Caller::through(Speak::Always).await;
        let (answer, mut up) = caller.ask(to("/").method("POST").body(()).unwrap()).await;
        up.send_data("x".into(), false).unwrap();
        let mut exchanges = origin(soon(origins.recv()).await.unwrap());
        let (_request, mut respond) = soon(exchanges.recv()).await.unwrap();
        if is_answered {
            let mut out = respond.send_response(Response::new(()), false).unwrap();
            let answer = soon(answer).await.unwrap();
            drop((answer, up));
            assert_eq!(soon(poll_fn(|cx| out.poll_reset(cx))).await.unwrap(), h2::Reason::CANCEL);
        } else {
            up.send_reset(h2::Reason::CANCEL);
            assert_eq!(reset_of(&mut respond).await, h2::Reason::CANCEL);
        }
        // Nobody else is hurt: the connection is still the one.
        let again = caller.send.clone().send_request(to("/again").body(()).unwrap(), true).unwrap().0;
        let (request, mut respond) = soon(exchanges.recv()).await.unwrap();
        assert_eq!(request.uri().path(), "/again");
        respond.send_response(Response::new(()), true).unwrap();
        assert_eq!(soon(again).await.unwrap().status(), 200);
        assert!(origins.try_recv().is_err());
        assert_eq!(pool.idle(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_cut_never_ends_cleanly() {
    for is_http2 in [true, false] {
        let (caller, mut origins, _) = Caller::through(if is_http2 { Speak::Always } else { Speak::Never }).await;
        let asking = caller.send.clone().send_request(to("/").body(()).unwrap(), true).unwrap().0;
        let mut stream = soon(origins.recv()).await.unwrap();
        if is_http2 {
            let mut exchanges = origin(stream);
            let (_, mut respond) = soon(exchanges.recv()).await.unwrap();
            let mut out = respond.send_response(Response::new(()), false).unwrap();
            out.send_data("half".into(), false).unwrap();
            let mut body = soon(asking).await.unwrap().into_body();
            assert_eq!(soon(body.data()).await.unwrap().unwrap(), "half");
            out.send_reset(h2::Reason::INTERNAL_ERROR);
            let error = soon(body.data()).await.unwrap().unwrap_err();
            assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR));
        } else {
            head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").await.unwrap();
            let mut body = soon(asking).await.unwrap().into_body();
            assert_eq!(soon(body.data()).await.unwrap().unwrap(), "half");
            drop(stream);
            let error = soon(body.data()).await.unwrap().unwrap_err();
            assert!(error.is_reset() && error.is_remote(), "{error}");
        }
        let endings = caller.rig.endings.lock().unwrap();
        assert_eq!(*endings, [Ending { bytes: 4, outcome: Outcome::Cut(Reason::OriginClosed) }], "the reason was lost");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_cut_never_ends_cleanly() {
    let (mut caller, mut origins, _) = Caller::through(Speak::Always).await;
    let (_answer, mut up) = caller.ask(to("/").method("POST").header("content-length", "9").body(()).unwrap()).await;
    up.send_data("half".into(), true).unwrap();
    let mut exchanges = origin(soon(origins.recv()).await.unwrap());
    let (request, _respond) = soon(exchanges.recv()).await.unwrap();
    let error = data(&mut request.into_body()).await.unwrap_err();
    assert!(error.is_reset(), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_answers_early_stops_the_upload_and_not_the_answer() {
    let (mut caller, mut origins, _) = Caller::through(Speak::Always).await;
    let (answer, mut up) = caller.ask(to("/").method("POST").body(()).unwrap()).await;
    let mut exchanges = origin(soon(origins.recv()).await.unwrap());
    let (request, mut respond) = soon(exchanges.recv()).await.unwrap();
    respond.send_response(Response::builder().status(413).body(()).unwrap(), true).unwrap();
    drop((request, respond));
    assert_eq!(soon(answer).await.unwrap().status(), 413);
    let told = soon(poll_fn(|cx| up.poll_reset(cx))).await.unwrap();
    assert!(told == h2::Reason::NO_ERROR || told == h2::Reason::CANCEL, "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn deadlines_hold_for_a_silent_origin_and_a_silent_body() {
    let deadlines = culvert_hop::exchange::Deadlines {
        first_byte: Duration::from_secs(5),
        idle: Duration::from_secs(7),
        request: None,
    };
    let mut caller = Caller::with(Options { pool: speaking(Speak::Always), deadlines, ..Options::default() }).await;
    let start = tokio::time::Instant::now();
    let asking = caller.send.clone().send_request(to("/").body(()).unwrap(), true).unwrap().0;
    let mut exchanges = origin(caller.rig.origin().await);
    let (_, mut respond) = soon(exchanges.recv()).await.unwrap();
    assert_eq!(soon(asking).await.unwrap().status(), 504);
    assert_eq!(start.elapsed(), Duration::from_secs(5));
    assert_eq!(reset_of(&mut respond).await, h2::Reason::CANCEL);

    let asking = caller.send.clone().send_request(to("/").body(()).unwrap(), true).unwrap().0;
    let (_, mut respond) = soon(exchanges.recv()).await.unwrap();
    let mut out = respond.send_response(Response::new(()), false).unwrap();
    let mut body = soon(asking).await.unwrap().into_body();
    let start = tokio::time::Instant::now();
    assert!(soon(body.data()).await.unwrap().is_err());
    assert_eq!(start.elapsed(), Duration::from_secs(7));
    assert_eq!(soon(poll_fn(|cx| out.poll_reset(cx))).await.unwrap(), h2::Reason::CANCEL);
}

#[tokio::test(start_paused = true)]
async fn leave_to_send_comes_from_the_origin_through_both_hops() {
    let (mut caller, mut origins, _) = Caller::through(Speak::Always).await;
    let request = to("/").method("PUT").header("expect", "100-continue").body(()).unwrap();
    let (mut answer, mut up) = caller.ask(request).await;
    let mut exchanges = origin(soon(origins.recv()).await.unwrap());
    let (request, mut respond) = soon(exchanges.recv()).await.unwrap();
    let waiting = poll_fn(|cx| answer.poll_informational(cx));
    assert!(tokio::time::timeout(Duration::from_millis(900), waiting).await.is_err());
    respond.send_informational(Response::builder().status(100).body(()).unwrap()).unwrap();
    let interim = soon(poll_fn(|cx| answer.poll_informational(cx))).await.unwrap().unwrap();
    assert_eq!(interim.status(), 100);
    up.send_data("hi".into(), true).unwrap();
    assert_eq!(data(&mut request.into_body()).await.unwrap(), "hi");
}

#[tokio::test(start_paused = true)]
async fn early_hints_reach_the_caller_before_the_answer() {
    async fn hears_hints(answer: &mut h2::client::ResponseFuture) {
        let hints = soon(poll_fn(|cx| answer.poll_informational(cx))).await.unwrap().unwrap();
        assert_eq!((hints.status().as_u16(), hints.headers().len()), (103, 1), "{hints:?}");
        assert_eq!(hints.headers()["link"], "</a>");
    }
    let (caller, mut origins, _) = Caller::through(Speak::Always).await;
    let mut answer = caller.send.clone().send_request(to("/").body(()).unwrap(), true).unwrap().0;
    let (_, mut respond) = soon(origin(soon(origins.recv()).await.unwrap()).recv()).await.unwrap();
    let hints = Response::builder().status(103).header("link", "</a>").header("culvert-x", "1").body(()).unwrap();
    respond.send_informational(hints).unwrap();
    hears_hints(&mut answer).await;
    respond.send_response(Response::new(()), true).unwrap();
    assert_eq!(soon(answer).await.unwrap().status(), 200);

    let (caller, mut origins, _) = Caller::through(Speak::Never).await;
    let mut answer = caller.send.clone().send_request(to("/").body(()).unwrap(), true).unwrap().0;
    let mut origin = soon(origins.recv()).await.unwrap();
    head(&mut origin).await;
    let hints = b"HTTP/1.1 103 Hints\r\nLink: </a>\r\nConnection: x\r\nCulvert-X: 1\r\n\r\n";
    origin.write_all(hints).await.unwrap();
    hears_hints(&mut answer).await;
    origin.write_all(&[&hints[..], b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"].concat()).await.unwrap();
    hears_hints(&mut answer).await;
    assert_eq!(soon(answer).await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn an_http1_caller_reaches_an_http2_origin() {
    let mut rig = Rig::with(Options { pool: speaking(Speak::Always), ..Options::default() });
    rig.say("POST /a HTTP/1.1\r\nHost: orders:80\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\nx\r\n0\r\n\r\n").await;
    let mut exchanges = origin(rig.origin().await);
    let (request, mut respond) = soon(exchanges.recv()).await.unwrap();
    assert_eq!((request.method(), request.uri().to_string().as_str()), (&Method::POST, "http://orders:80/a"));
    for name in ["host", "connection", "transfer-encoding"] {
        assert!(!request.headers().contains_key(name), "{name}");
    }
    assert_eq!(data(&mut request.into_body()).await.unwrap(), "x");
    let mut out =
        respond.send_response(Response::builder().header("content-length", "2").body(()).unwrap(), false).unwrap();
    out.send_data("ok".into(), true).unwrap();
    let answer = rig.rest().await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n")
            && answer.ends_with("\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"),
        "{answer}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_caller_by_hyper_streams_both_ways_with_trailers() {
    use http_body_util::{BodyExt, StreamBody};
    let mut rig = Rig::with(Options {
        pool: PoolSettings { http2: Speak::AsAsked, ..PoolSettings::default() },
        ..Options::default()
    });
    let (pool, mut opened) = pool(64 * 1024, speaking(Speak::Always));
    let io = std::mem::replace(&mut rig.caller, tokio::io::duplex(1).0);
    let exec = hyper_util::rt::TokioExecutor::new();
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(exec, hyper_util::rt::TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    let frames = [
        Ok::<_, std::convert::Infallible>(http_body::Frame::data(Bytes::from("ping"))),
        Ok(http_body::Frame::trailers(trailers("x-sum", "1"))),
    ];
    let request = to("/").method("POST").body(StreamBody::new(futures_util::stream::iter(frames))).unwrap();
    let asking = tokio::spawn(async move { send.send_request(request).await });
    connect(rig.origin().await, pool);
    let mut exchanges = origin(soon(opened.recv()).await.unwrap());
    let (request, mut respond) = soon(exchanges.recv()).await.unwrap();
    let mut request = request.into_body();
    assert_eq!(data(&mut request).await.unwrap(), "ping");
    assert_eq!(soon(request.trailers()).await.unwrap().unwrap()["x-sum"], "1");
    let mut out = respond.send_response(Response::new(()), false).unwrap();
    out.send_data("pong".into(), false).unwrap();
    out.send_trailers(trailers("grpc-status", "0")).unwrap();
    let answer = soon(asking).await.unwrap().unwrap().into_body().collect().await.unwrap();
    assert_eq!(answer.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(answer.to_bytes(), "pong");
}
