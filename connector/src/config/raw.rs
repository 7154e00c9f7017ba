//! The settings as they are written: types only, no meaning. `config.rs` settles them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use culvert_ops::secret::SecretSpec;
use serde::Deserialize;

#[derive(Debug, Deserialize)]
pub(super) struct Raw {
    pub(super) name: Option<String>,
    pub(super) ephemeral: bool,
    pub(super) lanes: Option<u8>,
    pub(super) admin: RawAdmin,
    pub(super) drain: RawDrain,
    pub(super) key: RawKey,
    #[serde(default)]
    pub(super) allow: RawAllow,
    #[serde(default)]
    pub(super) service: Vec<RawService>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawAdmin {
    pub(super) listen: String,
    pub(super) group: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawDrain {
    #[serde(with = "culvert_ops::config::duration")]
    pub(super) timeout: Duration,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawKey {
    #[serde(default, with = "culvert_ops::config::optional_duration")]
    pub(super) rotate_after: Option<Duration>,
    #[serde(with = "culvert_ops::config::duration")]
    pub(super) renew_psk_after: Duration,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RawAllow {
    #[serde(default)]
    pub(super) origins: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawService {
    pub(super) name: Option<String>,
    pub(super) origin: Option<String>,
    pub(super) host: Option<String>,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, SecretSpec>,
    #[serde(default)]
    pub(super) remove_headers: Vec<String>,
    #[serde(default)]
    pub(super) rename_headers: BTreeMap<String, String>,
    pub(super) authorization: Option<String>,
    pub(super) auth: Option<toml::Table>,
    #[serde(default)]
    pub(super) tls: RawTls,
    pub(super) proxy_protocol: Option<String>,
    #[serde(default)]
    pub(super) health: RawHealth,
    pub(super) balance: Option<String>,
    #[serde(default)]
    pub(super) timeouts: RawTimeouts,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RawTls {
    pub(super) server_name: Option<String>,
    #[serde(default)]
    pub(super) verify_names: Vec<String>,
    #[serde(default)]
    pub(super) pins: Vec<String>,
    pub(super) min_version: Option<String>,
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RawHealth {
    pub(super) path: Option<String>,
    #[serde(default, deserialize_with = "culvert_ops::config::given")]
    pub(super) interval: Option<Duration>,
    #[serde(default, deserialize_with = "culvert_ops::config::given")]
    pub(super) timeout: Option<Duration>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RawTimeouts {
    #[serde(default, deserialize_with = "culvert_ops::config::given")]
    pub(super) connect: Option<Duration>,
    #[serde(default, deserialize_with = "culvert_ops::config::given")]
    pub(super) first_byte: Option<Duration>,
    #[serde(default, deserialize_with = "culvert_ops::config::given")]
    pub(super) idle: Option<Duration>,
    #[serde(default, with = "culvert_ops::config::optional_duration")]
    pub(super) request: Option<Duration>,
    #[serde(default, deserialize_with = "culvert_ops::config::given")]
    pub(super) queue: Option<Duration>,
}
