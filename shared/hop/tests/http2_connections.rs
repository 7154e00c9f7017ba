//! HTTP/2 connections: shared, left, drained, and told from HTTP/1.1.

mod rig;
#[path = "rig/two.rs"]
mod two;

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use culvert_hop::pool::Speak;
use futures_util::StreamExt as _;
use http::{Request, Response};
use rig::{Options, Rig, head};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use two::{Caller, data, origin, soon, speaking, to};

#[tokio::test(start_paused = true)]
async fn many_exchanges_share_a_connection_to_an_origin_and_have_their_own_in_the_tunnel() {
    let (caller, mut origins, pool) = Caller::through(Speak::Always).await;
    let asking: Vec<_> = (0..50)
        .map(|n| caller.send.clone().send_request(to(&format!("/{n}")).body(()).unwrap(), true).unwrap().0)
        .collect();
    let mut exchanges = origin(soon(origins.recv()).await.unwrap());
    let mut waiting = Vec::new();
    for _ in 0..50 {
        waiting.push(soon(exchanges.recv()).await.unwrap());
    }
    assert!(origins.try_recv().is_err(), "a second connection was opened");
    for (request, respond) in waiting.iter_mut().rev() {
        let answer = Response::builder().header("x-path", request.uri().path()).body(()).unwrap();
        respond.send_response(answer, true).unwrap();
    }
    for (n, asking) in asking.into_iter().enumerate() {
        assert_eq!(soon(asking).await.unwrap().headers()["x-path"], format!("/{n}"), "answers were crossed");
    }
    assert_eq!(pool.idle(), 1);
    assert_eq!(caller.rig.pool.idle(), 50, "one stream of the tunnel for each");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stands_still_costs_only_its_own_stream() {
    let mut caller = Caller::toward(Speak::Always).await;
    let slow = caller.send.clone().send_request(to("/slow").body(()).unwrap(), true).unwrap().0;
    let mut exchanges = origin(caller.rig.origin().await);
    let (_, mut respond) = soon(exchanges.recv()).await.unwrap();
    let mut out = respond.send_response(Response::new(()), false).unwrap();
    let slow = soon(slow).await.unwrap();
    // More than every buffer on the way holds.
    out.send_data(vec![0; 4 * 1024 * 1024].into(), false).unwrap();
    for round in 0..20 {
        let asking = caller.get(to("/quick").body(()).unwrap());
        let answering = async {
            let (_, mut respond) = exchanges.recv().await.unwrap();
            let mut out = respond.send_response(Response::new(()), false).unwrap();
            out.send_data(vec![1; 1024].into(), true).unwrap();
        };
        let (answer, ()) = soon(async { tokio::join!(asking, answering) }).await;
        assert_eq!(data(answer.unwrap().body_mut()).await.unwrap().len(), 1024, "{round}");
    }
    let mut slow = slow.into_body();
    out.send_data(Bytes::new(), true).unwrap();
    assert_eq!(data(&mut slow).await.unwrap().len(), 4 * 1024 * 1024);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_the_origin_left_fails_no_request() {
    let mut caller = Caller::toward(Speak::Always).await;
    for is_polite in [true, false, true] {
        let (answer, mut up) = caller.ask(to("/").method("POST").body(()).unwrap()).await;
        up.send_data("x".into(), true).unwrap();
        let io = caller.rig.origin().await;
        let mut connection = h2::server::handshake(io).await.unwrap();
        let (_, mut respond) = soon(connection.accept()).await.unwrap().unwrap();
        respond.send_response(Response::new(()), true).unwrap();
        let leaving = async {
            if is_polite {
                connection.graceful_shutdown();
                while let Some(Ok(_)) = soon(connection.accept()).await {}
            } else {
                let flushed = poll_fn(|cx| connection.poll_closed(cx));
                let _ = tokio::time::timeout(Duration::from_secs(1), flushed).await;
            }
        };
        let (answer, ()) = tokio::join!(soon(answer), leaving);
        assert_eq!(answer.unwrap().status(), 200);
        drop(connection);
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_origin_refuses_unread_is_sent_again_even_a_post() {
    let mut caller = Caller::with(Options { pool: speaking(Speak::Always), retries: true, ..Options::default() }).await;
    let (answer, mut up) = caller.ask(to("/").method("POST").body(()).unwrap()).await;
    up.send_data("hello".into(), true).unwrap();
    let mut exchanges = origin(caller.rig.origin().await);
    let (_, mut respond) = soon(exchanges.recv()).await.unwrap();
    respond.send_reset(h2::Reason::REFUSED_STREAM);
    let (request, mut respond) = soon(exchanges.recv()).await.unwrap();
    assert_eq!(data(&mut request.into_body()).await.unwrap(), "hello");
    respond.send_response(Response::new(()), true).unwrap();
    assert_eq!(soon(answer).await.unwrap().status(), 200);

    // Any other reset may have done something.
    let (answer, mut up) = caller.ask(to("/").method("POST").body(()).unwrap()).await;
    up.send_data("hello".into(), true).unwrap();
    let (_, mut respond) = soon(exchanges.recv()).await.unwrap();
    respond.send_reset(h2::Reason::INTERNAL_ERROR);
    assert_eq!(soon(answer).await.unwrap().status(), 502);
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_what_runs_and_takes_nothing_new() {
    let mut caller = Caller::toward(Speak::Never).await;
    let asking = caller.send.clone().send_request(to("/").body(()).unwrap(), true).unwrap().0;
    let mut origin = caller.rig.origin().await;
    head(&mut origin).await;
    caller.rig.drain.send_replace(true);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(caller.send.clone().ready().await.is_err(), "it still takes requests");
    origin.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    let mut answer = soon(asking).await.unwrap();
    assert_eq!(data(answer.body_mut()).await.unwrap(), "ok");
    soon(&mut caller.rig.server).await.unwrap();
}

/// An HTTP/1.1 caller is not kept waiting for bytes that it does not send, nor HTTP/2 missed in small pieces.
#[tokio::test(start_paused = true)]
async fn the_version_is_told_by_the_first_bytes_however_they_come() {
    for request in
        ["G / HTTP/1.1\r\nHost: a\r\n\r\n", "P / HTTP/1.1\r\nHost: a\r\n\r\n", "PRI / HTTP/1.1\r\nHost: a\r\n\r\n"]
    {
        for cut in [1, 2, 3, 5, 100] {
            let mut rig = Rig::new();
            for part in request.as_bytes().chunks(cut) {
                rig.say(part).await;
                tokio::task::yield_now().await;
            }
            let mut origin = rig.origin().await;
            assert!(head(&mut origin).await.starts_with(request.split('\r').next().unwrap()), "{request} by {cut}");
        }
    }
    for cut in [1, 7, 24, 30] {
        let mut rig = Rig::new();
        let mut begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        begin.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
        begin.extend_from_slice(&[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        for part in begin.chunks(cut) {
            rig.say(part).await;
            tokio::task::yield_now().await;
        }
        let mut heard = Vec::new();
        while !heard.ends_with(&[1, 2, 3, 4, 5, 6, 7, 8]) {
            heard.push(soon(rig.caller.read_u8()).await.unwrap());
        }
    }
    let mut rig = Rig::new();
    rig.say("PRI * HTTP/2.0\r\n\r\nXX").await;
    assert!(rig.rest().await.starts_with("HTTP/1.1 400 "), "neither version");
}

/// An origin of either version, played by hyper: says the path back.
fn echo(io: DuplexStream, is_http2: bool) {
    let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
        let path = request.uri().path().to_owned();
        tokio::task::yield_now().await;
        Ok::<_, std::convert::Infallible>(Response::new(http_body_util::Full::new(Bytes::from(path))))
    });
    let io = hyper_util::rt::TokioIo::new(io);
    if is_http2 {
        let server = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
        tokio::spawn(server.serve_connection(io, service));
    } else {
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
    }
}

#[tokio::test]
async fn thousands_of_exchanges_get_each_its_own_answer() {
    for is_http2 in [true, false] {
        let (caller, mut origins, _) = Caller::through(if is_http2 { Speak::Always } else { Speak::Never }).await;
        tokio::spawn(async move {
            while let Some(origin) = origins.recv().await {
                echo(origin, is_http2);
            }
        });
        let asking = (0..2_000).map(|n| {
            let mut send = caller.send.clone();
            async move {
                let path = format!("/{n}");
                let request = to(&path).body(()).unwrap();
                let answer =
                    poll_fn(|cx| send.poll_ready(cx)).await.map(|()| send.send_request(request, true)).unwrap();
                let mut answer = answer.unwrap().0.await.unwrap();
                assert_eq!(data(answer.body_mut()).await.unwrap(), path, "answers were crossed");
            }
        });
        let all = futures_util::stream::iter(asking).map(tokio::spawn).buffer_unordered(300);
        soon(all.for_each(|done| async { done.unwrap() })).await;
    }
}
