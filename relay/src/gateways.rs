//! Who calls: gateways, how they prove it, and what each may call (interface.md §4).
//!
//! Must never tell a caller more than that it is not let in, nor cost a listener that asks nobody anything.

mod throttle;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use culvert_hop::fault::Fault;
use culvert_hop::fields::Fields;
use culvert_model::gateway::{self, Credential, GatewaySecret, SecretVerifier};
use culvert_model::id::GatewayId;
use culvert_model::name::{Grant, Label, ServiceName};
use culvert_model::reason::Reason;
use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::info;

use crate::refusals::{Attempt, Refusals};
use crate::registry::{Certificate, GatewayRow, Note};
use throttle::{Failed, Throttle};

const FIELD: &str = gateway::FIELD;

/// What a caller's TLS handshake proved; one for each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerCertificate {
    /// Of the certificate itself.
    pub(crate) sha256: [u8; 32],
    /// Its subject alternative names (DNS names, URIs, e-mail and IP addresses), in lower case.
    pub(crate) sans: Vec<String>,
}

/// A gateway that may call.
#[derive(Debug)]
pub(crate) struct Gateway {
    /// Its id.
    pub(crate) id: GatewayId,
    /// Its name.
    pub(crate) name: Label,
    grants: Vec<Grant>,
    secrets: Vec<(SecretVerifier, Option<SystemTime>)>,
    certificate: Option<Certificate>,
    seen: Arc<Seen>,
}

/// Every gateway, and what was seen of each.
pub(crate) struct Gateways {
    table: Mutex<Arc<Table>>,
    refusals: Refusals,
    throttle: Mutex<Throttle>,
    /// Compared with where no gateway has the name, so that the time tells nobody which names exist.
    nobody: SecretVerifier,
}

#[derive(Debug, Default)]
struct Table {
    by_name: HashMap<Label, Arc<Gateway>>,
    by_digest: HashMap<[u8; 32], Arc<Gateway>>,
    by_san: HashMap<String, Arc<Gateway>>,
    revoked: HashSet<Label>,
}

/// What outlives a change of the table. Milliseconds since 1970; 0 = never.
#[derive(Debug, Default)]
struct Seen {
    used: AtomicU64,
    noted: AtomicU64,
    over: AtomicBool,
    told: Notify,
}

impl Gateway {
    /// Whether it may call the service.
    pub(crate) fn may(&self, service: &ServiceName) -> bool {
        self.grants.iter().any(|grant| grant.matches(service))
    }

    /// Waits until it is revoked: what still runs for it ends then.
    pub(crate) async fn revoked(&self) {
        loop {
            let told = self.seen.told.notified();
            if self.seen.over.load(Ordering::Acquire) {
                return;
            }
            told.await;
        }
    }
}

impl Gateways {
    /// Those of the registry.
    pub(crate) fn new(rows: &[GatewayRow]) -> Self {
        let gateways = Self {
            table: Mutex::default(),
            refusals: Refusals::default(),
            throttle: Mutex::default(),
            nobody: SecretVerifier::new(&GatewaySecret::generate()),
        };
        gateways.set(rows);
        gateways
    }

    /// Those, telling there who was not let in.
    pub(crate) fn telling(self, refusals: Refusals) -> Self {
        Self { refusals, ..self }
    }

