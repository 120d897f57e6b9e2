//! What is known of network devices and of the addresses behind them, for the validation of sources.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::family::Family;
use crate::source::Side;

/// Devices with a hook of samport's.
pub const MAX_DEVICES: u32 = 32_768;
/// Addresses of which the device is known, for each family: the host's own and those of containers that
/// serve.
pub const MAX_SOURCES: u32 = 65_536;

/// Value of `DEVICES`, by device index: 12 bytes.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DeviceInfo {
    /// The device that routes back to a source are looked up for: 1 (`lo`), as the kernel does for packets
    /// to itself, or the device's own index if it is in a VRF.
    pub lookup_ifindex: u32,
    /// The bridge, bond or VRF it belongs to; 0 for none.
    pub master: u32,
    /// A [`Side`]; 0 where only replies come in.
    pub side: u8,
    /// `rp_filter` as the kernel applies it to IPv4: 0 off, 1 strict, 2 loose.
    pub rp_filter: u8,
    /// Bits of [`device`].
    pub flags: u8,
    /// Zero.
    pub pad: u8,
}

/// Bits of [`DeviceInfo::flags`].
pub mod device {
    /// Some route of IPv4 has this device as one of several next hops: a look-up names only one of them.
    pub const MULTIPATH4: u8 = 1;
    /// The same for IPv6.
    pub const MULTIPATH6: u8 = 2;
}

impl DeviceInfo {
    /// Whether it is one of several next hops of some route of this family.
    #[must_use]
    #[inline(always)]
    pub fn is_multipath<P: Family>(&self) -> bool {
        self.flags & P::of_two([device::MULTIPATH4, device::MULTIPATH6]) != 0
    }

    /// Whether containers of this host are behind it.
    #[must_use]
    #[inline(always)]
    pub const fn is_internal(&self) -> bool {
        matches!(Side::from_byte(self.side), Some(Side::Internal))
    }

    /// Whether outside clients come in by it.
    #[must_use]
    #[inline(always)]
    pub const fn is_external(&self) -> bool {
        matches!(Side::from_byte(self.side), Some(Side::External))
    }
}

/// A set of up to 8 devices: 32 bytes. In a value of `SOURCES4` and `SOURCES6`, the devices packets with
/// that source may come in by; in a value of `BACKENDS`, those its replies may come in by.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DeviceSet {
    /// Device indices, unused places 0.
    pub ifindex: [u32; DeviceSet::MAX],
}

impl DeviceSet {
    /// Most devices of a set.
    pub const MAX: usize = 8;
    /// The empty set. An address with this value is the host's own: no packet comes in with it.
    pub const NONE: Self = Self { ifindex: [0; Self::MAX] };
    /// Index of `lo`, which the kernel makes first in every network namespace (`LOOPBACK_IFINDEX`). It
    /// stands for the host itself.
    pub const HOST: u32 = 1;

    /// Whether a device is in the set.
    #[must_use]
    #[inline(always)]
    #[allow(clippy::needless_bitwise_bool, reason = "a branch for each is walked by the verifier")]
    pub fn contains(&self, ifindex: u32) -> bool {
        self.ifindex.iter().fold(false, |found, one| found | (*one == ifindex))
    }

    /// The devices of the set.
    pub fn iter(&self) -> impl Iterator<Item = u32> + use<> {
        self.ifindex.into_iter().take_while(|ifindex| *ifindex != 0)
    }

    /// Whether it is the empty set.
    #[must_use]
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        let [first, ..] = self.ifindex;
        first == 0
    }
}

impl FromIterator<u32> for DeviceSet {
    /// The first [`DeviceSet::MAX`] of them.
    fn from_iter<I: IntoIterator<Item = u32>>(devices: I) -> Self {
        let mut of = Self::NONE;
        for (place, ifindex) in of.ifindex.iter_mut().zip(devices) {
            *place = ifindex;
        }
        of
    }
}

const _: () = assert!(size_of::<DeviceInfo>() == 12);
const _: () = assert!(size_of::<DeviceSet>() == 32);
