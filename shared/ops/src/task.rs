//! Tasks with a name and an owner: each says in the log when it panics, and ends with whoever owns it.
//!
//! Must never detach: a task that nobody holds is aborted.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::task::{AbortHandle, JoinHandle};

/// Why a task has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// It panicked; the log has the message.
    #[error("task {0} panicked")]
    Panicked(&'static str),
    /// Its owner, or the runtime, ended it.
    #[error("task {0} was ended")]
    Aborted(&'static str),
}

/// A running task. Aborted on drop.
#[derive(Debug)]
#[must_use = "a task ends when its handle is dropped"]
pub struct Task<T> {
    name: &'static str,
    handle: JoinHandle<Result<T, TaskError>>,
}

/// Starts a named task, as `spawn("relay.front", …)`, on the current runtime.
///
/// # Panics
/// Outside a runtime.
pub fn spawn<F>(name: &'static str, future: F) -> Task<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    Task { name, handle: tokio::spawn(Watched { name, future: Box::pin(future) }) }
}

impl<T> Task<T> {
    /// The name it was started with.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Ends it at its next await.
    pub fn abort(&self) {
        self.handle.abort();
    }
}

/// Gives the task's result. Cancel safe: dropping the `&mut` future loses nothing.
impl<T> Future for Task<T> {
    type Output = Result<T, TaskError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let name = self.name;
        Pin::new(&mut self.handle).poll(cx).map(|joined| joined.unwrap_or(Err(TaskError::Aborted(name))))
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// Holds the tasks of one part of the program; they end when it is dropped.
#[derive(Debug, Default)]
pub struct Owner {
    running: Vec<AbortHandle>,
}

impl Owner {
    /// Owns nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task that lives as long as its owner at most, and whose result nobody awaits.
    pub fn spawn<F>(&mut self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.running.retain(|task| !task.is_finished());
        let watched = Watched { name, future: Box::pin(future) };
        self.running.push(tokio::spawn(watched).abort_handle());
    }

    /// How many of its tasks are still running.
    pub fn running(&self) -> usize {
        self.running.iter().filter(|task| !task.is_finished()).count()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        for task in &self.running {
            task.abort();
        }
    }
}

/// Polls a future, and turns its panic into a log line and an error.
struct Watched<F> {
    name: &'static str,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Watched<F> {
    type Output = Result<F::Output, TaskError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let name = self.name;
        // INVARIANT: after a panic the future is never polled again, so its broken state is only dropped.
        match catch_unwind(AssertUnwindSafe(|| self.future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => {
                tracing::debug!(task = name, "task ended");
                Poll::Ready(Ok(output))
            }
            Err(panic) => {
                tracing::error!(task = name, panic = message(panic.as_ref()), "task panicked");
                Poll::Ready(Err(TaskError::Panicked(name)))
            }
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&'static str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_task_gives_its_result() {
        assert_eq!(spawn("test.sum", async { 1 + 1 }).await, Ok(2));
    }

    #[tokio::test]
    async fn a_panic_becomes_an_error_that_names_the_task() {
        let task = spawn("test.broken", async { panic!("as the test wants it") });
        assert_eq!(task.await, Err::<(), _>(TaskError::Panicked("test.broken")));
    }

    #[tokio::test]
    async fn a_dropped_handle_ends_its_task() {
        let (held, ended) = oneshot::channel::<()>();
        let task = spawn("test.endless", async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        drop(task);
        assert!(ended.await.is_err(), "the task's values are dropped");
    }

    #[tokio::test]
    async fn an_owner_takes_its_tasks_with_it() {
        let (held, ended) = oneshot::channel::<()>();
        let mut owner = Owner::new();
        owner.spawn("test.endless", async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        assert_eq!(owner.running(), 1);
        drop(owner);
        assert!(ended.await.is_err());
    }
}
