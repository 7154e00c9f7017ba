//! What the relay's configuration says of origins behind peers, with the secrets and files that it names.
//!
//! Must never let a value of a secret into a message.

use std::collections::HashMap;
use std::sync::Arc;

use culvert_model::name::ServiceName;
use culvert_ops::Environment;
use culvert_ops::config::Loaded;
use culvert_ops::exit::Quit;
use culvert_ops::secret::SecretSource;
use culvert_origin::auth;
use culvert_origin::proof::{FieldPolicy, Proof};
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
    /// Of a kind that needs no key of Culvert's own: the relay has none.
    pub(super) auth: Option<Arc<Proof>>,
}

impl Wish {
    /// Whether it is any other than the default.
    pub(super) fn says_something(&self) -> bool {
        *self != Self::default()
    }

    /// The kind of proof that is made here.
    pub(crate) fn proof(&self) -> Option<&'static str> {
        self.auth.as_ref().map(|proof| proof.kind())
    }
}

/// Reads all that is named.
///
/// # Errors
/// The first that cannot be read or used, by its setting.
pub(crate) fn read(
    settled: &HashMap<ServiceName, Behind>,
    loaded: &Loaded,
    environment: &dyn Environment,
) -> Result<Wishes, Quit> {
    let place = auth::Place { loaded, environment, has_keys: false };
    let one = |(name, behind): (&ServiceName, &Behind)| Ok((name.clone(), wish(name, behind, &place)?));
    settled.iter().map(one).collect::<Result<_, Quit>>().map(Arc::new)
}

fn wish(name: &ServiceName, behind: &Behind, place: &auth::Place<'_>) -> Result<Wish, Quit> {
    let environment = place.environment;
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
    // Its files are read again when everything is: at a reload.
    let proof =
        behind.auth.as_ref().map(|auth| auth::settle(place, &auth.key, &auth.table, &mut fields, &mut Vec::new()));
    let files = files(&behind.tls, environment).map_err(|(key, why)| wrong(key, &why))?;
    if files != Files::default() {
        // Said now and not when the first request comes.
        ClientTls::new(files.clone()).map_err(|error| wrong("tls", &error))?;
    }
    Ok(Wish { fields, files, timeouts: behind.timeouts, auth: proof.transpose()?.map(Arc::new) })
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cli::{Place, RunArgs};
    use crate::config;

    fn read_from(directory: &std::path::Path, text: &str) -> Result<Wishes, String> {
        let path = directory.join("relay.toml");
        std::fs::write(&path, text).unwrap();
        let place = Place { config: Some(path), ..Place::default() };
        let environment = BTreeMap::new();
        let (loaded, settled) = config::load(&RunArgs { place, ..RunArgs::default() }, &environment).unwrap();
        read(&settled.behind, &loaded, &environment).map_err(|quit| quit.message)
    }

    fn auth(text: &str) -> String {
        format!("[service.legacy.auth]\n{text}\n")
    }

    #[test]
    fn a_proof_that_needs_a_secret_is_made_here_and_its_fields_are_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("key");
        std::fs::write(&key, "a secret of more than thirty-two bytes").unwrap();
        let hmac = auth("type = \"http-signature\"\nalgorithm = \"hmac-sha256\"\nkey = { file = \"key\" }");
        let name: ServiceName = "legacy".parse().unwrap();
        let before = read_from(directory.path(), &hmac).unwrap();
        assert_eq!(before[&name].proof(), Some("http-signature"));
        assert!(!before[&name].fields.is_empty(), "a caller's signature would be left");
        assert!(read_from(directory.path(), &hmac).unwrap() == before, "a reload would change what is the same");
        std::fs::write(&key, "another secret of more than thirty-two bytes").unwrap();
        assert!(read_from(directory.path(), &hmac).unwrap() != before, "a new secret is not taken");
        let twice = format!("{hmac}[service.legacy.headers]\nsignature = \"x\"\n");
        assert!(read_from(directory.path(), &twice).err().unwrap().contains("elsewhere too"));
        for text in [
            "type = \"entra-id\"\ntenant = \"t\"\nclient_id = \"c\"\nscope = \"s/.default\"\nclient_secret = \"x\"",
            "type = \"aws-sigv4\"\nservice = \"lambda\"\nregion = \"eu-west-1\"\naccess_key_id = \"AKID\"\nsecret_access_key = \"x\"",
            "type = \"gcp-id-token\"\naudience = \"https://run.example\"\nmetadata = true",
        ] {
            let wishes = read_from(directory.path(), &auth(text)).unwrap();
            assert!(text.contains(wishes[&name].proof().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_proof_that_needs_keys_of_our_own_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        for text in [
            "type = \"jwt\"",
            "type = \"http-signature\"\nalgorithm = \"ed25519\"",
            "type = \"http-signature\"\nalgorithm = \"ecdsa-p256-sha256\"",
            "type = \"entra-id\"\ntenant = \"t\"\nclient_id = \"c\"\nscope = \"s/.default\"\nfederated = true",
            "type = \"gcp-id-token\"\naudience = \"a\"\nservice_account = \"a@p.iam.gserviceaccount.com\"\nprovider = \"projects/1/locations/global/workloadIdentityPools/pool/providers/culvert\"",
            "type = \"aws-sigv4\"\nservice = \"lambda\"\nregion = \"eu-west-1\"\nrole_arn = \"arn:aws:iam::1:role/r\"",
        ] {
            let why = read_from(directory.path(), &auth(text)).err().unwrap();
            assert!(why.contains("service.legacy.auth: ") && why.contains("a relay holds none"), "{text}: {why}");
        }
    }

    #[test]
    fn limits_alone_say_nothing_of_an_origin() {
        let directory = tempfile::tempdir().unwrap();
        let says = |text: &str| {
            read_from(directory.path(), text).unwrap().values().map(Wish::says_something).collect::<Vec<_>>()
        };
        assert_eq!(says("[service.a.limits]\nconcurrent = 5\n"), [false]);
        assert_eq!(says("[service.a.timeouts]\nconnect = \"1s\"\n"), [true]);
    }
}
