//! A TUN device in memory.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use crate::port::PacketPort;

/// A device in memory: what a test puts in is read, what is written can be taken out.
#[derive(Default)]
pub(crate) struct MemoryPort {
    state: Mutex<PortState>,
}

#[derive(Default)]
struct PortState {
    unread: VecDeque<Vec<u8>>,
    written: Vec<Vec<u8>>,
    reader: Option<Waker>,
    watcher: Option<Waker>,
}

impl MemoryPort {
    /// Puts a frame where it is read.
    pub(crate) fn put(&self, frame: Vec<u8>) {
        let mut state = self.state.lock().unwrap();
        state.unread.push_back(frame);
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }

    /// Takes what was written, and waits for something.
    pub(crate) async fn take(&self) -> Vec<Vec<u8>> {
        std::future::poll_fn(|cx| {
            let mut state = self.state.lock().unwrap();
            if state.written.is_empty() {
                state.watcher = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(std::mem::take(&mut state.written))
        })
        .await
    }

    /// Frames that nobody has read.
    pub(crate) fn unread(&self) -> usize {
        self.state.lock().unwrap().unread.len()
    }
}

impl fmt::Debug for MemoryPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryPort")
    }
}

impl PacketPort for MemoryPort {
    fn poll_read(&self, cx: &mut Context<'_>, frame: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut state = self.state.lock().unwrap();
        let Some(unread) = state.unread.pop_front() else {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        frame[..unread.len()].copy_from_slice(&unread);
        Poll::Ready(Ok(unread.len()))
    }

    fn write(&self, frame: &[u8]) -> bool {
        let mut state = self.state.lock().unwrap();
        state.written.push(frame.to_vec());
        if let Some(watcher) = state.watcher.take() {
            watcher.wake();
        }
        true
    }
}
