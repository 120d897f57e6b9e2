//! The largest packet that arrives at a node whole, found out by packets that must not be fragmented. Pure.
//!
//! Routers say when a packet is too large, and the kernel remembers it; but they may be silent, what they say may get
//! lost, and anybody may forge it. So it is a hint where to look, and an answer is what counts.

/// How often a packet of a size is sent again before it counts as too large: any packet may get lost.
const TRIES: u8 = 2;
/// After this many packets it is looked whether the path carries more by now: 10 min, at one in 2 s.
const LOOK_FOR_MORE: u16 = 300;

/// Larger packets are not tried, whatever the device takes.
const MOST: u16 = 65_534;

/// What is known of the path to a node. Sizes are those of IP packets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct PathMtu {
    /// What every path of the family carries.
    least: u16,
    /// The largest size that arrives, as far as is known.
    fits: u16,
    /// The smallest size that is taken for too large.
    too_large: u16,
    /// What the kernel thinks: the device's, or less if a router has said so.
    kernel: u16,
    /// The size that is being tried, and how often it was not answered.
    tried: Option<(u16, u8)>,
    /// Whether anything was found out.
    is_known: bool,
    since_last_look: u16,
}

impl PathMtu {
    /// Of a path that nothing is known of but the family of addresses.
    pub(super) const fn of(is_ipv6: bool) -> Self {
        let least = if is_ipv6 { 1_280 } else { 576 };
        Self {
            least,
            fits: least,
            too_large: least + 1,
            kernel: least,
            tried: None,
            is_known: false,
            since_last_look: 0,
        }
    }

    /// The size to go by: what the kernel thinks, until an answer or its absence says more. `None` before either.
    pub(super) const fn current(&self) -> Option<u16> {
        match (self.is_known, self.too_large) {
            (true, _) => Some(self.fits),
            (false, too_large) if too_large > self.least + 1 => Some(self.kernel),
            (false, _) => None,
        }
    }

    /// The size of the next packet, given what the kernel thinks the path carries.
    pub(super) fn next(&mut self, kernel: u16) -> u16 {
        let kernel = kernel.clamp(self.least, MOST);
        self.since_last_look += 1;
        if kernel > self.kernel || self.since_last_look >= LOOK_FOR_MORE {
            self.too_large = self.too_large.max(kernel + 1);
            self.since_last_look = 0;
        }
        self.kernel = kernel;
        let size = self.candidate();
        if self.tried.is_none_or(|(tried, _)| tried != size) {
            self.tried = Some((size, 0));
        }
        size
    }

    fn candidate(&self) -> u16 {
        let too_large = self.too_large.min(self.kernel + 1);
        let open = too_large.saturating_sub(self.fits + 1);
        match open {
            0 => self.fits,
            _ if self.kernel < self.too_large => self.kernel,
            _ => self.fits + open.div_ceil(2),
        }
    }

    /// The last packet has arrived.
    pub(super) fn answered(&mut self) {
        let Some((size, _)) = self.tried.take() else { return };
        self.is_known = true;
        self.fits = self.fits.max(size);
        self.too_large = self.too_large.max(size + 1);
    }

    /// The last packet was not answered, and others were.
    pub(super) fn unanswered(&mut self) {
        let Some((size, failures)) = &mut self.tried else { return };
        *failures += 1;
        // What a router has said, too, needs no second look.
        if *failures >= TRIES || self.kernel < *size {
            let size = *size;
            self.shrink_below(size);
        }
    }

    /// The kernel does not send a packet of the last size, and thinks that the path carries this much.
    pub(super) fn refused(&mut self, kernel: u16) {
        self.kernel = kernel.clamp(self.least, MOST);
        if let Some((size, _)) = self.tried {
            self.shrink_below(size);
        }
    }

