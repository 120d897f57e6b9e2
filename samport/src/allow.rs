//! Who may be served: `--allow` and the label `samport.allow`. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Result, bail};
use ipnet::IpNet;

use crate::model::Candidate;
use crate::ports::Listen;

/// Networks clients are in.
pub type Networks = BTreeSet<IpNet>;

/// Reads one network, `10.0.0.0/8`; an address alone is a network of its own. Bits after the prefix
/// say nothing and are dropped.
pub fn network(text: &str) -> Result<IpNet> {
    match (text.parse::<IpNet>(), text.parse::<IpAddr>()) {
        (Ok(net), _) => Ok(net.trunc()),
        (Err(_), Ok(addr)) => Ok(addr.into()),
        (Err(_), Err(_)) => {
            bail!(
                "{text:?} is no network; give one like 10.0.0.0/8 or 2001:db8::/32, or an address"
            )
        }
    }
}

/// Who may use each port: those whom the labels of its containers name, all of them together, or else
/// those whom the flag names. A port that is missing is everybody's.
///
/// Containers that do not serve yet, or drain, have their say too: their clients are there all the same.
#[must_use]
pub fn allowed<'a>(
    ports: impl Iterator<Item = &'a Listen>,
    flag: &Networks,
    candidates: &[Candidate],
) -> BTreeMap<Listen, Networks> {
    let mut labels: BTreeMap<Listen, Networks> = BTreeMap::new();
    for candidate in candidates.iter().filter(|candidate| !candidate.allow.is_empty()) {
        labels.entry(candidate.listen).or_default().extend(candidate.allow.iter().copied());
    }
    ports
        .map(|listen| (*listen, labels.remove(listen).unwrap_or_else(|| flag.clone())))
        .filter(|(_, networks)| !networks.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Condition, Wishes};

    fn networks(list: &[&str]) -> Networks {
        list.iter().map(|text| network(text).unwrap()).collect()
    }

    fn candidate(listen: Listen, allow: &[&str]) -> Candidate {
        Candidate {
            id: "web-1".into(),
            name: "web-1".into(),
            listen,
            endpoint: ([172, 17, 0, 2], 80).into(),
            weight: 1,
            drain: None,
            condition: Condition::Starting,
            allow: networks(allow),
            wishes: Wishes::default(),
            place: None,
            started: None,
        }
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
            assert!(error.starts_with(&format!("{text:?} is no network")), "{error}");
        }
    }

    #[test]
    fn labels_are_united_and_beat_the_flag_for_their_port_alone() {
        let (web, dns) = (Listen::tcp(80), Listen::udp(53));
        let flag = networks(&["192.0.2.0/24"]);
        let candidates = [
            candidate(web, &["10.0.0.0/8"]),
            candidate(web, &[]),
            candidate(web, &["::1", "10.0.0.0/8"]),
            candidate(Listen::tcp(443), &["10.9.9.9"]),
        ];
        let ports = [web, dns];
        assert_eq!(
            allowed(ports.iter(), &flag, &candidates),
            [(web, networks(&["10.0.0.0/8", "::1"])), (dns, flag)].into()
        );
        let without_flag = allowed(ports.iter(), &Networks::new(), &candidates);
        assert_eq!(without_flag, [(web, networks(&["10.0.0.0/8", "::1"]))].into());
        assert_eq!(allowed(ports.iter(), &Networks::new(), &[]), BTreeMap::new());
    }
}
