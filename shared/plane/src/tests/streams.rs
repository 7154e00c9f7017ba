//! What streams promise to their users.

use super::*;

#[tokio::test]
async fn streams_run_both_ways_with_half_close() {
    let network = Network::new();
    let (relay, far, connector, near, _) = joined(&network).await;
    assert_eq!((far.peer(), near.peer()), (relay.peer, connector.peer));
    assert_eq!(far.bootstrap(), None);
    for (opener, acceptor) in [(&far, &near), (&near, &far)] {
        let mut asking = soon(opener.open()).await.unwrap();
        soon(asking.write_all(b"ping")).await.unwrap();
        soon(asking.shutdown()).await.unwrap();
        let mut answering = soon(acceptor.accept()).await.unwrap();
        let mut request = Vec::new();
        soon(answering.read_to_end(&mut request)).await.unwrap();
        assert_eq!(request, b"ping");
        // The other direction is still open after the FIN of the first.
        soon(answering.write_all(b"pong")).await.unwrap();
        soon(answering.shutdown()).await.unwrap();
        let mut response = Vec::new();
        soon(asking.read_to_end(&mut response)).await.unwrap();
        assert_eq!(response, b"pong");
    }
}

#[tokio::test]
async fn megabytes_pass_unchanged_in_both_directions_at_once() {
    let network = Network::new();
    let (_relay, far, _connector, near, _) = joined(&network).await;
    let (up, down) = (bytes(3 << 20, 1), bytes(3 << 20, 2));
    let mut asking = soon(far.open()).await.unwrap();
    asking.write_all(b"x").await.unwrap();
    let mut answering = soon(near.accept()).await.unwrap();
    let (mut far_read, mut far_write) = tokio::io::split(&mut asking);
    let (mut near_read, mut near_write) = tokio::io::split(&mut answering);
    let (mut got_down, mut got_up) = (Vec::new(), Vec::new());
    let all = async {
        let (a, b, c, d) = tokio::join!(
            async {
                far_write.write_all(&down).await.unwrap();
                far_write.shutdown().await.unwrap();
            },
            near_read.read_to_end(&mut got_down),
            async {
                near_write.write_all(&up).await.unwrap();
                near_write.shutdown().await.unwrap();
            },
            far_read.read_to_end(&mut got_up),
        );
        b.unwrap();
        d.unwrap();
        (a, c)
    };
    soon(all).await;
    assert!(got_down[1..] == down[..] && got_up == up);
    assert!(far.stats().mtu > 1200, "the path's MTU was found: {:?}", far.stats());
}

#[tokio::test]
async fn a_stream_dropped_without_a_fin_is_a_reset_and_not_an_end() {
    let network = Network::new();
    let (_relay, far, _connector, near, _) = joined(&network).await;
    let mut asking = soon(far.open()).await.unwrap();
    soon(asking.write_all(b"half a requ")).await.unwrap();
    let mut answering = soon(near.accept()).await.unwrap();
    let mut start = [0; 4];
    soon(answering.read_exact(&mut start)).await.unwrap();
    drop(asking);
    let error = soon(answering.read_to_end(&mut Vec::new())).await.unwrap_err();
    let reset = StreamReset::of(&error).expect("a reset");
    assert_eq!(reset.reason(), Some(Reason::ConnectorLost));
    assert!(!reset.is_refused_unread());
}

