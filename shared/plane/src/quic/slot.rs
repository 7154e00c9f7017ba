//! One QUIC connection, and who waits for what happens on it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::Instant;

use bytes::Bytes;
use culvert_engine::PeerId;
use quinn_proto::{Connection, ConnectionError, ConnectionHandle, Event, StreamEvent, StreamId, VarInt};
use rustc_hash::FxHashMap;
use tokio::sync::Notify;

/// See the module.
pub(crate) struct Slot {
    pub(crate) connection: Connection,
    pub(crate) signals: Arc<Signals>,
    /// Tasks that wait for bytes of a stream, and for room on one.
    pub(crate) readers: FxHashMap<StreamId, Waker>,
    pub(crate) writers: FxHashMap<StreamId, Waker>,
    pub(super) serial: u64,
    pub(super) handle: ConnectionHandle,
    /// Who is let in by it, at which synthetic address; none where this end dials, or the handshake is over.
    pub(super) guest: Option<(PeerId, SocketAddr)>,
    /// Somebody holds it.
    pub(super) held: bool,
    /// QUIC has forgotten it.
    pub(super) drained: bool,
    /// It is among those that may have something to send.
    pub(super) dirty: bool,
    /// Datagrams came for it in this turn.
    pub(super) touched: bool,
    /// When it is looked at. Its next deadline may be later, never earlier.
    pub(super) armed: Option<Instant>,
}

/// What tasks without a stream wait for.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    established: AtomicBool,
    ended: OnceLock<ConnectionError>,
    /// The handshake is over, one way or the other.
    shaken: Notify,
    /// The peer has opened a stream.
    pub(crate) opened: Notify,
    /// The peer permits another stream.
    pub(crate) permitted: Notify,
    closed: Notify,
}

impl Slot {
    pub(super) fn new(
        connection: Connection,
        handle: ConnectionHandle,
        serial: u64,
        guest: Option<(PeerId, SocketAddr)>,
    ) -> Self {
        Self {
            connection,
            signals: Arc::default(),
            readers: FxHashMap::default(),
            writers: FxHashMap::default(),
            serial,
            handle,
            guest,
            held: false,
            drained: false,
            dirty: false,
            touched: false,
            armed: None,
        }
    }

    /// Hands on what QUIC tells. `true`: the handshake has just ended well.
    pub(super) fn tell(&mut self, woken: &mut Vec<Waker>) -> bool {
        let mut established = false;
        while let Some(event) = self.connection.poll() {
            match event {
                Event::Connected => {
                    self.signals.established.store(true, Ordering::Release);
                    self.signals.shaken.notify_waiters();
                    established = true;
                }
                Event::ConnectionLost { reason } => self.end(reason, woken),
                Event::Stream(StreamEvent::Readable { id }) => woken.extend(self.readers.remove(&id)),
                Event::Stream(StreamEvent::Writable { id } | StreamEvent::Stopped { id, .. }) => {
                    woken.extend(self.writers.remove(&id));
                }
                Event::Stream(StreamEvent::Opened { .. }) => self.signals.opened.notify_waiters(),
                Event::Stream(StreamEvent::Available { .. }) => self.signals.permitted.notify_waiters(),
                Event::Stream(StreamEvent::Finished { .. })
                | Event::HandshakeDataReady
                | Event::DatagramReceived
                | Event::DatagramsUnblocked => {}
            }
        }
        established
    }

    /// Closes it from this end.
    pub(super) fn close(&mut self, code: VarInt, reason: Bytes, now: Instant, woken: &mut Vec<Waker>) {
        self.connection.close(now, code, reason);
        self.end(ConnectionError::LocallyClosed, woken);
    }

    /// The first reason is the one that is told.
    fn end(&mut self, reason: ConnectionError, woken: &mut Vec<Waker>) {
        let _ = self.signals.ended.set(reason);
        woken.extend(self.readers.drain().chain(self.writers.drain()).map(|(_, waker)| waker));
        let Signals { shaken, opened, permitted, closed, .. } = &*self.signals;
        for waiting in [shaken, opened, permitted, closed] {
            waiting.notify_waiters();
        }
    }
}

impl Signals {
    /// Why it ended, if it has.
    pub(crate) fn ended(&self) -> Option<&ConnectionError> {
        self.ended.get()
    }

    /// Waits for its end.
    pub(crate) async fn until_ended(&self) -> ConnectionError {
        loop {
            let notice = self.closed.notified();
            if let Some(reason) = self.ended() {
                return reason.clone();
            }
            notice.await;
        }
    }

    /// Waits for the end of its handshake.
    pub(crate) async fn until_established(&self) -> Result<(), ConnectionError> {
        loop {
            let notice = self.shaken.notified();
            match self.ended() {
                Some(reason) => return Err(reason.clone()),
                None if self.established.load(Ordering::Acquire) => return Ok(()),
                None => notice.await,
            }
        }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("serial", &self.serial).field("signals", &self.signals).finish_non_exhaustive()
    }
}
