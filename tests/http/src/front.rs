//! The front in memory: the hop's own server, checks and pool between a caller's bytes and a logged origin.
//!
//! Must never do to a request what the relay does not.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use culvert_hop::body::Body;
use culvert_hop::exchange::{Answer, Deadlines};
use culvert_hop::fault::{self, Fault};
use culvert_hop::message::{Request, Response};
use culvert_hop::pool::{Lost, Opener, Pool, PoolSettings, Speak};
use culvert_hop::request::{self, Caller, ForwardPolicy};
use culvert_hop::response;
use culvert_hop::server::{Http2, ServerSettings, serve};
use culvert_model::reason::Reason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use crate::logged::{self, Fact};

/// Room in each direction.
const BUFFER: usize = 256 * 1024;

struct Origins(Arc<Mutex<Vec<Fact>>>);

impl Opener for Origins {
    type Io = DuplexStream;

    async fn open(&self) -> Result<DuplexStream, Fault> {
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        tokio::spawn(logged::serve(theirs, Arc::clone(&self.0)));
        Ok(ours)
    }

    fn lost(&self, _: Lost<'_>) -> Fault {
        Fault::new(Reason::OriginClosed)
    }
}

/// What came of a caller's bytes.
#[derive(Debug)]
pub struct Came {
    /// What the origin understood, in order.
    pub facts: Vec<Fact>,
    /// What the caller was told.
    pub heard: Vec<u8>,
}

/// Sends `bytes` in pieces of `cut`, then the end, and lets everything happen. Time is simulated.
///
/// # Panics
/// No runtime can be made.
pub fn send(bytes: &[u8], cut: usize, version: Http2) -> Came {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let Ok(runtime) = runtime else { panic!("no runtime") };
    runtime.block_on(exchange(bytes, cut, version))
}

async fn exchange(bytes: &[u8], cut: usize, version: Http2) -> Came {
    let facts = Arc::new(Mutex::new(Vec::new()));
    let pool = Pool::new(Origins(Arc::clone(&facts)), PoolSettings { http2: Speak::Never, ..PoolSettings::default() });
    let (caller, ours) = tokio::io::duplex(BUFFER);
    let settings = ServerSettings { http2: version, ..ServerSettings::front() };
    let server = tokio::spawn(async move {
        let service = |request| hop(request, pool.clone());
        serve(ours, &settings, service, std::future::pending()).await;
    });
    let (mut reader, mut writer) = tokio::io::split(caller);
    let pieces: Vec<Vec<u8>> = bytes.chunks(cut.max(1)).map(<[u8]>::to_vec).collect();
    let said = tokio::spawn(async move {
        for piece in pieces {
            if writer.write_all(&piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        let _ = writer.shutdown().await;
        // The stream stays open for the answer.
        std::future::pending::<()>().await;
    });
    let mut heard = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(600), reader.read_to_end(&mut heard)).await;
    said.abort();
    drop(reader);
    let _ = tokio::time::timeout(Duration::from_secs(600), server).await;
    // What the origin has still to read of its streams.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let facts = std::mem::take(&mut *facts.lock().unwrap_or_else(PoisonError::into_inner));
    Came { facts, heard }
}

async fn hop(request: Request<Body>, pool: Pool<Origins>) -> Result<Response<Body>, Infallible> {
    let (mut parts, body) = request.into_parts();
    let head = match request::check(&mut parts) {
        Ok(head) => head,
        Err((fault, audience)) => return Ok(fault::respond(&fault, &audience)),
    };
    let caller = Caller { address: Some([192, 0, 2, 7].into()), tls: false, port: Some(8080) };
    if let Err(fault) = request::forward(&mut parts, &head, &caller, ForwardPolicy::Append, "r1") {
        return Ok(fault::respond(&fault, &head.audience));
    }
    let answer = pool.send(Request::from_parts(parts, body), &Deadlines::default()).await;
    let accepted = match answer {
        Ok(Answer::Response(answer)) => {
            let (mut parts, body) = answer.into_parts();
            let accepted = response::refuse_success(&parts, &head).and_then(|()| response::accept(&mut parts));
            accepted.map(|()| Response::from_parts(parts, body))
        }
        Ok(Answer::Switched(..)) => Err(Fault::new(Reason::UpgradeRefused)),
        Err(error) => Err(error.fault),
    };
    Ok(accepted.unwrap_or_else(|fault| fault::respond(&fault, &head.audience)))
}
