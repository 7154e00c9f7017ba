//! `[service.NAME]` of relay.toml, as far as it is about origins behind stock peers: what is proven to them, and how long
//! they may take. The relay is the last hop there, so secrets of theirs are read here.
//!
//! Must never read a file: `behind/wishes.rs` does.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use culvert_model::name::ServiceName;
use culvert_ops::config::{ConfigError, Loaded};
use culvert_ops::secret::SecretSpec;
use culvert_origin::proof::settable;
use culvert_origin::service::Timeouts;
use culvert_origin::tls::Pin;
use http::HeaderName;

use super::settings::{Raw, RawOriginTls, RawService};

/// What one service's origin is to get.
#[derive(Debug, Clone, Default)]
pub(crate) struct Behind {
    /// Set in place of the caller's.
    pub(crate) headers: Vec<(HeaderName, SecretSpec)>,
    /// Taken out.
    pub(crate) removed: Vec<HeaderName>,
    pub(crate) tls: BehindTls,
    pub(crate) timeouts: Timeouts,
    /// What its requests are proven with.
    pub(crate) auth: Option<BehindAuth>,
}

/// A proof as it is written, which may be with its secrets.
#[derive(Clone)]
pub(crate) struct BehindAuth {
    /// Where it stands.
    pub(crate) key: String,
    pub(crate) table: toml::Table,
}

impl fmt::Debug for BehindAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BehindAuth")
    }
}

/// How an https origin is spoken to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct BehindTls {
    /// Our certificate and its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    /// A name that a certificate can have.
    pub(crate) server_name: Option<rustls_pki_types::ServerName<'static>>,
    pub(crate) pins: Vec<Pin>,
    pub(crate) tls13_only: bool,
}

pub(super) fn behind(loaded: &Loaded, raw: &Raw) -> Result<HashMap<ServiceName, Behind>, ConfigError> {
    let mut all = HashMap::new();
    for (name, table) in &raw.service {
        let key = format!("service.{name}");
        let name: ServiceName = name.parse().map_err(|error| loaded.wrong(&key, error))?;
        all.insert(name, one(loaded, &key, table)?);
    }
    Ok(all)
}

fn one(loaded: &Loaded, key: &str, raw: &RawService) -> Result<Behind, ConfigError> {
    let field = |key: String, text: &str| settable(text).map_err(|why| loaded.wrong(&key, why));
    let headers =
        raw.headers.iter().map(|(name, spec)| Ok((field(format!("{key}.headers.{name}"), name)?, spec.clone())));
    let removed = raw.remove_headers.iter().map(|name| field(format!("{key}.remove_headers"), name));
    let usual = Timeouts::default();
    Ok(Behind {
        headers: headers.collect::<Result<_, _>>()?,
        removed: removed.collect::<Result<_, _>>()?,
        tls: tls(loaded, &format!("{key}.tls"), &raw.tls)?,
        timeouts: Timeouts {
            connect: raw.timeouts.connect.unwrap_or(usual.connect),
            first_byte: raw.timeouts.first_byte,
            idle: raw.timeouts.idle,
            request: raw.timeouts.request,
            queue: None,
        },
        auth: raw.auth.clone().map(|table| BehindAuth { key: format!("{key}.auth"), table }),
    })
}

fn tls(loaded: &Loaded, key: &str, raw: &RawOriginTls) -> Result<BehindTls, ConfigError> {
    let identity = match (&raw.cert, &raw.key) {
        (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => return Err(loaded.wrong(key, "cert and key go together")),
    };
    let provable = |text: &String| {
        let why = "is no name that a certificate can have: a DNS name or an address is expected";
        text.clone().try_into().map_err(|_| loaded.wrong(&format!("{key}.server_name"), why))
    };
    let pin = |text: &String| text.parse().map_err(|error| loaded.wrong(&format!("{key}.pins"), error));
    Ok(BehindTls {
        identity,
        server_name: raw.server_name.as_ref().map(provable).transpose()?,
        pins: raw.pins.iter().map(pin).collect::<Result<_, _>>()?,
        tls13_only: raw.min_version.as_deref() == Some("1.3"),
    })
}
