//! What all connections of one listener share; a reload changes it.
//!
//! Must never be held across an await: whoever needs it takes a copy.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use culvert_ops::exit::Quit;

use crate::config::{Address, Issuer, Listener, Tcp};
use crate::front::tls::{Tls, Watch};

/// An HTTP listener's.
#[derive(Debug)]
pub(crate) struct Door {
    listener: Mutex<Arc<Listener>>,
    shown: Shown,
}

/// Where verifiers come in.
#[derive(Debug)]
pub(crate) struct IssuerDoor {
    /// Where it listens.
    pub(crate) listen: SocketAddr,
    /// What it proves itself with.
    pub(crate) shown: Shown,
}

/// What a listener proves itself with, anew when its files change.
#[derive(Debug)]
pub(crate) struct Shown {
    tls: Mutex<Option<Arc<Tls>>>,
    watch: Mutex<Watch>,
}

/// A TCP listener's.
#[derive(Debug)]
pub(crate) struct TcpDoor(Mutex<Arc<Tcp>>);

/// Reads the files of a listener that speaks TLS.
///
/// # Errors
/// 78 and what is wrong with them.
pub(crate) fn tls_of(listener: &Listener) -> Result<Option<Arc<Tls>>, Quit> {
    let Some(files) = &listener.tls else { return Ok(None) };
    // Where nobody is asked for an identity, authorities are named because only their certificates are to come in.
    let demanded = !listener.identified;
    let tls = Tls::load(files, demanded)
        .map_err(|error| Quit::config(format!("tls of the http listener {}: {error}", listener.address)))?;
    Ok(Some(Arc::new(tls)))
}

impl Door {
    /// As the listener is configured, its TLS made by [`tls_of`].
    pub(crate) fn new(listener: Listener, tls: Option<Arc<Tls>>) -> Self {
        Self { listener: Mutex::new(Arc::new(listener)), shown: Shown::new(tls) }
    }

    /// Takes other settings, for connections and requests from now on.
    pub(crate) fn set(&self, listener: Listener, tls: Option<Arc<Tls>>) {
        self.shown.set(tls);
        *lock(&self.listener) = Arc::new(listener);
    }

    /// The address it was configured with.
    pub(crate) fn address(&self) -> Address {
        self.now().address.clone()
    }

    /// Its settings now.
    pub(crate) fn now(&self) -> Arc<Listener> {
        Arc::clone(&lock(&self.listener))
    }

    /// What it proves itself with.
    pub(crate) const fn shown(&self) -> &Shown {
        &self.shown
    }
}

impl IssuerDoor {
    /// Where one is configured; reads its files.
    ///
    /// # Errors
    /// 78 and what is wrong with them.
    pub(crate) fn of(issuer: &Issuer) -> Result<Option<Self>, Quit> {
        let Some(listen) = issuer.listen else { return Ok(None) };
        let tls = issuer.tls.as_ref().map(|files| Tls::load(files, false).map(Arc::new)).transpose();
        let tls = tls.map_err(|error| Quit::config(format!("tls of the issuer's listener {listen}: {error}")))?;
        Ok(Some(Self { listen, shown: Shown::new(tls) }))
    }

    /// What its owner may not have thought of.
    pub(crate) fn warning(&self) -> Option<String> {
        let is_exposed = self.shown.tls().is_none() && !self.listen.ip().to_canonical().is_loopback();
        is_exposed.then(|| {
            let listen = self.listen;
            format!(
                "the issuer's listener {listen} speaks clear text off loopback: whoever is on the way can exchange the keys \
                 that verifiers believe; set tls = {{ cert, key }} in [issuer], or listen on 127.0.0.1 behind a server that does"
            )
        })
    }
}

impl Shown {
    fn new(tls: Option<Arc<Tls>>) -> Self {
        Self { tls: Mutex::new(tls), watch: Mutex::default() }
    }

    fn set(&self, tls: Option<Arc<Tls>>) {
        *lock(&self.tls) = tls;
    }

    /// TLS now; none = clear text.
    pub(crate) fn tls(&self) -> Option<Arc<Tls>> {
        lock(&self.tls).clone()
    }

    /// Takes the files anew if they changed and are right. Blocks on the disk.
    pub(crate) fn look_at_files(&self, now: SystemTime) {
        let Some(old) = self.tls() else { return };
        let Some(new) = lock(&self.watch).look(&old, now) else { return };
        let mut tls = lock(&self.tls);
        // A reload may have been quicker.
        if tls.as_ref().is_some_and(|tls| Arc::ptr_eq(tls, &old)) {
            *tls = Some(Arc::new(new));
        }
    }
}

impl TcpDoor {
    /// As the listener is configured.
    pub(crate) fn new(tcp: Tcp) -> Self {
        Self(Mutex::new(Arc::new(tcp)))
    }

    /// Takes other settings, for connections from now on.
    pub(crate) fn set(&self, tcp: Tcp) {
        *lock(&self.0) = Arc::new(tcp);
    }

    /// Its settings now.
    pub(crate) fn now(&self) -> Arc<Tcp> {
        Arc::clone(&lock(&self.0))
    }
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}
