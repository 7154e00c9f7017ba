//! Which of the two programs this is, and the names that follow from it.
//!
//! Must never hold more than names.

use std::fmt;

/// One of the two binaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Program {
    /// `culvert-relay`.
    Relay,
    /// `culvert-connector`.
    Connector,
}

impl Program {
    /// `relay` or `connector`: the name of its configuration file and of its state in a home directory.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Connector => "connector",
        }
    }

    /// `culvert-relay` or `culvert-connector`: the binary, and its directory in `/var/lib`.
    pub const fn binary(self) -> &'static str {
        match self {
            Self::Relay => "culvert-relay",
            Self::Connector => "culvert-connector",
        }
    }

    /// What the names of its settings start with in the environment.
    pub const fn env_prefix(self) -> &'static str {
        match self {
            Self::Relay => "CULVERT_RELAY_",
            Self::Connector => "CULVERT_CONNECTOR_",
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
