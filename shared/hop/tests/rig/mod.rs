//! A hop between a caller and an origin that a test plays, byte by byte, over in-memory streams.
#![allow(dead_code, reason = "each test uses its part")]

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use culvert_hop::body::Body;
use culvert_hop::exchange::{Answer, Deadlines};
use culvert_hop::fault::{self, Fault, Retry};
use culvert_hop::message::{Request, Response};
use culvert_hop::pool::{Lost, Opener, Pool, PoolSettings};
use culvert_hop::request::{self, Caller, ForwardPolicy};
use culvert_hop::retry::Again;
use culvert_hop::server::{ServerSettings, serve};
use culvert_hop::upgrade::{Protocol, splice};
use culvert_hop::{failure, response};
use culvert_model::reason::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, watch};

pub(crate) const RELAY: &str = "r1";

/// Every stream that a pool opens comes out of the receiver.
pub(crate) struct Origins {
    opened: mpsc::UnboundedSender<DuplexStream>,
    pub(crate) refuses: Mutex<bool>,
    pub(crate) buffer: usize,
}

impl Opener for Origins {
    type Io = DuplexStream;

    async fn open(&self) -> Result<DuplexStream, Fault> {
        if *self.refuses.lock().unwrap() {
            return Err(Fault::new(Reason::OriginRefused).retry(Retry::Safe).log("10.0.0.7:80"));
        }
        let (ours, theirs) = tokio::io::duplex(self.buffer);
        self.opened.send(theirs).map_err(|_| Fault::new(Reason::OriginUnreachable))?;
        Ok(ours)
    }

    fn lost(&self, lost: Lost<'_>) -> Fault {
        match lost {
            Lost::Io(error) => Fault::new(Reason::OriginClosed).retry(Retry::IfIdempotent).log(error),
            Lost::Ended => Fault::new(Reason::OriginClosed).retry(Retry::IfIdempotent),
            Lost::Malformed => Fault::new(Reason::OriginProtocol).retry(Retry::IfIdempotent),
            Lost::Refused => Fault::new(Reason::OriginClosed).retry(Retry::Safe),
            Lost::Reset(code) => Fault::new(Reason::from_reset_code(code).unwrap_or(Reason::OriginClosed)),
            Lost::Silent => Fault::new(Reason::OriginTimeout),
        }
    }
}

pub(crate) fn pool(buffer: usize, settings: PoolSettings) -> (Pool<Origins>, mpsc::UnboundedReceiver<DuplexStream>) {
    let (opened, origins) = mpsc::unbounded_channel();
    (Pool::new(Origins { opened, refuses: Mutex::new(false), buffer }, settings), origins)
}

#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) settings: ServerSettings,
    pub(crate) policy: ForwardPolicy,
    pub(crate) deadlines: Deadlines,
    pub(crate) retries: bool,
    pub(crate) buffer: usize,
    pub(crate) pool: PoolSettings,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            settings: ServerSettings::front(),
            policy: ForwardPolicy::Append,
            deadlines: Deadlines::default(),
            retries: false,
            buffer: 64 * 1024,
            pool: PoolSettings::default(),
        }
    }
}

pub(crate) struct Rig {
    pub(crate) caller: DuplexStream,
    pub(crate) origins: mpsc::UnboundedReceiver<DuplexStream>,
    pub(crate) pool: Pool<Origins>,
    pub(crate) drain: watch::Sender<bool>,
    pub(crate) endings: Arc<Mutex<Vec<culvert_hop::body::Ending>>>,
    pub(crate) faults: Arc<Mutex<Vec<Fault>>>,
    pub(crate) server: tokio::task::JoinHandle<()>,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Self {
        let (caller, ours) = tokio::io::duplex(options.buffer);
        let (pool, origins) = pool(options.buffer, options.pool.clone());
        let (drain, draining) = watch::channel(false);
        let endings = Arc::new(Mutex::new(Vec::new()));
        let faults = Arc::new(Mutex::new(Vec::new()));
        let server = tokio::spawn({
            let (pool, endings, faults) = (pool.clone(), endings.clone(), faults.clone());
            async move {
                let service = |request| {
                    hop(request, pool.clone(), options.clone(), endings.clone(), faults.clone(), draining.clone())
                };
                let settings = options.settings.clone();
                serve(ours, &settings, service, wait(draining.clone())).await;
            }
        });
        Self { caller, origins, pool, drain, endings, faults, server }
    }

    pub(crate) async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.caller.write_all(bytes.as_ref()).await.unwrap();
    }

    pub(crate) async fn origin(&mut self) -> DuplexStream {
        soon(self.origins.recv()).await.unwrap()
    }

    /// What the caller hears until the connection ends.
    pub(crate) async fn rest(&mut self) -> String {
        rest(&mut self.caller).await
    }
}

/// A connector at the other end of a stream that a relay's pool opened.
pub(crate) fn connect(stream: DuplexStream, pool: Pool<Origins>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let service = |request| deliver(request, pool.clone());
        serve(stream, &ServerSettings::gate(), service, std::future::pending()).await;
    })
}

