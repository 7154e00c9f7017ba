//! The one limiter in front of all handshakes: demands cookies under load, bound to source address and port (paper §5.4.7).
//!
//! boringtun's own is per `Tunn` and binds cookies to the address alone. Must never cost a Diffie-Hellman.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use chacha20poly1305::aead::AeadInPlace as _;
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305};
use rand::Rng;

use crate::config::HandshakeLimits;
use crate::own::{Own, mac};
use crate::tunn::{COOKIE_REPLY, le32};

/// How long one cookie secret is in use; the one before it is still honoured.
const SECRET_LIFE: Duration = Duration::from_secs(120);
const WINDOW: Duration = Duration::from_secs(1);
/// Addresses counted in one window; past it, strangers share what the table has.
const ADDRESSES: usize = 4096;

/// What may happen to a handshake message with a right mac1.
#[derive(Debug)]
pub(crate) enum Verdict {
    Pass,
    /// Not worked on: this reply goes to its source instead.
    Cookie([u8; COOKIE_REPLY]),
    AddressLimit,
}

/// Counts handshake messages.
pub(crate) struct Limiter {
    limits: HandshakeLimits,
    start: Instant,
    root: [u8; 32],
    window: Instant,
    count: u32,
    addresses: HashMap<IpAddr, u32>,
    loaded_until: Option<Instant>,
}

impl Limiter {
    pub(crate) fn new(limits: HandshakeLimits, rng: &mut impl Rng, now: Instant) -> Self {
        Self {
            limits,
            start: now,
            root: rng.random(),
            window: now,
            count: 0,
            addresses: HashMap::new(),
            loaded_until: None,
        }
    }

    /// Judges one message whose mac1 fits `own`. `queued` messages wait already.
    pub(crate) fn judge(
        &mut self,
        message: &[u8],
        from: SocketAddr,
        own: &Own,
        queued: usize,
        rng: &mut impl Rng,
        now: Instant,
    ) -> Verdict {
        self.note(queued, now);
        if !self.under_load(now) {
            return Verdict::Pass;
        }
        if !self.has_cookie(message, from, now) {
            return self.cookie_reply(message, from, own, rng, now).map_or(Verdict::AddressLimit, Verdict::Cookie);
        }
        let address = network(from.ip());
        let full = self.addresses.len() >= ADDRESSES && !self.addresses.contains_key(&address);
        let count = self.addresses.entry(if full { IpAddr::from([0; 4]) } else { address }).or_default();
        *count = count.saturating_add(1);
        if *count > self.limits.per_address_per_second { Verdict::AddressLimit } else { Verdict::Pass }
    }

    /// Counts one message, judged here or elsewhere.
    pub(crate) fn note(&mut self, queued: usize, now: Instant) {
        self.turn(now);
        self.count = self.count.saturating_add(1);
        if self.count > self.limits.cookies_above_per_second || queued > self.limits.queue / 8 {
            self.loaded_until = Some(now + WINDOW);
        }
    }

    /// Cookies are demanded now. Ends by itself a second after the last message that was too many.
    pub(crate) fn under_load(&self, now: Instant) -> bool {
        self.loaded_until.is_some_and(|until| now < until)
    }

    fn turn(&mut self, now: Instant) {
        if now.saturating_duration_since(self.window) >= WINDOW {
            self.window = now;
            self.count = 0;
            self.addresses.clear();
        }
    }

    fn has_cookie(&self, message: &[u8], from: SocketAddr, now: Instant) -> bool {
        let Some((body, mac2)) = message.len().checked_sub(16).and_then(|at| message.split_at_checked(at)) else {
            return false;
        };
        let turn = self.secret_turn(now);
        [Some(turn), turn.checked_sub(1)].into_iter().flatten().any(|turn| {
            let expected = mac(&self.cookie(turn, from), &[body]);
            // Compared without branches on content: a cookie is a secret between us and one address.
            expected.iter().zip(mac2).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
        })
    }

    fn cookie_reply(
        &self,
        message: &[u8],
        from: SocketAddr,
        own: &Own,
        rng: &mut impl Rng,
        now: Instant,
    ) -> Option<[u8; COOKIE_REPLY]> {
        let sender = le32(message, 4)?;
        let mac1 = message.get(message.len().checked_sub(32)?..message.len() - 16)?;
        let nonce: [u8; 24] = rng.random();
        let mut cookie = self.cookie(self.secret_turn(now), from);
        let cipher = XChaCha20Poly1305::new(&own.cookie_key.into());
        let tag = cipher.encrypt_in_place_detached(&nonce.into(), mac1, &mut cookie).ok()?;
        let mut reply = [0; COOKIE_REPLY];
        reply[0] = 3;
        reply[4..8].copy_from_slice(&sender.to_le_bytes());
        reply[8..32].copy_from_slice(&nonce);
        reply[32..48].copy_from_slice(&cookie);
        reply[48..].copy_from_slice(&tag);
        Some(reply)
    }

