//! Names of origins behind a peer, asked of one name server in its network over UDP, and over TCP what does not fit.
//!
//! A stub that asks a resolver: chains of CNAMEs are the resolver's to follow, and are read from its answer. Must never
//! take an answer to another question, or wait longer than [`WITHIN`].

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use culvert_plane::tun::Tun;
use domain::base::iana::{Class, Rcode};
use domain::base::message::Message;
use domain::base::message_builder::MessageBuilder;
use domain::base::name::{Name, ToName as _};
use domain::base::{Rtype, StreamTarget};
use domain::rdata::{A, Aaaa};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

/// All of a look-up.
const WITHIN: Duration = Duration::from_secs(5);
/// A datagram may be lost: then the question is asked once more.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(1500);
/// What is read of one datagram; no more is offered, so that answers are not fragmented (RFC 9715).
const DATAGRAM: usize = 1232;
/// Addresses of one name that are used.
const AT_MOST: usize = 32;

/// Where sockets toward the server are opened.
pub(super) trait Place: Sync {
    /// A UDP socket, bound to nothing that matters.
    fn udp(&self, v6: bool) -> impl Future<Output = io::Result<UdpSocket>> + Send;
    /// A TCP socket.
    fn tcp(&self, v6: bool) -> impl Future<Output = io::Result<TcpSocket>> + Send;
}

impl Place for Tun {
    async fn udp(&self, v6: bool) -> io::Result<UdpSocket> {
        self.udp(v6).await
    }

    async fn tcp(&self, v6: bool) -> io::Result<TcpSocket> {
        self.tcp(v6).await
    }
}

/// One question.
struct Question {
    message: Vec<u8>,
    rtype: Rtype,
}

/// What a server said.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Addresses(Vec<IpAddr>),
    /// The answer did not fit.
    Truncated,
    No(Rcode),
    /// Not to this question, or no message at all.
    Nothing,
}

