//! What a service's `auth` table means: a file for each type.
//!
//! Must never let a key pass in silence that the type knows nothing of.

use std::cell::RefCell;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use culvert_ops::Environment;
use culvert_ops::config::{ConfigError, Loaded};
use culvert_ops::secret::{Secret, SecretSpec};
use http::{HeaderName, HeaderValue, header};
use serde::de::DeserializeOwned;

use crate::proof::exchange::Endpoint;
use crate::proof::{FieldPolicy, MOST, Proof, USUAL_LIMIT, settable};
use crate::tls::{ClientTls, Files};

mod aws;
mod entra_id;
mod federated;
mod gcp;
mod http_signature;
mod jwt;
pub mod settings;

/// The configuration that tables stand in, and who reads it.
pub struct Place<'a> {
    /// For errors, which name file and line.
    pub loaded: &'a Loaded,
    /// For variables that are named or usual.
    pub environment: &'a dyn Environment,
    /// Whether there are keys of Culvert's own to sign with: a connector makes some, a relay does not.
    pub has_keys: bool,
}

/// One service's `auth` table, and where it stands.
struct Auth<'a> {
    place: &'a Place<'a>,
    key: &'a str,
    table: &'a toml::Table,
    /// Files whose change is a reason to reload.
    watched: RefCell<&'a mut Vec<PathBuf>>,
}

/// Says what the table at `key` means, and has `fields` take out whatever a caller sends under the proof's names. Reads the
/// files and variables that it names; `watched` gets the files.
///
/// # Errors
/// The first key that is wrong, or a field that is set, taken out or renamed elsewhere too.
pub fn settle(
    place: &Place<'_>,
    key: &str,
    table: &toml::Table,
    fields: &mut FieldPolicy,
    watched: &mut Vec<PathBuf>,
) -> Result<Proof, ConfigError> {
    let auth = Auth { place, key, table, watched: RefCell::new(watched) };
    let proof = auth.proof()?;
    if proof.algorithm().is_some() && !place.has_keys {
        return Err(auth.lacks_keys(proof.kind()));
    }
    for name in proof.fields() {
        let at = if table.contains_key("header") { format!("{key}.header") } else { key.to_owned() };
        fields.remove(&name).map_err(|twice| place.loaded.wrong(&at, twice))?;
    }
    Ok(proof)
}

