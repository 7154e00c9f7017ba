//! `gateway …`: who may call, as typed.

use std::time::Duration;

use clap::{Args, Subcommand};
use culvert_model::name::{Grant, Label};
use culvert_model::units::parse_duration;

use super::Ask;
use crate::command::{Command, GatewaySet};
use crate::registry::Certificate;

/// A longer overlap would be none.
const LONGEST_GRACE: Duration = Duration::from_secs(365 * 86_400);

/// `gateway …`.
#[derive(Debug, Subcommand)]
pub(crate) enum GatewayVerb {
    /// Define a gateway and print NAME:SECRET, which it sends as the field Culvert-Gateway
    Create {
        /// Its name: 1 to 63 of a-z, 0-9 and -
        name: Label,
        /// A service it may call, or a pattern such as "billing-*" [default: every service]
        #[arg(long = "service", value_name = "GLOB")]
        services: Vec<Grant>,
        #[command(flatten)]
        certificate: CertificateArgs,
        #[command(flatten)]
        ask: Ask,
    },
    /// Change what a gateway may call, or its certificate
    #[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
    Set {
        /// Its name or id
        name: String,
        /// A service or pattern it may call, in place of all before
        #[arg(long = "service", value_name = "GLOB", group = "change", conflicts_with_all = ["add_service", "remove_service"])]
        services: Vec<Grant>,
        /// One more service or pattern
        #[arg(long, value_name = "GLOB", group = "change")]
        add_service: Vec<Grant>,
        /// One service or pattern less
        #[arg(long, value_name = "GLOB", group = "change")]
        remove_service: Vec<Grant>,
        /// SHA-256 fingerprint of its client certificate
        #[arg(long, value_name = "FP", group = "change", value_parser = fingerprint, conflicts_with = "cert_san")]
        cert_sha256: Option<Certificate>,
        /// Alternative name in its client certificate
        #[arg(long, value_name = "NAME", group = "change", value_parser = alternative_name)]
        cert_san: Option<Certificate>,
        /// It has no certificate any more
        #[arg(long, group = "change", conflicts_with_all = ["cert_sha256", "cert_san"])]
        no_cert: bool,
        #[command(flatten)]
        ask: Ask,
    },
    /// Print a new NAME:SECRET; the one before works on for a while
    Rotate {
        /// Its name or id
        name: String,
        /// How long the secret before works on: 30m, 24h, 7d or 0s
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = grace)]
        grace: Duration,
        #[command(flatten)]
        ask: Ask,
    },
    /// List gateways
    #[command(visible_alias = "ls")]
    List(Ask),
    /// Revoke a gateway: it is refused at once, and its name is free
    #[command(aliases = ["rm", "remove", "delete"])]
    Revoke {
        /// Its name or id
        name: String,
        #[command(flatten)]
        ask: Ask,
    },
}

/// What of a client certificate tells who a gateway is, instead of a secret.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct CertificateArgs {
    /// SHA-256 fingerprint of its client certificate, instead of a secret
    #[arg(long, value_name = "FP", value_parser = fingerprint, conflicts_with = "cert_san")]
    cert_sha256: Option<Certificate>,
    /// Alternative name in its client certificate, instead of a secret
    #[arg(long, value_name = "NAME", value_parser = alternative_name)]
    cert_san: Option<Certificate>,
}

impl GatewayVerb {
    pub(super) fn into_command(self) -> (Command, Ask) {
        match self {
            Self::Create { name, services, certificate, ask } => {
                let certificate = certificate.cert_sha256.or(certificate.cert_san);
                (Command::GatewayCreate { name, services, certificate }, ask)
            }
            Self::Set { name, services, add_service, remove_service, cert_sha256, cert_san, no_cert, ask } => {
                let change = GatewaySet {
                    services,
                    add: add_service,
                    remove: remove_service,
                    certificate: cert_sha256.or(cert_san),
                    no_certificate: no_cert,
                };
                (Command::GatewaySet { gateway: name, change }, ask)
            }
            Self::Rotate { name, grace, ask } => {
                (Command::GatewayRotate { gateway: name, grace_seconds: grace.as_secs() }, ask)
            }
            Self::List(ask) => (Command::GatewayList, ask),
            Self::Revoke { name, ask } => (Command::GatewayRevoke { gateway: name }, ask),
        }
    }
}

/// As `openssl x509 -fingerprint -sha256` prints it, with or without its words and colons.
fn fingerprint(text: &str) -> Result<Certificate, String> {
    let expected = || "64 hexadecimal digits are expected, as `openssl x509 -noout -fingerprint -sha256` prints them";
    let digits = text.rsplit_once('=').map_or(text, |(_, digits)| digits);
    let digits = digits.strip_prefix("sha256:").unwrap_or(digits).replace(':', "");
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(expected().to_owned());
    }
    let mut digest = [0; 32];
    for (place, byte) in digest.iter_mut().enumerate() {
        let pair = digits.get(2 * place..2 * place + 2).ok_or_else(expected)?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| expected())?;
    }
    Ok(Certificate::Sha256(digest))
}

fn alternative_name(text: &str) -> Result<Certificate, String> {
    let name = text.trim().to_ascii_lowercase();
    if name.is_empty() || name.len() > 255 || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("a DNS name, a URI, an e-mail or an IP address is expected".to_owned());
    }
    if name.contains('*') {
        return Err("a pattern is no name: one certificate tells who one gateway is".to_owned());
    }
    Ok(Certificate::San(name))
}

fn grace(text: &str) -> Result<Duration, String> {
    let grace = parse_duration(text).map_err(|error| error.to_string())?;
    if grace > LONGEST_GRACE {
        return Err("365d at most: a secret that works for ever is not rotated".to_owned());
    }
    Ok(grace)
}
