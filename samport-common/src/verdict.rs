//! Every reason a packet leaves our programs by. The only list: the kernel counts by these ids, the
//! loader shows these names, the tests walk them all.

/// What the kernel is told to do with the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Let the next program and then the host's stack have it, as if we were not there.
    Pass,
    /// Send it where the program has redirected it.
    Redirect,
    /// Discard it.
    Drop,
}

macro_rules! verdicts {
    ($($(#[doc = $doc:literal])+ $id:literal $name:ident $text:literal $action:ident;)+) => {
        /// Why a packet left. The number is the index of its counter in the `VERDICTS` map.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum Verdict {
            $($(#[doc = $doc])+ $name = $id,)+
        }

        impl Verdict {
            /// All verdicts, in the order of their ids.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// Number of verdicts.
            pub const COUNT: u32 = 0 $(+ { let _ = Self::$name; 1 })+;

            /// The verdict with this id, if there is one.
            #[must_use]
            #[inline(always)]
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($id => Some(Self::$name),)+ _ => None }
            }

            /// The name users and metrics see.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// What happens to the packet.
            #[must_use]
            pub const fn action(self) -> Action {
                match self { $(Self::$name => Action::$action,)+ }
            }

            /// What the verdict means, in a sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii_start(),)+ }
            }
        }
    };
}