    fn cookie(&self, turn: u64, from: SocketAddr) -> [u8; 16] {
        let secret = mac(&self.root, &[&turn.to_le_bytes()]);
        let address = match from.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        mac(&secret, &[&address.octets(), &from.port().to_le_bytes()])
    }

    fn secret_turn(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs() / SECRET_LIFE.as_secs()
    }
}

/// What one holder of addresses holds: an IPv4 address or an IPv6 /64.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
    }
}

#[cfg(test)]
mod tests {
    use culvert_model::key::PrivateKey;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    struct Scene {
        own: Own,
        limiter: Limiter,
        rng: StdRng,
        start: Instant,
    }

    fn scene(limits: HandshakeLimits) -> Scene {
        let mut rng = StdRng::seed_from_u64(3);
        let start = Instant::now();
        let limiter = Limiter::new(limits, &mut rng, start);
        Scene { own: Own::new(&PrivateKey::from_bytes([7; 32])), limiter, rng, start }
    }

    impl Scene {
        fn judge(&mut self, message: &[u8], from: &str, at_ms: u64) -> Verdict {
            let now = self.start + Duration::from_millis(at_ms);
            self.limiter.judge(message, from.parse().unwrap(), &self.own, 0, &mut self.rng, now)
        }

        /// The cookie in a reply to `message`, as its sender would read it.
        fn cookie(&self, message: &[u8; 148], reply: &[u8; COOKIE_REPLY]) -> [u8; 16] {
            let nonce: [u8; 24] = reply[8..32].try_into().unwrap();
            let mut cookie: [u8; 16] = reply[32..48].try_into().unwrap();
            let tag: [u8; 16] = reply[48..].try_into().unwrap();
            XChaCha20Poly1305::new(&self.own.cookie_key.into())
                .decrypt_in_place_detached(&nonce.into(), &message[116..132], &mut cookie, &tag.into())
                .unwrap();
            cookie
        }
    }

    fn with_mac2(message: &[u8; 148], cookie: &[u8; 16]) -> [u8; 148] {
        let mut out = *message;
        let mac2 = mac(cookie, &[&message[..132]]);
        out[132..].copy_from_slice(&mac2);
        out
    }

    const LIMITS: HandshakeLimits =
        HandshakeLimits { cookies_above_per_second: 2, per_address_per_second: 3, queue: 64 };

    #[test]
    fn cookies_are_demanded_past_the_threshold_and_no_longer_a_second_after() {
        let mut scene = scene(LIMITS);
        let message = [1; 148];
        assert!(matches!(scene.judge(&message, "10.0.0.1:1", 0), Verdict::Pass));
        assert!(matches!(scene.judge(&message, "10.0.0.1:1", 0), Verdict::Pass));
        assert!(matches!(scene.judge(&message, "10.0.0.1:1", 0), Verdict::Cookie(_)));
        assert!(matches!(scene.judge(&message, "10.0.0.2:1", 999), Verdict::Cookie(_)));
        assert!(matches!(scene.judge(&message, "10.0.0.1:1", 2000), Verdict::Pass));
    }

    #[test]
    fn a_long_queue_demands_cookies_too() {
        let mut scene = scene(LIMITS);
        let now = scene.start;
        let from = "10.0.0.1:1".parse().unwrap();
        let verdict = scene.limiter.judge(&[1; 148], from, &scene.own, 9, &mut scene.rng, now);
        assert!(matches!(verdict, Verdict::Cookie(_)));
    }

    #[test]
    fn a_cookie_passes_from_its_own_address_and_port_and_from_no_other() {
        let mut scene = scene(LIMITS);
        let message = [1; 148];
        let Verdict::Cookie(reply) = (0..3).map(|_| scene.judge(&message, "10.0.0.1:9", 0)).last().unwrap() else {
            panic!("no cookie was demanded");
        };
        assert_eq!(reply[..8], [3, 0, 0, 0, 1, 1, 1, 1]);
        let answer = with_mac2(&message, &scene.cookie(&message, &reply));
        assert!(matches!(scene.judge(&answer, "10.0.0.1:9", 10), Verdict::Pass));
        assert!(matches!(scene.judge(&answer, "10.0.0.1:8", 10), Verdict::Cookie(_)));
        assert!(matches!(scene.judge(&answer, "10.0.0.2:9", 10), Verdict::Cookie(_)));
        let mut forged = answer;
        forged[147] ^= 1;
        assert!(matches!(scene.judge(&forged, "10.0.0.1:9", 10), Verdict::Cookie(_)));
    }

    #[test]
    fn one_address_with_cookies_gets_no_more_than_its_share() {
        let mut scene = scene(LIMITS);
        let message = [1; 148];
        let Verdict::Cookie(reply) = (0..3).map(|_| scene.judge(&message, "10.0.0.1:9", 0)).last().unwrap() else {
            panic!("no cookie was demanded");
        };
        let answer = with_mac2(&message, &scene.cookie(&message, &reply));
        let passed = (0..10).filter(|_| matches!(scene.judge(&answer, "10.0.0.1:9", 10), Verdict::Pass)).count();
        assert_eq!(passed, 3);
    }
}