#[tokio::test]
async fn cancel_carries_its_reason_in_both_directions() {
    let network = Network::new();
    let (_relay, far, _connector, near, _) = joined(&network).await;
    let mut asking = soon(far.open()).await.unwrap();
    soon(asking.write_all(b"request")).await.unwrap();
    let mut answering = soon(near.accept()).await.unwrap();
    soon(answering.read_exact(&mut [0; 7])).await.unwrap();
    asking.cancel(Reason::Deadline);
    let read = soon(answering.read_to_end(&mut Vec::new())).await.unwrap_err();
    assert_eq!(StreamReset::of(&read).and_then(StreamReset::reason), Some(Reason::Deadline));
    let written = soon(async {
        loop {
            if let Err(error) = answering.write_all(&[0; 1024]).await {
                return error;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(StreamReset::of(&written.await).and_then(StreamReset::reason), Some(Reason::Deadline));
}

#[tokio::test]
async fn a_stream_that_nobody_read_tells_its_opener_so() {
    let network = Network::new();
    let (_relay, far, _connector, near, _) = joined(&network).await;
    for explicit in [true, false] {
        let mut asking = soon(far.open()).await.unwrap();
        soon(asking.write_all(b"request")).await.unwrap();
        let answering = soon(near.accept()).await.unwrap();
        if explicit {
            answering.refuse();
        } else {
            drop(answering);
        }
        let error = soon(asking.read_to_end(&mut Vec::new())).await.unwrap_err();
        assert!(StreamReset::of(&error).expect("a reset").is_refused_unread());
    }
}

#[tokio::test]
async fn a_stream_that_was_read_is_never_called_unread() {
    let network = Network::new();
    let (_relay, far, _connector, near, _) = joined(&network).await;
    let mut asking = soon(far.open()).await.unwrap();
    soon(asking.write_all(b"request")).await.unwrap();
    let mut answering = soon(near.accept()).await.unwrap();
    soon(answering.read_exact(&mut [0; 1])).await.unwrap();
    answering.refuse();
    let error = soon(asking.read_to_end(&mut Vec::new())).await.unwrap_err();
    assert!(!StreamReset::of(&error).expect("a reset").is_refused_unread());
}

#[tokio::test]
async fn closing_tells_the_code_to_both_ends_and_to_every_stream() {
    let network = Network::new();
    let (_relay, far, _connector, near, _) = joined(&network).await;
    let mut asking = soon(far.open()).await.unwrap();
    soon(asking.write_all(b"request")).await.unwrap();
    let mut answering = soon(near.accept()).await.unwrap();
    far.close(CloseCode::Overloaded);
    let ours = soon(far.closed()).await;
    assert_eq!((ours.code, ours.by_peer), (Some(CloseCode::Overloaded), false));
    let theirs = soon(near.closed()).await;
    assert_eq!((theirs.code, theirs.by_peer), (Some(CloseCode::Overloaded), true));
    assert!(near.is_closed());
    let mut rest = Vec::new();
    let error = soon(answering.read_to_end(&mut rest)).await.unwrap_err();
    let closed = error.get_ref().and_then(|inner| inner.downcast_ref::<crate::Closed>()).expect("a closed connection");
    assert_eq!(closed.code, Some(CloseCode::Overloaded));
    assert!(soon(near.open()).await.is_err());
    assert!(soon(near.accept()).await.is_err());
}

#[tokio::test]
async fn streams_past_the_budget_wait_for_others_to_end() {
    let network = Network::new();
    let (relay_id, connector_id) = identities();
    let streams = StreamLimits { incoming: 16, window: 64 * 1024, budget: 2 * 64 * 1024 };
    let mut relay = start_with(&network, &relay_id, PROTOCOL_VERSION, streams);
    let connector = start(&network, &connector_id);
    let _near = connector.dial(relay_id.at).await;
    let far = relay.connected().await;
    let (first, _second) = (soon(far.open()).await.unwrap(), soon(far.open()).await.unwrap());
    let third = far.open();
    tokio::pin!(third);
    assert!(futures_poll(third.as_mut()).await.is_none());
    drop(first);
    soon(third).await.unwrap();
}

#[tokio::test]
async fn the_first_stream_of_a_connection_takes_nothing_of_the_budget() {
    let network = Network::new();
    let (relay_id, connector_id) = identities();
    let streams = StreamLimits { incoming: 16, window: 64 * 1024, budget: 64 * 1024 };
    let mut relay = start_with(&network, &relay_id, PROTOCOL_VERSION, streams);
    let connector = start(&network, &connector_id);
    let near = connector.dial(relay_id.at).await;
    let far = relay.connected().await;
    let request = soon(far.open()).await.unwrap();
    let mut opened = Vec::new();
    for _ in 0..2 {
        let mut stream = soon(near.open()).await.unwrap();
        soon(stream.write_all(b"?")).await.unwrap();
        opened.push(stream);
    }
    let _control = soon(far.accept()).await.unwrap();
    let second = far.accept();
    tokio::pin!(second);
    assert!(futures_poll(second.as_mut()).await.is_none(), "requests have the whole budget");
    drop(request);
    soon(second).await.unwrap();
}

#[tokio::test]
async fn the_first_stream_goes_before_a_long_transfer_that_waits_for_a_slow_way() {
    let before = transferred_before_a_word(0).await;
    assert!(before < 120 << 10, "{before} bytes of the transfer came first");
}

#[tokio::test]
async fn every_stream_gets_its_share_of_a_slow_way_beside_a_long_transfer() {
    let before = transferred_before_a_word(3).await;
    assert!(before < 120 << 10, "{before} bytes of the transfer came first");
}

/// Queues more of a transfer than the way takes, and then a word on another stream, which the dialling end opened as its
/// first but `nth`; the bytes of the transfer that come before the word.
async fn transferred_before_a_word(nth: usize) -> usize {
    let network = Network::new();
    let (_relay, far, _connector, near, _) = joined(&network).await;
    let mut pairs = Vec::new();
    for _ in 0..=nth {
        let mut here = soon(near.open()).await.unwrap();
        soon(here.write_all(b"hello")).await.unwrap();
        let mut there = soon(far.accept()).await.unwrap();
        soon(there.read_exact(&mut [0; 5])).await.unwrap();
        pairs.push((here, there));
    }
    let (mut here, mut there) = pairs.pop().unwrap();
    let mut bulk = soon(far.open()).await.unwrap();
    soon(bulk.write_all(b"x")).await.unwrap();
    let mut bulk_near = soon(near.accept()).await.unwrap();
    soon(bulk_near.read_exact(&mut [0; 1])).await.unwrap();
    network.set_rule(|_, _, _| false);
    soon(bulk.write_all(&bytes(240 << 10, 3))).await.unwrap();
    soon(there.write_all(b"alive")).await.unwrap();
    network.set_rule(|_, _, _| true);
    let mut before = 0;
    let mut buffer = [0; 1 << 10];
    let mut word = [0; 5];
    let mut said = std::pin::pin!(here.read_exact(&mut word));
    soon(async {
        loop {
            tokio::select! {
                biased;
                read = &mut said => {
                    read.unwrap();
                    break;
                }
                read = bulk_near.read(&mut buffer) => before += read.unwrap(),
            }
        }
    })
    .await;
    before
}
