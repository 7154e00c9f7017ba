//! Restarts, clones, removals: who is connected with whom, and who is told.

use super::*;

#[tokio::test]
async fn a_restarted_connector_is_noticed_by_its_hello_and_replaces_its_past() {
    let network = Network::new();
    let (mut relay, far, connector, near, (relay_id, connector_id)) = joined(&network).await;
    // As a crash: nothing is said, the new process comes from the same address.
    network.set_rule(|_, _, _| false);
    drop((connector, near));
    tokio::task::yield_now().await;
    network.set_rule(|_, _, _| true);
    let again = start(&network, &connector_id);
    let near = again.dial(relay_id.at).await;
    let old = soon(far.closed()).await;
    assert_eq!((old.code, old.by_peer, old.cause.as_str()), (None, false, "the peer has restarted"));
    relay.until(|event| matches!(event, Event::NewInstance { .. }).then_some(())).await;
    let far = relay.connected().await;
    let mut stream = soon(near.open()).await.unwrap();
    soon(stream.write_all(b"back")).await.unwrap();
    let mut word = [0; 4];
    soon(soon(far.accept()).await.unwrap().read_exact(&mut word)).await.unwrap();
    assert_eq!(&word, b"back");
}

#[tokio::test]
async fn a_restarted_relay_calls_back_and_is_dialled_again() {
    let network = Network::new();
    let (relay, far, mut connector, near, (relay_id, connector_id)) = joined(&network).await;
    network.set_rule(|_, _, _| false);
    drop((relay, far));
    tokio::task::yield_now().await;
    network.set_rule(|_, _, _| true);
    let mut again = start(&network, &relay_id);
    again.plane.connect(again.peer, Some(connector_id.at));
    let old = soon(near.closed()).await;
    assert_eq!((old.code, old.by_peer), (None, false));
    connector.until(|event| matches!(event, Event::NewInstance { .. }).then_some(())).await;
    let near = soon(connector.plane.dial(connector.peer)).await.unwrap();
    let far = again.connected().await;
    assert!(!near.is_closed() && !far.is_closed());
}

#[tokio::test]
async fn dialling_again_replaces_the_connection_of_the_same_process() {
    let network = Network::new();
    let (mut relay, far, connector, near, _) = joined(&network).await;
    let second = soon(connector.plane.dial(connector.peer)).await.unwrap();
    let far_second = relay.connected().await;
    let old = soon(near.closed()).await;
    assert_eq!((old.code, old.by_peer), (Some(CloseCode::Shutdown), false));
    soon(far.closed()).await;
    assert!(!second.is_closed() && !far_second.is_closed());
}

#[tokio::test]
async fn a_clone_that_comes_back_is_told_and_the_connected_process_stays() {
    let network = Network::new();
    let (mut relay, _far, first, near, (relay_id, connector_id)) = joined(&network).await;
    // A second process with the same key, elsewhere: newest wins.
    let elsewhere = Identity { at: "192.0.2.3:40000".parse().unwrap(), ..connector_id };
    let second = start(&network, &elsewhere);
    let second_near = second.dial(relay_id.at).await;
    let second_far = relay.connected().await;
    // The first one comes back while the second is connected.
    first.plane.connect(first.peer, Some(relay_id.at));
    let told = soon(near.closed()).await;
    assert_eq!((told.code, told.by_peer), (Some(CloseCode::Replaced), true));
    relay.until(|event| matches!(event, Event::Clone { .. }).then_some(())).await;
    assert_eq!(soon(first.plane.dial(first.peer)).await.unwrap_err(), DialError::Displaced);
    assert!(!second_far.is_closed());
    // The second handshakes again and goes on over the connection it has.
    second.plane.connect(second.peer, Some(relay_id.at));
    let mut stream = soon(second_near.open()).await.unwrap();
    soon(stream.write_all(b"still here")).await.unwrap();
    let mut word = [0; 10];
    soon(soon(second_far.accept()).await.unwrap().read_exact(&mut word)).await.unwrap();
    assert_eq!(&word, b"still here");
}

#[tokio::test]
async fn another_protocol_version_is_refused_by_name() {
    let network = Network::new();
    let (relay_id, connector_id) = identities();
    let _relay = start(&network, &relay_id);
    let connector = start_with(&network, &connector_id, PROTOCOL_VERSION + 1, StreamLimits::default());
    connector.plane.connect(connector.peer, Some(relay_id.at));
    let Err(DialError::Failed(closed)) = soon(connector.plane.dial(connector.peer)).await else {
        panic!("a refusal");
    };
    assert_eq!((closed.code, closed.by_peer), (Some(CloseCode::Version), true));
    let met = format!("version {} met version {PROTOCOL_VERSION}", PROTOCOL_VERSION + 1);
    assert!(closed.cause.contains(&met), "{}", closed.cause);
}

