//! The PROXY header, versions 1 and 2: who is behind the proxy that connected.
//!
//! Written after HAProxy's `doc/proxy-protocol.txt` (sections 2.1 and 2.2). Must never be read where nobody asked for
//! it, take a byte that comes after the header, or guess: what is not a whole right header ends the connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::AsyncReadExt as _;

use super::io::Socket;

/// The longest line of version 1, its CR LF included.
const LONGEST_LINE: usize = 107;
/// The longest rest of version 2 that is read: addresses, and what proxies add in practice (certificates' names, ids).
const LONGEST_REST: usize = 4_096;
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2's head after the signature: version and command, family and transport, length.
const V2_HEAD: usize = 4;

/// Who connected to the proxy, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
}

/// Why there is no header.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadHeader {
    /// The connection failed or ended.
    #[error("the connection ended before its PROXY header: {0}")]
    Io(#[from] io::Error),
    /// Something else came.
    #[error("no PROXY header: {0}")]
    Wrong(&'static str),
}

/// Reads the header, and not a byte more. None: the connection is the proxy's own (`LOCAL`, `UNKNOWN`).
///
/// Its deadline is the caller's.
///
/// # Errors
/// [`BadHeader`]; the connection is of no use then.
pub(super) async fn read(socket: &mut Socket) -> Result<Option<Route>, BadHeader> {
    // No header of either version is shorter.
    let mut start = [0; SIGNATURE.len()];
    socket.read_exact(&mut start).await?;
    if start != SIGNATURE {
        return line(&rest_of_line(socket, &start).await?);
    }
    let mut head = [0; V2_HEAD];
    socket.read_exact(&mut head).await?;
    let [version_command, family_transport, length @ ..] = head;
    let length = usize::from(u16::from_be_bytes(length));
    if length > LONGEST_REST {
        return Err(BadHeader::Wrong("longer than 4096 bytes"));
    }
    let mut rest = vec![0; length];
    socket.read_exact(&mut rest).await?;
    binary(version_command, family_transport, &rest)
}

/// Looks before it takes: what follows the line is not ours.
async fn rest_of_line(socket: &mut Socket, start: &[u8]) -> Result<Vec<u8>, BadHeader> {
    if !start.starts_with(b"PROXY ") {
        return Err(BadHeader::Wrong("neither version's start"));
    }
    let mut line = start.to_vec();
    loop {
        let room = LONGEST_LINE - line.len();
        if room == 0 {
            return Err(BadHeader::Wrong("a line without end"));
        }
        let mut ahead = [0; LONGEST_LINE];
        let ahead = ahead.get_mut(..room).unwrap_or_default();
        let seen = socket.peek(ahead).await?;
        let ahead = ahead.get(..seen).unwrap_or_default();
        if ahead.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let end = ahead.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(ahead.len(), |end| end + 1);
        let from = line.len();
        line.resize(from + taken, 0);
        socket.read_exact(line.get_mut(from..).unwrap_or_default()).await?;
        if end.is_some() {
            return Ok(line);
        }
    }
}

/// Version 1 (section 2.1).
fn line(line: &[u8]) -> Result<Option<Route>, BadHeader> {
    let text = line.strip_suffix(b"\r\n").and_then(|line| std::str::from_utf8(line).ok());
    let text = text.ok_or(BadHeader::Wrong("a line that does not end in CR LF"))?;
    let mut words = text.split(' ');
    if words.next() != Some("PROXY") {
        return Err(BadHeader::Wrong("neither version's start"));
    }
    let v4: fn(&str) -> Option<IpAddr> = |text| text.parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    let v6: fn(&str) -> Option<IpAddr> = |text| text.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    let address = match words.next() {
        // "The receiver must ignore anything presented before the CRLF".
        Some("UNKNOWN") => return Ok(None),
        Some("TCP4") => v4,
        Some("TCP6") => v6,
        Some(_) | None => return Err(BadHeader::Wrong("a protocol that is not TCP4, TCP6 or UNKNOWN")),
    };
    let (source, destination) = (words.next().and_then(address), words.next().and_then(address));
    let (source_port, destination_port) = (words.next().and_then(port), words.next().and_then(port));
    match (source, destination, source_port, destination_port, words.next()) {
        (Some(source), Some(destination), Some(from), Some(to), None) => {
            Ok(Some(Route { source: (source, from).into(), destination: (destination, to).into() }))
        }
        _ => Err(BadHeader::Wrong("addresses or ports that are none")),
    }
}

/// Digits alone, and no leading zero: other readers may take it for octal.
fn port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain)
}

