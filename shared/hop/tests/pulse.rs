//! A shared HTTP/2 connection whose other side vanishes without a word, and one whose other side only takes its time.

mod rig;

use std::time::Duration;

use bytes::Bytes;
use culvert_hop::body::Body;
use culvert_hop::exchange::{Answer, Deadlines};
use culvert_hop::message::Request;
use culvert_hop::pool::{Pool, PoolSettings, Speak};
use culvert_model::reason::Reason;
use h2::server::{Connection, SendResponse};
use http::{HeaderValue, Response, header::HOST};
use rig::Origins;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::sync::oneshot;
use tokio::time::Instant;

fn shared() -> (Pool<Origins>, tokio::sync::mpsc::UnboundedReceiver<DuplexStream>) {
    let settings = PoolSettings { http2: Speak::Always, exchanges_per_connection: 100, ..PoolSettings::default() };
    rig::pool(64 * 1024, settings)
}

fn patient() -> Deadlines {
    Deadlines { first_byte: Duration::from_secs(3600), ..Deadlines::default() }
}

fn get() -> Request<Body> {
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = "/".parse().unwrap();
    request.headers_mut().insert(HOST, HeaderValue::from_static("orders"));
    request
}

fn answer(mut respond: SendResponse<Bytes>) {
    respond.send_response(Response::new(()), true).unwrap();
}

async fn next<Io: AsyncRead + AsyncWrite + Unpin>(connection: &mut Connection<Io, Bytes>) -> SendResponse<Bytes> {
    connection.accept().await.expect("a request").unwrap().1
}

#[tokio::test(start_paused = true)]
async fn a_side_that_vanished_is_given_up_in_half_a_minute_and_the_next_goes_elsewhere() {
    let (pool, mut origins) = shared();
    let (vanish, vanished) = oneshot::channel::<()>();
    let origin = tokio::spawn(async move {
        let mut connection = h2::server::handshake(origins.recv().await.unwrap()).await.unwrap();
        answer(next(&mut connection).await);
        // Serves until it is told to vanish; then holds the stream and does nothing.
        tokio::select! {
            _ = std::future::poll_fn(|cx| connection.poll_closed(cx)) => panic!("closed"),
            _ = vanished => {}
        }
        let mut second = h2::server::handshake(origins.recv().await.unwrap()).await.unwrap();
        answer(next(&mut second).await);
        let _ = std::future::poll_fn(|cx| second.poll_closed(cx)).await;
        drop(connection);
    });
    let deadlines = patient();
    assert!(matches!(pool.send(get(), &deadlines).await, Ok(Answer::Response(_))));
    vanish.send(()).unwrap();
    let started = Instant::now();
    let (one, two) = tokio::join!(pool.send(get(), &deadlines), pool.send(get(), &deadlines));
    for outcome in [one, two] {
        assert_eq!(outcome.unwrap_err().fault.reason, Reason::OriginClosed);
    }
    assert!(started.elapsed() <= Duration::from_secs(35), "{:?}", started.elapsed());
    assert!(matches!(pool.send(get(), &deadlines).await, Ok(Answer::Response(_))));
    origin.abort();
}

#[tokio::test(start_paused = true)]
async fn a_side_that_takes_its_time_is_waited_for() {
    let (pool, mut origins) = shared();
    let origin = tokio::spawn(async move {
        let mut connection = h2::server::handshake(origins.recv().await.unwrap()).await.unwrap();
        let respond = next(&mut connection).await;
        let slow = tokio::time::sleep(Duration::from_secs(1800));
        tokio::select! {
            _ = std::future::poll_fn(|cx| connection.poll_closed(cx)) => panic!("closed"),
            () = slow => answer(respond),
        }
        let _ = std::future::poll_fn(|cx| connection.poll_closed(cx)).await;
    });
    let started = Instant::now();
    assert!(matches!(pool.send(get(), &patient()).await, Ok(Answer::Response(_))));
    assert_eq!(started.elapsed().as_secs(), 1800);
    origin.abort();
}
