//! Allowed addresses: what a peer may send from, and which peer a destination belongs to.
//!
//! Overlaps between peers are refused, so ranges are disjoint and the one that holds an address is its longest prefix.
//! Must never let one peer speak or listen for another.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// One peer's addresses: disjoint ranges in order.
#[derive(Debug, Default)]
pub(crate) struct Allowed {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl Allowed {
    pub(crate) fn new(nets: &[IpNet]) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for net in IpNet::aggregate(&nets.to_vec()) {
            match range(&net) {
                Range::V4(first, last) => v4.push((first, last)),
                Range::V6(first, last) => v6.push((first, last)),
            }
        }
        v4.sort_unstable();
        v6.sort_unstable();
        Self { v4: v4.into(), v6: v6.into() }
    }

    #[inline]
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => holds(&self.v4, u32::from(address)),
            IpAddr::V6(address) => holds(&self.v6, u128::from(address)),
        }
    }
}

/// Which peer, by slot, each address is routed to.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    v4: BTreeMap<u32, (u32, u32)>,
    v6: BTreeMap<u128, (u128, u32)>,
}

impl Routes {
    /// The peer that has a part of this network.
    pub(crate) fn overlap(&self, net: &IpNet) -> Option<u32> {
        match range(net) {
            Range::V4(first, last) => overlap(&self.v4, first, last),
            Range::V6(first, last) => overlap(&self.v6, first, last),
        }
    }

    pub(crate) fn add(&mut self, allowed: &Allowed, peer: u32) {
        self.v4.extend(allowed.v4.iter().map(|(first, last)| (*first, (*last, peer))));
        self.v6.extend(allowed.v6.iter().map(|(first, last)| (*first, (*last, peer))));
    }

    pub(crate) fn remove(&mut self, allowed: &Allowed) {
        for (first, _) in &allowed.v4 {
            self.v4.remove(first);
        }
        for (first, _) in &allowed.v6 {
            self.v6.remove(first);
        }
    }

    pub(crate) fn peer(&self, destination: IpAddr) -> Option<u32> {
        match destination {
            IpAddr::V4(address) => overlap(&self.v4, u32::from(address), u32::from(address)),
            IpAddr::V6(address) => overlap(&self.v6, u128::from(address), u128::from(address)),
        }
    }
}

enum Range {
    V4(u32, u32),
    V6(u128, u128),
}

fn range(net: &IpNet) -> Range {
    match net {
        IpNet::V4(net) => Range::V4(net.network().into(), net.broadcast().into()),
        IpNet::V6(net) => Range::V6(net.network().into(), net.broadcast().into()),
    }
}

#[inline]
fn holds<N: Ord + Copy>(ranges: &[(N, N)], address: N) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= address);
    after.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|(_, last)| address <= *last)
}

fn overlap<N: Ord + Copy>(ranges: &BTreeMap<N, (N, u32)>, first: N, last: N) -> Option<u32> {
    let (_, (end, peer)) = ranges.range(..=last).next_back()?;
    (*end >= first).then_some(*peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn an_address_outside_of_every_allowed_network_is_refused() {
        let allowed = Allowed::new(&nets(&["10.0.0.0/8", "10.1.0.0/16", "192.168.7.9/32", "fd43:554c:5645::7/128"]));
        for (address, expected) in [
            ("10.255.255.255", true),
            ("10.1.2.3", true),
            ("11.0.0.0", false),
            ("9.255.255.255", false),
            ("192.168.7.9", true),
            ("192.168.7.8", false),
            ("fd43:554c:5645::7", true),
            ("fd43:554c:5645::8", false),
            ("::", false),
        ] {
            assert_eq!(allowed.contains(address.parse().unwrap()), expected, "{address}");
        }
        assert!(!Allowed::new(&[]).contains("10.0.0.1".parse().unwrap()));
        assert!(Allowed::new(&nets(&["::/0"])).contains("::1".parse().unwrap()));
    }

    #[test]
    fn a_destination_belongs_to_the_peer_whose_network_holds_it_and_overlaps_are_found() {
        let mut routes = Routes::default();
        let first = Allowed::new(&nets(&["10.20.0.0/16", "fd00::/64"]));
        routes.add(&first, 1);
        routes.add(&Allowed::new(&nets(&["10.21.0.0/16"])), 2);
        assert_eq!(routes.peer("10.20.255.255".parse().unwrap()), Some(1));
        assert_eq!(routes.peer("10.21.0.0".parse().unwrap()), Some(2));
        assert_eq!(routes.peer("10.22.0.0".parse().unwrap()), None);
        assert_eq!(routes.peer("fd00::1".parse().unwrap()), Some(1));
        for (net, with) in [
            ("10.0.0.0/8", Some(2)),
            ("10.20.5.0/24", Some(1)),
            ("10.19.0.0/16", None),
            ("fd00::1/128", Some(1)),
            ("fd00:0:0:1::/64", None),
            ("0.0.0.0/0", Some(2)),
        ] {
            assert_eq!(routes.overlap(&net.parse().unwrap()), with, "{net}");
        }
        routes.remove(&first);
        assert_eq!(routes.peer("10.20.0.1".parse().unwrap()), None);
        assert_eq!(routes.peer("10.21.0.1".parse().unwrap()), Some(2));
    }
}