    /// Takes the registry's rows, for requests from now on.
    pub(crate) fn set(&self, rows: &[GatewayRow]) {
        let old = self.table();
        let mut table = Table::default();
        for row in rows {
            if row.revoked.is_some() {
                table.revoked.insert(row.name.clone());
                continue;
            }
            let seen =
                old.by_name.get(&row.name).filter(|known| known.id == row.id).map(|known| Arc::clone(&known.seen));
            let gateway = Arc::new(Gateway {
                id: row.id.clone(),
                name: row.name.clone(),
                grants: row.grants.clone(),
                secrets: row.secrets.iter().map(|secret| (secret.verifier, secret.until)).collect(),
                certificate: row.certificate.clone(),
                seen: seen.unwrap_or_default(),
            });
            match &gateway.certificate {
                Some(Certificate::Sha256(digest)) => {
                    table.by_digest.insert(*digest, Arc::clone(&gateway));
                }
                Some(Certificate::San(name)) => {
                    table.by_san.insert(name.to_ascii_lowercase(), Arc::clone(&gateway));
                }
                None => {}
            }
            table.by_name.insert(gateway.name.clone(), gateway);
        }
        let live: HashSet<&GatewayId> = table.by_name.values().map(|gateway| &gateway.id).collect();
        let gone = old.by_name.values().filter(|gateway| !live.contains(&gateway.id)).cloned();
        let gone: Vec<Arc<Gateway>> = gone.collect();
        *self.table.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
        for gateway in gone {
            gateway.seen.over.store(true, Ordering::Release);
            gateway.seen.told.notify_waiters();
        }
    }

    /// Who calls, on a listener that lets `admitted` call (none = every known gateway).
    ///
    /// Somebody who tries secrets waits for each answer longer than for the one before; others from the same address, a
    /// right secret among them, do not wait.
    ///
    /// # Errors
    /// `unauthenticated`, or `not_allowed` for a known gateway that this listener does not admit.
    pub(crate) async fn admit(
        &self,
        headers: &Fields,
        (certificate, from): (Option<&PeerCertificate>, Option<IpAddr>),
        admitted: Option<&[Label]>,
    ) -> Result<Arc<Gateway>, Fault> {
        let found = match self.identify(headers, certificate, SystemTime::now()) {
            Ok(Some(gateway)) => gateway,
            // Nothing was tried, so nothing was guessed.
            Ok(None) => {
                return Err(Fault::new(Reason::Unauthenticated).log("neither a Culvert-Gateway nor a certificate"));
            }
            Err(fault) => {
                let failed = self.failed(from, &fault);
                if !failed.wait.is_zero() {
                    Box::pin(sleep(failed.wait)).await;
                }
                return Err(fault);
            }
        };
        if admitted.is_some_and(|names| !names.contains(&found.name)) {
            return Err(Fault::new(Reason::NotAllowed).log(format_args!("gateway {} has no leave here", found.name)));
        }
        found.seen.used.store(milliseconds(SystemTime::now()), Ordering::Relaxed);
        Ok(found)
    }

    /// Which gateway the `Culvert-Gateway` field proves, else which one the certificate of the connection does.
    ///
    /// # Errors
    /// `unauthenticated`: what is there proves nothing. None = nothing is there.
    pub(crate) fn identify(
        &self,
        headers: &Fields,
        certificate: Option<&PeerCertificate>,
        now: SystemTime,
    ) -> Result<Option<Arc<Gateway>>, Fault> {
        let table = self.table();
        let by_certificate = certificate.map(|certificate| table.of_certificate(certificate));
        let mut fields = headers.get_all(FIELD);
        let (field, again) = (fields.next(), fields.next());
        let Some(field) = field else {
            return match by_certificate {
                None => Ok(None),
                Some(Ok(Some(gateway))) => Ok(Some(gateway)),
                Some(Ok(None)) => Err(stranger("a certificate that no gateway is known by")),
                Some(Err(fault)) => Err(fault),
            };
        };
        if again.is_some() {
            return Err(stranger("Culvert-Gateway twice"));
        }
        let credential: Credential = match field.to_str().map(str::parse) {
            Ok(Ok(credential)) => credential,
            Ok(Err(error)) => return Err(stranger(error)),
            Err(_) => return Err(stranger("Culvert-Gateway is no text")),
        };
        let gateway = table.of_secret(&credential, &self.nobody, now)?;
        match by_certificate {
            // Two proofs that disagree prove neither.
            Some(Ok(Some(other))) if other.id != gateway.id => {
                Err(stranger("the certificate is another gateway's than the secret"))
            }
            _ => Ok(Some(gateway)),
        }
    }

