//! Words and descriptors between this process and the keeper of the namespace, over a pair of Unix sockets (SEQPACKET:
//! whole messages, and an end when the other side is gone).
//!
//! It must never leak a descriptor: what comes is owned at once and closed on exec.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};

/// Descriptors of one message.
pub(super) const MOST: usize = 16;
/// Bytes of one message.
const LONGEST: usize = 512;

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    TcpV4,
    TcpV6,
    UdpV4,
    UdpV6,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::TcpV4, Self::TcpV6, Self::UdpV4, Self::UdpV6];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte)).copied()
    }
}

/// What had to be done in the namespace when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Step {
    Namespace,
    Map,
    Open,
    Make,
    Address,
    Route,
    Start,
}

impl Step {
    const ALL: [Self; 7] =
        [Self::Namespace, Self::Map, Self::Open, Self::Make, Self::Address, Self::Route, Self::Start];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Namespace => "make the network namespace",
            Self::Map => "map the user",
            Self::Open => "open /dev/net/tun",
            Self::Make => "make the TUN device",
            Self::Address => "give the device its addresses",
            Self::Route => "set the routes",
            Self::Start => "understand what to do",
        }
    }
}

/// What the keeper is told first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setup {
    pub(super) mtu: u16,
    pub(super) v4: Option<std::net::Ipv4Addr>,
    pub(super) v6: Vec<std::net::Ipv6Addr>,
}

impl Setup {
    pub(super) fn write(&self) -> Vec<u8> {
        let addresses = self.v4.map(IpAddr::V4).into_iter().chain(self.v6.iter().copied().map(IpAddr::V6));
        let words = std::iter::once(self.mtu.to_string()).chain(addresses.map(|address| address.to_string()));
        words.collect::<Vec<_>>().join(" ").into_bytes()
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(bytes).ok()?.split(' ');
        let mut setup = Self { mtu: words.next()?.parse().ok()?, v4: None, v6: Vec::new() };
        for word in words {
            match word.parse().ok()? {
                IpAddr::V4(address) => setup.v4 = Some(address),
                IpAddr::V6(address) => setup.v6.push(address),
            }
        }
        Some(setup)
    }
}

/// What the keeper says.
#[derive(Debug)]
pub(super) enum Reply {
    /// All is set up; the device, and whether it has IPv6.
    Ready { device: OwnedFd, v6: bool },
    /// It is not, and the keeper ends.
    Failed { step: Step, errno: i32 },
    /// Fresh sockets, and how many were asked for: fewer come when descriptors are short here.
    Sockets { kind: Kind, asked: u8, sockets: Vec<OwnedFd> },
    /// No socket now.
    Short { kind: Kind, errno: i32 },
}

impl Reply {
    /// Sends it.
    pub(super) fn send(&self, to: BorrowedFd<'_>) -> io::Result<()> {
        let descriptors: Vec<RawFd> = match self {
            Self::Ready { device, .. } => vec![device.as_raw_fd()],
            Self::Sockets { sockets, .. } => sockets.iter().map(OwnedFd::as_raw_fd).collect(),
            Self::Failed { .. } | Self::Short { .. } => Vec::new(),
        };
        let (tag, of, number) = match self {
            Self::Ready { v6, .. } => (0, u8::from(*v6), 0),
            Self::Failed { step, errno } => (1, *step as u8, *errno),
            Self::Sockets { kind, asked, .. } => (2, *kind as u8, i32::from(*asked)),
            Self::Short { kind, errno } => (3, *kind as u8, *errno),
        };
        let [a, b, c, d] = number.to_ne_bytes();
        let control = [ControlMessage::ScmRights(&descriptors)];
        let control = if descriptors.is_empty() { &[][..] } else { &control[..] };
        sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(&[tag, of, a, b, c, d])], control, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    /// Takes one; `None`: the keeper is gone.
    pub(super) fn receive(from: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let mut bytes = [0; LONGEST];
        let (length, mut descriptors) = receive(from, &mut bytes)?;
        let (Some([tag, of, a, b, c, d]), true) = (bytes.first_chunk(), length > 0) else { return Ok(None) };
        let number = i32::from_ne_bytes([*a, *b, *c, *d]);
        let kind = Kind::from_byte(*of);
        let step = Step::ALL.get(usize::from(*of)).copied();
        let reply = match (*tag, kind, step) {
            (0, ..) => descriptors.pop().map(|device| Self::Ready { device, v6: *of != 0 }),
            (1, _, Some(step)) => Some(Self::Failed { step, errno: number }),
            (2, Some(kind), _) => {
                Some(Self::Sockets { kind, asked: u8::try_from(number).unwrap_or(u8::MAX), sockets: descriptors })
            }
            (3, Some(kind), _) => Some(Self::Short { kind, errno: number }),
            _ => None,
        };
        reply.map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the keeper's words make no sense"))
    }
}

/// What the keeper is asked for: so many sockets of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) kind: Kind,
    pub(super) count: u8,
}

impl Request {
    pub(super) fn write(self) -> [u8; 2] {
        [self.kind as u8, self.count]
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let [kind, count] = bytes else { return None };
        Some(Self { kind: Kind::from_byte(*kind)?, count: *count })
    }
}

/// Both ends.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sends plain words.
pub(super) fn send(to: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(bytes)], &[], MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Takes one message and the descriptors in it; no bytes: the other end is gone.
#[expect(unsafe_code, reason = "the kernel tells new descriptors by their numbers")]
pub(super) fn receive(from: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; MOST]);
    let mut parts = [IoSliceMut::new(bytes)];
    let message = recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            for number in numbers {
                // SAFETY: recvmsg(2) has just made this descriptor for this process and told its number nowhere else; this
                // loop sees each number once, so nothing else owns it.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
    }
    Ok((message.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn words_and_descriptors_arrive_as_they_were_sent_and_the_end_is_noticed() {
        let (here, there) = pair().unwrap();
        let (one, other) = pair().unwrap();
        Reply::Sockets { kind: Kind::UdpV6, asked: 3, sockets: vec![one, other] }.send(there.as_fd()).unwrap();
        Reply::Failed { step: Step::Open, errno: 13 }.send(there.as_fd()).unwrap();
        let Some(Reply::Sockets { kind: Kind::UdpV6, asked: 3, sockets }) = Reply::receive(here.as_fd()).unwrap()
        else {
            panic!("sockets")
        };
        send(sockets[0].as_fd(), b"through").unwrap();
        let mut bytes = [0; 10];
        assert_eq!(receive(sockets[1].as_fd(), &mut bytes).unwrap().0, 7);
        let failed = Reply::receive(here.as_fd()).unwrap();
        assert!(matches!(failed, Some(Reply::Failed { step: Step::Open, errno: 13 })), "{failed:?}");
        drop(there);
        assert!(Reply::receive(here.as_fd()).unwrap().is_none());
    }

    #[test]
    fn a_setup_and_a_request_survive_the_way() {
        let v4 = Some("100.64.0.1".parse().unwrap());
        let setup = Setup { mtu: 1408, v4, v6: vec!["fd43:554c:5645::1".parse().unwrap()] };
        assert_eq!(Setup::read(&setup.write()), Some(setup));
        let request = Request { kind: Kind::TcpV6, count: 9 };
        assert_eq!(Request::read(&request.write()), Some(request));
        for wrong in [&b""[..], b"x", b"1408 x"] {
            assert!(Setup::read(wrong).is_none() && Request::read(wrong).is_none());
        }
    }
}
