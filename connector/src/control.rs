//! The control stream: whole messages in, whole messages out.
//!
//! Must never hold more than one message of the other end, or act on any.

use std::io;

use culvert_model::control::{BadMessage, decode, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Why a control stream is over.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The stream broke, or the session under it.
    #[error("the control stream broke: {0}")]
    Io(#[from] io::Error),
    /// The other end closed it.
    #[error("the control stream was closed")]
    Closed,
    /// What came is no message.
    #[error(transparent)]
    Bad(#[from] BadMessage),
}

/// Reads messages.
#[derive(Debug)]
pub struct Incoming<R> {
    io: R,
    bytes: Vec<u8>,
}

/// Writes messages.
#[derive(Debug)]
pub struct Outgoing<W> {
    io: W,
    bytes: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    /// Reads from this half.
    pub fn new(io: R) -> Self {
        Self { io, bytes: Vec::new() }
    }

    /// The next message. Cancel safe.
    ///
    /// # Errors
    /// [`ControlError`]: nothing more can be read.
    pub async fn next<M: DeserializeOwned>(&mut self) -> Result<M, ControlError> {
        loop {
            if let Some((message, used)) = decode(&self.bytes)? {
                self.bytes.drain(..used);
                if self.bytes.is_empty() {
                    self.bytes.shrink_to(1024);
                }
                return Ok(message);
            }
            if self.io.read_buf(&mut self.bytes).await? == 0 {
                return Err(ControlError::Closed);
            }
        }
    }
}

impl<W: AsyncWrite + Unpin> Outgoing<W> {
    /// Writes to this half.
    pub fn new(io: W) -> Self {
        Self { io, bytes: Vec::new() }
    }

    /// Sends one message. Not cancel safe: a message cut short ends the stream's use.
    ///
    /// # Errors
    /// [`ControlError`]
    pub async fn send<M: Serialize>(&mut self, message: &M) -> Result<(), ControlError> {
        self.bytes.clear();
        encode(message, &mut self.bytes)?;
        self.io.write_all(&self.bytes).await?;
        Ok(self.io.flush().await?)
    }
}

#[cfg(test)]
mod tests {
    use culvert_model::control::{ToConnector, ToRelay};

    use super::*;

    #[tokio::test]
    async fn messages_arrive_whole_and_in_order_however_they_are_cut() {
        let (near, far) = tokio::io::duplex(3);
        let sent = [ToRelay::Ping { id: 1 }, ToRelay::Drain, ToRelay::Pong { id: 9 }];
        let mut outgoing = Outgoing::new(near);
        let mut incoming = Incoming::new(far);
        let send = async {
            for message in &sent {
                outgoing.send(message).await.unwrap();
            }
            drop(outgoing);
        };
        let receive = async {
            for message in &sent {
                assert_eq!(incoming.next::<ToRelay>().await.unwrap(), *message);
            }
            assert!(matches!(incoming.next::<ToRelay>().await, Err(ControlError::Closed)));
        };
        tokio::join!(send, receive);
    }

    #[tokio::test]
    async fn what_is_no_message_ends_the_stream() {
        let mut incoming = Incoming::new(&b"\0\0\0\x01x"[..]);
        assert!(matches!(incoming.next::<ToConnector>().await, Err(ControlError::Bad(_))));
        let mut incoming = Incoming::new(&b"\x7f\xff\xff\xff"[..]);
        assert!(matches!(incoming.next::<ToConnector>().await, Err(ControlError::Bad(BadMessage::TooLong(_)))));
    }
}
