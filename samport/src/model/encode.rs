//! Addresses as the maps hold them.

use std::net::IpAddr;

/// The 16-byte form of an address: IPv4 as `::ffff:a.b.c.d`.
#[must_use]
pub fn wide(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use samport_common::family::{Family as _, V4};

    #[test]
    fn the_kernel_and_the_loader_agree_on_wide_addresses() {
        let addr = [192, 0, 2, 7];
        assert_eq!(wide(IpAddr::from(addr)), V4::to_mapped(addr));
        assert_eq!(V4::from_mapped(&wide(IpAddr::from(addr))), addr);
    }
}
