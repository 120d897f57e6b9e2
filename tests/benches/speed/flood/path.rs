//! Who takes the frames.

use super::kind::Kind;

/// Who decides on the frames that come in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Path {
    /// samport at tc.
    Tc,
    /// samport with native XDP in front of it.
    Native,
    /// samport with generic XDP in front of it.
    Generic,
    /// No samport: a program at tc drops them.
    Nothing,
    /// No skb either: a program at native XDP drops them.
    Generator,
}

impl Path {
    /// In the order they are shown.
    pub const ALL: [Self; 5] =
        [Self::Tc, Self::Native, Self::Generic, Self::Nothing, Self::Generator];

    /// What the tables call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tc => "tc",
            Self::Native => "xdp native",
            Self::Generic => "xdp generic",
            Self::Nothing => "nothing",
            Self::Generator => "generator",
        }
    }

    /// What samport is told, where there is one.
    pub const fn options(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Tc => Some(&[]),
            Self::Native => Some(&["--hook", "xdp", "--xdp-mode", "native"]),
            Self::Generic => Some(&["--hook", "xdp", "--xdp-mode", "generic"]),
            Self::Nothing | Self::Generator => None,
        }
    }

    /// The kind of frames that a figure's samples are of: those who drop all do not look at them.
    pub const fn measured_on(self, kind: Kind) -> Kind {
        match self {
            Self::Tc | Self::Native | Self::Generic => kind,
            Self::Nothing | Self::Generator => Kind::Foreign,
        }
    }
}