/// Version 2 (section 2.2).
fn binary(version_command: u8, family_transport: u8, rest: &[u8]) -> Result<Option<Route>, BadHeader> {
    match version_command {
        0x20 => return Ok(None),
        0x21 => {}
        _ => return Err(BadHeader::Wrong("a version or command that is not known")),
    }
    const SHORT: BadHeader = BadHeader::Wrong("too short for its addresses");
    match family_transport {
        // Unspecified, and a unix socket's: nothing that could be told in an address and a port.
        0x00 | 0x31 => Ok(None),
        0x11 => {
            let (ips, rest) = rest.split_first_chunk::<8>().ok_or(SHORT)?;
            let (ports, _) = rest.split_first_chunk::<4>().ok_or(SHORT)?;
            let [a, b, c, d, e, f, g, h] = *ips;
            Ok(Some(route(Ipv4Addr::new(a, b, c, d).into(), Ipv4Addr::new(e, f, g, h).into(), *ports)))
        }
        0x21 => {
            let (source, rest) = rest.split_first_chunk::<16>().ok_or(SHORT)?;
            let (destination, rest) = rest.split_first_chunk::<16>().ok_or(SHORT)?;
            let (ports, _) = rest.split_first_chunk::<4>().ok_or(SHORT)?;
            Ok(Some(route(Ipv6Addr::from(*source).into(), Ipv6Addr::from(*destination).into(), *ports)))
        }
        _ => Err(BadHeader::Wrong("a family or transport that is no stream's")),
    }
}

