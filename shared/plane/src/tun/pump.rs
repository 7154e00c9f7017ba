//! From the device to the shard: reads frames while the outbox has room.
//!
//! It must never hold a frame back: what it has read is sealed, parked or answered in the same turn.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;

use super::vnet::FRAME;
use crate::port::PacketPort;
use crate::shared::{Shared, now};

/// Frames of one turn before other tasks get theirs: up to a mebibyte.
const TURN: usize = 16;

/// Ends with an error of the device, or without one when the shard has stopped.
pub(crate) fn pump(shared: Arc<Shared>, port: Arc<dyn PacketPort>) -> impl Future<Output = std::io::Result<()>> {
    let mut frame = vec![0; FRAME];
    poll_fn(move |cx| {
        for _ in 0..TURN {
            {
                let mut shard = shared.shard();
                if shard.stopped {
                    return Poll::Ready(Ok(()));
                }
                if shard.outbox.is_full() {
                    shard.wait_for_room(cx.waker());
                    return Poll::Pending;
                }
            }
            let length = match port.poll_read(cx, &mut frame) {
                Poll::Ready(Ok(length)) => length,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            };
            shared.shard().handle_frame(frame.get(..length).unwrap_or_default(), now());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}
