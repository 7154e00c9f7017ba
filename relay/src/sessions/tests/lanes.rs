//! Further lanes of a connector: what they carry, and that they end with what opened them.

use std::sync::atomic::Ordering;

use culvert_model::control::{LANES_AT_MOST, Lane, LaneKeys};

use super::*;

/// One lane of a connector's process.
struct Opened {
    key: PrivateKey,
    connection: Connection,
    plane: Plane,
    requests: Arc<AtomicUsize>,
    frozen: Arc<AtomicBool>,
    _tasks: JoinSet<()>,
}

impl Run {
    /// The relay's answer about a lane.
    async fn told_of_lane(&mut self, number: u8, key: &PrivateKey, kem: &KemKey) -> Result<Lane, String> {
        let kem_key = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, kem.encapsulation_key());
        self.say(ToRelay::Lane(LaneKeys { number, public_key: key.public_key(), kem_key }));
        loop {
            match tokio::time::timeout(SOON, self.answers.recv()).await.unwrap().unwrap() {
                ToConnector::Lane(lane) => return Ok(lane),
                ToConnector::LaneRefused { why, .. } => return Err(why),
                _ => {}
            }
        }
    }

    async fn open_lane(&mut self, rig: &Rig, number: u8) -> Opened {
        let (key, kem) = (PrivateKey::generate(), KemKey::generate());
        let lane = self.told_of_lane(number, &key, &kem).await.unwrap();
        let psk = psk_of(&lane, &kem);
        let mine = culvert_plane::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (plane, _events) = plane(Role::Connector, key.clone(), lane.inner_address, mine);
        let peer = plane.add_peer(rig.peer(lane.relay_key, lane.psk_epoch, psk)).unwrap();
        plane.connect(peer, None);
        let connection = plane.dial(peer).await.unwrap();
        let mut frames = Frames::new(connection.open().await.unwrap());
        frames.send(&ToRelay::Ping { id: 1 }).await.unwrap();
        let (frozen, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        let (_says, to_say) = mpsc::unbounded_channel();
        let ((heard, _), (told, _), (answered, _)) =
            (mpsc::unbounded_channel(), mpsc::unbounded_channel(), mpsc::unbounded_channel());
        tasks.spawn(control(frames, Arc::clone(&frozen), to_say, heard, told, answered));
        tasks.spawn(gate(connection.clone(), format!("lane {number}"), Arc::clone(&frozen), Arc::clone(&requests)));
        rig.until("the lane is up", || rig.lanes().contains(&number)).await;
        Opened { key, connection, plane, requests, frozen, _tasks: tasks }
    }
}

impl Opened {
    async fn closed(&self) -> Closed {
        tokio::time::timeout(SOON, self.connection.closed()).await.unwrap()
    }
}

impl Rig {
    /// The numbers of the only connector's connections.
    fn lanes(&self) -> Vec<u8> {
        let live = self.sessions.connectors();
        live.values().flat_map(|live| &live.lanes).map(|lane| lane.number).collect()
    }
}

fn psk_of(lane: &Lane, kem: &KemKey) -> Psk {
    let ciphertext = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, &lane.ciphertext).unwrap();
    kem.decapsulate(&ciphertext, &lane.relay_key, &lane.public_key).unwrap()
}

#[tokio::test]
async fn requests_run_over_the_session_and_its_lanes_in_turn() {
    let rig = Rig::new(&["orders"]).await;
    let mut run = rig.join("a").await.come(&rig, &["orders"]).await;
    let lane = run.open_lane(&rig, 1).await;
    let mut answers = Vec::new();
    for _ in 0..6 {
        answers.push(rig.ask("orders").await.unwrap());
    }
    answers.sort();
    assert_eq!(answers, ["a", "a", "a", "lane 1", "lane 1", "lane 1"]);
    assert_eq!(rig.count("orders"), (1, 1), "it is one connector still");
    lane.plane.shutdown(CloseCode::Shutdown).await;
    rig.until("the lane is left out", || rig.lanes() == [0]).await;
    for _ in 0..3 {
        assert_eq!(rig.ask("orders").await, Ok("a".to_owned()));
    }
}

