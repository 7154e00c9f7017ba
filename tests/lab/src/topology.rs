//! Three hosts: the gateway's side, the internet, and a private side behind NAT that lets nothing in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::netns::{self, Namespace};

/// The gateway's side has a public address; the private side has two of its own, each behind another public one.
#[derive(Debug)]
pub struct Internet {
    /// Relay and gateway.
    pub gateway: Namespace,
    /// Routes, translates, drops what comes unasked.
    pub internet: Namespace,
    /// Connector and origin.
    pub private: Namespace,
}

/// The relay's public addresses.
pub const RELAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 2));
/// Its IPv6 one.
pub const RELAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2));
/// The connector's private address, seen from outside as 203.0.113.1.
pub const HOME: &str = "192.168.7.2/24";
/// Where it may move: seen from outside as 203.0.113.9, ports 20000 to 20999.
pub const ELSEWHERE: &str = "192.168.7.3/24";

impl Internet {
    /// Builds it.
    ///
    /// # Errors
    /// Not root, or a tool is missing.
    pub fn build() -> Result<Self> {
        let (gateway, internet, private) = (Namespace::new("gw")?, Namespace::new("net")?, Namespace::new("vpc")?);
        netns::join(
            (&gateway, "wan", &["203.0.113.2/24", "2001:db8:1::2/64"]),
            (&internet, "to-gw", &["203.0.113.1/24", "203.0.113.9/24", "2001:db8:1::1/64"]),
        )?;
        netns::join(
            (&private, "lan", &[HOME, "fd00:7::2/64"]),
            (&internet, "to-vpc", &["192.168.7.1/24", "fd00:7::1/64"]),
        )?;
        for (side, via, via6) in [(&gateway, "203.0.113.1", "2001:db8:1::1"), (&private, "192.168.7.1", "fd00:7::1")] {
            side.ip(&["route", "add", "default", "via", via])?;
            side.ip(&["-6", "route", "add", "default", "via", via6])?;
        }
        internet.sysctl("net.ipv4.ip_forward=1")?;
        internet.sysctl("net.ipv6.conf.all.forwarding=1")?;
        internet.nft(
            "table inet nat {
                chain translate {
                    type nat hook postrouting priority srcnat;
                    oifname \"to-gw\" ip saddr 192.168.7.2 snat ip to 203.0.113.1
                    oifname \"to-gw\" ip saddr 192.168.7.3 meta l4proto udp snat ip to 203.0.113.9:20000-20999
                    oifname \"to-gw\" ip6 saddr fd00:7::/64 masquerade
                }
                chain forward {
                    type filter hook forward priority filter; policy drop;
                    iifname \"to-vpc\" oifname \"to-gw\" accept
                    iifname \"to-gw\" oifname \"to-vpc\" ct state established,related accept
                }
            }",
        )?;
        Ok(Self { gateway, internet, private })
    }

    /// Makes the link between internet and gateway a narrow one.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn narrow(&self, mtu: u16) -> Result<()> {
        let mtu = mtu.to_string();
        self.gateway.ip(&["link", "set", "wan", "mtu", &mtu])?;
        self.internet.ip(&["link", "set", "to-gw", "mtu", &mtu])?;
        Ok(())
    }

    /// Drops the messages that say a packet was too big: what misconfigured firewalls do.
    ///
    /// # Errors
    /// What `nft` said.
    pub fn hide_too_big(&self) -> Result<()> {
        self.internet.nft(
            "table inet hole {
                chain out {
                    type filter hook output priority filter;
                    icmp type destination-unreachable drop
                    icmpv6 type packet-too-big drop
                }
            }",
        )?;
        Ok(())
    }

    /// Takes the private host's address away and gives it another, as a laptop that changes networks.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn roam(&self) -> Result<()> {
        // The last address of a network takes its routes with it.
        self.private.ip(&["addr", "del", HOME, "dev", "lan"])?;
        self.private.ip(&["addr", "add", ELSEWHERE, "dev", "lan"])?;
        self.private.ip(&["route", "replace", "default", "via", "192.168.7.1"])?;
        Ok(())
    }
}
