//! Default routes into the device, by rtnetlink (RFC 3549): nothing else is in the namespace, so every destination is
//! ours to judge (`shard/stock.rs`).
//!
//! tun-rs sets addresses, MTU and state, but no routes; a library for two messages would bring fifteen crates.

use std::io;
use std::os::fd::AsRawFd as _;

use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

const REQUEST_AND_ACK: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
const HEADER: usize = 16;
const ROUTE: usize = 12;

/// Sends everything of one family to the interface.
pub(super) fn set_default(v6: bool, interface: u32) -> io::Result<()> {
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    send(netlink.as_raw_fd(), &request(v6, interface), MsgFlags::empty())?;
    let mut answer = [0; 1024];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // `nlmsghdr`, then the error as a negative number; zero is the acknowledgement.
    let Some([a, b, c, d]) = answer.get(..length).and_then(|answer| answer.get(HEADER..HEADER + 4)) else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    match i32::from_ne_bytes([*a, *b, *c, *d]) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// `nlmsghdr`, `rtmsg`, one attribute.
fn request(v6: bool, interface: u32) -> Vec<u8> {
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET } as u8;
    let attribute = [&8_u16.to_ne_bytes()[..], &libc::RTA_OIF.to_ne_bytes(), &interface.to_ne_bytes()].concat();
    let length = HEADER + ROUTE + attribute.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(&(length as u32).to_ne_bytes());
    bytes.extend_from_slice(&libc::RTM_NEWROUTE.to_ne_bytes());
    bytes.extend_from_slice(&REQUEST_AND_ACK.to_ne_bytes());
    bytes.extend_from_slice(&1_u32.to_ne_bytes());
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    // Family, both prefix lengths, type of service, table, protocol, scope, kind, flags.
    let (table, protocol) = (libc::RT_TABLE_MAIN, libc::RTPROT_STATIC);
    let scope = if v6 { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK };
    bytes.extend_from_slice(&[family, 0, 0, 0, table, protocol, scope, libc::RTN_UNICAST, 0, 0, 0, 0]);
    bytes.extend_from_slice(&attribute);
    bytes
}