async fn deliver(request: Request<Body>, pool: Pool<Origins>) -> Result<Response<Body>, Infallible> {
    let (mut parts, body) = request.into_parts();
    let head = match request::check(&mut parts) {
        Ok(head) => head,
        Err((fault, _)) => return Ok(failure::respond(&fault)),
    };
    request::deliver(&mut parts, &head);
    let accepted = match pool.send(Request::from_parts(parts, body), &Deadlines::default()).await {
        Ok(Answer::Response(answer)) => {
            let (mut parts, body) = answer.into_parts();
            response::accept(&mut parts).map(|()| Response::from_parts(parts, body))
        }
        Ok(Answer::Switched(answer, raw)) => {
            let (mut parts, ()) = answer.into_parts();
            let upgrade = head.upgrade.unwrap();
            let accepted = response::accept_switch(&mut parts, &upgrade);
            let protocol = Protocol::of(&upgrade.protocol);
            let idle = Duration::from_secs(3600);
            tokio::spawn(splice(upgrade.on, raw, protocol, idle, std::future::pending()));
            accepted.map(|()| Response::from_parts(parts, Body::empty()))
        }
        Err(error) => Err(error.fault),
    };
    Ok(accepted.unwrap_or_else(|fault| failure::respond(&fault)))
}

async fn wait(mut draining: watch::Receiver<bool>) {
    if draining.wait_for(|draining| *draining).await.is_err() {
        std::future::pending().await
    }
}

async fn hop(
    request: Request<Body>,
    pool: Pool<Origins>,
    options: Options,
    endings: Arc<Mutex<Vec<culvert_hop::body::Ending>>>,
    faults: Arc<Mutex<Vec<Fault>>>,
    draining: watch::Receiver<bool>,
) -> Result<Response<Body>, Infallible> {
    let (mut parts, body) = request.into_parts();
    let fail = |fault: Fault, audience: &fault::Audience| {
        let response = fault::respond(&fault, audience);
        faults.lock().unwrap().push(fault);
        Ok(response)
    };
    let mut head = match request::check(&mut parts) {
        Ok(head) => head,
        Err((fault, audience)) => return fail(fault, &audience),
    };
    let caller = Caller { address: Some("192.0.2.7".parse().unwrap()), tls: false, port: Some(8080) };
    if let Err(fault) = request::forward(&mut parts, &head, &caller, options.policy, RELAY) {
        return fail(fault, &head.audience);
    }
    let mut request = Request::from_parts(parts, body);
    let mut again = None;
    if options.retries {
        let (first, second) = Again::keep(request);
        request = first;
        again = Some(second);
    }
    let mut answer = pool.send(request, &options.deadlines).await;
    let second = answer.as_ref().err().and_then(|error| again?.request(&error.fault));
    if let Some(request) = second {
        answer = pool.send(request, &options.deadlines).await;
    }
    match answer {
        Ok(Answer::Response(answer)) => {
            let (mut parts, body) = answer.into_parts();
            if let Some(fault) = failure::take(&mut parts.headers) {
                return fail(fault, &head.audience);
            }
            if let Err(fault) = response::refuse_success(&parts, &head).and_then(|()| response::accept(&mut parts)) {
                return fail(fault, &head.audience);
            }
            let body = body.on_end(move |ending| endings.lock().unwrap().push(ending));
            Ok(Response::from_parts(parts, body))
        }
        Ok(Answer::Switched(answer, raw)) => {
            let (mut parts, ()) = answer.into_parts();
            let upgrade = head.upgrade.take().unwrap();
            if let Err(fault) = response::accept_switch(&mut parts, &upgrade) {
                return fail(fault, &head.audience);
            }
            let protocol = Protocol::of(&upgrade.protocol);
            let idle = options.deadlines.idle;
            tokio::spawn(async move { splice(upgrade.on, raw, protocol, idle, wait(draining)).await });
            Ok(Response::from_parts(parts, Body::empty()))
        }
        Err(error) => fail(error.fault, &head.audience),
    }
}

/// A test that waits in vain fails: paused time runs on when nothing else does.
async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10_000), event).await.expect("waited in vain")
}

/// Reads one head, with its blank line.
pub(crate) async fn head(stream: &mut DuplexStream) -> String {
    let mut out = Vec::new();
    while !out.ends_with(b"\r\n\r\n") {
        match soon(stream.read_u8()).await {
            Ok(byte) => out.push(byte),
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&out)),
        }
    }
    String::from_utf8(out).unwrap()
}

pub(crate) async fn exactly(stream: &mut DuplexStream, bytes: usize) -> String {
    let mut out = vec![0; bytes];
    soon(stream.read_exact(&mut out)).await.unwrap();
    String::from_utf8(out).unwrap()
}

/// What comes until the end, or until nothing has come for a (paused) minute.
pub(crate) async fn rest(stream: &mut DuplexStream) -> String {
    let mut out = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut out)).await;
    String::from_utf8_lossy(&out).into_owned()
}

/// Whether the other side is gone, and with nothing more said.
pub(crate) async fn is_gone(stream: &mut DuplexStream) -> bool {
    matches!(tokio::time::timeout(Duration::from_secs(10), stream.read(&mut [0])).await, Ok(Ok(0)))
}
