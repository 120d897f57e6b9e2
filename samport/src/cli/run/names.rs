//! What may be said for `--provider`, `--forward`, `--hook`, `--xdp-mode`, `--service-conflict` and `--sandbox`.

use clap::ValueEnum;

use crate::control::admission::ServiceConflict;
use crate::dataplane::{Hook, XdpMode};
use crate::discovery::Engine;
use crate::net::routes::Forward;

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(in crate::cli) enum ProviderName {
    Docker,
    Podman,
    Static,
    File,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum ForwardName {
    Auto,
    Peer,
    Neigh,
    Stack,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum HookName {
    Auto,
    Tcx,
    Tc,
    Xdp,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum XdpModeName {
    Auto,
    Native,
    Generic,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(in crate::cli) enum ServiceConflictName {
    Refuse,
    Merge,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(in crate::cli) enum SandboxName {
    On,
    Off,
}

impl ProviderName {
    /// The engine, if it is one.
    pub(in crate::cli) const fn engine(self) -> Option<Engine> {
        match self {
            Self::Docker => Some(Engine::Docker),
            Self::Podman => Some(Engine::Podman),
            Self::Static | Self::File => None,
        }
    }
}

impl From<ForwardName> for Forward {
    fn from(name: ForwardName) -> Self {
        match name {
            ForwardName::Auto => Self::Auto,
            ForwardName::Peer => Self::Peer,
            ForwardName::Neigh => Self::Neighbour,
            ForwardName::Stack => Self::Stack,
        }
    }
}

impl From<HookName> for Hook {
    fn from(name: HookName) -> Self {
        match name {
            HookName::Auto | HookName::Xdp => Self::Auto,
            HookName::Tcx => Self::Tcx,
            HookName::Tc => Self::Tc,
        }
    }
}

impl From<XdpModeName> for XdpMode {
    fn from(name: XdpModeName) -> Self {
        match name {
            XdpModeName::Auto => Self::Auto,
            XdpModeName::Native => Self::Native,
            XdpModeName::Generic => Self::Generic,
        }
    }
}

impl From<ServiceConflictName> for ServiceConflict {
    fn from(name: ServiceConflictName) -> Self {
        match name {
            ServiceConflictName::Refuse => Self::Refuse,
            ServiceConflictName::Merge => Self::Merge,
        }
    }
}