impl Auth<'_> {
    fn proof(&self) -> Result<Proof, ConfigError> {
        let kind = self.table.get("type").and_then(toml::Value::as_str);
        match kind {
            Some(kind @ "jwt") if !self.place.has_keys => Err(self.lacks_keys(kind)),
            Some("jwt") => self.keeps_to("jwt", &jwt::KEYS).and_then(|()| jwt::settle(self).map(Proof::Jwt)),
            Some("entra-id") => {
                self.keeps_to("entra-id", &entra_id::KEYS)?;
                entra_id::settle(self).map(Proof::EntraId)
            }
            Some("gcp-id-token") => {
                self.keeps_to("gcp-id-token", &gcp::ID_TOKEN_KEYS)?;
                gcp::id_token(self).map(Proof::GcpIdToken)
            }
            Some("gcp-service-account") => {
                self.keeps_to("gcp-service-account", &gcp::SERVICE_ACCOUNT_KEYS)?;
                gcp::service_account(self).map(Proof::GcpServiceAccount)
            }
            Some("http-signature") => {
                self.keeps_to("http-signature", &http_signature::KEYS)?;
                http_signature::settle(self).map(Proof::HttpSignature)
            }
            Some("aws-sigv4") => {
                self.keeps_to("aws-sigv4", &aws::KEYS)?;
                aws::settle(self).map(Proof::AwsSigV4)
            }
            Some(other) => Err(self.wrong("type", format_args!("{other:?} is none that this version knows"))),
            None => Err(self.wrong("type", "is missing")),
        }
    }

    fn wrong(&self, what: &str, why: impl Display) -> ConfigError {
        self.place.loaded.wrong(&format!("{}.{what}", self.key), why)
    }

    /// Refuses what would be signed with keys that are not here.
    fn lacks_keys(&self, kind: &str) -> ConfigError {
        let why = "would be signed with keys of Culvert's own, and a relay holds none: use a secret, a key file, or a connector";
        self.place.loaded.wrong(self.key, format_args!("{kind:?} {why}"))
    }

    /// Refuses keys that are another type's.
    fn keeps_to(&self, kind: &str, keys: &[&str]) -> Result<(), ConfigError> {
        match self.table.keys().find(|given| *given != "type" && !keys.contains(&given.as_str())) {
            Some(other) => Err(self.wrong(other, format_args!("is not for type {kind:?}: take it out"))),
            None => Ok(()),
        }
    }

    /// The keys of a type with their types, which were checked before.
    fn read<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        self.table.clone().try_into().map_err(|error| self.place.loaded.wrong(self.key, error))
    }

    fn needed(&self, what: &str, given: Option<String>, why: &str) -> Result<String, ConfigError> {
        let given = given.filter(|text| !text.is_empty());
        given.ok_or_else(|| self.wrong(what, format_args!("is missing: {why}")))
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.place.environment.var(name)
    }

    /// Reads a secret, and has its file watched.
    fn secret(&self, what: &str, spec: &SecretSpec) -> Result<Secret, ConfigError> {
        let environment = self.place.environment;
        self.watched.borrow_mut().extend(spec.sources.iter().filter_map(|source| source.watched(environment)));
        spec.read(environment).map_err(|error| self.wrong(what, error))
    }

    /// Reads a file, and has it watched.
    fn file(&self, what: &str, path: &Path) -> Result<Vec<u8>, ConfigError> {
        self.watched.borrow_mut().push(path.to_path_buf());
        let wrong = |error| self.wrong(what, format_args!("cannot read {}: {error}", path.display()));
        std::fs::read(path).map_err(wrong)
    }

    /// Where tokens are asked for, verified by the authorities in `ca`, or the system's.
    fn endpoint(&self, what: &str, url: &str, ca: Option<&Path>) -> Result<Endpoint, ConfigError> {
        let is_tls = url.starts_with("https://");
        let tls = match (is_tls, ca) {
            (true, ca) => {
                let ca = ca.map(|path| self.file("ca", path)).transpose()?;
                let tls = ClientTls::new(Files { ca, ..Files::default() });
                Some(tls.map_err(|error| self.wrong("ca", error))?)
            }
            (false, _) => None,
        };
        Endpoint::new(url, || tls).map_err(|error| self.wrong(what, error))
    }

    /// Exactly one of several keys.
    fn one_of(&self, given: &[(&str, bool)]) -> Result<(), ConfigError> {
        let names = || given.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let mut set = given.iter().filter(|(_, is_given)| *is_given).map(|(name, _)| *name);
        match (set.next(), set.next()) {
            (Some(_), None) => Ok(()),
            (None, _) => {
                let why = format_args!("one of {} is needed", names());
                Err(self.place.loaded.wrong(self.key, why))
            }
            (Some(first), Some(second)) => {
                Err(self.wrong(second, format_args!("cannot stand beside {first}: only one of {} can", names())))
            }
        }
    }

    /// Refuses a key that does nothing without another.
    fn goes_with(&self, what: &str, is_given: bool, other: &str, is_other_given: bool) -> Result<(), ConfigError> {
        match is_given && !is_other_given {
            true => Err(self.wrong(what, format_args!("does nothing without {other}: take it out"))),
            false => Ok(()),
        }
    }

    /// The field of somebody else's token, and what stands before it wherever that is.
    fn bearer(&self, header: Option<&str>, prefix: Option<String>) -> Result<(HeaderName, String), ConfigError> {
        self.header_and_prefix(header, Some(prefix.unwrap_or_else(|| "Bearer ".to_owned())))
    }

    /// The longest body that is read whole for its proof.
    fn payload_limit(&self, given: Option<usize>) -> Result<usize, ConfigError> {
        match given {
            None => Ok(USUAL_LIMIT),
            Some(limit) if (1..=MOST).contains(&limit) => Ok(limit),
            Some(_) => Err(self.wrong("payload_limit", "must be from 1 to 64MiB")),
        }
    }

    /// The field that a token goes in, and what stands before it there.
    fn header_and_prefix(
        &self,
        header: Option<&str>,
        prefix: Option<String>,
    ) -> Result<(HeaderName, String), ConfigError> {
        let header = match header {
            Some(name) => settable(name).map_err(|why| self.wrong("header", why))?,
            None => header::AUTHORIZATION,
        };
        let usual = if header == header::AUTHORIZATION { "Bearer " } else { "" };
        let prefix = prefix.unwrap_or_else(|| usual.to_owned());
        if HeaderValue::from_str(&prefix).is_err() {
            return Err(self.wrong("prefix", "holds characters that no header field may hold"));
        }
        Ok((header, prefix))
    }
}
