//! What `[service.auth]` means: a file for each type.
//!
//! Must never let a key pass in silence that the type knows nothing of.

use std::cell::RefCell;
use std::fmt::Display;
use std::path::PathBuf;

use culvert_ops::config::ConfigError;
use culvert_ops::secret::{Secret, SecretSpec};
use culvert_origin::origin::Origin;
use culvert_origin::proof::{MOST, Proof, USUAL_LIMIT};
use http::{HeaderName, HeaderValue, header};
use serde::de::DeserializeOwned;

use super::Place;

mod aws;
mod http_signature;
mod jwt;

/// One service's `[service.auth]`, and where it stands.
struct Auth<'a, 'b> {
    place: &'a Place<'b>,
    key: &'a str,
    table: &'a toml::Table,
    /// Whether the origin is reached by https.
    is_tls: bool,
    /// Files whose change is a reason to reload.
    watched: RefCell<&'a mut Vec<PathBuf>>,
}

impl Place<'_> {
    pub(super) fn auth(
        &self,
        key: &str,
        table: &toml::Table,
        origin: &Origin,
        watched: &mut Vec<PathBuf>,
    ) -> Result<Proof, ConfigError> {
        let auth = Auth { place: self, key, table, is_tls: origin.is_tls(), watched: RefCell::new(watched) };
        match table.get("type").and_then(toml::Value::as_str) {
            Some("jwt") => auth.keeps_to("jwt", &jwt::KEYS).and_then(|()| jwt::settle(&auth).map(Proof::Jwt)),
            Some("http-signature") => {
                auth.keeps_to("http-signature", &http_signature::KEYS)?;
                http_signature::settle(&auth).map(Proof::HttpSignature)
            }
            Some("aws-sigv4") => {
                auth.keeps_to("aws-sigv4", &aws::KEYS)?;
                aws::settle(&auth).map(Proof::AwsSigV4)
            }
            Some(other) => Err(auth.wrong("type", format_args!("{other:?} is none that this version knows"))),
            None => Err(auth.wrong("type", "is missing")),
        }
    }
}

impl Auth<'_, '_> {
    fn wrong(&self, what: &str, why: impl Display) -> ConfigError {
        self.place.loaded.wrong(&format!("{}.{what}", self.key), why)
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
            Some(name) => self.place.header_name(&format!("{}.header", self.key), name)?,
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
