//! What is asked of the registry's thread: one transaction each, and who waits for what came of it.
//!
//! Must never answer before it is known whether the transaction is durable.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::RegistryError;
use super::failure::Failure;
use super::sql::Transaction;
use super::store::{Kind, Status};

/// One transaction that somebody waits for.
pub(super) trait Order: Send {
    /// Whether it may write.
    fn kind(&self) -> Kind;

    /// Runs it inside a transaction; the second time does nothing.
    ///
    /// # Errors
    /// What it said: nothing of it may stay.
    fn run(&mut self, transaction: &dyn Transaction) -> Result<(), Failure>;

    /// Tells who waits. `ended` is what came of the transaction around it.
    fn answer(self: Box<Self>, ended: Result<(), RegistryError>);
}

/// Tells who waits, and the status of the registry.
pub(super) struct Teller<T> {
    pub(super) kind: Kind,
    pub(super) status: Status,
    pub(super) answer: oneshot::Sender<Result<T, RegistryError>>,
}

impl<T> Teller<T> {
    pub(super) fn tell(self, result: Result<T, RegistryError>) {
        let amiss = match &result {
            Ok(_) | Err(RegistryError::Rule(_)) => None,
            Err(error) => Some(error.to_string()),
        };
        // What can be read may still not be written.
        if amiss.is_some() || self.kind == Kind::Write {
            self.status.set(amiss);
        }
        let _ = self.answer.send(result);
    }
}

/// An order of one function.
pub(super) struct Ask<T, F> {
    pub(super) what: Option<F>,
    pub(super) value: Option<T>,
    pub(super) teller: Teller<T>,
    pub(super) place: Arc<str>,
}

impl<T, F> Order for Ask<T, F>
where
    T: Send,
    F: FnOnce(&dyn Transaction) -> Result<T, Failure> + Send,
{
    fn kind(&self) -> Kind {
        self.teller.kind
    }

    fn run(&mut self, transaction: &dyn Transaction) -> Result<(), Failure> {
        let Some(what) = self.what.take() else { return Ok(()) };
        self.value = Some(what(transaction)?);
        Ok(())
    }

    fn answer(self: Box<Self>, ended: Result<(), RegistryError>) {
        let Self { value, teller, place, .. } = *self;
        let never = || Failure::Away("a transaction ended before it began".to_owned()).into_error(&place);
        teller.tell(ended.and_then(|()| value.ok_or_else(never)));
    }
}
