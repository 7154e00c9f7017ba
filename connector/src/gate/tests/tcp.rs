use std::sync::atomic::AtomicBool;

use culvert_origin::proxy_protocol::ProxyProtocol;

use super::*;

/// The gate's end of a stream: can break as a reset does, and tells how it was ended.
struct Breakable {
    io: DuplexStream,
    is_broken: Arc<AtomicBool>,
    is_finished: bool,
    ended: Option<mpsc::UnboundedSender<How>>,
}

#[derive(Debug, PartialEq, Eq)]
enum How {
    Finished,
    Reset,
}

impl Cancel for Breakable {
    fn cancel(&mut self, _: Reason) {}
}

impl Drop for Breakable {
    fn drop(&mut self) {
        if let Some(ended) = self.ended.take() {
            let _ = ended.send(if self.is_finished { How::Finished } else { How::Reset });
        }
    }
}

impl AsyncRead for Breakable {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        let is_end = matches!(polled, Poll::Ready(Ok(()))) && buf.filled().len() == before;
        if is_end && self.is_broken.load(Ordering::Relaxed) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        polled
    }
}

impl AsyncWrite for Breakable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_finished = true;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A caller of a raw TCP service, its origin, and the gate between them.
struct Line {
    caller: DuplexStream,
    listener: TcpListener,
    is_broken: Arc<AtomicBool>,
    ended: mpsc::UnboundedReceiver<How>,
    gate: Gate,
    _upgraded: Upgraded,
    _serves: Task<()>,
}

impl Line {
    async fn new(change: impl FnOnce(&mut Service)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut service = service(&format!("tcp://{}", listener.local_addr().unwrap()));
        change(&mut service);
        let gate = Tunnel::new(vec![service]).gate;
        let (caller, io) = tokio::io::duplex(64 * 1024);
        let is_broken = Arc::new(AtomicBool::new(false));
        let (tell, ended) = mpsc::unbounded_channel();
        let io = Breakable { io, is_broken: is_broken.clone(), is_finished: false, ended: Some(tell) };
        let upgraded = Upgraded::default();
        let (serving, kept) = (gate.clone(), upgraded.clone());
        let serves = spawn("test.gate", async move { serving.stream(io, &kept).await });
        Self { caller, listener, is_broken, ended, gate, _upgraded: upgraded, _serves: serves }
    }

    async fn ask(&mut self, fields: &str) -> String {
        let head = format!(
            "GET / HTTP/1.1\r\nhost: db\r\nculvert-service: orders\r\nconnection: upgrade\r\nupgrade: culvert-tcp\r\n{fields}\r\n"
        );
        self.caller.write_all(head.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            bytes.push(timeout(PATIENCE, self.caller.read_u8()).await.expect("an answer comes").unwrap());
        }
        String::from_utf8(bytes).unwrap()
    }

    async fn joined(&mut self) -> TcpStream {
        let answer = self.ask("").await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        timeout(PATIENCE, self.listener.accept()).await.unwrap().unwrap().0
    }

    async fn ended(&mut self) -> How {
        timeout(PATIENCE, self.ended.recv()).await.expect("the stream is ended").unwrap()
    }
}

async fn all(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("it ends").map(|_| bytes)
}

#[tokio::test]
async fn a_caller_that_has_said_everything_still_hears_the_origin_out() {
    let mut line = Line::new(|_| {}).await;
    let mut origin = line.joined().await;
    line.caller.write_all(b"\0question\xff").await.unwrap();
    line.caller.shutdown().await.unwrap();
    assert_eq!(all(&mut origin).await.unwrap(), b"\0question\xff");
    assert_eq!(line.gate.drain.in_flight(), 1, "the drain waits for it");
    origin.write_all(b"answer\0").await.unwrap();
    drop(origin);
    assert_eq!(all(&mut line.caller).await.unwrap(), b"answer\0");
    assert_eq!(line.ended().await, How::Finished);
}

#[tokio::test]
async fn an_origin_that_has_said_everything_still_hears_the_caller_out() {
    let mut line = Line::new(|_| {}).await;
    let mut origin = line.joined().await;
    origin.write_all(b"greeting").await.unwrap();
    origin.shutdown().await.unwrap();
    assert_eq!(all(&mut line.caller).await.unwrap(), b"greeting");
    line.caller.write_all(b"late").await.unwrap();
    line.caller.shutdown().await.unwrap();
    assert_eq!(all(&mut origin).await.unwrap(), b"late");
    assert_eq!(line.ended().await, How::Finished);
}