#[tokio::test]
async fn a_lane_that_does_not_answer_is_given_up_and_its_safe_requests_run_over_another() {
    let rig = Rig::new(&["orders"]).await;
    let mut run = rig.join("a").await.come(&rig, &["orders"]).await;
    let lane = run.open_lane(&rig, 1).await;
    lane.frozen.store(true, Ordering::Relaxed);
    let start = Instant::now();
    let (one, other) = tokio::join!(rig.ask("orders"), rig.ask("orders"));
    assert_eq!((one, other), (Ok("a".to_owned()), Ok("a".to_owned())));
    assert_eq!(lane.requests.load(Ordering::Relaxed), 1, "one of them was tried there");
    assert_eq!(lane.closed().await.code, Some(CloseCode::Silent));
    assert!(start.elapsed() <= Duration::from_millis(5_200), "{:?}", start.elapsed());
    assert!(!run.connection.is_closed());
    assert_eq!(rig.lanes(), [0]);
}

#[tokio::test]
async fn lanes_end_with_the_session_that_opened_them_and_with_its_key() {
    let rig = Rig::new(&["orders"]).await;
    let a = rig.join("a").await;
    let mut run = a.come(&rig, &["orders"]).await;
    let lane = run.open_lane(&rig, 1).await;
    run.connection.close(CloseCode::Shutdown);
    lane.closed().await;
    rig.until("it is gone", || rig.lanes().is_empty()).await;
    // Its key is nobody's any more.
    let peer = rig.sessions.shared.plane.add_peer(rig.peer(lane.key.public_key(), 1, Psk::generate()));
    rig.sessions.shared.plane.remove_peer(peer.unwrap(), CloseCode::Shutdown).await;

    let mut run = a.come(&rig, &["orders"]).await;
    let lane = run.open_lane(&rig, 1).await;
    rig.command(Command::ConnectorRevoke { connector: a.enrolled.id.to_string() }).await;
    assert_eq!(lane.closed().await.code, Some(CloseCode::Revoked));
    assert_eq!(rig.ask("orders").await, Err(Reason::NoConnector));
    assert!(rig.sessions.shared.table().lanes.is_empty());
}

#[tokio::test]
async fn a_new_process_takes_the_lanes_of_the_one_before_away() {
    let rig = Rig::new(&["orders"]).await;
    let a = rig.join("a").await;
    let mut before = a.come(&rig, &["orders"]).await;
    let lane = before.open_lane(&rig, 1).await;
    let mut run = a.come(&rig, &["orders"]).await;
    let _next = run.open_lane(&rig, 1).await;
    lane.closed().await;
    assert_eq!(rig.lanes(), [0, 1]);
    rig.until("one lane is known", || rig.sessions.shared.table().lanes.len() == 1).await;
}

#[tokio::test]
async fn a_lane_gets_its_next_pre_shared_key_and_another_key_takes_its_place() {
    let rig = Rig::new(&["orders"]).await;
    let mut run = rig.join("a").await.come(&rig, &["orders"]).await;
    let lane = run.open_lane(&rig, 1).await;
    let kem = KemKey::generate();
    for epoch in 2..=4 {
        assert_eq!(run.told_of_lane(1, &lane.key, &kem).await.map(|lane| lane.psk_epoch), Ok(epoch));
    }
    assert!(!lane.connection.is_closed());
    let other = run.open_lane(&rig, 1).await;
    assert_eq!(lane.closed().await.code, Some(CloseCode::Replaced));
    assert!(!other.connection.is_closed());
    rig.until("one lane is left", || rig.lanes() == [0, 1]).await;
}

#[tokio::test]
async fn lanes_that_make_no_sense_are_refused_and_cost_nothing() {
    let rig = Rig::new(&["orders"]).await;
    let (a, b) = (rig.join("a").await, rig.join("b").await);
    let mut run = a.come(&rig, &["orders"]).await;
    let (key, kem) = (PrivateKey::generate(), KemKey::generate());
    for number in [0, LANES_AT_MOST] {
        let why = run.told_of_lane(number, &key, &kem).await.unwrap_err();
        assert!(why.contains("16 lanes at most"), "{why}");
    }
    for taken in [&a.key, &b.key] {
        assert!(run.told_of_lane(1, taken, &kem).await.is_err(), "somebody has that key");
    }
    let nonsense = LaneKeys { number: 1, public_key: key.public_key(), kem_key: "AA==".to_owned() };
    run.say(ToRelay::Lane(nonsense));
    assert!(matches!(run.answers.recv().await, Some(ToConnector::LaneRefused { number: 1, .. })));
    rig.command(Command::ConnectorRevoke { connector: b.enrolled.id.to_string() }).await;
    assert!(run.told_of_lane(1, &b.key, &kem).await.is_err(), "a revoked key stays revoked");
    assert!(rig.sessions.shared.table().lanes.is_empty());
}
