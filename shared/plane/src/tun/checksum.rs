//! The Internet checksum (RFC 1071) over what goes through the device.
//!
//! It must never be wrong: what it vouches for, the kernel's TCP believes.

use std::net::IpAddr;

/// The sum of big-endian 16-bit words, not folded; an odd byte at the end stands in front of a zero.
///
/// Added up in the machine's own order and four bytes at a time, which the compiler makes vectors of: one's complement
/// sums do not care (RFC 1071 §2).
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(4);
    let rest = words.remainder();
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    let native: u64 = words.map(|word| u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))).sum();
    u64::from(u16::from_be(fold(native + u64::from(u32::from_ne_bytes(last)))))
}

/// Sixteen bits of a sum, not complemented.
pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum of a transport's pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1).
pub(crate) fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u64 {
    let of = |address: IpAddr| match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    };
    let length = length as u64;
    of(source) + of(destination) + u64::from(protocol) + (length >> 16) + (length & 0xffff)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_sum_is_that_of_its_words(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let plain: u64 = bytes.chunks(2).map(|pair| {
                (u64::from(pair[0]) << 8) + u64::from(pair.get(1).copied().unwrap_or(0))
            }).sum();
            // 0 and 0xffff are the same number in one's complement.
            prop_assert_eq!(fold(sum(&bytes)) % 0xffff, fold(plain) % 0xffff);
        }
    }

    #[test]
    fn the_sum_of_rfc_1071_is_found() {
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
    }
}
