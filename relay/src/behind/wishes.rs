//! What the relay's configuration says of origins behind peers, with the secrets and files that it names.
//!
//! Must never let a value of a secret into a message.

use std::collections::HashMap;
use std::sync::Arc;

use culvert_model::name::ServiceName;
use culvert_ops::Environment;
use culvert_ops::exit::Quit;
use culvert_ops::secret::SecretSource;
use culvert_origin::proof::FieldPolicy;
use culvert_origin::service::Timeouts;
use culvert_origin::tls::{ClientTls, Files};
use http::HeaderValue;
use zeroize::Zeroizing;

use crate::config::{Behind, BehindTls};

/// By service; one that is not in it has everything as by default.
pub(crate) type Wishes = Arc<HashMap<ServiceName, Wish>>;

/// What one origin is to get.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Wish {
    pub(super) fields: FieldPolicy,
    /// Without authorities: those are the service's own.
    pub(super) files: Files,
    pub(super) timeouts: Timeouts,
}

/// Reads all that is named.
///
/// # Errors
/// The first that cannot be read or used, by its setting.
pub(crate) fn read(settled: &HashMap<ServiceName, Behind>, environment: &dyn Environment) -> Result<Wishes, Quit> {
    let one = |(name, behind): (&ServiceName, &Behind)| Ok((name.clone(), wish(name, behind, environment)?));
    settled.iter().map(one).collect::<Result<_, Quit>>().map(Arc::new)
}

fn wish(name: &ServiceName, behind: &Behind, environment: &dyn Environment) -> Result<Wish, Quit> {
    let wrong = |key: &str, why: &dyn std::fmt::Display| Quit::config(format!("service.{name}.{key}: {why}"));
    let mut fields = FieldPolicy::default();
    for (field, spec) in &behind.headers {
        let key = format!("headers.{field}");
        let secret = spec.read(environment).map_err(|error| wrong(&key, &error))?;
        let value = HeaderValue::from_str(secret.expose())
            .map_err(|_| wrong(&key, &"holds characters that no header field may hold"))?;
        fields.set(field.clone(), value).map_err(|twice| wrong(&key, &twice))?;
    }
    for field in &behind.removed {
        fields.remove(field).map_err(|twice| wrong("remove_headers", &twice))?;
    }
    let files = files(&behind.tls, environment).map_err(|(key, why)| wrong(key, &why))?;
    if files != Files::default() {
        // Said now and not when the first request comes.
        ClientTls::new(files.clone()).map_err(|error| wrong("tls", &error))?;
    }
    Ok(Wish { fields, files, timeouts: behind.timeouts })
}

fn files(tls: &BehindTls, environment: &dyn Environment) -> Result<Files, (&'static str, String)> {
    let mut files = Files {
        server_name: tls.server_name.clone(),
        pins: tls.pins.clone(),
        tls13_only: tls.tls13_only,
        ..Files::default()
    };
    if let Some((cert, key)) = &tls.identity {
        let unreadable = |error| ("tls.cert", format!("cannot read {}: {error}", cert.display()));
        files.cert = Some(std::fs::read(cert).map_err(unreadable)?);
        let secret = SecretSource::File(key.clone()).read(environment);
        let secret = secret.map_err(|error| ("tls.key", error.to_string()))?;
        files.key = Some(Zeroizing::new(secret.expose().as_bytes().to_vec()));
    }
    Ok(files)
}