    /// When each gateway called last, as far as this process knows.
    pub(crate) fn last_used(&self) -> HashMap<GatewayId, SystemTime> {
        let used = |gateway: &Arc<Gateway>| match gateway.seen.used.load(Ordering::Relaxed) {
            0 => None,
            at => Some((gateway.id.clone(), SystemTime::UNIX_EPOCH + Duration::from_millis(at))),
        };
        self.table().by_name.values().filter_map(used).collect()
    }

    /// What is to be written about gateways that called since the last time.
    pub(crate) fn notes(&self) -> Vec<Note> {
        let mut notes = Vec::new();
        for gateway in self.table().by_name.values() {
            let used = gateway.seen.used.load(Ordering::Relaxed);
            if gateway.seen.noted.swap(used, Ordering::Relaxed) != used {
                let at = SystemTime::UNIX_EPOCH + Duration::from_millis(used);
                notes.push(Note::GatewayUsed { gateway: gateway.id.clone(), at });
            }
        }
        notes
    }

    /// Those of the names that no gateway has.
    pub(crate) fn missing<'a>(&self, names: &'a [Label]) -> impl Iterator<Item = &'a Label> {
        let table = self.table();
        names.iter().filter(move |name| !table.by_name.contains_key(*name))
    }

    fn failed(&self, from: Option<IpAddr>, fault: &Fault) -> Failed {
        let now = tokio::time::Instant::now().into_std();
        let failed = self.throttle.lock().unwrap_or_else(PoisonError::into_inner).failed(from, now);
        let caller = || from.map_or_else(|| "a socket of this host".to_owned(), |address| address.to_string());
        self.refusals.note(Attempt {
            action: "gateway.refused",
            actor: caller(),
            subject: caller(),
            detail: fault.detail().unwrap_or("unauthenticated").to_owned(),
        });
        if failed.is_news {
            let caller = from.map(|address| address.to_string());
            info!(caller, why = fault.detail(), "gateway not let in");
        }
        failed
    }

    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Table {
    fn of_secret(
        &self,
        credential: &Credential,
        nobody: &SecretVerifier,
        now: SystemTime,
    ) -> Result<Arc<Gateway>, Fault> {
        let Some(gateway) = self.by_name.get(&credential.name) else {
            let _ = nobody.is_of(&credential.secret);
            let why = if self.revoked.contains(&credential.name) { "is revoked" } else { "is not known" };
            return Err(stranger(format_args!("gateway {} {why}", credential.name)));
        };
        // Every secret is looked at, whichever fits.
        let mut fitting = None;
        for (verifier, until) in &gateway.secrets {
            if verifier.is_of(&credential.secret) {
                fitting = Some(*until);
            }
        }
        match fitting {
            None => Err(stranger(format_args!("gateway {}: a wrong secret", gateway.name))),
            Some(Some(until)) if until <= now => {
                Err(stranger(format_args!("gateway {}: a secret that was rotated away", gateway.name)))
            }
            Some(_) => Ok(Arc::clone(gateway)),
        }
    }

    /// The certificate's own digest goes before its names.
    fn of_certificate(&self, certificate: &PeerCertificate) -> Result<Option<Arc<Gateway>>, Fault> {
        if let Some(gateway) = self.by_digest.get(&certificate.sha256) {
            return Ok(Some(Arc::clone(gateway)));
        }
        let mut named = certificate.sans.iter().filter_map(|name| self.by_san.get(name));
        let Some(first) = named.next() else { return Ok(None) };
        if named.any(|other| other.id != first.id) {
            return Err(stranger("a certificate with the names of several gateways"));
        }
        Ok(Some(Arc::clone(first)))
    }
}

fn stranger(why: impl std::fmt::Display) -> Fault {
    Fault::new(Reason::Unauthenticated).log(why)
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
