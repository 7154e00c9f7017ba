//! Notices that an origin's name has left an address behind.
//!
//! Connections in use are taken again and again, so without this a busy service would never follow its name. Must never
//! take a resolver that shows a part of many addresses in turn for a move.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

/// An address that no answer had for so long is no longer the origin's.
const GONE: Duration = Duration::from_secs(30);

/// The addresses of one name, and when each was last in an answer.
#[derive(Debug, Default)]
pub struct Moves(HashMap<IpAddr, Instant>);

impl Moves {
    /// Takes in an answer; whether an address is gone, so that its connections should not be used again.
    pub fn note(&mut self, answer: &[SocketAddr], now: Instant) -> bool {
        for address in answer {
            self.0.insert(address.ip(), now);
        }
        let before = self.0.len();
        self.0.retain(|_, last| now.saturating_duration_since(*last) < GONE);
        self.0.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 0)).collect()
    }

    #[test]
    fn an_address_that_no_answer_has_any_more_is_gone_once() {
        let (mut moves, start) = (Moves::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(!moves.note(&at(&["10.0.0.1", "10.0.0.2"]), start));
        for seconds in [10, 20] {
            assert!(!moves.note(&at(&["10.0.0.2", "10.0.0.3"]), after(seconds)));
        }
        assert!(moves.note(&at(&["10.0.0.2", "10.0.0.3"]), after(30)));
        assert!(!moves.note(&at(&["10.0.0.2", "10.0.0.3"]), after(40)));
    }

    #[test]
    fn answers_that_take_turns_are_no_move() {
        let (mut moves, start) = (Moves::default(), Instant::now());
        for turn in 0..30_u64 {
            let answer = if turn % 2 == 0 { at(&["10.0.0.1"]) } else { at(&["10.0.0.2"]) };
            assert!(!moves.note(&answer, start + Duration::from_secs(10 * turn)));
        }
    }
}
