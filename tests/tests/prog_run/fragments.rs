//! Fragments of datagrams.

use samport_common::verdict::Verdict;
use samport_tests::frames::{datagram, fragments, to_mac};

use crate::REDIRECT;
use crate::bench::{Bench, mac};
use crate::datagrams::{FAMILIES, addressed};

const PAYLOAD: [u8; 4_001] = [0xa5; 4_001];
/// Bytes of a fragment.
const SIZE: usize = 1_024;

/// Case 42, in exact bytes: every fragment goes where the first went.
#[test]
fn fragments_in_order_follow_the_first_to_its_backend() {
    let mut bench = Bench::with_datagrams();
    for (client, vip, backend, index) in FAMILIES.map(addressed) {
        for id in 0..20 {
            let sent = fragments(&datagram(client, vip, &PAYLOAD), id, SIZE);
            let expected = fragments(&datagram(client, backend, &PAYLOAD), id, SIZE);
            assert_eq!(sent.len(), 4);
            for (sent, expected) in sent.iter().zip(expected) {
                assert_eq!(bench.open(sent), to_mac(expected, mac(index)));
            }
        }
    }
}

/// Case 42: a later fragment before the first is counted and left alone.
#[test]
fn a_later_fragment_before_the_first_is_an_orphan() {
    let mut bench = Bench::with_datagrams();
    for (client, vip, backend, index) in FAMILIES.map(addressed) {
        let sent = fragments(&datagram(client, vip, &PAYLOAD), 7, SIZE);
        let expected = fragments(&datagram(client, backend, &PAYLOAD), 7, SIZE);
        bench.expect_untouched("samport_forward", &sent[2], Verdict::FragmentOrphan);
        bench.expect_untouched("samport_reverse", &sent[2], Verdict::FragmentOrphan);
        for at in [0, 3, 1, 2] {
            assert_eq!(bench.open(&sent[at]), to_mac(expected[at].clone(), mac(index)));
        }
        // Another datagram of the same client: known by its number.
        let other = fragments(&datagram(client, vip, &PAYLOAD), 8, SIZE);
        bench.expect_untouched("samport_forward", &other[1], Verdict::FragmentOrphan);
    }
}

/// Case 42, on the way back.
#[test]
fn fragments_of_an_answer_come_from_what_the_client_dialled() {
    let mut bench = Bench::with_datagrams();
    for (client, vip, backend, _) in FAMILIES.map(addressed) {
        let sent = fragments(&datagram(backend, client, &PAYLOAD), 7, SIZE);
        let expected = fragments(&datagram(vip, client, &PAYLOAD), 7, SIZE);
        bench.expect_untouched("samport_reverse", &sent[0], Verdict::NotAReply);
        bench.expect_untouched("samport_reverse", &sent[1], Verdict::FragmentOrphan);
        bench.open(&datagram(client, vip, b"?"));
        for (sent, expected) in sent.iter().zip(expected) {
            let out = bench.expect("samport_reverse", sent, Verdict::Reply, REDIRECT);
            assert_eq!(out, expected);
        }
    }
}

#[test]
fn fragments_for_other_ports_and_addresses_pass() {
    let mut bench = Bench::with_datagrams();
    for (client, mut vip, ..) in FAMILIES.map(addressed) {
        vip.set_port(81);
        let sent = fragments(&datagram(client, vip, &PAYLOAD), 7, SIZE);
        bench.expect_untouched("samport_forward", &sent[0], Verdict::NotOurs);
        bench.expect_untouched("samport_forward", &sent[1], Verdict::FragmentOrphan);
    }
}

/// RFC 6946: a fragment header on what is no fragment.
#[test]
fn a_datagram_in_one_fragment_is_a_whole_one() {
    let mut bench = Bench::with_datagrams();
    let (client, vip, backend, index) = addressed(FAMILIES[1]);
    let sent = fragments(&datagram(client, vip, b"short"), 7, SIZE);
    let expected = fragments(&datagram(client, backend, b"short"), 7, SIZE);
    assert_eq!((sent.len(), &bench.open(&sent[0])), (1, &to_mac(expected[0].clone(), mac(index))));
    let answer = fragments(&datagram(backend, client, b"short"), 7, SIZE);
    let expected = fragments(&datagram(vip, client, b"short"), 7, SIZE);
    let out = bench.expect("samport_reverse", &answer[0], Verdict::Reply, REDIRECT);
    assert_eq!(out, expected[0]);
}
