//! What is sent.

use super::path::Path;
use crate::kernel::bed::{Flags, between};

/// Clients of the connections that are open.
pub const CLIENTS: u32 = 1_000;
/// More clients than any table here has room for.
const MANY: u32 = 1 << 24;
/// Three bytes of its address tell clients apart.
pub const CLIENT: &str = "10.0.0.0:40000";

/// A kind of frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Of clients that are not allowed.
    Dropped,
    /// In the middle of open connections.
    Open,
    /// First segments, each of another client: a flood of SYNs.
    Syn,
    /// To a port that is not ours.
    Foreign,
}

impl Kind {
    /// In the order they are shown.
    pub const ALL: [Self; 4] = [Self::Dropped, Self::Open, Self::Syn, Self::Foreign];
    /// Labels of the container that serves everybody.
    pub const SERVED: &[(&str, &str)] = &[("samport.port", "80")];
    /// Labels of the one that serves none of the clients.
    pub const RESTRICTED: &[(&str, &str)] =
        &[("samport.port", "81"), ("samport.allow", "198.51.100.0/24")];

    /// The figure's id.
    pub const fn figure(self) -> &'static str {
        match self {
            Self::Dropped => "flood.dropped",
            Self::Open => "flood.forwarded",
            Self::Syn => "flood.syn",
            Self::Foreign => "flood.foreign",
        }
    }

    /// The line above its table.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Dropped => "a frame of a client that is not allowed, the sending included",
            Self::Open => "a frame of one of 1,000 open connections, the sending included",
            Self::Syn => "a SYN, each from another client, the sending included",
            Self::Foreign => "a frame to a port that is not ours, the sending included",
        }
    }

    /// One of them.
    pub fn frame(self) -> Vec<u8> {
        let (to, flags) = match self {
            Self::Dropped => ("192.0.2.1:81", Flags::Syn),
            Self::Open => ("192.0.2.1:80", Flags::Ack),
            Self::Syn => ("192.0.2.1:80", Flags::Syn),
            Self::Foreign => ("192.0.2.1:82", Flags::Syn),
        };
        between(CLIENT, to, flags)
    }

    /// How many clients send them.
    pub const fn clients(self) -> u32 {
        match self {
            Self::Open => CLIENTS,
            Self::Dropped | Self::Syn | Self::Foreign => MANY,
        }
    }

    /// Whether they go on to a container.
    pub const fn is_forwarded(self) -> bool {
        matches!(self, Self::Open | Self::Syn)
    }

    /// What samport counts them as.
    pub const fn verdict(self, path: Path) -> &'static str {
        match (self, path) {
            (Self::Dropped, _) => "not-allowed",
            (Self::Open, Path::Native | Path::Generic) => "forward-xdp",
            (Self::Open, Path::Tc | Path::Nothing | Path::Generator) => "forward-peer",
            // XDP leaves a flood to tc.
            (Self::Syn, _) => "forward-flood",
            (Self::Foreign, _) => "not-ours",
        }
    }
}
