//! Steering: a classic BPF program by which the kernel gives each datagram to the socket of its shard (wire.md §5).
//!
//! It must never be needed: where the kernel refuses it, what lands on the wrong shard is passed on.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;

use libc::sock_filter;

/// Has the kernel steer datagrams within the SO_REUSEPORT group of `member`, whose sockets were bound in the order of
/// their shards.
///
/// # Errors
/// The kernel does not know such programs (before 4.5), or may not take one.
pub(crate) fn steer(member: &UdpSocket, shards: u8) -> io::Result<()> {
    attach(member, &mut program(culvert_engine::Shard::bits_for(usize::from(shards))))
}

/// It sees the UDP payload from its first byte on, and returns the number of a socket. A number that no socket has lets the
/// kernel choose by its hash of the addresses, which is right for initiations: any shard may take them.
fn program(bits: u8) -> [sock_filter; 10] {
    let byte = |at| line(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, at);
    // Indices are little-endian on the wire: their top bits stand in the last of four bytes.
    [
        byte(0),
        line_if(4, 5),
        line_if(3, 4),
        line_if(2, 1),
        line(libc::BPF_RET | libc::BPF_K, u32::MAX),
        // A response: its sender's index stands before ours.
        byte(11),
        line(libc::BPF_JMP | libc::BPF_JA, 1),
        byte(7),
        line(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 8 - u32::from(bits.min(8))),
        line(libc::BPF_RET | libc::BPF_A, 0),
    ]
}

fn line(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Skips `skip` lines when the byte is `kind`.
fn line_if(kind: u32, skip: u8) -> sock_filter {
    sock_filter { jt: skip, ..line(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, kind) }
}

#[expect(unsafe_code, reason = "neither std, socket2 nor nix knows this option")]
fn attach(member: &UdpSocket, program: &mut [sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the descriptor is open, because `member` is borrowed for the call; value and length describe one
    // `sock_fprog` on this stack, whose `filter` points at `len` lines that outlive the call. The kernel copies them.
    let result = unsafe {
        libc::setsockopt(
            member.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            std::ptr::from_ref(&program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::udp::bind_group;

    /// On which sockets of the group the datagrams of many sources arrive.
    fn landed(group: &[UdpSocket], datagram: &[u8]) -> Vec<usize> {
        let to = group[0].local_addr().unwrap();
        let mut hit = vec![0; group.len()];
        for _ in 0..24 {
            let from = UdpSocket::bind("127.0.0.1:0").unwrap();
            from.send_to(datagram, to).unwrap();
        }
        for (socket, hit) in group.iter().zip(&mut hit) {
            // Loopback delivers within the send: what is not there now does not come.
            while socket.recv(&mut [0; 256]).is_ok() {
                *hit += 1;
            }
        }
        hit
    }

    fn with_index(kind: u8, index_at: usize, length: usize, top: u8) -> Vec<u8> {
        let mut datagram = vec![0x55; length];
        datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
        datagram[index_at + 3] = top;
        datagram
    }

    #[test]
    fn the_kernel_gives_each_datagram_to_the_shard_that_drew_its_index() {
        for (shards, tops) in [(2_u8, vec![0x01, 0x80]), (3, vec![0x3f, 0x7f, 0xbf]), (8, vec![0x00, 0x20, 0x40])] {
            let group = bind_group("127.0.0.1:0".parse().unwrap(), shards).unwrap();
            group[0].set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            for (shard, top) in tops.iter().enumerate() {
                for (kind, at, length) in [(4, 4, 32), (3, 4, 64), (2, 8, 92)] {
                    let hit = landed(&group, &with_index(kind, at, length, *top));
                    let mut expected = vec![0; usize::from(shards)];
                    expected[shard] = 24;
                    assert_eq!(hit, expected, "{shards} shards, type {kind}, index {top:#x}…");
                }
            }
            // 24 sources: that all have one hash happens once in a million runs at most.
            let spread = landed(&group, &with_index(1, 4, 148, 0));
            assert_eq!(spread.iter().sum::<usize>(), 24);
            assert!(spread.iter().filter(|hit| **hit > 0).count() > 1, "{spread:?}");
        }
    }
}