verdicts! {
    /// Neither IPv4 nor IPv6: ARP and everything else.
    0 NotIp "not-ip" Pass;
    /// An IP protocol that no service here can have.
    1 OtherProtocol "other-protocol" Pass;
    /// The frame ends inside a header that its own fields promise.
    2 Truncated "truncated" Pass;
    /// A header contradicts itself: version, length or data offset.
    3 Malformed "malformed" Pass;
    /// A later fragment whose first has not passed here: the host's stack waits for it, in vain if it was for a service.
    4 FragmentOrphan "fragment-orphan" Pass;
    /// Addressed to another machine; we only overheard it.
    5 OtherHost "other-host" Pass;
    /// No service listens at its destination.
    6 NotOurs "not-ours" Pass;
    /// For a service, in the middle of a connection we do not know: never spread at random.
    7 MidFlowMiss "mid-flow-miss" Pass;
    /// For a service without any backend.
    8 NoBackend "no-backend" Pass;
    /// Its flow's backend is gone: the host's stack answers.
    9 BackendGone "backend-gone" Pass;
    /// A table slot named a backend that is not set: a bug in the loader.
    10 BackendUnset "backend-unset" Drop;
    /// A new flow could not be stored; the client will send its SYN again.
    11 FlowInsertFailed "flow-insert-failed" Drop;
    /// The client uses this port for so many connections to one service that replies would be ambiguous.
    12 FlowAmbiguous "flow-ambiguous" Drop;
    /// The packet could not be rewritten.
    13 RewriteFailed "rewrite-failed" Drop;
    /// Sent straight into the container.
    14 ForwardPeer "forward-peer" Redirect;
    /// Sent to the backend by the neighbour table.
    15 ForwardNeighbour "forward-neigh" Redirect;
    /// Rewritten and given to the host's stack to route.
    16 ForwardStack "forward-stack" Pass;
    /// A backend's packet that belongs to no flow of ours: its own business.
    17 NotAReply "not-a-reply" Pass;
    /// A reply, restored and sent to the client.
    18 Reply "reply" Redirect;
    /// A reply, restored on its way out of the host's stack.
    19 ReplyStack "reply-stack" Pass;
    /// A reply larger than the interface to the client takes: the host's stack tells the backend.
    20 ReplyTooBig "reply-too-big" Pass;
    /// It carries a VLAN tag: the VLAN's own device is the one to serve.
    21 Vlan "vlan" Pass;
    /// An ICMP error about a flow, translated and sent to its backend.
    22 IcmpForward "icmp-forward" Redirect;
    /// An ICMP error about a flow, translated and sent to its client.
    23 IcmpReply "icmp-reply" Redirect;
    /// ICMP that concerns no flow of ours: the host's own, echo for one.
    24 IcmpOther "icmp-other" Pass;
    /// The client is on no allow-list of the service.
    25 NotAllowed "not-allowed" Drop;
    /// Opens a connection during a flood of SYNs: forwarded, and remembered in a table of its own until the client answers.
    26 ForwardFlood "forward-flood" Redirect;
    /// Rewritten and handed to the macvlan child of the interface.
    27 ForwardChild "forward-child" Pass;
    /// A client on this machine: its connection, or its datagram, was sent to a backend.
    28 LocalForward "local-forward" Pass;
    /// A client on this machine was told the address it had dialled instead of its backend's.
    29 LocalRestored "local-restored" Pass;
    /// A client on this machine, for a service without any backend: the machine's own stack answers.
    30 LocalNoBackend "local-no-backend" Pass;
    /// A client on this machine that can only reach the machine: tied to a loopback address or a device.
    31 LocalBoundElsewhere "local-bound-elsewhere" Pass;
    /// A client on this machine was sent to a backend, but will be told the backend's address.
    32 LocalUnremembered "local-unremembered" Pass;
    /// Sent into the container before there was an skb.
    33 ForwardXdp "forward-xdp" Redirect;
    /// Larger than the device towards its backend takes: left to the host's stack, which makes fragments of it or tells its sender the size.
    34 ForwardTooBig "forward-too-big" Pass;
    /// A backend's refusal of a connection, held back: the client's next SYN goes to another backend.
    35 RefusalHeld "refusal-held" Drop;
    /// The late answer of a backend whose connection has gone to another.
    36 LateAnswer "late-answer" Drop;
    /// Its connection's backend is gone: answered with a reset.
    37 GoneReset "gone-reset" Redirect;
    /// For a service without any backend: answered with a reset.
    38 NoBackendReset "no-backend-reset" Redirect;
    /// For a service without any backend that is to keep silent then.
    39 NoBackendDrop "no-backend-drop" Drop;
    /// Its source address cannot come in by this device: another device or the host itself has it, or the route back leads elsewhere.
    40 SpoofedSource "spoofed-source" Drop;
    /// Opens a flow for which the table has no room: forwarded, and remembered in a table of its own until its client is proven and there is room.
    41 ForwardOverflow "forward-overflow" Redirect;
    /// A reply to a client that no route of this host leads to.
    42 ReplyNoRoute "reply-no-route" Drop;
    /// A reply to a client or a gateway whose address on the link is not known: the kernel asks for it, and discards the reply if nobody answers.
    43 ReplyUnresolved "reply-unresolved" Redirect;
    /// An answer to what the host or a container has begun itself, from a port that is served: it goes to who has asked.
    44 OutboundAnswer "outbound-answer" Pass;
    /// The program that was to go on with it is not where it belongs: a bug, or somebody has changed samport's maps.
    45 MissedTailCall "missed-tail-call" Drop;
    /// Sent unchanged through the tunnel to another node, which selects one of its own containers.
    46 ForwardNode "forward-node" Redirect;
    /// A reply to a client of another node: restored and sent back to that node through the tunnel.
    47 ReplyNode "reply-node" Redirect;
    /// In the tunnel, from an address that is no node's, or by a device that does not lead to that node.
    48 TunnelUnknownNode "tunnel-unknown-node" Drop;
    /// In the tunnel, and neither an IP packet nor a probe.
    49 TunnelMalformed "tunnel-malformed" Drop;
    /// In the tunnel, for a service that is not served here.
    50 TunnelNotServed "tunnel-not-served" Drop;
    /// In the tunnel, and itself a packet of a tunnel.
    51 TunnelNested "tunnel-nested" Drop;
    /// In the tunnel, a reply that belongs to no flow to the node it comes from.
    52 TunnelNoFlow "tunnel-no-flow" Drop;
    /// A probe of another node, answered.
    53 TunnelProbe "tunnel-probe" Redirect;
    /// Too large for the tunnel to the node: its sender is told the size.
    54 TunnelTooBig "tunnel-too-big" Redirect;
    /// Too large for the tunnel to the node, and its sender cannot be told.
    55 TunnelTooBigDrop "tunnel-too-big-drop" Drop;
}

impl Verdict {
    /// Whether a packet that has come out of the tunnel may be left to the host's stack with this verdict: only one that
    /// was rewritten for a backend, or is a reply. With any other it would come from nowhere.
    #[must_use]
    #[inline(always)]
    pub const fn may_leave_tunnel(self) -> bool {
        matches!(
            self,
            Self::ForwardStack | Self::ForwardChild | Self::ForwardTooBig | Self::ReplyStack
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_dense_and_names_unique() {
        let mut names: Vec<_> = Verdict::ALL.iter().map(|v| v.name()).collect();
        for (index, verdict) in Verdict::ALL.iter().enumerate() {
            assert_eq!(*verdict as usize, index, "{}", verdict.name());
            assert_eq!(Verdict::from_number(*verdict as u32), Some(*verdict));
            assert!(verdict.meaning().ends_with('.'), "{}", verdict.name());
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Verdict::ALL.len());
    }
}