fn route(source: IpAddr, destination: IpAddr, ports: [u8; 4]) -> Route {
    let [a, b, c, d] = ports;
    Route {
        source: (source, u16::from_be_bytes([a, b])).into(),
        destination: (destination, u16::from_be_bytes([c, d])).into(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::UnixStream;

    use super::*;

    /// What is read of these bytes, and what is left for who comes after.
    async fn reads(bytes: &[u8]) -> (Result<Option<(String, String)>, String>, Vec<u8>) {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(bytes).await.unwrap();
        drop(far);
        let mut socket = Socket::Unix(near);
        let read = read(&mut socket).await;
        let mut left = Vec::new();
        socket.read_to_end(&mut left).await.unwrap();
        let told = read.map(|route| route.map(|route| (route.source.to_string(), route.destination.to_string())));
        (told.map_err(|error| error.to_string()), left)
    }

    fn v2(version_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[version_command, family], &length, rest].concat()
    }

    const FOUR: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0x1f, 0x90, 0x01, 0xbb];

    #[tokio::test]
    async fn both_versions_name_the_caller_and_leave_what_follows() {
        let six = [[0x20; 16].as_slice(), &[0x30; 16], &[0, 1, 0, 2, 3, 0, 0]].concat();
        let pair = |a: &str, b: &str| Ok(Some((a.to_owned(), b.to_owned())));
        let v4 = pair("192.0.2.7:8080", "198.51.100.1:443");
        let v6 = |group: &str, port: u8| format!("[{}]:{port}", [group; 8].join(":"));
        for (header, expected) in [
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 8080 443\r\n".to_vec(), v4.clone()),
            (b"PROXY TCP6 2001:db8::1 ::1 65535 0\r\n".to_vec(), pair("[2001:db8::1]:65535", "[::1]:0")),
            (b"PROXY UNKNOWN\r\n".to_vec(), Ok(None)),
            (b"PROXY UNKNOWN ffff::1 whatever 1 2\r\n".to_vec(), Ok(None)),
            (v2(0x21, 0x11, &FOUR), v4.clone()),
            (v2(0x21, 0x11, &[&FOUR[..], &[3, 0, 1, 9]].concat()), v4),
            (v2(0x21, 0x21, &six), pair(&v6("2020", 1), &v6("3030", 2))),
            (v2(0x20, 0x00, &[]), Ok(None)),
            (v2(0x20, 0x11, &FOUR), Ok(None)),
            (v2(0x21, 0x00, &[]), Ok(None)),
            (v2(0x21, 0x31, &[0; 216]), Ok(None)),
        ] {
            let (told, left) = reads(&[&header[..], b"GET / HTTP/1.1\r\n"].concat()).await;
            let header = String::from_utf8_lossy(&header).into_owned();
            assert_eq!(told, expected, "{header:?}");
            assert_eq!(left, b"GET / HTTP/1.1\r\n", "{header:?}");
        }
    }

    #[tokio::test]
    async fn what_is_no_whole_header_is_refused() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LONGEST_LINE));
        for header in [
            &b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..],
            b"PROXY TCP4 192.0.2.7 198.51.100.1 8080 443\n",
            b"PROXY TCP4  192.0.2.7 198.51.100.1 8080 443\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 8080 443 \r\n",
            b"PROXY TCP4 192.0.2.07 198.51.100.1 8080 443\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 +8080 443\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 08080 443\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 443\r\n",
            b"PROXY TCP4 2001:db8::1 ::1 8080 443\r\n",
            b"PROXY TCP6 192.0.2.7 198.51.100.1 8080 443\r\n",
            b"PROXY UDP4 192.0.2.7 198.51.100.1 8080 443\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 8080\r\n",
            b"PROXY TCP4 192.0.2.7",
            b"PROXYTCP4 192.0.2.7 198.51.100.1 8080 443\r\n",
            b"proxy tcp4 192.0.2.7 198.51.100.1 8080 443\r\n",
            b"",
            long.as_bytes(),
            &v2(0x22, 0x11, &FOUR),
            &v2(0x11, 0x11, &FOUR),
            &v2(0x21, 0x12, &FOUR),
            &v2(0x21, 0x41, &FOUR),
            &v2(0x21, 0x11, &FOUR[..11]),
            &v2(0x21, 0x21, &FOUR),
            &v2(0x21, 0x11, &[&FOUR[..], &[0; LONGEST_REST]].concat()),
            &v2(0x21, 0x11, &FOUR)[..20],
            &SIGNATURE[..11],
        ] {
            let (told, _) = reads(header).await;
            assert!(told.is_err(), "{:?}: {told:?}", String::from_utf8_lossy(header));
        }
    }

    #[tokio::test]
    async fn a_header_that_comes_byte_by_byte_is_read_all_the_same() {
        for header in [b"PROXY TCP4 192.0.2.7 198.51.100.1 8080 443\r\n".to_vec(), v2(0x21, 0x11, &FOUR)] {
            let (near, mut far) = UnixStream::pair().unwrap();
            let mut socket = Socket::Unix(near);
            let send = async {
                for byte in &header {
                    far.write_all(&[*byte]).await.unwrap();
                    tokio::task::yield_now().await;
                }
                far.write_all(b"x").await.unwrap();
            };
            let (route, ()) = tokio::join!(read(&mut socket), send);
            assert_eq!(route.unwrap().unwrap().source.to_string(), "192.0.2.7:8080");
            assert_eq!(socket.read_u8().await.unwrap(), b'x');
        }
    }
}
