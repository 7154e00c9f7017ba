//! Small paths, moves, loss and blocked carriers.

use super::*;
use crate::memory::Way;

#[tokio::test]
async fn where_full_size_packets_vanish_both_ends_send_halves() {
    let network = Network::new();
    let (relay_id, connector_id) = identities();
    // What is left of a UDP payload on a path of 1280 bytes over IPv4.
    const PATH: usize = 1280 - 28;
    let lost = Arc::new(AtomicUsize::new(0));
    let count = lost.clone();
    network.set_rule(move |_, _, bytes| {
        let passes = bytes.len() <= PATH;
        count.fetch_add(usize::from(!passes), Ordering::Relaxed);
        passes
    });
    let (mut relay, connector) = (start(&network, &relay_id), start(&network, &connector_id));
    let near = connector.dial(relay_id.at).await;
    let far = relay.connected().await;
    let after_dial = lost.load(Ordering::Relaxed);
    assert_eq!(after_dial, 2, "the padded hello, twice");
    for (opener, acceptor) in [(&far, &near), (&near, &far)] {
        let body = bytes(1 << 20, 5);
        let mut asking = soon(opener.open()).await.unwrap();
        let sending = async {
            asking.write_all(&body).await.unwrap();
            asking.shutdown().await.unwrap();
        };
        let receiving = async {
            let mut got = Vec::new();
            acceptor.accept().await.unwrap().read_to_end(&mut got).await.unwrap();
            got
        };
        let ((), got) = soon(async { tokio::join!(sending, receiving) }).await;
        assert!(got == body);
    }
    assert!(relay.plane.stats().plane.split > 500 && connector.plane.stats().plane.split > 500);
    assert_eq!(lost.load(Ordering::Relaxed), after_dial, "nothing too long was sent any more");
}

#[tokio::test]
async fn on_an_ordinary_path_nothing_is_split() {
    let network = Network::new();
    let (relay, _far, connector, _near, _) = joined(&network).await;
    assert_eq!(relay.plane.stats().plane.split + connector.plane.stats().plane.split, 0);
}

#[tokio::test]
async fn lost_hellos_are_said_again() {
    let network = Network::new();
    let (relay_id, connector_id) = identities();
    let (mut relay, connector) = (start(&network, &relay_id), start(&network, &connector_id));
    // The relay's first data packets are lost: its hello and its answers.
    let mut lose = 3;
    network.set_rule(move |from, _, bytes| {
        let lost = from == relay_id.at && bytes.first() == Some(&4) && lose > 0;
        lose -= i32::from(lost);
        !lost
    });
    let near = connector.dial(relay_id.at).await;
    relay.connected().await;
    assert!(!near.is_closed());
    assert_eq!(relay.plane.stats().plane.split, 0, "loss is not taken for a small path");
}

#[tokio::test]
async fn a_peer_that_moves_is_told_of_once_with_its_newest_address() {
    let network = Network::new();
    let (mut relay, _far, connector, near, (relay_id, connector_id)) = joined(&network).await;
    // A NAT that gives the connector a new port for every datagram.
    let port = Arc::new(AtomicUsize::new(50_000));
    let (again, next) = (network.clone(), port.clone());
    network.set_rule(move |from, to, bytes| {
        if from == connector_id.at {
            let port = next.fetch_add(1, Ordering::Relaxed) as u16;
            again.send_unruled((from.ip(), port).into(), to, bytes);
            return false;
        }
        // And that takes answers to any of them.
        if from == relay_id.at && to.ip() == connector_id.at.ip() && to.port() >= 50_000 {
            again.send_unruled(from, connector_id.at, bytes);
            return false;
        }
        true
    });
    let mut stream = soon(near.open()).await.unwrap();
    for _ in 0..50 {
        soon(stream.write_all(b"moving")).await.unwrap();
        tokio::task::yield_now().await;
    }
    let path = relay
        .until(|event| match event {
            Event::EndpointMoved { path, .. } => Some(path),
            _ => None,
        })
        .await;
    assert!(path.remote.port() >= 50_000);
    let known = relay.plane.peer_stats(relay.peer).and_then(|stats| stats.path).unwrap();
    assert!(known.remote.port() >= path.remote.port());
    assert!(!near.is_closed());
    drop(connector);
}

