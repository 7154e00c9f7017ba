//! What a TUN plane is made of, and why a machine cannot have one.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use culvert_model::address::RELAY_INNER;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// What the relay's binary is called with to become the process that keeps the namespace; see [`super::child_main`].
pub const CHILD_ARGUMENT: &str = "tun-namespace";

/// Packets inside are at most this long by default. A multiple of WireGuard's padding, so that 1408 bytes inside are 1488
/// outside over IPv6 (1468 over IPv4): what Ethernet and PPPoE carry whole. Narrower paths carry them as IP fragments.
pub const DEFAULT_MTU: u16 = 1408;
/// IPv6 asks for as much.
pub const LOWEST_MTU: u16 = 1280;
/// More than this is no path of today.
pub const HIGHEST_MTU: u16 = 9000;

/// How to make the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A thread of this process with CAP_SYS_ADMIN and CAP_NET_ADMIN.
    Thread,
    /// A child process in a user namespace of its own: no privilege.
    Child,
}

/// What a TUN plane is made of.
#[derive(Debug, Clone)]
pub struct TunConfig {
    /// The relay's addresses inside: what peers see it as. Nothing but ICMP echo answers there. Their prefixes do not matter.
    pub inner: Vec<IpNet>,
    /// The longest packet inside, [`LOWEST_MTU`]..=[`HIGHEST_MTU`]; the MSS of both directions follows from it.
    pub mtu: u16,
    /// `None`: a thread where this process has the capabilities, else a child.
    pub way: Option<Way>,
    /// The child: a program that hands on to [`super::child_main`] when it is called with these arguments.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

impl TunConfig {
    /// The usual one: [`RELAY_INNER`] and one IPv4 address where there is one, and our own binary as the child.
    pub fn new(v4: Option<Ipv4Net>) -> Self {
        let v6 = Ipv6Net::new_assert(RELAY_INNER, 128);
        Self {
            inner: std::iter::once(IpNet::V6(v6)).chain(v4.map(IpNet::V4)).collect(),
            mtu: DEFAULT_MTU,
            way: None,
            program: PathBuf::from("/proc/self/exe"),
            arguments: vec![OsString::from(CHILD_ARGUMENT)],
        }
    }
}

/// Why there is no TUN plane: the text says what to change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// `/dev/net/tun` is not there.
    #[error("no /dev/net/tun: load the module tun, or give the container that device (--device /dev/net/tun)")]
    NoDevice,
    /// `/dev/net/tun` may not be opened.
    #[error(
        "/dev/net/tun may not be opened: give this user read and write access to it (mode 0666 is usual), or in systemd \
         install the drop-in stock-peers.conf (DeviceAllow=/dev/net/tun rw)"
    )]
    DeviceDenied,
    /// The kernel or a policy allows neither a network namespace nor a user namespace.
    #[error(
        "no network namespace may be made ({0}): allow user namespaces (sysctl user.max_user_namespaces, \
         kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0; in systemd the drop-in \
         stock-peers.conf, RestrictNamespaces=user net), or give the relay CAP_SYS_ADMIN and CAP_NET_ADMIN"
    )]
    NoNamespace(io::Error),
    /// A user namespace was made, but it is worth nothing: AppArmor takes its capabilities away, or seccomp refuses a call.
    #[error(
        "the user namespace has no rights in it ({step}: {error}): allow unprivileged user namespaces \
             (sysctl kernel.apparmor_restrict_unprivileged_userns=0 or an AppArmor profile for the relay)"
    )]
    Powerless {
        /// What was refused.
        step: &'static str,
        /// How.
        error: io::Error,
    },
    /// The child did not start or did not answer.
    #[error("the process that keeps the network namespace did not start: {0}")]
    Child(io::Error),
    /// Setting up the device failed.
    #[error("cannot {step} in the network namespace: {error}")]
    Setup {
        /// What was to be done.
        step: &'static str,
        /// How it failed.
        error: io::Error,
    },
    /// The configuration cannot be right.
    #[error("{0}")]
    Config(String),
    /// The plane has stopped, or has a TUN plane already.
    #[error("the plane has a TUN plane already, or has stopped")]
    Occupied,
}
