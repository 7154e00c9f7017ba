//! Upgraded connections: what passes, how they end.

mod rig;

use std::time::Duration;

use rig::{Rig, exactly, head, is_gone, rest};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::Instant;

const ASK: &str =
    "GET /ws HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n";
const SWITCH: &str =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: y\r\n\r\n";

async fn upgraded(protocol: &str) -> (Rig, DuplexStream) {
    let mut rig = Rig::new();
    rig.say(ASK.replace("websocket", protocol)).await;
    let mut origin = rig.origin().await;
    assert!(head(&mut origin).await.contains(&format!("Upgrade: {protocol}\r\n")));
    origin.write_all(SWITCH.replace("websocket", protocol).as_bytes()).await.unwrap();
    let answer = head(&mut rig.caller).await;
    assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answer}");
    assert!(
        answer.contains(&format!("Upgrade: {protocol}\r\n")) && answer.contains("Connection: upgrade\r\n"),
        "{answer}"
    );
    assert!(answer.contains("Sec-WebSocket-Accept: y\r\n"), "{answer}");
    (rig, origin)
}

#[tokio::test(start_paused = true)]
async fn bytes_pass_both_ways_and_each_side_may_stop_first() {
    let (mut rig, mut origin) = upgraded("websocket").await;
    rig.say("\n\n\nfrom the caller, no HTTP").await;
    assert_eq!(exactly(&mut origin, 27).await, "\n\n\nfrom the caller, no HTTP");
    origin.write_all(b"from the origin").await.unwrap();
    assert_eq!(exactly(&mut rig.caller, 15).await, "from the origin");
    rig.caller.shutdown().await.unwrap();
    assert!(is_gone(&mut origin).await);
    origin.write_all(b"still here").await.unwrap();
    assert_eq!(exactly(&mut rig.caller, 10).await, "still here");
    drop(origin);
    assert!(is_gone(&mut rig.caller).await);
}

#[tokio::test(start_paused = true)]
async fn the_bytes_behind_a_101_are_not_lost() {
    let mut rig = Rig::new();
    rig.say(ASK).await;
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    origin.write_all(format!("{SWITCH}first bytes").as_bytes()).await.unwrap();
    head(&mut rig.caller).await;
    assert_eq!(exactly(&mut rig.caller, 11).await, "first bytes");
}

#[tokio::test(start_paused = true)]
async fn no_byte_of_the_caller_passes_before_the_101() {
    let mut rig = Rig::new();
    rig.say(format!("{ASK}GET /smuggled HTTP/1.1\r\nHost: orders\r\n\r\n")).await;
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    assert!(tokio::time::timeout(Duration::from_secs(30), origin.read_u8()).await.is_err());
    // Not upgraded, they are a request like any other.
    origin.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    assert!(head(&mut rig.caller).await.starts_with("HTTP/1.1 200 "));
    assert!(head(&mut origin).await.starts_with("GET /smuggled HTTP/1.1\r\nHost: orders\r\n"));
}

#[tokio::test(start_paused = true)]
async fn a_101_that_nobody_asked_for_reaches_nobody() {
    let ask_other = ASK.replace("websocket", "other");
    let no_upgrade = SWITCH.replace("Upgrade: websocket\r\n", "");
    for (ask, switch) in
        [("GET / HTTP/1.1\r\nHost: orders\r\n\r\n", SWITCH), (ask_other.as_str(), SWITCH), (ASK, no_upgrade.as_str())]
    {
        let mut rig = Rig::new();
        rig.say(ask).await;
        let mut origin = rig.origin().await;
        head(&mut origin).await;
        origin.write_all(switch.as_bytes()).await.unwrap();
        let answer = head(&mut rig.caller).await;
        assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("details=\"upgrade_refused\""), "{answer}");
        assert!(is_gone(&mut origin).await);
    }
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_declines_answers_as_usual() {
    let mut rig = Rig::new();
    rig.say(ASK).await;
    let mut origin = rig.origin().await;
    head(&mut origin).await;
    origin
        .write_all(
            b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n",
        )
        .await
        .unwrap();
    let answer = head(&mut rig.caller).await;
    assert!(answer.starts_with("HTTP/1.1 426 ") && answer.contains("Upgrade: websocket\r\n"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_websocket_that_has_to_go_is_told_1012_between_frames() {
    let (mut rig, mut origin) = upgraded("websocket").await;
    origin.write_all(b"\x82\x05he").await.unwrap();
    let mut heard = [0; 4];
    rig.caller.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, *b"\x82\x05he");
    rig.drain.send_replace(true);
    tokio::time::sleep(Duration::from_secs(1)).await;
    origin.write_all(b"llo\x82\x01X").await.unwrap();
    let mut heard = [0; 7];
    rig.caller.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, *b"llo\x88\x02\x03\xf4");
    assert!(is_gone(&mut rig.caller).await);
    rig.caller.shutdown().await.unwrap();
    assert!(is_gone(&mut origin).await);
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_does_not_end_holds_up_nothing() {
    let (mut rig, mut origin) = upgraded("websocket").await;
    origin.write_all(b"\x82\x05he").await.unwrap();
    rig.caller.read_exact(&mut [0; 4]).await.unwrap();
    let start = Instant::now();
    rig.drain.send_replace(true);
    assert!(is_gone(&mut rig.caller).await);
    assert!(is_gone(&mut origin).await);
    assert_eq!(start.elapsed(), culvert_hop::upgrade::FAREWELL);
}

#[tokio::test(start_paused = true)]
async fn another_protocol_is_just_cut() {
    let (mut rig, mut origin) = upgraded("foo").await;
    let start = Instant::now();
    rig.drain.send_replace(true);
    assert!(is_gone(&mut rig.caller).await);
    assert!(is_gone(&mut origin).await);
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_upgraded_connection_ends_when_it_is_idle_and_no_sooner() {
    let (mut rig, mut origin) = upgraded("websocket").await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(3500)).await;
        rig.say("x").await;
        assert_eq!(exactly(&mut origin, 1).await, "x");
    }
    let start = Instant::now();
    let mut more = Vec::new();
    rig.caller.read_to_end(&mut more).await.unwrap();
    assert_eq!((more.len(), start.elapsed()), (0, Duration::from_secs(3600)));
}

#[tokio::test(start_paused = true)]
async fn one_side_breaking_off_ends_the_other() {
    let (mut rig, origin) = upgraded("foo").await;
    drop(origin);
    // Writing shows it.
    rig.say("x").await;
    assert_eq!(rest(&mut rig.caller).await, "");
}

#[tokio::test(start_paused = true)]
async fn much_passes_and_nobody_waits_for_the_slow_direction() {
    let (rig, origin) = upgraded("foo").await;
    let Rig { caller, .. } = rig;
    let (mut caller_in, mut caller_out) = tokio::io::split(caller);
    let (mut origin_in, mut origin_out) = tokio::io::split(origin);
    // Down is not read until all of up has passed.
    let down = tokio::spawn(async move { origin_out.write_all(&vec![b'd'; 1_000_000]).await.map(|()| origin_out) });
    let up = tokio::spawn(async move { caller_out.write_all(&vec![b'u'; 1_000_000]).await.map(|()| caller_out) });
    let mut got = vec![0; 1_000_000];
    origin_in.read_exact(&mut got).await.unwrap();
    assert!(got.iter().all(|byte| *byte == b'u'));
    caller_in.read_exact(&mut got).await.unwrap();
    assert!(got.iter().all(|byte| *byte == b'd'));
    let _kept = (down.await.unwrap().unwrap(), up.await.unwrap().unwrap());
}
