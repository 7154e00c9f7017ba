//! What callers do to HTTP/2 servers, frame by frame: each is ended or refused, and costs nobody else anything.

mod rig;

use std::time::Duration;

use culvert_hop::body::Outcome;
use culvert_hop::server::ServerSettings;
use rig::{Options, Rig, head};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

const CALM: u32 = 0xb;
const PROTOCOL_ERROR: u32 = 1;
const REFUSED: u32 = 7;
const CANCEL: u32 = 8;

/// `GET / ` of `http://a`, by the static table.
const HEAD: &[u8] = &[0x82, 0x84, 0x86, 0x41, 0x01, b'a'];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut out = vec![length[1], length[2], length[3], kind, flags];
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

struct Frame {
    kind: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    fn code(&self) -> u32 {
        u32::from_be_bytes(self.payload[self.payload.len().min(8) - 4..][..4].try_into().unwrap())
    }
}

/// A caller that writes frames.
struct Raw(Rig);

impl Raw {
    async fn new() -> Self {
        Self::with(|_| {}, &[]).await
    }

    async fn with(change: impl FnOnce(&mut ServerSettings), settings: &[u8]) -> Self {
        let mut options = Options { buffer: 1024 * 1024, ..Options::default() };
        change(&mut options.settings);
        let mut raw = Self(Rig::with(options));
        raw.0.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        raw.say(frame(SETTINGS, 0, 0, settings)).await;
        raw
    }

    /// Not all of it, if the other side hangs up meanwhile.
    async fn say(&mut self, bytes: Vec<u8>) -> bool {
        self.0.caller.write_all(&bytes).await.is_ok()
    }

    async fn hear(&mut self) -> Option<Frame> {
        let mut header = [0; 9];
        let reading = self.0.caller.read_exact(&mut header);
        tokio::time::timeout(Duration::from_secs(1_000), reading).await.ok()?.ok()?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.0.caller.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes(header[5..].try_into().unwrap());
        Some(Frame { kind: header[3], stream, payload })
    }