/// The addresses of `name`, as `server` knows them. The port of what it returns means nothing.
///
/// # Errors
/// In words: the server did not answer, or says that there is none.
pub(super) async fn resolve(place: &impl Place, server: SocketAddr, name: &str) -> io::Result<Vec<SocketAddr>> {
    let name: Name<Vec<u8>> = name.parse().map_err(|_| io::Error::other("it is no name of the DNS"))?;
    let asked = async { tokio::join!(ask(place, server, &name, Rtype::A), ask(place, server, &name, Rtype::AAAA)) };
    let silent = |_| io::Error::new(io::ErrorKind::TimedOut, "the peer's resolver does not answer");
    let (four, six) = timeout(WITHIN, asked).await.map_err(silent)?;
    let mut addresses = Vec::new();
    let mut failed = None;
    for answer in [four, six] {
        match answer {
            Ok(found) => addresses.extend(found.into_iter().map(|address| SocketAddr::new(address, 0))),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    addresses.truncate(AT_MOST);
    match failed {
        Some(error) if addresses.is_empty() => Err(error),
        _ => Ok(addresses),
    }
}

async fn ask(place: &impl Place, server: SocketAddr, name: &Name<Vec<u8>>, rtype: Rtype) -> io::Result<Vec<IpAddr>> {
    let question = Question::new(name, rtype)?;
    let socket = place.udp(server.is_ipv6()).await?;
    socket.connect(server).await?;
    let said = match by_udp(socket, &question).await? {
        Said::Truncated => by_tcp(place.tcp(server.is_ipv6()).await?.connect(server).await?, &question).await?,
        said => said,
    };
    match said {
        Said::Addresses(found) => Ok(found),
        Said::No(Rcode::NXDOMAIN) => Err(io::Error::other("the peer's resolver knows no such name")),
        Said::No(code) => Err(io::Error::other(format!("the peer's resolver says {code}"))),
        Said::Truncated | Said::Nothing => Err(io::Error::other("the peer's resolver gives no answer to the question")),
    }
}

/// Asks until an answer to the question comes; others' datagrams change nothing. The caller bounds the time.
async fn by_udp(socket: UdpSocket, question: &Question) -> io::Result<Said> {
    let mut datagram = [0; DATAGRAM];
    loop {
        socket.send(&question.message).await?;
        let again = Instant::now() + ASK_AGAIN_AFTER;
        while let Ok(length) = timeout_at(again, socket.recv(&mut datagram)).await {
            match question.read(&datagram[..length?]) {
                Said::Nothing => {}
                said => return Ok(said),
            }
        }
    }
}

async fn by_tcp(mut stream: TcpStream, question: &Question) -> io::Result<Said> {
    let length = u16::try_from(question.message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &question.message].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(question.read(&answer))
}

impl Question {
    fn new(name: &Name<Vec<u8>>, rtype: Rtype) -> io::Result<Self> {
        let short = |error| io::Error::other(format!("a question cannot be made: {error}"));
        let mut message = MessageBuilder::from_target(StreamTarget::new_vec()).map_err(io::Error::other)?;
        message.header_mut().set_id(rand::random());
        message.header_mut().set_rd(true);
        let mut message = message.question();
        message.push((name, rtype)).map_err(short)?;
        let mut message = message.additional();
        let size = u16::try_from(DATAGRAM).map_err(io::Error::other)?;
        message
            .opt(|opt| {
                opt.set_udp_payload_size(size);
                Ok(())
            })
            .map_err(short)?;
        Ok(Self { message: message.finish().as_dgram_slice().to_vec(), rtype })
    }

    /// What a message says, if it answers this question.
    fn read(&self, bytes: &[u8]) -> Said {
        let (Ok(own), Ok(message)) = (Message::from_slice(&self.message), Message::from_slice(bytes)) else {
            return Said::Nothing;
        };
        if !message.is_answer(own) {
            return Said::Nothing;
        }
        match message.header() {
            header if header.tc() => return Said::Truncated,
            header if header.rcode() != Rcode::NOERROR => return Said::No(header.rcode()),
            _ => {}
        }
        let (Some(name), Ok(answer)) = (message.canonical_name(), message.answer()) else { return Said::Nothing };
        let mut found = Vec::new();
        for record in answer {
            let Ok(record) = record else { return Said::Nothing };
            if record.class() != Class::IN || !record.owner().name_eq(&name) {
                continue;
            }
            let address = match self.rtype {
                Rtype::A => record.to_record::<A>().ok().flatten().map(|record| IpAddr::V4(record.data().addr())),
                _ => record.to_record::<Aaaa>().ok().flatten().map(|record| IpAddr::V6(record.data().addr())),
            };
            found.extend(address);
        }
        Said::Addresses(found)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use domain::base::message_builder::AnswerBuilder;
    use domain::rdata::Cname;
    use tokio::net::TcpListener;

    use super::*;

    struct Host;

    impl Place for Host {
        async fn udp(&self, _: bool) -> io::Result<UdpSocket> {
            UdpSocket::bind("127.0.0.1:0").await
        }

        async fn tcp(&self, _: bool) -> io::Result<TcpSocket> {
            TcpSocket::new_v4()
        }
    }

    fn name(text: &str) -> Name<Vec<u8>> {
        text.parse().unwrap()
    }

    /// An answer to the question in `asked`, with whatever `fill` adds.
    fn answer(asked: &[u8], code: Rcode, fill: impl FnOnce(&mut AnswerBuilder<Vec<u8>>)) -> Vec<u8> {
        let asked = Message::from_slice(asked).unwrap();
        let mut builder = MessageBuilder::new_vec().start_answer(asked, code).unwrap();
        fill(&mut builder);
        builder.finish()
    }

    fn a(builder: &mut AnswerBuilder<Vec<u8>>, owner: &str, last: u8) {
        builder.push((name(owner), 60, A::new(Ipv4Addr::new(10, 20, 0, last)))).unwrap();
    }

    #[test]
    fn addresses_are_those_at_the_end_of_the_chain_and_no_others() {
        let question = Question::new(&name("app.branch"), Rtype::A).unwrap();
        let said = question.read(&answer(&question.message, Rcode::NOERROR, |builder| {
            a(builder, "real.branch", 7);
            a(builder, "evil.branch", 8);
            builder.push((name("APP.branch"), 60, Cname::new(name("real.branch")))).unwrap();
            builder.push((name("real.branch"), 60, Aaaa::new("fd00::1".parse().unwrap()))).unwrap();
        }));
        assert_eq!(said, Said::Addresses(vec!["10.20.0.7".parse().unwrap()]));
        let none = question.read(&answer(&question.message, Rcode::NOERROR, |_| ()));
        assert_eq!(none, Said::Addresses(Vec::new()));
        let no = question.read(&answer(&question.message, Rcode::NXDOMAIN, |_| ()));
        assert_eq!(no, Said::No(Rcode::NXDOMAIN));
    }

    #[test]
    fn an_answer_to_another_question_is_none() {
        let question = Question::new(&name("app.branch"), Rtype::A).unwrap();
        let other_name = Question::new(&name("other.branch"), Rtype::A).unwrap();
        let other_kind = Question::new(&name("app.branch"), Rtype::AAAA).unwrap();
        for other in [&other_name.message, &other_kind.message] {
            let mut forged = answer(other, Rcode::NOERROR, |builder| a(builder, "app.branch", 9));
            forged[..2].copy_from_slice(&question.message[..2]);
            assert_eq!(question.read(&forged), Said::Nothing);
        }
        let mut other_id = answer(&question.message, Rcode::NOERROR, |builder| a(builder, "app.branch", 9));
        other_id[0] ^= 1;
        assert_eq!(question.read(&other_id), Said::Nothing);
        assert_eq!(question.read(&question.message), Said::Nothing, "a question is no answer");
        let whole = answer(&question.message, Rcode::NOERROR, |builder| a(builder, "app.branch", 9));
        for length in 0..whole.len() {
            assert_eq!(question.read(&whole[..length]), Said::Nothing, "{length} of {} bytes", whole.len());
        }
    }

    #[tokio::test]
    async fn what_does_not_fit_a_datagram_is_asked_over_tcp_and_one_family_is_enough() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(server).await.unwrap();
        let serves = culvert_ops::task::spawn("test.names", async move {
            let mut datagram = [0; 512];
            loop {
                tokio::select! {
                    Ok((length, from)) = udp.recv_from(&mut datagram) => {
                        let asked = &datagram[..length];
                        let is_four = Message::from_slice(asked).unwrap().first_question().unwrap().qtype() == Rtype::A;
                        let code = if is_four { Rcode::NOERROR } else { Rcode::SERVFAIL };
                        let mut said = answer(asked, code, |_| ());
                        said[2] |= if is_four { 2 } else { 0 };
                        let mut stray = said.clone();
                        stray[1] ^= 1;
                        udp.send_to(&stray, from).await.unwrap();
                        udp.send_to(&said, from).await.unwrap();
                    }
                    Ok((mut stream, _)) = tcp.accept() => {
                        let mut asked = vec![0; usize::from(stream.read_u16().await.unwrap())];
                        stream.read_exact(&mut asked).await.unwrap();
                        let said = answer(&asked, Rcode::NOERROR, |builder| (1..=40).for_each(|last| a(builder, "app.branch", last)));
                        stream.write_u16(u16::try_from(said.len()).unwrap()).await.unwrap();
                        stream.write_all(&said).await.unwrap();
                    }
                }
            }
        });
        let found = resolve(&Host, server, "app.branch").await.unwrap();
        assert_eq!(found.len(), AT_MOST);
        assert_eq!(found[0].ip(), IpAddr::V4(Ipv4Addr::new(10, 20, 0, 1)));
        assert!(resolve(&Host, server, "no name").await.is_err());
        drop(serves);
    }

    #[tokio::test(start_paused = true)]
    async fn a_resolver_that_is_silent_is_given_up() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let started = Instant::now();
        let error = resolve(&Host, silent.local_addr().unwrap(), "app.branch").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed(), WITHIN);
    }
}