#[tokio::test]
async fn a_caller_that_broke_off_resets_the_origin() {
    let mut line = Line::new(|_| {}).await;
    let mut origin = line.joined().await;
    line.caller.write_all(b"half a ques").await.unwrap();
    let mut bytes = [0; 11];
    origin.read_exact(&mut bytes).await.unwrap();
    line.is_broken.store(true, Ordering::Relaxed);
    drop(line.caller);
    let error = all(&mut origin).await.expect_err("never a clean end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_origin_that_broke_off_resets_the_caller() {
    let mut line = Line::new(|_| {}).await;
    let mut origin = line.joined().await;
    origin.write_all(b"half an ans").await.unwrap();
    let mut bytes = [0; 11];
    line.caller.read_exact(&mut bytes).await.unwrap();
    origin.set_zero_linger().unwrap();
    drop(origin);
    assert_eq!(line.ended().await, How::Reset);
}

#[tokio::test(start_paused = true)]
async fn a_connection_on_which_nothing_passes_is_reset_after_its_idle_time() {
    let mut line = Line::new(|service| service.timeouts.idle = Some(Duration::from_secs(600))).await;
    let mut origin = line.joined().await;
    let started = Instant::now();
    assert_eq!(line.ended.recv().await, Some(How::Reset));
    assert_eq!(started.elapsed().as_secs(), 600);
    assert_eq!(all(&mut origin).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_origin_that_wants_to_know_is_told_who_connected_before_the_first_byte() {
    let peer = "culvert-peer: 192.0.2.1:5000 198.51.100.2:5432\r\n";
    for (version, fields, expected) in [
        (ProxyProtocol::V1, peer, b"PROXY TCP4 192.0.2.1 198.51.100.2 5000 5432\r\nhello".to_vec()),
        (ProxyProtocol::V1, "", b"PROXY UNKNOWN\r\nhello".to_vec()),
        (
            ProxyProtocol::V2,
            peer,
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x02\x13\x88\x15\x38hello".to_vec(),
        ),
        (ProxyProtocol::V2, "", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0hello".to_vec()),
    ] {
        let mut line = Line::new(|service| service.proxy_protocol = Some(version)).await;
        let answer = line.ask(fields).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(!answer.contains("192.0.2.1"), "{answer}");
        line.caller.write_all(b"hello").await.unwrap();
        line.caller.shutdown().await.unwrap();
        let (mut origin, _) = line.listener.accept().await.unwrap();
        assert_eq!(all(&mut origin).await.unwrap(), expected, "{version:?} {fields}");
    }
    // Without the setting nothing is added.
    let mut line = Line::new(|_| {}).await;
    line.ask(peer).await;
    line.caller.shutdown().await.unwrap();
    assert_eq!(all(&mut line.listener.accept().await.unwrap().0).await.unwrap(), b"");
}

#[tokio::test]
async fn a_peer_that_cannot_be_read_connects_nowhere() {
    for fields in
        ["culvert-peer: nobody\r\n", "culvert-peer: 1.1.1.1:1 2.2.2.2:2\r\nculvert-peer: 1.1.1.1:1 2.2.2.2:2\r\n"]
    {
        let mut line = Line::new(|service| service.proxy_protocol = Some(ProxyProtocol::V1)).await;
        assert_eq!(failure_of(&line.ask(fields).await), "bad_request; sent=1", "{fields}");
    }
}

#[tokio::test]
async fn requests_and_raw_bytes_never_meet() {
    let mut line = Line::new(|_| {}).await;
    let head = "GET / HTTP/1.1\r\nhost: db\r\nculvert-service: orders\r\n\r\n";
    line.caller.write_all(head.as_bytes()).await.unwrap();
    let mut tunnel = Tunnel::to("http://127.0.0.1:1");
    tunnel.stream = line.caller;
    assert_eq!(failure_of(&tunnel.answer().await), "no_such_service; sent=0", "a request to a raw TCP service");
    let mut line = Line::new(|service| service.origin = "http://127.0.0.1:1".parse().unwrap()).await;
    assert_eq!(failure_of(&line.ask("").await), "no_such_service; sent=0", "raw TCP to a service of requests");
}

#[tokio::test]
async fn a_raw_origin_that_is_away_is_named() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let mut line = Line::new(|service| service.origin = format!("tcp://127.0.0.1:{port}").parse().unwrap()).await;
    assert_eq!(failure_of(&line.ask("").await), "origin_refused; sent=0");
}