    /// The next frame of that kind; none if the connection ends before.
    async fn hear_a(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.hear().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// It hears that it should calm down, and then nothing.
    async fn is_calmed(&mut self) {
        let goodbye = self.hear_a(GOAWAY).await.expect("no GOAWAY came");
        assert_eq!(u32::from_be_bytes(goodbye.payload[4..8].try_into().unwrap()), CALM);
        while self.hear().await.is_some() {}
        (&mut self.0.server).await.unwrap();
    }

    /// It is served as if nothing had been.
    async fn is_served(&mut self, stream: u32) {
        assert!(self.say(frame(HEADERS, END_STREAM | END_HEADERS, stream, HEAD)).await);
        let mut origin = self.0.origin().await;
        head(&mut origin).await;
        origin.write_all(b"HTTP/1.1 204 X\r\nConnection: close\r\n\r\n").await.unwrap();
        while let Some(answer) = self.hear_a(HEADERS).await {
            if answer.stream == stream {
                return;
            }
        }
        panic!("no answer");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_taken_back_as_soon_as_they_are_made_end_the_connection() {
    for at_once in [1, 50] {
        let mut raw = Raw::new().await;
        let mut asked = 0;
        'all: for round in 0..2_000u32 {
            let mut burst = Vec::new();
            for n in 0..at_once {
                let stream = (round * at_once + n) * 2 + 1;
                burst.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream, HEAD));
                burst.extend(frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
            }
            if !raw.say(burst).await {
                break 'all;
            }
            tokio::task::yield_now().await;
            asked += at_once;
            while let Ok(origin) = raw.0.origins.try_recv() {
                drop(origin);
            }
            if raw.0.server.is_finished() {
                break;
            }
        }
        assert!(asked < 1_000, "{asked} requests were taken back");
        raw.is_calmed().await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_some_requests_is_not_punished() {
    let mut raw = Raw::new().await;
    for n in 0..100 {
        raw.say(frame(HEADERS, END_STREAM | END_HEADERS, n * 2 + 1, HEAD)).await;
        drop(raw.0.origin().await);
    }
    for n in 0..100 {
        raw.say(frame(RST_STREAM, 0, n * 2 + 1, &CANCEL.to_be_bytes())).await;
    }
    raw.is_served(301).await;
}

#[tokio::test(start_paused = true)]
async fn floods_of_frames_that_carry_nothing_end_the_connection() {
    for (what, flood) in [
        ("PING", frame(PING, 0, 0, &[0; 8])),
        ("PING answers", frame(PING, ACK, 0, &[0; 8])),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[])),
        ("PRIORITY", frame(PRIORITY, 0, 5, &[0, 0, 0, 1, 9])),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("an unknown kind", frame(0xee, 0, 0, &[])),
    ] {
        let mut raw = Raw::new().await;
        raw.is_served(1).await;
        for _ in 0..100 {
            if !raw.say(flood.repeat(100)).await {
                break;
            }
            tokio::task::yield_now().await;
        }
        assert!(
            raw.0.server.is_finished() || raw.hear_a(GOAWAY).await.is_some_and(|last| last.code() == CALM),
            "{what}"
        );
        // A ping now and then is anybody's right.
        let mut raw = Raw::new().await;
        for _ in 0..100 {
            raw.say(frame(PING, 0, 0, &[0; 8])).await;
            raw.hear_a(PING).await.unwrap();
        }
        raw.is_served(1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_without_end_ends_the_connection_before_it_costs_memory() {
    let mut raw = Raw::new().await;
    raw.say(frame(HEADERS, END_STREAM, 1, HEAD)).await;
    // A field whose value is a kilobyte, never indexed.
    let mut field = vec![0, 1, b'x', 0x7f, 0xe9, 6];
    field.resize(field.len() + 1000, b'v');
    let mut sent = 0;
    while sent < 10_000 {
        if !raw.say(frame(CONTINUATION, 0, 1, &field)).await || raw.0.server.is_finished() {
            break;
        }
        tokio::task::yield_now().await;
        sent += 1;
    }
    assert!(sent < 1_000, "{sent} kilobytes were taken");
    let goodbye = raw.hear_a(GOAWAY).await.expect("no GOAWAY came");
    assert!([CALM, PROTOCOL_ERROR].contains(&u32::from_be_bytes(goodbye.payload[4..8].try_into().unwrap())));
}

#[tokio::test(start_paused = true)]
async fn a_head_that_grows_when_it_is_unpacked_is_refused() {
    let mut raw = Raw::new().await;
    // One field of 4,000 bytes is put into the table, then named 16,000 times by a byte each.
    let mut bomb = HEAD.to_vec();
    bomb.extend_from_slice(&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
    bomb.resize(bomb.len() + 4_000, b'v');
    bomb.resize(16_000, 0xbe);
    raw.say(frame(HEADERS, END_STREAM | END_HEADERS, 1, &bomb)).await;
    raw.is_calmed().await;
    assert!(raw.0.origins.try_recv().is_err(), "it reached the origin");
}

#[tokio::test(start_paused = true)]
async fn a_head_over_twice_its_limit_is_refused_and_the_next_served() {
    let mut rig = Rig::new();
    let io = std::mem::replace(&mut rig.caller, tokio::io::duplex(1).0);
    let (mut send, connection) = h2::client::handshake(io).await.unwrap();
    tokio::spawn(async move { connection.await.ok() });
    for (size, is_passed) in [(140_000, false), (60_000, true)] {
        let request = http::Request::get("http://a/").header("x", "v".repeat(size)).body(()).unwrap();
        let (answer, _) = send.send_request(request, true).unwrap();
        if is_passed {
            assert!(head(&mut rig.origin().await).await.len() > size);
        } else {
            assert_eq!(answer.await.unwrap().status(), 431);
            assert!(rig.origins.try_recv().is_err(), "it reached the origin");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_makes_us_reset_streams_is_ended_too() {
    let mut raw = Raw::new().await;
    let mut made = 0;
    for n in 0..5_000u32 {
        let stream = n * 2 + 1;
        let mut bytes = frame(HEADERS, END_HEADERS, stream, HEAD);
        // A window that is too large: a stream error (RFC 9113 §6.9.1).
        bytes.extend(frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff]));
        if !raw.say(bytes).await || raw.0.server.is_finished() {
            break;
        }
        tokio::task::yield_now().await;
        while let Ok(origin) = raw.0.origins.try_recv() {
            drop(origin);
        }
        made += 1;
    }
    assert!(made < 1_000, "{made} resets were made");
    raw.is_calmed().await;
}

#[tokio::test(start_paused = true)]
async fn more_streams_at_once_than_permitted_are_refused_unread() {
    let mut raw = Raw::with(|settings| settings.max_streams = 10, &[]).await;
    for n in 0..11 {
        raw.say(frame(HEADERS, END_STREAM | END_HEADERS, n * 2 + 1, HEAD)).await;
    }
    let refused = raw.hear_a(RST_STREAM).await.unwrap();
    assert_eq!((refused.stream, refused.code()), (21, REFUSED));
    for _ in 0..10 {
        drop(raw.0.origin().await);
    }
    assert!(raw.0.origins.try_recv().is_err());
    assert_eq!(raw.hear_a(HEADERS).await.unwrap().stream, 1, "the ten others are answered");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_reads_is_given_up_and_its_origin_let_go() {
    // SETTINGS_INITIAL_WINDOW_SIZE = 0: nothing of an answer may be sent.
    let patience = Duration::from_secs(20);
    let mut raw = Raw::with(|settings| settings.unread_timeout = patience, &[0, 4, 0, 0, 0, 0]).await;
    raw.say(frame(HEADERS, END_STREAM | END_HEADERS, 1, HEAD)).await;
    let mut origin = raw.0.origin().await;
    head(&mut origin).await;
    origin.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").await.unwrap();
    let start = Instant::now();
    let mut sent = 0;
    let chunk = vec![0; 10_000];
    while let Ok(written) = origin.write(&chunk).await {
        sent += written;
    }
    assert!((patience..patience * 2).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert!(sent < 3 * 1024 * 1024, "{sent} bytes were held for nobody");
    let reset = raw.hear_a(RST_STREAM).await.unwrap();
    assert_eq!((reset.stream, reset.code()), (1, CANCEL));
    assert_eq!(raw.0.endings.lock().unwrap()[0].outcome, Outcome::Dropped);
    raw.say(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255])).await;
    raw.is_served(3).await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_not_as_long_as_it_says_is_no_whole_body() {
    // content-length: 0 with bytes, 5 with fewer, 1 with more.
    for (length, body) in [("0", "x"), ("5", "abc"), ("1", "abc")] {
        let mut raw = Raw::new().await;
        let mut fields = vec![0x83, 0x84, 0x86, 0x41, 1, b'a', 0x0f, 0x0d, 1];
        fields.extend_from_slice(length.as_bytes());
        raw.say(frame(HEADERS, END_HEADERS, 1, &fields)).await;
        raw.say(frame(DATA, END_STREAM, 1, body.as_bytes())).await;
        let answer = raw.hear_a(RST_STREAM).await.unwrap();
        assert_eq!((answer.stream, answer.code()), (1, PROTOCOL_ERROR), "{length} {body}");
        if let Ok(mut origin) = raw.0.origins.try_recv() {
            let mut heard = Vec::new();
            let _ = tokio::time::timeout(Duration::from_secs(9), origin.read_to_end(&mut heard)).await;
            let heard = String::from_utf8_lossy(&heard).into_owned();
            assert!(!heard.ends_with("\r\n\r\nabc") || length == "5", "{heard}");
            assert!(!heard.contains("transfer-encoding"), "{heard}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_about_a_connection_or_ill_formed_resets_its_stream() {
    let literal = |name: &str, value: &str| {
        let mut field = vec![0, u8::try_from(name.len()).unwrap()];
        field.extend_from_slice(name.as_bytes());
        field.push(u8::try_from(value.len()).unwrap());
        field.extend_from_slice(value.as_bytes());
        [HEAD, &field].concat()
    };
    for (name, value) in [
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("keep-alive", "5"),
        ("proxy-connection", "close"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("te", "trailers, chunked"),
        ("X-Upper", "1"),
        ("x y", "1"),
        ("x", "a\rb"),
        ("x", "a\nb"),
        ("x", "a\0b"),
        (":path", "/again"),
        (":unknown", "1"),
    ] {
        let mut raw = Raw::new().await;
        raw.say(frame(HEADERS, END_STREAM | END_HEADERS, 1, &literal(name, value))).await;
        let frame = loop {
            let frame = raw.hear().await.unwrap();
            if [RST_STREAM, GOAWAY, HEADERS].contains(&frame.kind) {
                break frame;
            }
        };
        assert_ne!(frame.kind, HEADERS, "{name}: {value:?} was answered");
        assert!(raw.0.origins.try_recv().is_err(), "{name}: {value:?} reached the origin");
    }
}

#[tokio::test(start_paused = true)]
async fn who_never_finishes_the_preface_or_asks_nothing_is_left() {
    let mut rig = Rig::new();
    let start = Instant::now();
    rig.say("PRI * HTTP/2.0\r\n").await;
    let _ = rig.rest().await;
    assert_eq!(start.elapsed(), ServerSettings::front().head_timeout);
    let mut raw = Raw::new().await;
    raw.is_served(1).await;
    let start = Instant::now();
    let goodbye = raw.hear_a(GOAWAY).await.unwrap();
    assert_eq!(start.elapsed(), ServerSettings::front().keep_alive);
    assert_eq!(u32::from_be_bytes(goodbye.payload[4..8].try_into().unwrap()), 0);
    while raw.hear().await.is_some() {}
    assert!(start.elapsed() < ServerSettings::front().keep_alive + Duration::from_secs(2), "it did not hang up");
    (&mut raw.0.server).await.unwrap();
}

/// HAProxy gives room back for each piece that it reads, to the stream and to the connection.
#[tokio::test(start_paused = true)]
async fn a_reader_that_gives_room_back_in_small_pieces_is_no_flood() {
    const LENGTH: usize = 16 * 1024 * 1024;
    let mut raw = Raw::new().await;
    raw.say(frame(HEADERS, END_STREAM | END_HEADERS, 1, HEAD)).await;
    let mut origin = raw.0.origin().await;
    let answering = tokio::spawn(async move {
        head(&mut origin).await;
        let answer = format!("HTTP/1.1 200 X\r\nContent-Length: {LENGTH}\r\nConnection: close\r\n\r\n");
        origin.write_all(answer.as_bytes()).await.unwrap();
        origin.write_all(&vec![b'x'; LENGTH]).await.unwrap();
        origin
    });
    let mut read = 0;
    while read < LENGTH {
        let data = raw.hear_a(DATA).await.expect("the connection ended");
        read += data.payload.len();
        let mut room = Vec::new();
        for piece in data.payload.chunks(1_400) {
            let piece = u32::try_from(piece.len()).unwrap().to_be_bytes();
            room.extend(frame(WINDOW_UPDATE, 0, 0, &piece));
            room.extend(frame(WINDOW_UPDATE, 0, 1, &piece));
        }
        assert!(raw.say(room).await, "cut after {read} bytes");
    }
    drop(answering.await.unwrap());
    raw.is_served(3).await;
}
