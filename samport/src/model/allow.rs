//! Who may be served: `--allow` and the label `samport.allow`. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Result, bail};
use ipnet::IpNet;

use crate::model::ports::Listen;

/// Networks clients are in.
pub type Networks = BTreeSet<IpNet>;

/// Reads one network, `10.0.0.0/8`; an address alone is a network of one address. Bits after the prefix
/// say nothing and are dropped.
pub fn network(text: &str) -> Result<IpNet> {
    match (text.parse::<IpNet>(), text.parse::<IpAddr>()) {
        (Ok(net), _) => Ok(net.trunc()),
        (Err(_), Ok(addr)) => Ok(addr.into()),
        (Err(_), Err(_)) => {
            bail!(
                "invalid network {text:?}: expected an address or CIDR, e.g. 10.0.0.0/8 or 2001:db8::/32"
            )
        }
    }
}

/// Who may use each port: those whom `--allow` names, as far as the labels of the port narrow that. A port that is
/// missing is everybody's; one with no network left serves this machine only.
#[must_use]
pub fn allowed<'a>(
    ports: impl Iterator<Item = &'a Listen>,
    flag: &Networks,
    labels: &BTreeMap<Listen, Networks>,
) -> BTreeMap<Listen, Networks> {
    let of_port = |listen: &Listen| match labels.get(listen) {
        Some(labels) => Some((*listen, narrowed(flag, labels))),
        None if flag.is_empty() => None,
        None => Some((*listen, flag.clone())),
    };
    ports.filter_map(of_port).collect()
}

/// What labels leave of the networks that `--allow` names; without any, what they name themselves.
#[must_use]
pub fn narrowed(flag: &Networks, labels: &Networks) -> Networks {
    if flag.is_empty() {
        return labels.clone();
    }
    let of_labels = labels.iter().filter(|net| covers(flag, **net));
    let of_flag = flag.iter().filter(|net| covers(labels, **net));
    of_labels.chain(of_flag).copied().collect()
}

/// Whether a network lies in one of these.
#[must_use]
pub fn covers(networks: &Networks, net: IpNet) -> bool {
    let larger = |prefix| IpNet::new(net.addr(), prefix).map(|net| net.trunc());
    (0..=net.prefix_len()).any(|prefix| larger(prefix).is_ok_and(|net| networks.contains(&net)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn networks(list: &[&str]) -> Networks {
        list.iter().map(|text| network(text).unwrap()).collect()
    }

    #[test]
    fn networks_and_addresses_are_read() {
        for (text, read) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("::1", "::1/128"),
        ] {
            assert_eq!(network(text).unwrap().to_string(), read);
        }
        for text in ["", "office", "10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.1/", "/8", "[::1]"]
        {
            let error = network(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("invalid network {text:?}")), "{error}");
        }
    }

    #[test]
    fn labels_narrow_what_the_flag_names_and_never_widen_it() {
        for (flag, labels, left) in [
            (&["192.0.2.0/24"][..], &["0.0.0.0/0"][..], &["192.0.2.0/24"][..]),
            (&["192.0.2.0/24"], &["192.0.2.128/25", "10.0.0.0/8"], &["192.0.2.128/25"]),
            (&["0.0.0.0/0"], &["10.0.0.0/8"], &["10.0.0.0/8"]),
            (
                &["10.0.0.0/8", "192.0.2.7"],
                &["10.1.0.0/16", "192.0.2.0/24"],
                &["10.1.0.0/16", "192.0.2.7"],
            ),
            (&["10.0.0.0/8"], &["::/0"], &[]),
            (&["192.0.2.0/24"], &["198.51.100.0/24"], &[]),
            (&[], &["10.0.0.0/8"], &["10.0.0.0/8"]),
        ] {
            assert_eq!(narrowed(&networks(flag), &networks(labels)), networks(left), "{labels:?}");
        }
    }

    #[test]
    fn labels_count_for_their_port_alone() {
        let (web, dns) = (Listen::tcp(80), Listen::udp(53));
        let flag = networks(&["192.0.2.0/24"]);
        let labels = [(web, networks(&["192.0.2.1"])), (Listen::tcp(443), networks(&["::1"]))];
        let labels = labels.into();
        let ports = [web, dns];
        assert_eq!(
            allowed(ports.iter(), &flag, &labels),
            [(web, networks(&["192.0.2.1"])), (dns, flag)].into()
        );
        let without_flag = allowed(ports.iter(), &Networks::new(), &labels);
        assert_eq!(without_flag, [(web, networks(&["192.0.2.1"]))].into());
        assert_eq!(allowed(ports.iter(), &Networks::new(), &BTreeMap::new()), BTreeMap::new());
    }

    /// Such a port serves no client, rather than all.
    #[test]
    fn a_port_whose_labels_leave_nothing_of_the_flag_is_restricted() {
        let (web, flag) = (Listen::tcp(80), networks(&["192.0.2.0/24"]));
        let labels = [(web, networks(&["10.0.0.0/8"]))].into();
        assert_eq!(allowed([web].iter(), &flag, &labels), [(web, Networks::new())].into());
    }

    proptest! {
        /// An address may use a port exactly if the flag and the labels both name it.
        #[test]
        fn an_address_is_left_if_both_name_it(
            flag in prop::collection::vec((any::<u8>(), 0u8..=8), 1..6),
            labels in prop::collection::vec((any::<u8>(), 0u8..=8), 1..6),
            addr in any::<u8>(),
        ) {
            let of = |list: Vec<(u8, u8)>| -> Networks {
                let net = |(last, bits): (u8, u8)| {
                    IpNet::new(IpAddr::from([10, 0, 0, last]), 24 + bits).unwrap().trunc()
                };
                list.into_iter().map(net).collect()
            };
            let (flag, labels) = (of(flag), of(labels));
            let addr: IpNet = IpAddr::from([10, 0, 0, addr]).into();
            let both = covers(&flag, addr) && covers(&labels, addr);
            prop_assert_eq!(covers(&narrowed(&flag, &labels), addr), both);
        }
    }
}
