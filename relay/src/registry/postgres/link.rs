//! One connection: made, made ready, listened to, closed.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Statement};

use super::super::failure::Failure;
use super::super::schema::VERSION;
use super::schema;
use super::tls::Tls;
use super::url::{Target, told};

/// Name resolution and every address together get so long.
const WITHIN: Duration = Duration::from_secs(20);
/// What is to be said at the end.
const GOODBYE: Duration = Duration::from_secs(1);

/// A lock is waited for so long, a statement may take so long, and a transaction that its relay left open ends.
const READY: &str = "SET lock_timeout = '3s'; SET statement_timeout = '8s'; \
                     SET idle_in_transaction_session_timeout = '10s'; LISTEN culvert_registry";

/// Classes and codes of answers that time does not change: who we are, which database, what we may do there.
const REFUSALS: [&str; 3] = ["28", "3D000", "42501"];

/// A connection whose schema is up to date.
pub(super) struct Link {
    pub(super) client: Client,
    /// Statements that the server has parsed, by their text.
    pub(super) statements: RefCell<HashMap<String, Statement>>,
    /// Something changed; ends with the connection.
    pub(super) heard: mpsc::Receiver<()>,
    /// The number of changes when it was made.
    pub(super) changes: i64,
    driver: JoinSet<()>,
}

impl Link {
    /// Connects and brings the schema up to date.
    ///
    /// # Errors
    /// [`Failure::Away`], [`Failure::Newer`], [`Failure::Foreign`].
    pub(super) async fn open(target: &Target) -> Result<Self, Failure> {
        match tokio::time::timeout(WITHIN, Self::connect(target)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::Silent),
        }
    }

    /// Connects and reads the schema's version, if there is one.
    ///
    /// # Errors
    /// As [`Link::open`].
    pub(super) async fn look(target: &Target) -> Result<Option<u32>, Failure> {
        let look = async {
            let (client, driver) = Self::dial(target).await.map(|(client, driver, _)| (client, driver))?;
            let state = schema::state(&client).await;
            goodbye(client, driver).await;
            Ok(state?.map(|(_, version)| version))
        };
        tokio::time::timeout(WITHIN, look).await.unwrap_or(Err(Failure::Silent))
    }

    async fn connect(target: &Target) -> Result<Self, Failure> {
        let (client, driver, heard) = Self::dial(target).await?;
        client.batch_execute(READY).await?;
        let changes = schema::bring(&client, VERSION).await?;
        Ok(Self { client, statements: RefCell::default(), heard, changes, driver })
    }

    async fn dial(target: &Target) -> Result<(Client, JoinSet<()>, mpsc::Receiver<()>), Failure> {
        let config = target.config().map_err(|error| Failure::Refused(format!("its password: {error}")))?;
        let tls = Tls::new(target.tls()).map_err(Failure::Refused)?;
        let (client, mut connection) = config.connect(tls).await?;
        let (tell, heard) = mpsc::channel(1);
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notification(_) = message {
                    // One that waits to be taken is enough.
                    let _ = tell.try_send(());
                }
            }
        });
        Ok((client, driver, heard))
    }

    pub(super) async fn close(self) {
        goodbye(self.client, self.driver).await;
    }
}

async fn goodbye(client: Client, mut driver: JoinSet<()>) {
    drop(client);
    let _ = tokio::time::timeout(GOODBYE, driver.join_next()).await;
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        let detail = told(&error);
        match error.code() {
            Some(&SqlState::LOCK_NOT_AVAILABLE | &SqlState::T_R_DEADLOCK_DETECTED) => Self::Locked,
            Some(&SqlState::DISK_FULL) => Self::Full,
            Some(&SqlState::DATA_CORRUPTED | &SqlState::INDEX_CORRUPTED | &SqlState::UNDEFINED_COLUMN) => {
                Self::Damaged(detail)
            }
            Some(code) if REFUSALS.iter().any(|refusal| code.code().starts_with(refusal)) => Self::Refused(detail),
            None if is_of_tls(&error) => Self::Refused(detail),
            Some(_) | None => Self::Away(detail),
        }
    }
}

/// Whether the handshake failed over what it is about; not over a connection that broke.
fn is_of_tls(error: &tokio_postgres::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(one) = cause {
        let inner = one.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if inner.is_some_and(|inner| inner.is::<rustls::Error>()) {
            return true;
        }
        cause = one.source();
    }
    false
}
