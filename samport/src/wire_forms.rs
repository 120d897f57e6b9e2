//! Addresses as the maps hold them.

use std::net::{IpAddr, Ipv6Addr};

use crate::plan::Route;

/// The 16-byte form of an address: IPv4 as `::ffff:a.b.c.d`.
#[must_use]
pub fn wide(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address of a 16-byte form.
#[must_use]
pub fn narrow(wide: [u8; 16]) -> IpAddr {
    let v6 = Ipv6Addr::from(wide);
    v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
}

/// The MAC a route writes, or zeros.
#[must_use]
pub const fn mac_of(route: Route) -> [u8; 6] {
    match route {
        Route::Peer(place) => place.mac,
        Route::Neighbour { .. } | Route::Stack => [0; 6],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use samport_common::family::{Family as _, V4};

    #[test]
    fn the_kernel_and_the_loader_agree_on_wide_addresses() {
        let addr = [192, 0, 2, 7];
        assert_eq!(wide(IpAddr::from(addr)), V4::widen(addr));
        assert_eq!(narrow(V4::widen(addr)), IpAddr::from(addr));
    }
}
