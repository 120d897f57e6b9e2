use super::*;
use crate::cluster::tests::settings;

fn node(name: &str, address: &str, services: &[(&str, u32)]) -> Node {
    Node {
        name: name.to_owned(),
        address: address.parse().unwrap(),
        port: 6080,
        services: services.iter().map(|(on, weight)| (on.parse().unwrap(), *weight)).collect(),
    }
}

fn others(nodes: &[Node]) -> Result<Vec<String>, String> {
    let mut settings = settings("nodes.toml".into());
    settings.address = Some("198.51.100.1".parse().unwrap());
    let addresses = ["127.0.0.1", "192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap());
    let own = OwnNode { settings: &settings, addresses: &addresses.into() };
    let others = own.others(nodes.to_vec()).map_err(|error| format!("{error:#}"))?;
    Ok(others.into_iter().map(|node| node.name).collect())
}

#[test]
fn this_node_is_left_out_by_its_name_whatever_its_address() {
    let others = |own| others(&[node("n3", "192.0.2.3", &[]), own, node("n2", "192.0.2.2", &[])]);
    for address in ["192.0.2.1", "198.51.100.1", "203.0.113.1"] {
        assert_eq!(others(node("n1", address, &[])).unwrap(), ["n2", "n3"]);
    }
}

#[test]
fn nodes_that_cannot_be_told_apart_are_errors_that_name_them() {
    for (nodes, words) in [
        (
            &[node("n2", "192.0.2.2", &[]), node("n2", "192.0.2.3", &[])][..],
            "node \"n2\" is given twice",
        ),
        (
            &[node("n2", "192.0.2.2", &[]), node("n3", "192.0.2.2", &[])],
            "nodes \"n2\" and \"n3\" have one address, 192.0.2.2",
        ),
        (
            &[node("n1", "192.0.2.2", &[]), node("n3", "192.0.2.2", &[])],
            "nodes \"n1\" and \"n3\" have one address, 192.0.2.2",
        ),
        (
            &[node("n2", "192.0.2.1", &[])],
            "node \"n2\" has an address of this host, 192.0.2.1, which is node \"n1\"",
        ),
        (&[node("n2", "2001:db8::1", &[])], "--node n2"),
        (&[node("n2", "198.51.100.1", &[])], "--node n2"),
        (
            &["2", "3", "4", "5"].map(|n| node(n, &format!("192.0.2.{n}"), &[])),
            "4 nodes, expected 3 at most (--max-nodes)",
        ),
    ] {
        let error = others(nodes).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn names_are_like_those_of_files() {
    for text in ["n2", "host-2.example_net", "7"] {
        assert_eq!(name(text).as_deref(), Ok(text));
    }
    let long = "n".repeat(MAX_NAME);
    assert_eq!(name(&long).as_deref(), Ok(long.as_str()));
    for text in ["", ".", "..", ".n2", "-n2", "_", "a/b", "a b", "n\u{e9}", "n\n", "a\0", "a:b"] {
        let error = name(text).unwrap_err();
        assert!(error.contains(&format!("{text:?}")), "{error}");
    }
    assert!(name(&(long + "n")).unwrap_err().contains("129 characters"));
}

#[test]
fn addresses_are_those_of_hosts() {
    for (text, expected) in [
        ("192.0.2.2", "192.0.2.2"),
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8::2", "2001:db8::2"),
        ("fd00::2", "fd00::2"),
        ("::ffff:192.0.2.2", "192.0.2.2"),
    ] {
        assert_eq!(address(text).map(|address| address.to_string()).as_deref(), Ok(expected));
    }
    for (text, word) in [
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("0.0.0.0", "of a host"),
        ("::", "of a host"),
        ("169.254.1.1", "link-local"),
        ("fe80::1", "link-local"),
        ("255.255.255.255", "broadcast"),
        ("192.0.2.2:80", "expected an IP address"),
        ("n2", "expected an IP address"),
        ("", "expected an IP address"),
    ] {
        let error = address(text).unwrap_err();
        assert!(error.contains(&format!("{text:?}")) && error.contains(word), "{error}");
    }
}

fn shown(nodes: &[Node], ports: &[&str]) -> (Vec<String>, BTreeSet<String>) {
    let ports: Vec<_> = ports.iter().map(|text| text.parse().unwrap()).collect();
    let (candidates, remarks) = offered(nodes, &ports);
    let one = |c: &Candidate| {
        let (on, condition) = (c.listen.brief(), &c.condition);
        format!("{} {} {on}>{} {} {condition:?}", c.id, c.name, c.endpoint, c.weight)
    };
    (candidates.iter().map(one).collect(), remarks)
}

#[test]
fn a_node_of_ipv4_serves_clients_of_both_families() {
    let n2 = node("n2", "192.0.2.2", &[("80", 3), ("53/udp", 0)]);
    let (offered, remarks) = shown(std::slice::from_ref(&n2), &[]);
    assert_eq!(
        offered,
        [
            "node:n2 n2 53/udp>192.0.2.2:53 0 Ready",
            "node:n2 n2 53/udp>[::ffff:192.0.2.2]:53 0 Ready",
            "node:n2 n2 80>192.0.2.2:80 3 Ready",
            "node:n2 n2 80>[::ffff:192.0.2.2]:80 3 Ready",
        ]
        .map(str::to_owned)
    );
    assert_eq!(remarks, BTreeSet::new());
    let (candidates, _) = super::offered(&[n2], &[]);
    assert!(
        candidates.iter().all(|one| one.place == Some(Reach::Node(([192, 0, 2, 2], 6_080).into())))
    );
}

#[test]
fn a_node_of_ipv6_serves_clients_of_ipv6_and_that_is_said() {
    let (offered, remarks) = shown(&[node("n2", "2001:db8::2", &[("80", 1)])], &[]);
    assert_eq!(offered, ["node:n2 n2 80>[2001:db8::2]:80 1 Ready"]);
    let remarks: Vec<_> = remarks.into_iter().collect();
    assert!(remarks.len() == 1 && remarks[0].contains("n2 has an IPv6 address"), "{remarks:?}");
}

/// At the address that the port is of, the node does not answer what it is asked at its own.
#[test]
fn a_port_of_one_address_is_of_that_ones_family_and_never_asked() {
    let services = [("198.51.100.7:80", 1), ("[2001:db8::7]:443", 2)];
    let (both, _) = shown(&[node("n2", "192.0.2.2", &services)], &[]);
    assert_eq!(
        both,
        [
            "node:n2 n2 198.51.100.7:80>192.0.2.2:80 1 Unchecked",
            "node:n2 n2 [2001:db8::7]:443>[::ffff:192.0.2.2]:443 2 Unchecked",
        ]
    );
    let (v6, _) = shown(&[node("n2", "2001:db8::2", &services)], &[]);
    assert_eq!(v6, ["node:n2 n2 [2001:db8::7]:443>[2001:db8::2]:443 2 Unchecked"]);
}

#[test]
fn ports_that_no_flag_opens_are_named() {
    let n2 = node("n2", "192.0.2.2", &[("80", 1), ("443", 1), ("80/udp", 1), ("192.0.2.9:80", 1)]);
    let (offered, remarks) = shown(&[n2], &["80:8080"]);
    assert_eq!(
        offered,
        ["node:n2 n2 80>192.0.2.2:80 1 Ready", "node:n2 n2 80>[::ffff:192.0.2.2]:80 1 Ready"]
    );
    let expected = "node n2 offers 192.0.2.9:80, 80/udp, 443, which no -p opens here";
    assert_eq!(remarks, BTreeSet::from([expected.to_owned()]));
}
