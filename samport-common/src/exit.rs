//! By which device the replies of a flow leave for an outside client. Pure.
//!
//! By the one that the client's packets come in by, as long as there is a route to the client out of it: on a host
//! with two providers that is right even without policy rules, where the kernel would send all replies to one of
//! them. Otherwise as the kernel's routes say.

use crate::source::Route;

/// What a flow keeps of that, in the place of its client's MAC: when the kernel was asked, and what it has said. The
/// lowest bit tells it from a MAC, which as a source has it zero (IEEE 802.3, section 3.2.3: a group address).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CachedExit(pub u16);

impl CachedExit {
    /// The bit of a flow whose client has no route out of the device that its packets come in by: the kernel is
    /// asked again for each reply.
    const BY_ROUTES: u16 = 1 << 15;

    /// At this generation of the host's routes.
    #[must_use]
    #[inline(always)]
    pub const fn at(generation: Generation, leaves: Leaves) -> Self {
        match leaves {
            Leaves::ByUplink => Self(generation.0),
            Leaves::ByRoutes => Self(generation.0 | Self::BY_ROUTES),
        }
    }

    /// Whether nothing is to be asked while routes are of this generation: the device is the client's.
    #[must_use]
    #[inline(always)]
    pub const fn is_settled(self, generation: Generation) -> bool {
        self.0 == generation.0 || generation.0 == 0
    }

    /// What was found out at this generation, if it was.
    #[must_use]
    #[inline(always)]
    pub const fn found(self, generation: Generation) -> Option<Leaves> {
        if self.0 & !Self::BY_ROUTES != generation.0 {
            None
        } else if self.0 & Self::BY_ROUTES != 0 {
            Some(Leaves::ByRoutes)
        } else {
            Some(Leaves::ByUplink)
        }
    }
}

/// A generation of the host's routes, which every change of them raises: odd, below 2¹⁵; or 0, if nobody counts, and
/// nobody asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Generation(pub u16);

impl Generation {
    /// The one after this.
    #[must_use]
    pub const fn next(self) -> Self {
        if self.0 >= CachedExit::BY_ROUTES - 1 {
            Self(1)
        } else {
            Self((self.0 | 1) + 2 * (self.0 & 1))
        }
    }
}

/// How replies leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leaves {
    /// By the device the client's packets come in by.
    ByUplink,
    /// As the kernel's routes say.
    ByRoutes,
}

impl Leaves {
    /// What a look-up of the route to the client out of its own device (`BPF_FIB_LOOKUP_OUTPUT`) says. For IPv6 the
    /// kernel may answer with a route out of another one.
    #[must_use]
    #[inline(always)]
    pub const fn of(route_out_of_uplink: Route, uplink: u32) -> Self {
        match route_out_of_uplink {
            // Whoever cannot tell changes nothing.
            Route::Unknown => Self::ByUplink,
            Route::Via(ifindex, _) if ifindex == uplink => Self::ByUplink,
            Route::Via(..) | Route::None => Self::ByRoutes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::NextHop;

    #[test]
    fn a_flow_is_settled_only_at_the_generation_it_was_asked_at() {
        let mut generation = Generation::default();
        for _ in 0..70_000 {
            let before = generation;
            generation = generation.next();
            assert!(generation.0 % 2 == 1 && generation.0 < 1 << 15 && generation != before);
            let uplink = CachedExit::at(generation, Leaves::ByUplink);
            assert!(uplink.is_settled(generation));
            assert!(before.0 == 0 || !uplink.is_settled(before));
            assert_eq!(uplink.found(generation), Some(Leaves::ByUplink));
            assert_eq!(uplink.found(before), None);
            let routes = CachedExit::at(generation, Leaves::ByRoutes);
            assert!(!routes.is_settled(generation));
            assert_eq!(routes.found(generation), Some(Leaves::ByRoutes));
        }
    }

    #[test]
    fn the_mac_of_a_client_is_no_answer_at_any_generation() {
        for first in (0..=u16::MAX).filter(|bytes| bytes.to_le_bytes()[0] & 1 == 0) {
            let mac = CachedExit(first);
            for generation in [1, 3, 5, 0x41ff, 0x7fff].map(Generation) {
                assert!(!mac.is_settled(generation) && mac.found(generation).is_none());
            }
            // Without a loader that counts, nothing is asked.
            assert!(mac.is_settled(Generation::default()));
        }
    }

    #[test]
    fn replies_leave_by_the_uplink_while_a_route_does() {
        for (route, leaves) in [
            (Route::Unknown, Leaves::ByUplink),
            (Route::Via(2, NextHop::OnLink), Leaves::ByUplink),
            (Route::Via(3, NextHop::OnLink), Leaves::ByRoutes),
            (Route::None, Leaves::ByRoutes),
        ] {
            assert_eq!(Leaves::of(route, 2), leaves, "{route:?}");
        }
    }
}