#[tokio::test]
async fn what_the_system_refuses_for_a_while_is_only_loss() {
    let network = Network::new();
    let (relay, far, _connector, near, _) = joined(&network).await;
    for errno in [libc::EPERM, libc::ENETUNREACH, libc::EMSGSIZE] {
        network.set_outage(Some(crate::port::Sent::Refused(errno)));
        let mut stream = soon(far.open()).await.unwrap();
        soon(stream.write_all(b"in vain at first")).await.unwrap();
        soon(async {
            while relay.plane.stats().send.last_refusal != Some(errno) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        network.set_outage(None);
        let mut word = [0; 16];
        soon(soon(near.accept()).await.unwrap().read_exact(&mut word)).await.unwrap();
        assert_eq!(&word, b"in vain at first");
    }
}

#[tokio::test]
async fn a_blocked_carrier_makes_writers_wait_within_bounds_and_then_all_arrives() {
    let network = Network::new();
    let (relay_id, connector_id) = identities();
    // Wide windows: nothing but the carrier holds the writer back.
    let wide = StreamLimits { window: 8 << 20, ..StreamLimits::default() };
    let mut relay = start_with(&network, &relay_id, PROTOCOL_VERSION, wide);
    let connector = start_with(&network, &connector_id, PROTOCOL_VERSION, wide);
    let near = connector.dial(relay_id.at).await;
    let far = relay.connected().await;
    let body = bytes(4 << 20, 9);
    let sending = async {
        let mut stream = far.open().await.unwrap();
        // Half of it opens the congestion window.
        stream.write_all(&body[..2 << 20]).await.unwrap();
        while far.stats().window < 1 << 20 {
            tokio::task::yield_now().await;
        }
        network.set_outage(Some(crate::port::Sent::Blocked));
        let rest = stream.write_all(&body[2 << 20..]);
        tokio::pin!(rest);
        let mut done = false;
        for _ in 0..1000 {
            done = done || futures_poll(rest.as_mut()).await.is_some();
            tokio::task::yield_now().await;
        }
        let waiting = relay.plane.waiting_bytes();
        assert!((1..=crate::outbox::LIMIT + 65_536).contains(&waiting), "{waiting}");
        network.set_outage(None);
        if !done {
            rest.await.unwrap();
        }
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    };
    let receiving = async {
        let mut stream = near.accept().await.unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.unwrap();
        stream.shutdown().await.unwrap();
        got
    };
    let ((), got) = soon(async { tokio::join!(sending, receiving) }).await;
    assert!(got == body);
}

#[tokio::test(start_paused = true)]
async fn a_packet_that_hundreds_have_overtaken_is_not_taken_for_another() {
    let network = Network::new();
    network.set_way(Way { delay: Duration::from_millis(10), link: None });
    let (_relay, far, _connector, near, (relay_id, connector_id)) = joined(&network).await;
    let late = Arc::new(AtomicUsize::new(0));
    let (wire, counted) = (network.clone(), late.clone());
    let mut held = std::collections::VecDeque::<(u64, Vec<u8>)>::new();
    let mut sent = 0_u64;
    // One full packet of a hundred comes when so many others have passed: WireGuard's window takes it.
    network.set_rule(move |from, to, bytes| {
        if (from, to) == (connector_id.at, relay_id.at) && bytes.len() > 1200 {
            sent += 1;
            while let Some((_, late)) = held.pop_front_if(|(due, _)| *due <= sent) {
                wire.send_unruled(from, to, &late);
                counted.fetch_add(1, Ordering::Relaxed);
            }
            if sent.is_multiple_of(100) {
                held.push_back((sent + 100 + sent % 170, bytes.to_vec()));
                return false;
            }
        }
        true
    });
    let mut stream = soon(near.open()).await.unwrap();
    let content = bytes(8 << 20, 11);
    let sending = async {
        stream.write_all(&content).await.unwrap();
        stream.shutdown().await.unwrap();
    };
    let receiving = async {
        let mut received = Vec::new();
        soon(far.accept()).await.unwrap().read_to_end(&mut received).await.unwrap();
        received
    };
    let ((), received) = soon(async { tokio::join!(sending, receiving) }).await;
    assert!(received == content && !near.is_closed() && !far.is_closed());
    assert!(late.load(Ordering::Relaxed) > 30, "{late:?}");
}
