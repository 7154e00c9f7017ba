//! When the certificates that an operator gave us end, and saying so in time.
//!
//! Must never stop anything for it: the origin decides what it still takes.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use culvert_model::name::ServiceName;
use culvert_ops::certificate;
use rustls_pki_types::CertificateDer;

/// An operator hears of it so long before.
const WARN_BEFORE: Duration = Duration::from_secs(14 * 86_400);
/// And again so often.
const WARN_AGAIN: Duration = Duration::from_secs(86_400);

/// The end of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// Which setting of `[service.tls]` or `[service.auth]` names its file.
    pub file: &'static str,
    /// Its end.
    pub at: SystemTime,
}

/// What was already said.
#[derive(Debug, Default)]
pub struct Warnings(HashMap<(ServiceName, &'static str), (SystemTime, SystemTime)>);

impl Expiry {
    /// Of our own chain: the first certificate of it that ends.
    pub(super) fn of_chain(chain: &[CertificateDer<'_>]) -> Option<Self> {
        ends(chain).min().map(|at| Self { file: "cert", at })
    }

    /// Of a certificate that is shown elsewhere than in TLS; `file` is the setting of `[service.auth]` that names it.
    pub fn of_one(file: &'static str, der: &[u8]) -> Option<Self> {
        Some(Self { file, at: certificate::read(der)?.not_after })
    }

    /// Of authorities: the last one that ends. An old one beside it is common, and hurts nobody.
    pub(super) fn of_authorities(authorities: &[CertificateDer<'_>]) -> Option<Self> {
        ends(authorities).max().map(|at| Self { file: "ca", at })
    }

    /// How many seconds are left; below zero when it is over.
    pub fn seconds_left(&self, now: SystemTime) -> f64 {
        match self.at.duration_since(now) {
            Ok(left) => left.as_secs_f64(),
            Err(past) => -past.duration().as_secs_f64(),
        }
    }
}

impl Warnings {
    /// Whether this one is to be warned of now: from 14 days before its end on, once a day.
    pub fn is_due(&mut self, service: &ServiceName, expiry: &Expiry, now: SystemTime) -> bool {
        if expiry.at > now + WARN_BEFORE {
            return false;
        }
        let place = (service.clone(), expiry.file);
        let told = self.0.get(&place);
        let is_told = told.is_some_and(|(of, when)| {
            *of == expiry.at && now.duration_since(*when).is_ok_and(|since| since < WARN_AGAIN)
        });
        if !is_told {
            self.0.insert(place, (expiry.at, now));
        }
        !is_told
    }
}

fn ends<'a>(certificates: &'a [CertificateDer<'_>]) -> impl Iterator<Item = SystemTime> + 'a {
    certificates.iter().filter_map(|der| certificate::read(der)).map(|facts| facts.not_after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_fourteen_days_before_and_then_once_a_day() {
        let (day, now) = (Duration::from_secs(86_400), SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30));
        let service: ServiceName = "ledger".parse().unwrap();
        let mut warnings = Warnings::default();
        let cert = Expiry { file: "cert", at: now + 15 * day };
        assert!(!warnings.is_due(&service, &cert, now));
        assert!(warnings.is_due(&service, &cert, now + day));
        assert!(!warnings.is_due(&service, &cert, now + day + day / 2));
        assert!(warnings.is_due(&service, &cert, now + 2 * day), "the day after");
        let ca = Expiry { file: "ca", ..cert };
        assert!(warnings.is_due(&service, &ca, now + 2 * day), "another file");
        let replaced = Expiry { at: now + 10 * day, ..cert };
        assert!(warnings.is_due(&service, &replaced, now + 2 * day), "another certificate that ends soon too");
        assert!(warnings.is_due(&service, &replaced, now + 30 * day), "long over");
        assert_eq!(cert.seconds_left(now + 16 * day), -86_400.0);
    }
}
