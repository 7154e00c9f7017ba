//! Control messages on a stream: a length and JSON each way ([`culvert_model::control`]).
//!
//! Must never hold more than one message's bytes unread, nor wait for ever for a peer that does not read.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use culvert_model::control::{self, BadMessage, MAX_MESSAGE_BYTES};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

/// What comes is first read into this much of the stack: thousands of streams wait, and hold no buffer meanwhile.
const READ: usize = 512;
/// A peer that takes nothing for this long has stopped reading.
const SEND_WITHIN: Duration = Duration::from_secs(5);

/// Why the conversation is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    /// The peer ended its direction.
    #[error("the peer ended the stream")]
    Ended,
    /// The stream or its connection is gone.
    #[error("the stream failed: {0}")]
    Broken(#[from] io::Error),
    /// The protocol was broken.
    #[error(transparent)]
    Bad(#[from] BadMessage),
    /// The peer does not read.
    #[error("the peer did not take a message within {} s", SEND_WITHIN.as_secs())]
    Stuck,
}

/// A stream of messages.
#[derive(Debug)]
pub(super) struct Frames<S> {
    stream: S,
    /// What has come of the next messages; without an allocation while nothing has.
    inbox: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    /// Speaks over `stream`.
    pub(super) fn new(stream: S) -> Self {
        Self { stream, inbox: Vec::new() }
    }

    /// Waits for the next message. Cancel safe.
    pub(super) async fn next<M: DeserializeOwned>(&mut self) -> Result<M, FrameError> {
        loop {
            if let Some((message, taken)) = control::decode(&self.inbox)? {
                if taken == self.inbox.len() {
                    self.inbox = Vec::new();
                } else {
                    self.inbox.drain(..taken);
                }
                return Ok(message);
            }
            // INVARIANT: `decode` refuses a length past the bound, so the inbox ends at one message and one read more.
            debug_assert!(self.inbox.len() <= MAX_MESSAGE_BYTES + 4, "decode takes whole messages");
            let read = if self.inbox.is_empty() {
                self.read_first().await?
            } else {
                // Twice as much each time, so that a long message does not cost a read for each of its pieces.
                self.inbox.reserve(READ.max(self.inbox.len()));
                self.stream.read_buf(&mut self.inbox).await?
            };
            if read == 0 {
                return Err(FrameError::Ended);
            }
        }
    }

    /// Waits for the first bytes of a message, and tells how many came. Cancel safe.
    async fn read_first(&mut self) -> io::Result<usize> {
        poll_fn(|cx| {
            let mut room = [MaybeUninit::uninit(); READ];
            let mut first = ReadBuf::uninit(&mut room);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut first))?;
            self.inbox.extend_from_slice(first.filled());
            Poll::Ready(Ok(first.filled().len()))
        })
        .await
    }

    /// Sends one message. Not cancel safe: a cancelled send leaves half a message.
    pub(super) async fn send<M: Serialize>(&mut self, message: &M) -> Result<(), FrameError> {
        let mut bytes = Vec::new();
        control::encode(message, &mut bytes)?;
        // Boxed, because most of the time nothing is sent, and those who wait would hold its room.
        Box::pin(self.write(&bytes)).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        let written = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        let written = tokio::time::timeout(SEND_WITHIN, written).await.map_err(|_| FrameError::Stuck)?;
        written.map_err(FrameError::Broken)
    }

    /// Ends our direction, cleanly.
    pub(super) async fn finish(&mut self) -> Result<(), FrameError> {
        tokio::time::timeout(SEND_WITHIN, self.stream.shutdown())
            .await
            .map_err(|_| FrameError::Stuck)?
            .map_err(FrameError::Broken)
    }
}

#[cfg(test)]
mod tests {
    use culvert_model::control::{ToConnector, ToRelay};
    use tokio::io::duplex;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn messages_pass_both_ways_in_small_pieces() {
        let (near, far) = duplex(3);
        let (mut near, mut far) = (Frames::new(near), Frames::new(far));
        let (sent, read) = tokio::join!(near.send(&ToConnector::Ping { id: 1 }), far.next::<ToConnector>());
        assert!(sent.is_ok());
        assert_eq!(read.unwrap(), ToConnector::Ping { id: 1 });
        let both = async {
            far.send(&ToRelay::Pong { id: 1 }).await.unwrap();
            far.send(&ToRelay::Drain).await.unwrap();
        };
        let read = async { (near.next::<ToRelay>().await.unwrap(), near.next::<ToRelay>().await.unwrap()) };
        let ((), read) = tokio::join!(both, read);
        assert_eq!(read, (ToRelay::Pong { id: 1 }, ToRelay::Drain));
        drop(far);
        assert!(matches!(near.next::<ToRelay>().await, Err(FrameError::Ended)));
    }

    #[tokio::test]
    async fn who_waits_for_a_message_holds_no_buffer() {
        let (near, far) = duplex(1 << 20);
        let (mut near, mut far) = (Frames::new(near), Frames::new(far));
        let large = ToConnector::Unsupported { what: "x".repeat(60_000) };
        near.send(&large).await.unwrap();
        near.send(&ToConnector::Ping { id: 1 }).await.unwrap();
        assert_eq!(far.next::<ToConnector>().await.unwrap(), large);
        assert_eq!(far.next::<ToConnector>().await.unwrap(), ToConnector::Ping { id: 1 });
        let waits = timeout(Duration::ZERO, far.next::<ToConnector>()).await;
        assert!(waits.is_err() && far.inbox.capacity() == 0, "{far:?}");
    }

    #[tokio::test]
    async fn a_length_over_the_bound_ends_the_conversation() {
        let (near, mut far) = duplex(64);
        far.write_all(&[0xff; 4]).await.unwrap();
        assert!(matches!(Frames::new(near).next::<ToRelay>().await, Err(FrameError::Bad(BadMessage::TooLong(_)))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_is_given_up() {
        let (near, _far) = duplex(3);
        assert!(matches!(Frames::new(near).send(&ToConnector::Drain).await, Err(FrameError::Stuck)));
    }
}