#[tokio::test]
async fn a_removed_peer_learns_the_code_and_then_meets_silence() {
    let network = Network::new();
    let (relay, far, connector, near, (relay_id, _)) = joined(&network).await;
    soon(relay.plane.remove_peer(relay.peer, CloseCode::Revoked)).await;
    let told = soon(near.closed()).await;
    assert_eq!((told.code, told.by_peer), (Some(CloseCode::Revoked), true));
    assert!(far.is_closed());
    let answers = Arc::new(AtomicUsize::new(0));
    let (count, attempts) = (answers.clone(), Arc::new(tokio::sync::Notify::new()));
    let attempt = attempts.clone();
    network.set_rule(move |from, _, _| {
        if from == relay_id.at {
            count.fetch_add(1, Ordering::Relaxed);
        } else {
            attempt.notify_one();
        }
        true
    });
    connector.plane.connect(connector.peer, Some(relay_id.at));
    soon(attempts.notified()).await;
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
    assert_eq!(answers.load(Ordering::Relaxed), 0);
    assert_eq!(relay.plane.peer_stats(relay.peer), None);
}

#[tokio::test]
async fn shutdown_tells_the_code_before_the_tasks_stop() {
    let network = Network::new();
    let (relay, _far, connector, near, _) = joined(&network).await;
    soon(relay.plane.shutdown(CloseCode::Shutdown)).await;
    let told = soon(near.closed()).await;
    assert_eq!((told.code, told.by_peer), (Some(CloseCode::Shutdown), true));
    soon(connector.plane.shutdown(CloseCode::Shutdown)).await;
    assert_eq!(soon(connector.plane.dial(connector.peer)).await.unwrap_err(), DialError::Stopped);
}

#[tokio::test]
async fn the_first_inner_datagram_of_each_session_is_a_hello() {
    let network = Network::new();
    let (relay, _far, connector, _near, (relay_id, _)) = joined(&network).await;
    let before = (relay.plane.stats().plane.hellos_received, connector.plane.stats().plane.hellos_received);
    let first = Arc::new(Mutex::new(Vec::new()));
    let watch = first.clone();
    network.set_rule(move |from, _, bytes| {
        watch.lock().unwrap().push((from == relay_id.at, bytes[0], bytes.len()));
        true
    });
    // A rekey: the peers know each other, nothing else changes.
    connector.plane.connect(connector.peer, None);
    soon(async {
        while relay.plane.stats().plane.hellos_received == before.0
            || connector.plane.stats().plane.hellos_received == before.1
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let seen = first.lock().unwrap().clone();
    let response = seen.iter().position(|(_, kind, _)| *kind == 2).expect("a response");
    let hello = (29 + crate::wrap::OVERHEAD).next_multiple_of(16) + 32;
    // 32 bytes are WireGuard's own keepalive: no inner datagram.
    let data = |relay: bool| move |(from, kind, length): &&_| (*from, *kind) == (relay, 4) && *length > 32;
    let after = |relay: bool| seen.iter().skip(response).find(data(relay));
    assert_eq!(after(false), Some(&(false, 4, hello)));
    assert_eq!(after(true), Some(&(true, 4, hello)));
}

#[tokio::test]
async fn a_relay_that_forgot_a_connection_resets_it_even_when_its_hello_is_lost() {
    let network = Network::new();
    let (relay, far, connector, near, (relay_id, connector_id)) = joined(&network).await;
    let idle = soon(near.open()).await.unwrap();
    network.set_rule(|_, _, _| false);
    drop((relay, far));
    tokio::task::yield_now().await;
    // None of the new relay's hellos arrives, neither the short nor the padded ones.
    let hello = (29 + crate::wrap::OVERHEAD).next_multiple_of(16) + 32;
    network.set_rule(move |from, _, bytes| from != relay_id.at || (bytes.len() != hello && bytes.len() != 1280));
    let again = start(&network, &relay_id);
    again.plane.connect(again.peer, Some(connector_id.at));
    let mut stream = idle;
    let writing = async {
        // Speaks into the old connection until that is over.
        while stream.write_all(b"anybody there?").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let (closed, ()) = soon(async { tokio::join!(near.closed(), writing) }).await;
    assert_eq!((closed.code, closed.cause.as_str()), (None, "reset by peer"));
    assert!(again.plane.stats().plane.hellos_received > 0);
    drop(connector);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_over_is_kept_for_its_last_bytes_and_then_forgotten() {
    let network = Network::new();
    let (mut relay, far, connector, near, _) = joined(&network).await;
    let mut said = far.open().await.unwrap();
    soon(said.write_all(b"last words")).await.unwrap();
    let mut heard = soon(near.accept()).await.unwrap();
    let kept = |end: &End| end.plane.shared().quic().len();
    for _ in 0..5 {
        let again = soon(connector.plane.dial(connector.peer)).await.unwrap();
        let far = relay.connected().await;
        drop(again);
        soon(far.closed()).await;
    }
    drop((near, said, far));
    // Closed connections answer stragglers for three timeouts (RFC 9000 §10.2) before they are forgotten.
    for _ in 0..100 {
        tokio::time::advance(Duration::from_millis(50)).await;
    }
    assert_eq!((kept(&relay), kept(&connector)), (0, 1), "a stream holds the one that it belongs to");
    let mut words = [0; 10];
    soon(heard.read_exact(&mut words)).await.unwrap();
    assert_eq!(&words, b"last words");
    assert_eq!(heard.read(&mut words).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionAborted);
    drop(heard);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(kept(&connector), 0);
}
