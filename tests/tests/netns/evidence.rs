//! Who avoids a backend that fails connections: all, when several clients say so and a check confirms it.
//! Otherwise nobody but the connection that has failed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use samport::lab::{CLIENT_V4, Namespace, output_of};
use samport_tests::attacker::Attacker;
use samport_tests::daemon::{Backends, Daemon, samport};
use samport_tests::frames::with_wrong_checksum;
use samport_tests::load::Tally;
use samport_tests::packet::Segment;
use samport_tests::served::{LISTEN, Served, TARGET};
use samport_tests::socket::{ask_on, connect_between};
use samport_tests::{Lab, TIMEOUT, eventually, number_in, stats};
use serde_json::Value;

use crate::lab;

/// What is said when a check has confirmed that a backend fails.
pub const AVOIDED: &str = "new connections avoid it for";
/// Addresses of clients besides the usual one.
const OTHERS: [u8; 4] = [101, 102, 103, 104];
/// Forged SYNs a second: few enough for anybody's line.
const FORGED_A_SECOND: u8 = 12;

/// Listens to no interval: whatever is checked is checked for a reason.
const NEVER: [&str; 4] = ["--health", "tcp", "--health-interval", "1h"];

const fn client(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

/// A lab whose client has addresses of others too.
pub fn lab_of_clients(backends: u8) -> Lab {
    let lab = lab(backends);
    for last in OTHERS {
        lab.client().batch(&format!("addr add {}/24 dev eth0\n", client(last))).unwrap();
    }
    lab
}

/// Who answers a client's request.
fn ask(lab: &Lab, from: impl Into<IpAddr>) -> String {
    let from = from.into();
    let front = if from.is_ipv4() { lab.front(LISTEN) } else { lab.front_v6(LISTEN) };
    lab.client().run(|| {
        let stream = connect_between(SocketAddr::new(from, 0), front)
            .unwrap_or_else(|error| panic!("{from} to {front}: {error}"));
        ask_on(&stream, "/").unwrap_or_else(|error| panic!("{from} to {front}: {error}")).backend
    })
}

/// Who answers so many requests of a client, one after the other.
fn ask_often(lab: &Lab, from: Ipv4Addr, requests: u32) -> Tally {
    let mut tally = Tally::default();
    for _ in 0..requests {
        tally.add(&ask(lab, from));
    }
    tally
}

/// The same, many at a time: each that comes upon a backend that fails waits for a second.
fn ask_at_once(lab: &Lab, from: impl Into<IpAddr>, requests: usize) -> Tally {
    let from = from.into();
    let mut tally = Tally::default();
    thread::scope(|scope| {
        let asking: Vec<_> = (0..requests).map(|_| scope.spawn(|| ask(lab, from))).collect();
        for one in asking {
            tally.add(&one.join().unwrap());
        }
    });
    tally
}

/// The sum of a counter over a backend's addresses; of all backends if it has no name.
fn counted(lab: &Lab, name: &str, counter: &str) -> u64 {
    let output = samport(lab.host(), &["backends", "-o", "json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = document["backends"].as_array().unwrap();
    let is_meant = |one: &&Value| name.is_empty() || one["name"] == name;
    let number = |one: &Value| {
        let number = &one["counters"][counter];
        number.as_u64().unwrap_or_else(|| panic!("no {counter} in {one:#}"))
    };
    all.iter().filter(is_meant).map(number).sum()
}

fn said(daemon: &Daemon, text: &str) -> bool {
    daemon.lines().iter().any(|line| line.text.contains(text))
}

/// Connections of several clients fail at a backend, unless it is avoided by all before.
pub fn let_clients_fail(lab: &Lab, name: &str, counter: &str) {
    let_these_fail(lab, name, counter, OTHERS.map(|last| client(last).into()));
}

fn let_these_fail(lab: &Lab, name: &str, counter: &str, clients: [IpAddr; 4]) {
    for from in clients {
        let before = counted(lab, name, counter);
        eventually(&format!("{from} comes upon {name}, or it is avoided"), || {
            ask_at_once(lab, from, 8);
            let is_avoided = counted(lab, name, "evidence_confirmed") > 0;
            (is_avoided || counted(lab, name, counter) > before).then_some(())
        });
    }
}

/// A client keeps coming upon a backend that fails: it is not avoided.
fn assert_not_avoided(lab: &Lab, name: &str, counter: &str) {
    let before = counted(lab, name, counter);
    let tally = ask_at_once(lab, CLIENT_V4, 40);
    assert_eq!((tally.total(), tally.of(name)), (40, 0), "{tally}");
    assert!(counted(lab, name, counter) > before, "{name} is avoided");
}

/// Sends SYNs that nobody answers, each once more when its client would ask again. Every second one has the address
/// of the honest client.
fn forge(attacker: &Attacker, front: SocketAddr, is_over: &AtomicBool, rounds: &AtomicU32) {
    let frame = |source: SocketAddr| with_wrong_checksum(Segment::syn(source, front).frame());
    let mut before: Vec<Vec<u8>> = Vec::new();
    for port in 20_000.. {
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        let source = |n: u8| if n.is_multiple_of(2) { CLIENT_V4 } else { client(150 + n) };
        let new: Vec<_> = (0..FORGED_A_SECOND)
            .map(|n| frame((source(n), port + u16::from(n) * 1_000).into()))
            .collect();
        for frame in before.iter().chain(&new) {
            attacker.send_frame(frame.clone());
        }
        before = new;
        rounds.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(1_050));
    }
}

/// Forged SYNs change no backend's share, whatever the service chooses by.
fn assert_forged_syns_change_nothing(options: &[&str], is_sticky: bool) {
    let rounds_at_least = number_in("SAMPORT_FORGED_SECONDS").unwrap_or(4);
    let served = Served::start(lab(3), options);
    let lab = &served.lab;
    let names = ["web-1", "web-2", "web-3"];
    let attacker = Attacker::new(lab.client(), lab.host(), "eth0");
    let usual = ask(lab, CLIENT_V4);
    let (is_over, rounds) = (AtomicBool::new(false), AtomicU32::new(0));
    let front = lab.front(LISTEN);
    let mut tally = Tally::default();
    thread::scope(|scope| {
        scope.spawn(|| forge(&attacker, front, &is_over, &rounds));
        // Without any success in between: the evidence is complete, and only the check says otherwise.
        let refuted = || (counted(lab, "", "evidence_refuted") > 0).then_some(());
        let refuted = std::panic::catch_unwind(|| eventually("evidence is refuted", refuted));
        let begin = rounds.load(Ordering::Relaxed);
        while refuted.is_ok() && rounds.load(Ordering::Relaxed) < begin + rounds_at_least {
            tally.add(&ask(lab, CLIENT_V4));
            thread::sleep(Duration::from_millis(5));
        }
        is_over.store(true, Ordering::Relaxed);
        refuted.unwrap_or_else(|cause| std::panic::resume_unwind(cause));
    });
    let total = tally.total();
    assert!(total > 100, "{options:?}: {tally}");
    println!("{options:?}: of {total} connections beside forged SYNs {:?}", tally.counts());
    for name in names {
        // Half-open connections count as open for a while, forged ones too (docs/concepts/limits.md): who chooses by that
        // follows where they happen to be. But nobody is avoided.
        if !is_sticky && options.contains(&"least-conn") {
            assert!(tally.of(name) > total / 20, "{options:?}, {name}: {tally}");
            continue;
        }
        let share = if is_sticky { f64::from(u8::from(name == usual)) } else { 1.0 / 3.0 };
        let is_fair = stats::within_four_sigma(tally.of(name), total, share);
        assert!(is_fair, "{options:?}, {name}: {tally}");
    }
    assert!(counted(lab, "", "silent") > 0);
    assert_eq!(counted(lab, "", "evidence_confirmed"), 0, "{options:?}");
    assert!(!said(&served.daemon, AVOIDED), "{options:?}: {:?}", served.daemon.lines());
}

/// Case 63: forged SYNs, each repeated as by a client without an answer, change no backend's share.
#[test]
fn forged_syns_change_no_share_of_who_chooses_at_random() {
    assert_forged_syns_change_nothing(&[], false);
}

#[test]
fn forged_syns_change_no_share_of_turns() {
    assert_forged_syns_change_nothing(&["--balance", "round-robin"], false);
}

#[test]
fn forged_syns_make_nobody_avoided_who_is_chosen_by_connections() {
    assert_forged_syns_change_nothing(&["--balance", "least-conn"], false);
}

#[test]
fn forged_syns_change_no_share_of_who_chooses_by_ports() {
    assert_forged_syns_change_nothing(&["--balance", "maglev"], false);
}

/// Case 63: nor do they take a client from its backend.
#[test]
fn forged_syns_take_no_client_from_the_backend_of_its_address() {
    assert_forged_syns_change_nothing(&["--balance", "source-hash"], true);
}

#[test]
fn forged_syns_take_no_client_from_the_backend_it_has_got_before() {
    for balance in ["random", "round-robin", "least-conn", "maglev", "source-hash"] {
        let options = ["--affinity", "10m", "--balance", balance];
        assert_forged_syns_change_nothing(&options, true);
    }
}

/// The backend's own firewall drops what comes from a client.
fn drop_client(backend: &Namespace, from: Ipv4Addr) {
    let from = from.to_string();
    let rule = ["-w", "-A", "INPUT", "-s", &from, "-j", "DROP"];
    output_of(backend.command("iptables").args(rule)).unwrap();
}

/// Case 63: one client that a backend's firewall drops is served by the others, and others do not notice.
#[test]
fn who_is_dropped_by_one_backends_firewall_is_served_by_others_and_nobody_else_notices() {
    for balance in ["random", "source-hash"] {
        let served = Served::start(lab_of_clients(3), &["--balance", balance]);
        let lab = &served.lab;
        let dropped = client(OTHERS[0]);
        let usual = ask(lab, dropped);
        let backend = lab.backends().iter().find(|one| one.name() == usual).unwrap();
        drop_client(backend.namespace(), dropped);
        let silent = || counted(lab, &usual, "silent");
        eventually("it comes upon the one that drops it, a few times", || {
            let tally = ask_at_once(lab, dropped, 8);
            assert_eq!((tally.total(), tally.of(&usual)), (8, 0), "{tally}");
            (silent() >= 4).then_some(())
        });
        if balance == "random" {
            let tally = ask_often(lab, CLIENT_V4, 300);
            for one in lab.backends() {
                let count = tally.of(one.name());
                assert!(stats::within_four_sigma(count, 300, 1.0 / 3.0), "{tally}");
            }
        } else {
            let of_usual = OTHERS[1..].iter().map(|last| client(*last)).chain([CLIENT_V4]);
            for other in of_usual {
                let before = ask(lab, other);
                assert_eq!(ask_often(lab, other, 20).of(&before), 20);
            }
        }
        assert_eq!(counted(lab, "", "evidence_confirmed"), 0);
        assert!(!said(&served.daemon, AVOIDED), "{:?}", served.daemon.lines());
    }
}

/// Case 63: several clients and a backend that really is dead, without any check at an interval: all avoid it once the check
/// on evidence has failed, and it is used again when it is back.
#[test]
fn a_backend_that_fails_several_clients_and_the_check_is_avoided_by_all_until_it_is_back() {
    for (balance, silent) in [("random", false), ("source-hash", false), ("random", true)] {
        let mut served = Served::start(lab_of_clients(3), &["--balance", balance]);
        let victim = ask(&served.lab, client(OTHERS[0]));
        let index = served.lab.backends().iter().position(|one| one.name() == victim).unwrap();
        let of_victim = || -> Vec<Ipv4Addr> {
            let all = (101..105).map(client);
            all.filter(|one| balance != "source-hash" || ask(&served.lab, *one) == victim).collect()
        };
        // By address only some come upon it: as many as are needed do.
        let mut clients = of_victim();
        if balance == "source-hash" {
            for last in 110..180 {
                if clients.len() >= 4 {
                    break;
                }
                let add = format!("addr add {}/24 dev eth0\n", client(last));
                served.lab.client().batch(&add).unwrap();
                if ask(&served.lab, client(last)) == victim {
                    clients.push(client(last));
                }
            }
        }
        let namespace = served.lab.backends()[index].namespace().name().to_owned();
        let (counter, why) = if silent {
            ("silent", "no answer within 2s")
        } else {
            ("refused", "connection refused")
        };
        let port = TARGET.to_string();
        let rule = |what| ["-w", what, "INPUT", "-p", "tcp", "--dport", &port, "-j", "DROP"];
        let firewall = |lab: &Lab, what| {
            let backend = lab.backends().iter().find(|one| one.namespace().name() == namespace);
            output_of(backend.unwrap().namespace().command("iptables").args(rule(what))).unwrap();
        };
        if silent {
            firewall(&served.lab, "-A");
        } else {
            drop(served.servers.remove(index));
        }
        let line = format!("its check fails: {why}; {AVOIDED} 10 s");
        for from in &clients {
            let before = counted(&served.lab, &victim, counter);
            eventually(&format!("{from} comes upon {victim}, or it is avoided"), || {
                ask_at_once(&served.lab, *from, 8);
                let found = counted(&served.lab, &victim, counter) > before;
                (found || said(&served.daemon, &line)).then_some(())
            });
        }
        served.daemon.wait_for_line(&line, TIMEOUT);
        assert_eq!(counted(&served.lab, &victim, "evidence_confirmed"), 1);
        let before = counted(&served.lab, &victim, counter);
        let tally = ask_often(&served.lab, clients[0], 60);
        assert_eq!((tally.total(), tally.of(&victim)), (60, 0), "{tally}");
        assert_eq!(counted(&served.lab, &victim, counter), before, "nobody has come upon it");

        if silent {
            firewall(&served.lab, "-D");
        } else {
            served.servers.push(served.lab.backends()[index].serve(TARGET).unwrap());
        }
        eventually(&format!("{victim} is used again"), || {
            (ask(&served.lab, clients[0]) == victim).then_some(())
        });
    }
}

/// All clients behind one address are one: nobody avoids the backend for it. Where there is an active health check
/// it is made at once, and its counts decide.
#[test]
fn one_address_never_makes_a_backend_avoided_but_has_its_health_check_made_at_once() {
    let mut served = Served::start(lab(2), &[]);
    drop(served.servers.remove(1));
    for _ in 0..3 {
        assert_not_avoided(&served.lab, "web-2", "refused");
    }
    assert_eq!(counted(&served.lab, "web-2", "evidence_confirmed"), 0);
    assert_eq!(counted(&served.lab, "web-2", "evidence_refuted"), 0);
    assert!(!said(&served.daemon, AVOIDED), "{:?}", served.daemon.lines());

    let mut served = Served::start(lab(2), &NEVER);
    drop(served.servers.remove(1));
    assert_not_avoided(&served.lab, "web-2", "refused");
    let unhealthy = "unhealthy: connection refused (3 times)";
    served.daemon.wait_for_line(unhealthy, TIMEOUT);
    let before = counted(&served.lab, "web-2", "refused");
    assert_eq!(ask_often(&served.lab, CLIENT_V4, 40).of("web-1"), 40);
    assert_eq!(counted(&served.lab, "web-2", "refused"), before);
    assert!(!said(&served.daemon, AVOIDED), "{:?}", served.daemon.lines());
}

/// One host may use all addresses of its network: in IPv6 clients are told apart by their networks.
#[test]
fn clients_of_ipv6_are_as_many_as_their_networks() {
    let lab = lab(2);
    let addresses = |network: fn(u16) -> u16| {
        [1, 2, 3, 4].map(|n| Ipv6Addr::new(0x2001, 0xdb8, 0x11, network(n), 0, 0, 0, n))
    };
    let (of_one, of_four) = (addresses(|_| 9), addresses(|n| n));
    lab.host().ip(&["-6", "route", "add", "2001:db8:11::/48", "dev", "eth0"]).unwrap();
    for address in of_one.into_iter().chain(of_four) {
        lab.client().batch(&format!("addr add {address}/48 dev eth0 nodad\n")).unwrap();
    }
    let mut served = Served::start(lab, &[]);
    drop(served.servers.remove(1));
    let_these_fail(&served.lab, "web-2", "refused", of_one.map(Into::into));
    assert_eq!(counted(&served.lab, "web-2", "evidence_confirmed"), 0);
    assert!(!said(&served.daemon, AVOIDED), "{:?}", served.daemon.lines());
    let_these_fail(&served.lab, "web-2", "refused", of_four.map(Into::into));
    served.daemon.wait_for_line(AVOIDED, TIMEOUT);
}

/// With `--health none` nothing of ours may ask a backend, so nothing confirms what clients say. Each of their
/// connections goes to another backend all the same.
#[test]
fn without_health_checks_nobody_else_avoids_a_backend_and_every_connection_succeeds() {
    let mut served = Served::start(lab_of_clients(2), &["--health", "none"]);
    drop(served.servers.remove(1));
    let_clients_fail(&served.lab, "web-2", "refused");
    assert_not_avoided(&served.lab, "web-2", "refused");
    assert_eq!(counted(&served.lab, "web-2", "evidence_confirmed"), 0);
    assert!(!said(&served.daemon, AVOIDED), "{:?}", served.daemon.lines());
}

/// The programs go on without samport: connections that fail go to others, nobody else avoids the backend, and what
/// was confirmed before runs out.
#[test]
fn without_the_loader_connections_fail_over_and_what_was_confirmed_runs_out() {
    let mut served = Served::start(lab_of_clients(2), &[]);
    drop(served.servers.remove(1));
    let_clients_fail(&served.lab, "web-2", "refused");
    served.daemon.wait_for_line(AVOIDED, TIMEOUT);
    served.daemon.kill9();
    let refused = || counted_in_maps(&served.lab, "web-2");
    let before = refused();
    eventually("web-2 is tried again", || {
        ask(&served.lab, CLIENT_V4);
        (refused() > before).then_some(())
    });
    // Evidence of all clients is there by now, and nobody to confirm it.
    for last in OTHERS {
        let before = refused();
        let tally = ask_at_once(&served.lab, client(last), 40);
        assert_eq!((tally.total(), tally.of("web-2")), (40, 0), "{tally}");
        assert!(refused() > before, "web-2 is avoided");
    }
}

/// What `samport status` says a killed instance's backend has refused.
fn counted_in_maps(lab: &Lab, name: &str) -> u64 {
    let status = samport_tests::served::Status::only_in(lab.host());
    let ours = status.backends().iter().filter(|one| one["name"] == name);
    ours.map(|one| one["refused"].as_u64().unwrap()).sum()
}

/// A datagram that cannot be delivered is counted, and is no evidence: there is no connection that a check could
/// confirm to fail.
#[test]
fn datagrams_that_cannot_be_delivered_are_counted_and_no_evidence() {
    // The kernel sends an address only six errors at once (icmp(7)).
    const AT_ONCE: u64 = 6;
    let lab = lab_of_clients(2);
    let file = Backends::of(&lab, TARGET);
    let port = format!("{LISTEN}:{TARGET}/udp");
    let daemon = Daemon::start(&lab, &["-i", "eth0", "-p", &port, "--file", file.path()]);
    let front = lab.front(LISTEN);
    for last in OTHERS {
        lab.client().run(|| {
            for _ in 0..AT_ONCE {
                let socket = std::net::UdpSocket::bind((IpAddr::V4(client(last)), 0)).unwrap();
                socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
                socket.connect(front).unwrap();
                // One backend has refused it, which is not told; then the other one, which is.
                eventually("the client is told", || {
                    socket.send(b"?").unwrap();
                    let kind = socket.recv(&mut [0; 16]).unwrap_err().kind();
                    (kind == std::io::ErrorKind::ConnectionRefused).then_some(())
                });
            }
        });
    }
    assert!(counted(&lab, "", "unreachable") >= 2 * AT_ONCE * OTHERS.len() as u64);
    for counter in ["refused", "silent", "evidence_confirmed", "evidence_refuted"] {
        assert_eq!(counted(&lab, "", counter), 0, "{counter}");
    }
    assert!(!said(&daemon, AVOIDED), "{:?}", daemon.lines());
}