    fn shrink_below(&mut self, size: u16) {
        self.tried = None;
        self.is_known = true;
        if size <= self.fits {
            self.fits = if self.kernel < size { self.kernel } else { self.least };
        }
        self.too_large = size.max(self.fits + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends packets over a path that carries `carries`, to whose sender the kernel says `kernel`, and returns the
    /// sizes that were sent. Whatever a device of `device` does not take is refused.
    fn run(path: &mut PathMtu, packets: usize, device: u16, kernel: u16, carries: u16) -> Vec<u16> {
        let one = |_| {
            let size = path.next(kernel);
            if size > device {
                path.refused(kernel);
            } else if size > carries {
                path.unanswered();
            } else {
                path.answered();
            }
            size
        };
        (0..packets).map(one).collect()
    }

    #[test]
    fn a_path_of_the_devices_size_is_known_after_one_answer() {
        let mut path = PathMtu::of(false);
        assert_eq!(path.current(), None);
        assert_eq!(path.next(1_500), 1_500);
        assert_eq!(path.current(), Some(1_500));
        path.answered();
        assert_eq!(path.current(), Some(1_500));
        assert_eq!(run(&mut path, 700, 1_500, 1_500, 1_500), vec![1_500; 700]);
    }

    #[test]
    fn one_lost_packet_changes_nothing() {
        let mut path = PathMtu::of(false);
        run(&mut path, 3, 1_500, 1_500, 1_500);
        assert_eq!(path.next(1_500), 1_500);
        path.unanswered();
        assert_eq!(path.current(), Some(1_500));
        assert_eq!(path.next(1_500), 1_500);
        path.answered();
        path.next(1_500);
        path.unanswered();
        assert_eq!(path.current(), Some(1_500));
    }

    /// What a router says is tried next, and holds when it arrives.
    #[test]
    fn what_a_router_says_is_found_immediately() {
        let mut path = PathMtu::of(false);
        run(&mut path, 1, 1_500, 1_500, 1_500);
        assert_eq!(run(&mut path, 2, 1_500, 1_400, 1_400), [1_500, 1_400]);
        assert_eq!(path.current(), Some(1_400));
        // The same from the start.
        let mut path = PathMtu::of(false);
        assert_eq!(path.next(1_500), 1_500);
        path.unanswered();
        assert_eq!(run(&mut path, 1, 1_500, 1_400, 1_400), [1_400]);
        assert_eq!(path.current(), Some(1_400));
    }

    /// Anybody may send an ICMP error.
    #[test]
    fn a_lie_changes_nothing_while_packets_arrive() {
        let mut path = PathMtu::of(false);
        run(&mut path, 1, 1_500, 1_500, 1_500);
        assert_eq!(run(&mut path, 5, 1_500, 600, 1_500), [1_500; 5]);
        assert_eq!(path.current(), Some(1_500));
    }

    #[test]
    fn where_routers_are_silent_the_size_is_found_by_halves() {
        for (device, carries) in [(1_500, 1_400), (1_500, 1_300), (9_000, 1_500), (1_500, 1_280)] {
            for v6 in [false, true] {
                let mut path = PathMtu::of(v6);
                run(&mut path, 40, device, device, carries);
                assert_eq!(path.current(), Some(carries), "{device} {carries} {v6}");
                // What is known to arrive is published meanwhile, never more.
                let mut path = PathMtu::of(v6);
                run(&mut path, 2, device, device, carries);
                for _ in 0..40 {
                    run(&mut path, 1, device, device, carries);
                    assert!(path.current() <= Some(carries), "{path:?}");
                }
            }
        }
    }

    #[test]
    fn a_path_that_carries_less_than_before_is_noticed() {
        let mut path = PathMtu::of(false);
        run(&mut path, 3, 1_500, 1_500, 1_500);
        run(&mut path, 2, 1_500, 1_500, 1_400);
        assert!(path.current() <= Some(1_400), "{path:?}");
        run(&mut path, 40, 1_500, 1_500, 1_400);
        assert_eq!(path.current(), Some(1_400));
    }

    #[test]
    fn a_device_that_takes_less_than_before_is_noticed_immediately() {
        let mut path = PathMtu::of(false);
        run(&mut path, 3, 9_000, 9_000, 9_000);
        assert_eq!(run(&mut path, 2, 1_500, 1_500, 1_500), [9_000, 1_500]);
        assert_eq!(path.current(), Some(1_500));
    }

    #[test]
    fn a_path_that_carries_more_than_before_is_noticed_in_time() {
        let mut path = PathMtu::of(false);
        run(&mut path, 40, 1_500, 1_500, 1_400);
        let sent = run(&mut path, usize::from(LOOK_FOR_MORE) + 1, 1_500, 1_500, 1_500);
        assert_eq!(path.current(), Some(1_500));
        assert_eq!(sent.iter().find(|size| **size != 1_400), Some(&1_500));
        // Of a device that takes more, at the next packet.
        assert_eq!(run(&mut path, 1, 9_000, 9_000, 9_000), [9_000]);
        assert_eq!(path.current(), Some(9_000));
    }

    #[test]
    fn it_never_falls_below_what_every_path_carries() {
        for (v6, least) in [(false, 576), (true, 1_280)] {
            let mut path = PathMtu::of(v6);
            for _ in 0..100 {
                assert!(path.next(100) >= least);
                path.unanswered();
                assert!(path.current().is_none_or(|size| size >= least), "{path:?}");
            }
        }
    }
}
