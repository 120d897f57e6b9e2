//! The acceptance list itself.

/// How a case is tested.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Exact bytes, through a loaded program or on the host.
    P,
    /// Network namespaces with real sockets.
    N,
    /// Real containers.
    C,
    /// A unit or property test on the host.
    H,
}

use Kind::{C, H, N, P};

/// What samport has to do, in one sentence, and how that is shown.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub number: u8,
    pub kind: Kind,
    pub sentence: &'static str,
}

/// Cases that belong together.
pub struct Group {
    pub name: &'static str,
    pub cases: &'static [Case],
}

const fn case(number: u8, kind: Kind, sentence: &'static str) -> Case {
    Case { number, kind, sentence }
}

pub const GROUPS: &[Group] = &[
    Group {
        name: "Classify",
        cases: &[
            case(1, P, "What goes to no service passes unmodified, IPv4 and IPv6."),
            case(2, P, "ARP and neighbour discovery pass."),
            case(3, P, "Another port of a served address passes."),
            case(4, N, "TCP and UDP on one port are independent."),
            case(5, N, "A given address beats the wildcard."),
            case(6, H, "IHL below 5, a truncated L4 header, lying lengths: no rewrite, no crash."),
            case(7, P, "IPv4 options move the ports."),
            case(8, P, "IPv6 extension headers move the ports."),
            case(9, P, "802.1Q tags, in the frame and offloaded."),
            case(10, P, "An unknown transport protocol passes."),
            case(11, N, "Transit traffic to the same port number is not ours."),
        ],
    },
    Group {
        name: "Rewrite",
        cases: &[
            case(12, P, "TCP over IPv4: addresses, MAC and both checksums exact."),
            case(13, P, "TCP over IPv6: the same."),
            case(14, P, "Where the port stays, only the address changes."),
            case(15, P, "A UDP checksum of zero stays zero."),
            case(16, P, "A UDP checksum that comes out as zero becomes 0xffff."),
            case(17, P, "A reply gets back the address and port that were dialled."),
            case(18, N, "With transmit offload off everywhere, 10 MB arrive intact."),
            case(19, N, "GSO packets of 64 KB arrive intact."),
            case(20, N, "UDP_SEGMENT packets arrive intact."),
            case(21, P, "TTL and hop limit follow the stated policy."),
            case(22, P, "DSCP and ECN are preserved."),
            case(23, N, "The backend sees the client's own address and port."),
        ],
    },
    Group {
        name: "Flows",
        cases: &[
            case(24, N, "A SYN sent again goes to the same backend."),
            case(25, P, "Two SYNs that race on two CPUs get one backend."),
            case(26, N, "Data and FIN stay put while backends come and go."),
            case(27, H, "An entry of a SYN only expires in 20 s."),
            case(28, H, "RST shortens an entry; a spurious one mid-stream does not kill it."),
            case(29, P, "A SYN after both FINs on the same tuple is a fresh choice."),
            case(30, P, "The middle of an unknown connection is never spread."),
            case(31, H, "TCP that is idle for 2 h survives."),
            case(32, N, "The same client port towards two VIPs: both work."),
            case(33, N, "With a full table new connections are still served, and counted."),
            case(34, N, "In a storm of evictions, active flows keep their backend."),
            case(35, N, "UDP stays with its backend until the timeout."),
            case(36, P, "A failed insert is counted, never silent."),
            case(37, N, "A connection whose entry is evicted recovers or gets a RST."),
        ],
    },
    Group {
        name: "ICMP and fragments",
        cases: &[
            case(38, N, "Fragmentation-needed reaches the backend, its inner tuple translated."),
            case(39, N, "ICMPv6 packet-too-big: the same."),
            case(40, N, "A backend's port-unreachable reaches the client with the VIP inside."),
            case(41, P, "ICMP that belongs to no flow passes."),
            case(42, N, "UDP fragments in and out of order: one backend or a counted drop."),
            case(43, N, "A client behind an MTU of 1280 downloads 10 MB."),
        ],
    },
    Group {
        name: "Selection",
        cases: &[
            case(44, N, "Random over 4 backends: χ² passes over 2,000 connections."),
            case(45, N, "Round-robin is exact."),
            case(46, N, "Weights 70/20/10 within 2 points over 2,000 connections."),
            case(47, H, "Maglev spreads within 1 %."),
            case(48, H, "Maglev: removing 1 of N moves at most 1/N + 2 %."),
            case(49, H, "Maglev: the order of backends does not matter."),
            case(50, N, "Weight 0 gets no new flows."),
            case(51, N, "Source affinity holds, expires and fails over."),
            case(52, N, "Least-conn avoids the loaded backend."),
            case(53, N, "The seeds' experiment: 300 curls over 2 within 3 σ of half."),
        ],
    },
    Group {
        name: "Life of a backend",
        cases: &[
            case(54, N, "Draining: open flows continue, new ones go elsewhere."),
            case(55, N, "When all drain, clients are still served."),
            case(56, N, "TCP to a removed backend gets a RST at its next packet."),
            case(57, N, "UDP to a removed backend re-selects at its next datagram."),
            case(58, C, "An address reused by a container of another service leaks nothing."),
            case(59, N, "Without a backend clients are refused immediately, or dropped by choice."),
            case(60, C, "Traffic waits until a starting container is healthy."),
            case(61, C, "Draining starts at the `kill` event."),
            case(62, C, "100 rolling replacements under load fail no request."),
            case(63, N, "A backend that refuses or is silent fails no request."),
            case(64, C, "`up --scale app=5`, then 1, then 3: shares follow the events."),
        ],
    },
    Group {
        name: "Local",
        cases: &[
            case(65, N, "127.0.0.1, ::1 and the host's own addresses, dialled on the host."),
            case(66, C, "A container dials the host's address, also one that picks itself."),
            case(67, C, "Clients on the same bridge and on another bridge."),
            case(68, N, "getpeername and recvmsg show what was dialled."),
            case(69, N, "A container's own 127.0.0.1 is not touched."),
            case(70, C, "A backend with host networking."),
            case(71, N, "bridge-nf-call 0 and 1."),
            case(72, N, "rp_filter strict."),
            case(73, C, "Docker's iptables rules in place, FORWARD policy DROP."),
            case(74, C, "Podman, rootful."),
            case(75, C, "macvlan."),
        ],
    },
    Group {
        name: "Operations",
        cases: &[
            case(76, N, "SIGKILL: traffic goes on, the next run adopts, no flow is lost."),
            case(77, N, "An upgrade to another build: the same."),
            case(78, N, "Maps of an older layout are migrated or refused with words."),
            case(79, N, "Another tcx program on the hook: both run."),
            case(80, C, "A veth that is recreated is attached to again."),
            case(81, C, "dockerd restarts, events are lost: full resync, no gap in traffic."),
            case(82, N, "The allow-list."),
            case(83, N, "In a SYN flood established p99 stays bounded and the table has room."),
            case(84, P, "Every program loads under its instruction ceiling."),
            case(85, N, "Clean exit and `clean` leave no program, link, map, qdisc or pin."),
            case(86, N, "Two instances side by side; the same port is refused by name."),
            case(87, N, "Bad input gets an error that names the thing and the way out."),
            case(88, N, "A configuration is reloaded: good applied, bad refused, old kept."),
            case(89, N, "IPv6 end to end for TCP and UDP."),
        ],
    },
];

/// All cases, by number.
pub fn all() -> impl Iterator<Item = &'static Case> {
    GROUPS.iter().flat_map(|group| group.cases)
}

#[cfg(test)]
mod tests {
    #[test]
    fn cases_are_numbered_from_1_to_89() {
        assert!(super::all().map(|case| case.number).eq(1..=89));
    }
}
