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
    /// Neither IPv4 nor IPv6: ARP, VLAN-tagged and everything else.
    0 NotIp "not-ip" Pass;
    /// An IP protocol that no service here can have.
    1 NotTcp "not-tcp" Pass;
    /// The frame ends inside a header that its own fields promise.
    2 Truncated "truncated" Pass;
    /// A header contradicts itself: version, length or data offset.
    3 Malformed "malformed" Pass;
    /// A fragment: only the first of them carries ports.
    4 Fragment "fragment" Pass;
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
    /// A client on this machine: its connection, or its datagram, was sent to a backend.
    21 LocalForward "local-forward" Pass;
    /// A client on this machine was told the address it had dialled instead of its backend's.
    22 LocalRestored "local-restored" Pass;
    /// A client on this machine, for a service without any backend: the machine's own stack answers.
    23 LocalNoBackend "local-no-backend" Pass;
    /// A client on this machine that can only reach the machine: tied to a loopback address or a device.
    24 LocalBoundElsewhere "local-bound-elsewhere" Pass;
    /// A client on this machine was sent to a backend, but will be told the backend's address.
    25 LocalUnremembered "local-unremembered" Pass;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_dense_and_names_unique() {
        let mut names: Vec<_> = Verdict::ALL.iter().map(|v| v.name()).collect();
        for (index, verdict) in Verdict::ALL.iter().enumerate() {
            assert_eq!(*verdict as usize, index, "{}", verdict.name());
            assert!(verdict.meaning().ends_with('.'), "{}", verdict.name());
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Verdict::ALL.len());
    }
}
