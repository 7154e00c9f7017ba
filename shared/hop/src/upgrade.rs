//! What follows a 101: raw bytes both ways until one side is done, idle, or has to go.
//!
//! Must never look into the bytes beyond the lengths of WebSocket frames.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use tokio::io::{AsyncRead, AsyncWrite};

/// A connection after its 101, with the bytes that were read past the head.
#[derive(Debug)]
pub struct Raw<Io> {
    /// The connection.
    pub io: Io,
    /// Read, not yet used.
    pub first: Bytes,
}

/// What is spoken after the 101.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// WebSocket: ended by a Close frame 1012 at a frame boundary.
    WebSocket,
    /// Anything else: ended by dropping both connections.
    Other,
}

/// How an upgraded connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spliced {
    /// Both sides were done.
    Done,
    /// Nothing passed for the idle time.
    Idle,
    /// The end signal came.
    Ended,
    /// A side broke off.
    Broken,
}

/// Bytes that passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// From the caller to the origin.
    pub up: u64,
    /// From the origin to the caller.
    pub down: u64,
}

/// Passes bytes both ways between the caller's connection and the origin's, with half-close, until both are done,
/// nothing passed for `idle`, or `end` completes.
pub async fn splice<Io>(
    _caller: OnUpgrade,
    _origin: Raw<Io>,
    _protocol: Protocol,
    _idle: Duration,
    _end: impl Future<Output = ()> + Send,
) -> (Spliced, Passed)
where
    Io: AsyncRead + AsyncWrite + Unpin + Send,
{
    todo!()
}
