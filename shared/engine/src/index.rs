//! Session indices: which 24-bit bases are ours, and which tunnel each belongs to.
//!
//! A receiver index on the wire is `base << 8 | count`. From the top, a base holds the shard's number, random bits, and in
//! its lowest bit the parity of the pre-shared key epoch (wire.md §3). Must never give a base that tells anything else.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use rand::Rng;

use crate::config::Shard;

const BASE_BITS: u32 = 24;

/// The bases in use.
#[derive(Debug)]
pub(crate) struct Indices {
    shard: Shard,
    tunnels: HashMap<u32, u32, BuildHasherDefault<Spread>>,
}

impl Indices {
    pub(crate) fn new(shard: Shard) -> Self {
        let bits = shard.bits.min(8);
        let number = if bits == 0 { 0 } else { shard.number & (u8::MAX >> (8 - bits)) };
        Self { shard: Shard { number, bits }, tunnels: HashMap::default() }
    }

    pub(crate) fn shard(&self) -> Shard {
        self.shard
    }

    /// Draws a free base of that parity for a tunnel. `None` when half of the space is taken.
    pub(crate) fn draw(&mut self, rng: &mut impl Rng, parity: u32, tunnel: u32) -> Option<u32> {
        let free_bits = BASE_BITS - u32::from(self.shard.bits);
        if self.tunnels.len() >= 1 << (free_bits - 2) {
            return None;
        }
        loop {
            let random = rng.random::<u32>() & ((1 << free_bits) - 1);
            let base = u32::from(self.shard.number) << free_bits | random & !1 | parity & 1;
            if let std::collections::hash_map::Entry::Vacant(entry) = self.tunnels.entry(base) {
                entry.insert(tunnel);
                return Some(base);
            }
        }
    }

    pub(crate) fn release(&mut self, base: u32) {
        self.tunnels.remove(&base);
    }

    /// The tunnel that a receiver index belongs to.
    #[inline]
    pub(crate) fn tunnel(&self, index: u32) -> Option<u32> {
        self.tunnels.get(&(index >> 8)).copied()
    }
}

/// The parity of the sender's pre-shared key epoch, as its session index tells it.
pub(crate) const fn parity(index: u32) -> u32 {
    (index >> 8) & 1
}

/// Hashes a base. Keys in the table are our own random numbers, so nobody can make them collide.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.0 = (self.0 ^ u64::from(value)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(26);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn a_base_holds_the_shard_on_top_and_the_parity_below() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut indices = Indices::new(Shard { number: 5, bits: 3 });
        for round in 0..200 {
            let base = indices.draw(&mut rng, round, round).unwrap();
            assert_eq!(base >> 21, 5);
            assert_eq!(base & 1, round & 1);
            assert_eq!(parity(base << 8 | 7), round & 1);
            assert_eq!(indices.tunnel(base << 8 | 0xab), Some(round));
            let data = [&[4, 0, 0, 0][..], &(base << 8).to_le_bytes()].concat();
            assert_eq!(Shard::of_datagram(&data, 3), Some(5));
        }
    }

    #[test]
    fn a_released_base_leads_nowhere_and_a_full_space_gives_none() {
        let mut rng = StdRng::seed_from_u64(2);
        let mut indices = Indices::new(Shard { number: 255, bits: 8 });
        let first = indices.draw(&mut rng, 0, 1).unwrap();
        indices.release(first);
        assert_eq!(indices.tunnel(first << 8), None);
        let drawn = (0..20_000).map_while(|tunnel| indices.draw(&mut rng, tunnel, tunnel)).count();
        assert_eq!(drawn, 1 << 14);
    }
}
