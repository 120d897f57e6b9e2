//! Two routers and the link between them.

use anyhow::Result;

use super::{Plug, ROUTER, Segment};
use crate::lab::{Namespace, output_of};

/// What is special about them.
#[derive(Clone, Copy, Debug)]
pub struct Routers {
    /// MTU of the link between them, in bytes. Neither end of a path learns it from its own device.
    pub mtu: u32,
    /// They drop what is too large for the link, and do not say so.
    pub are_silent: bool,
}

impl Routers {
    /// Makes them: the first one is on the client's segment.
    pub(super) fn make(self, prefix: &str, plug: Plug<'_>) -> Result<Vec<Namespace>> {
        let near = Namespace::with_prefix(prefix, "router-1")?;
        let far = Namespace::with_prefix(prefix, "router-2")?;
        near.batch(&format!(
            "link add name eth1 mtu {0} type veth peer name eth1 mtu {0} netns {1}\n",
            self.mtu,
            far.name()
        ))?;
        let (one, two) = ((&near, Segment::Near, 1), (&far, Segment::Far, 2));
        for ((router, segment, number), (_, other, next)) in [(one, two), (two, one)] {
            plug.plug_in(router, ROUTER, segment)?;
            router.sysctl("net/ipv4/ip_forward", "1")?;
            router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
            router.batch(&format!(
                "link set eth1 alias {}-eth1\n\
                 addr add 203.0.113.{number}/30 dev eth1\n\
                 addr add 2001:db8:6::{number}/64 dev eth1 nodad\n\
                 link set eth1 up\n\
                 route add {}/24 via 203.0.113.{next}\n\
                 route add {}/64 via 2001:db8:6::{next}\n",
                router.name(),
                other.v4(0),
                other.v6(0)
            ))?;
            if self.are_silent {
                for (program, protocol, option, message) in [
                    ("iptables", "icmp", "--icmp-type", "fragmentation-needed"),
                    ("ip6tables", "icmpv6", "--icmpv6-type", "packet-too-big"),
                ] {
                    let rule =
                        ["-w", "-A", "OUTPUT", "-p", protocol, option, message, "-j", "DROP"];
                    output_of(router.command(program).args(rule))?;
                }
            }
        }
        Ok(vec![near, far])
    }
}
