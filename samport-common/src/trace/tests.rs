use std::net::Ipv6Addr;

use super::*;

fn wide(text: &str) -> [u8; 16] {
    text.parse::<Ipv6Addr>().unwrap().octets()
}

fn ends(source: (&str, u16), destination: (&str, u16)) -> Ends {
    Ends {
        source: wide(source.0),
        destination: wide(destination.0),
        source_port: source.1.to_be_bytes(),
        destination_port: destination.1.to_be_bytes(),
        protocol: protocol::TCP,
        ..Ends::default()
    }
}

const CLIENT: (&str, u16) = ("::ffff:192.0.2.2", 40_000);
const VIP: (&str, u16) = ("::ffff:192.0.2.1", 80);
const BACKEND: (&str, u16) = ("::ffff:172.30.0.10", 9_090);

/// A client's packet on its way to a backend, and the reply: as they came, as they left.
fn both_ways() -> [(Ends, Ends); 2] {
    [(ends(CLIENT, VIP), ends(CLIENT, BACKEND)), (ends(BACKEND, CLIENT), ends(VIP, CLIENT))]
}

fn everything() -> Watch {
    Watch { until_ns: 1, verdicts: u64::MAX, ..Watch::default() }
}

fn end((addr, port): (&str, u16)) -> End {
    End { addr: wide(addr), port: port.to_be_bytes(), ..End::default() }
}

fn watching(backends: &[End]) -> Watch {
    let mut watch = everything();
    watch.backends[..backends.len()].copy_from_slice(backends);
    watch.backends_len = u32::try_from(backends.len()).unwrap();
    watch
}

#[test]
fn without_a_filter_everything_is_told() {
    for (came, left) in both_ways() {
        assert!(everything().wants(&came, &left));
    }
    assert!(everything().wants(&Ends::default(), &Ends::default()), "ARP too");
}

#[test]
fn verdicts_are_told_by_their_bits() {
    let watch = Watch { verdicts: 1 << 6 | 1 << 39, ..Watch::default() };
    let told: Vec<_> =
        (0..Verdict::COUNT).filter(|verdict| watch.wants_verdict(*verdict)).collect();
    assert_eq!(told, [6, 39]);
}

#[test]
fn a_client_is_told_of_both_ways() {
    let v4 = |text| wide(&format!("::ffff:{text}"));
    let mut mask = [0xff; 16];
    mask[15] = 0;
    for (network, told) in [("192.0.2.0", true), ("198.51.100.0", false)] {
        let watch = Watch { network: v4(network), mask, ..everything() };
        for (came, left) in both_ways() {
            assert_eq!(watch.wants(&came, &left), told, "{network}");
        }
        assert!(!watch.wants(&Ends::default(), &Ends::default()), "{network}");
    }
}

#[test]
fn a_port_is_the_one_that_clients_dial() {
    for (port, told) in [(80, true), (9_090, false), (40_000, false)] {
        let watch = Watch { port: u16::to_be_bytes(port), ..everything() };
        for (came, left) in both_ways() {
            assert_eq!(watch.wants(&came, &left), told, "{port}");
        }
    }
}

#[test]
fn a_backend_is_told_of_both_ways_and_of_its_own_port() {
    let other = ("::ffff:172.30.0.11", 9_090);
    for (backends, told) in [
        (&[end(BACKEND)][..], true),
        (&[end(other), end(BACKEND)][..], true),
        (&[end(other)][..], false),
        (&[end((BACKEND.0, 9_091))][..], false),
    ] {
        for (came, left) in both_ways() {
            assert_eq!(watching(backends).wants(&came, &left), told, "{backends:?}");
        }
    }
    // A full list is walked to its end.
    let mut full = [end(other); MAX_WATCHED];
    full[MAX_WATCHED - 1] = end(BACKEND);
    let [(came, left), _] = both_ways();
    assert!(watching(&full).wants(&came, &left));
}
