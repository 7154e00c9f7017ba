//! Why one end closed the QUIC connection: application close codes, and stream reset codes.

use std::fmt;

/// The application error code of a CONNECTION_CLOSE (RFC 9000 §19.19) between relay and connector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// The end is leaving after its drain.
    Shutdown,
    /// The same key came back with a newer session; the newer one stays.
    Replaced,
    /// The connector's key is revoked: it must stop for good.
    Revoked,
    /// The protocol was broken.
    Protocol,
    /// The ends have no protocol version in common.
    Version,
    /// A bound of the other end was passed.
    Overloaded,
    /// Enrolment is over: nothing more to say on a bootstrap session.
    Enrolled,
    /// The control stream was silent for too long.
    Silent,
    /// A code this version does not know.
    Other(u32),
}

impl CloseCode {
    /// The number on the wire.
    pub const fn code(self) -> u32 {
        match self {
            Self::Shutdown => 0,
            Self::Replaced => 1,
            Self::Revoked => 2,
            Self::Protocol => 3,
            Self::Version => 4,
            Self::Overloaded => 5,
            Self::Enrolled => 6,
            Self::Silent => 7,
            Self::Other(code) => code,
        }
    }

    /// Reads the number on the wire.
    pub const fn from_code(code: u32) -> Self {
        match code {
            0 => Self::Shutdown,
            1 => Self::Replaced,
            2 => Self::Revoked,
            3 => Self::Protocol,
            4 => Self::Version,
            5 => Self::Overloaded,
            6 => Self::Enrolled,
            7 => Self::Silent,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shutdown => f.write_str("shutdown"),
            Self::Replaced => f.write_str("replaced"),
            Self::Revoked => f.write_str("revoked"),
            Self::Protocol => f.write_str("protocol"),
            Self::Version => f.write_str("version"),
            Self::Overloaded => f.write_str("overloaded"),
            Self::Enrolled => f.write_str("enrolled"),
            Self::Silent => f.write_str("silent"),
            Self::Other(code) => write!(f, "code {code}"),
        }
    }
}
