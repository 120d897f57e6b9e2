use samport_common::choose::Load;
use samport_common::conntrack::Seconds;
use samport_common::failover::Refusals;
use samport_common::layout::{Backend, DeviceInfo, DeviceSet, Evidence};
use samport_common::source::{NextHop, Route};

use super::*;
use crate::model::snapshots::Pages;

const VIP: &str = "198.51.100.7:80";
const CLIENT: &str = "203.0.113.9:51022";
const SLOTS: [u32; 2] = [1, 2];
const SEED: Seed = Seed::from_bytes([7; Seed::BYTES]);
const ETH0: u32 = 2;
const ETH1: u32 = 3;
const BR0: u32 = 5;
const BR1: u32 = 6;
const VETH: u32 = 12;

fn member(id: u8, state: BackendState, shown: &str) -> Member {
    let mut addr = [0; 16];
    addr[10..].copy_from_slice(&[0xff, 0xff, 172, 18, 0, id]);
    let backend = Backend {
        addr,
        port: 8_080_u16.to_be_bytes(),
        mac: [0; 6],
        ifindex: 7,
        generation: 3,
        weight: 1,
        state: state as u8,
        forward_mode: ForwardMode::Peer as u8,
        shared: 0,
        takes_frames: 0,
        answers_on: DeviceSet::NONE,
    };
    let known = Known {
        backend,
        load: Load { open: 0, weight: 1 },
        suspect_until: 0,
        evidence: Evidence::default(),
    };
    Member {
        known,
        name: format!("web-{id}"),
        state: shown.to_owned(),
        device: Some(format!("veth{id}")),
        route_back: None,
    }
}

fn facts() -> Facts {
    let service = Service {
        slots: 2,
        affinity_ticks: 0,
        id: 1,
        scope: Scope::External as u8,
        balance: Balance::Random as u8,
        flags: 0,
        pad: 0,
    };
    let found = DialledService {
        service,
        listen: Listen::tcp(80),
        name: "80/tcp".to_owned(),
        allowed: true,
        flow: None,
        is_begun_here: false,
        taken: Vec::new(),
        affinity: None,
        slots: SLOTS.to_vec(),
        turn: 0,
        members: [1, 2].map(|id| (id.into(), member(id, BackendState::Serving, "active"))).into(),
        others: vec![("web-3".to_owned(), "is starting".to_owned())],
    };
    Facts {
        question: Question {
            client: CLIENT.parse().unwrap(),
            dialled: VIP.parse().unwrap(),
            protocol: Protocol::Tcp,
        },
        node: None,
        instance: "eth0:80@1".to_owned(),
        entry: Entry::Device(door(ETH0, "eth0")),
        source: source(),
        found: Some(found),
        served: Vec::new(),
        now_tick: 1_000,
        timeouts: Timeouts::new(&Seconds::DEFAULT),
        hash_seed: Some(SEED),
    }
}

fn door(ifindex: u32, name: &str) -> EntryDevice {
    EntryDevice {
        from_node: None,
        ifindex,
        name: name.to_owned(),
        is_outer: [ETH0, ETH1].contains(&ifindex),
        is_container: ifindex == VETH,
        hook: "tcx".to_owned(),
    }
}

/// The client is behind eth0.
/// Out of this device, without a gateway.
const fn via(ifindex: u32) -> Route {
    Route::Via(ifindex, NextHop::OnLink)
}

fn info(side: Option<Side>) -> Option<DeviceInfo> {
    side.map(|side| DeviceInfo { side: side as u8, ..DeviceInfo::default() })
}

fn source() -> SourceFacts {
    let (outside, inside) = (Some(Side::External), Some(Side::Internal));
    let devices = [
        (ETH0, "eth0", outside),
        (ETH1, "eth1", outside),
        (BR0, "br0", inside),
        (BR1, "br1", inside),
        (VETH, "veth12", inside),
    ];
    let devices = devices.map(|(ifindex, name, side)| {
        (ifindex, SourceDevice { name: name.to_owned(), info: info(side) })
    });
    SourceFacts { routes: [via(ETH0); 2], devices: devices.into(), ..SourceFacts::default() }
}

/// The facts with something special about the service.
fn with(change: impl FnOnce(&mut DialledService)) -> Facts {
    let mut facts = facts();
    change(facts.found.as_mut().unwrap());
    facts
}

#[test]
fn a_backend_whose_answers_do_not_reach_outside_clients_is_named() {
    let facts = |is_cut_off: bool, entry: EntryDevice| {
        let mut facts = with(|found| {
            for member in found.members.values_mut() {
                member.route_back = Some(!is_cut_off);
            }
        });
        facts.entry = Entry::Device(entry);
        facts
    };
    let (eth0, br0) = (door(ETH0, "eth0"), door(BR0, "br0"));
    let outside = explain(facts(true, eth0.clone()));
    let notes: Vec<_> =
        outside.notes.iter().filter(|note| note.contains("no route back")).collect();
    assert_eq!(notes.len(), SLOTS.len(), "{:?}", outside.notes);
    assert!(notes[0].starts_with("web-1 "), "{notes:?}");
    assert_eq!(explain(facts(false, eth0)).notes, [""; 0]);
    assert_eq!(explain(facts(true, br0)).notes, [""; 0]);
}

fn flow(backend: u32, state: State, idle_ticks: u32) -> Remembered {
    Remembered {
        backend,
        generation: 3,
        state,
        idle_ticks,
        age: 0,
        reply_path: ReplyPath::out_of(ETH0),
        is_unproven: false,
        refusals: Refusals::default(),
        side: Side::External,
    }
}

/// Who gets it, in the order of their names, by these words.
fn assert_goes(facts: Facts, to: &[&str], words: &[&str]) {
    let explanation = explain(facts);
    let said = lines(&explanation);
    let Fate::Goes(_, shares) = &explanation.fate else { panic!("{said}") };
    let found = explanation.facts.found.as_ref().unwrap();
    let names: Vec<_> = shares.iter().map(|(id, _)| found.members[id].name.as_str()).collect();
    assert_eq!(names, to, "{said}");
    assert_says(&explanation, words);
}

fn assert_leaves(facts: Facts, verdict: Verdict, words: &[&str]) {
    let explanation = explain(facts);
    assert_eq!(explanation.fate, Fate::Leaves(verdict), "{}", lines(&explanation));
    assert_says(&explanation, words);
    assert_eq!(document(&explanation).verdict.as_deref(), Some(verdict.name()));
}

fn assert_says(explanation: &Explanation, words: &[&str]) {
    let said = lines(explanation);
    for word in words {
        assert!(said.contains(word), "nothing about {word:?} in\n{said}");
    }
}

#[test]
fn an_existing_flow_stays_with_its_backend() {
    let said = lines(&explain(with(|found| found.flow = Some(flow(2, State::Established, 3)))));
    assert_eq!(
        said,
        "eth0 ingress (tcx) → service 80/tcp → allowed → existing flow (established, idle for 3 s) → web-2\n  \
         → destination 172.18.0.2:8080 → redirect to veth2, netfilter skipped"
    );
}

#[test]
fn an_existing_flow_stays_with_a_backend_that_drains_and_a_new_one_goes_elsewhere() {
    let drains = |found: &mut DialledService| {
        found.members.insert(2, member(2, BackendState::Draining, "draining"));
        found.slots = vec![1];
        found.others = vec![("web-2".to_owned(), "is draining".to_owned())];
    };
    let old = with(|found| {
        drains(found);
        found.flow = Some(flow(2, State::Established, 0));
    });
    assert_goes(old, &["web-2"], &["web-2 (draining: it keeps its flows)"]);
    assert_goes(
        with(drains),
        &["web-1"],
        &["new, random → web-1", "passed over: web-2 is draining"],
    );
}

#[test]
fn a_new_flow_goes_to_one_of_those_that_may_be_drawn() {
    let words = ["one of\n  web-1 (50.0 %) → destination 172.18.0.1:8080", "web-3 is starting"];
    assert_goes(facts(), &["web-1", "web-2"], &words);
    let failed = with(|found| {
        found.members.get_mut(&2).unwrap().known.suspect_until = 1_010;
    });
    assert_goes(failed, &["web-1"], &["web-2 has failed lately, avoided for 10 s"]);
}

#[test]
fn a_flow_that_is_over_begins_anew() {
    for over in [flow(2, State::Finished, 0), flow(2, State::SynSent, 900)] {
        let words = ["new, random", "(the flow this port had with web-2 is over)"];
        assert_goes(with(|found| found.flow = Some(over)), &["web-1", "web-2"], &words);
    }
}

#[test]
fn a_flow_whose_backend_is_gone_is_reset() {
    let gone = |found: &mut DialledService| {
        found.members.insert(2, member(2, BackendState::Down, "down"));
        found.flow = Some(flow(2, State::Established, 0));
    };
    assert_leaves(with(gone), Verdict::GoneReset, &["its backend is gone → answered with a reset"]);
    let reused = |found: &mut DialledService| {
        found.members.get_mut(&2).unwrap().known.backend.generation = 4;
        found.flow = Some(flow(2, State::Established, 0));
    };
    assert_leaves(with(reused), Verdict::GoneReset, &[]);
}

#[test]
fn a_backend_that_keeps_silent_is_exchanged_for_another() {
    let silent = |flags: u32| {
        with(|found| {
            found.service.flags = flags;
            found.flow = Some(flow(2, State::SynSent, 1));
            found.flow.as_mut().unwrap().age = failover::SILENT_AFTER;
        })
    };
    assert_goes(silent(service::FAILOVER), &["web-1"], &[]);
    assert_goes(silent(0), &["web-2"], &["existing flow (syn-sent"]);
}

#[test]
fn a_connection_whose_refusal_was_held_back_goes_to_one_that_has_not_failed_its_client() {
    let failed = |also: Option<SocketAddr>| {
        with(|found| {
            found.members.insert(3, member(3, BackendState::Serving, "active"));
            found.slots = vec![1, 2, 3];
            found.flow = Some(flow(2, State::Failed, 1));
            let evidence = &mut found.members.get_mut(&3).unwrap().known.evidence;
            evidence.last_tick = 1_000;
            if let Some(client) = also {
                evidence.clients[0] = failover::fingerprint(wide(client.ip()));
            }
        })
    };
    let client = facts().question.client;
    let words = ["web-2 has failed this client's connection"];
    assert_goes(failed(None), &["web-1", "web-3"], &words);
    let words = ["web-3 has failed this client's connection"];
    assert_goes(failed(Some(client)), &["web-1"], &words);
    let other = SocketAddr::new([203, 0, 113, 77].into(), client.port());
    assert_goes(failed(Some(other)), &["web-1", "web-3"], &[]);
}

#[test]
fn hashes_lead_to_one_backend() {
    let by = |balance: Balance| {
        with(|found| {
            found.service.balance = balance as u8;
            found.members.insert(3, member(3, BackendState::Serving, "active"));
            found.slots = vec![1, 2, 3];
        })
    };
    for balance in [Balance::Maglev, Balance::SourceHash] {
        for port in 51_000..51_010 {
            let mut facts = by(balance);
            facts.question.client.set_port(port);
            let client = facts.question.client;
            let with_port = balance == Balance::Maglev;
            let hash = crate::dataplane::map_reader::hash(&SEED, client, with_port);
            let slot = samport_common::choose::slot(hash, 3).unwrap() as usize;
            let expected = format!("web-{}", slot + 1);
            assert_goes(facts, &[&expected], &[&format!("new, {} → {expected}", balance.name())]);
        }
    }
}

/// It runs on from a version that knew none.
#[test]
fn where_no_seed_is_known_a_hash_may_lead_to_any() {
    let mut facts = with(|found| found.service.balance = Balance::SourceHash as u8);
    facts.hash_seed = None;
    assert_goes(facts, &["web-1", "web-2"], &["new, source-hash"]);
}

#[test]
fn a_client_stays_with_its_backend_as_long_as_it_is_remembered() {
    let stays = |backend, idle| {
        with(|found| {
            found.service.affinity_ticks = 100;
            found.affinity = Some((backend, 3, idle));
        })
    };
    assert_goes(stays(2, 100), &["web-2"], &["new, affinity → web-2"]);
    assert_goes(stays(2, 101), &["web-1", "web-2"], &["new, random"]);
    let mut drains = stays(2, 0);
    let found = drains.found.as_mut().unwrap();
    found.members.insert(2, member(2, BackendState::Draining, "draining"));
    found.slots = vec![1];
    assert_goes(drains, &["web-1"], &["new, random"]);
}

#[test]
fn a_backend_the_same_port_talks_to_by_another_address_is_passed_over() {
    assert_goes(with(|found| found.taken = vec![1]), &["web-2"], &["web-1 has this port's"]);
    let all = with(|found| found.taken = vec![1, 2]);
    assert_leaves(all, Verdict::FlowAmbiguous, &["dropped (flow-ambiguous)"]);
}

#[test]
fn who_is_not_allowed_is_dropped_and_who_is_outside_is_not_served_inside() {
    let not_allowed = with(|found| found.allowed = false);
    let words = ["203.0.113.9 is in none of its networks → dropped (not-allowed)"];
    assert_leaves(not_allowed, Verdict::NotAllowed, &words);
    let inside = with(|found| found.service.scope = Scope::Internal as u8);
    assert_leaves(inside, Verdict::NotOurs, &["clients on this machine and in its containers"]);
    let mut bridge = with(|found| found.service.scope = Scope::Internal as u8);
    (bridge.entry, bridge.source.routes) = (Entry::Device(door(BR0, "br0")), [via(BR0); 2]);
    assert_goes(bridge, &["web-1", "web-2"], &[]);
}

#[test]
fn without_a_backend_it_is_as_the_service_says() {
    let empty = |found: &mut DialledService| found.slots = Vec::new();
    assert_leaves(
        with(empty),
        Verdict::NoBackendReset,
        &["answered with a reset", "web-3 is starting"],
    );
    let drops = with(|found| {
        empty(found);
        found.service.flags = service::DROP;
    });
    assert_leaves(drops, Verdict::NoBackendDrop, &["dropped"]);
    let mut udp = with(empty);
    udp.question.protocol = Protocol::Udp;
    assert_leaves(udp, Verdict::NoBackend, &["left to this machine's own stack"]);
}

#[test]
fn what_is_not_served_says_what_is() {
    let mut other = facts();
    other.found = None;
    other.served = vec!["198.51.100.7:443/tcp".to_owned()];
    let words = ["198.51.100.7:80/tcp is not served (198.51.100.7:443/tcp are)"];
    assert_leaves(other, Verdict::NotOurs, &words);
}

#[test]
fn the_machine_itself_connects_to_a_backend() {
    let mut here = with(|found| {
        found.allowed = false;
        found.service.scope = Scope::Internal as u8;
        found.members.get_mut(&2).unwrap().known.backend.forward_mode = ForwardMode::Child as u8;
    });
    here.entry = Entry::Call(true);
    let words = ["connect() on this machine (cgroup) → service 80/tcp → new, random → web-1"];
    assert_goes(here.clone(), &["web-1"], &words);
    let mut other = here.clone();
    other.found = None;
    let words =
        ["(cgroup) → not ours: 198.51.100.7:80/tcp is not served", "this machine's own stack"];
    assert_says(&explain(other), &words);
    here.entry = Entry::Call(false);
    let explanation = explain(here);
    assert_eq!(explanation.fate, Fate::Unseen);
    assert_says(&explanation, &["--no-local", "this machine's own stack"]);
}

#[test]
fn a_device_without_a_program_is_named() {
    let mut elsewhere = facts();
    elsewhere.entry = Entry::Nowhere(Some("eth1".to_owned()));
    let explanation = explain(elsewhere);
    assert_eq!(explanation.fate, Fate::Unseen);
    assert_says(&explanation, &["eth1 ingress, where samport has no program"]);
}

#[test]
fn the_document_has_every_candidate_with_its_share() {
    let document = serde_json::to_value(document(&explain(facts()))).unwrap();
    assert_eq!(document["schema"], 1);
    assert_eq!((&document["fate"], &document["because"]), (&"forward".into(), &"random".into()));
    let first = &document["backends"][0];
    for (key, value) in [
        ("name", serde_json::json!("web-1")),
        ("address", "172.18.0.1:8080".into()),
        ("share", 0.5.into()),
        ("via", "peer".into()),
        ("verdict", "forward-peer".into()),
        ("skips_netfilter", true.into()),
    ] {
        assert_eq!(first[key], value, "{key} in {document:#}");
    }
    assert_eq!(document["passed_over"][0]["name"], "web-3");
}

/// A packet of this client that comes in so.
fn from(client: &str, by: EntryDevice, route: Route) -> Facts {
    let mut facts = facts();
    facts.question.client = SocketAddr::new(client.parse().unwrap(), 51_022);
    facts.entry = Entry::Device(by);
    facts.source.routes = [route; 2];
    facts
}

fn assert_spoofed(facts: Facts, words: &str) {
    let explanation = explain(facts);
    let refused = explanation.refused.clone();
    assert_eq!(explanation.fate, Fate::Leaves(Verdict::SpoofedSource), "{}", lines(&explanation));
    assert_says(&explanation, &[words, " → dropped (spoofed-source)"]);
    let document = document(&explanation);
    assert_eq!(document.fate, "drop");
    assert_eq!(document.source_refused, refused.map(|refused| refused.why));
    assert!(document.backends.is_empty() && document.passed_over.is_empty());
}

#[test]
fn a_source_that_cannot_come_in_there_is_refused() {
    let (eth0, br1) = (|| door(ETH0, "eth0"), || door(BR1, "br1"));
    let client = "203.0.113.9";
    let said = lines(&explain(from(client, br1(), via(ETH0))));
    assert_eq!(
        said,
        "br1 ingress (tcx) → service 80/tcp → new → source not valid on br1: the route back to \
         203.0.113.9 leads to eth0 → dropped (spoofed-source)"
    );
    assert_spoofed(from(client, br1(), Route::None), "there is no route back to 203.0.113.9 →");
    for never in ["127.0.0.1", "::1"] {
        let words = format!("{never} is a loopback address, which is never a source");
        assert_spoofed(from(never, eth0(), Route::None), &words);
    }
    assert_spoofed(from("ff02::1", br1(), Route::None), "ff02::1 is a multicast address");
    assert_spoofed(from("0.0.0.0", br1(), Route::None), "0.0.0.0 is an unspecified address");
    assert_spoofed(from("255.255.255.255", eth0(), Route::None), "is the broadcast address");
    let inside = from("172.30.0.250", eth0(), via(BR0));
    assert_spoofed(inside, "the route back to 172.30.0.250 leads to br0 →");
}

#[test]
fn an_address_of_the_host_or_of_a_container_is_refused_by_its_owner() {
    let of = |client, by, belongs_to| {
        let mut facts = from(client, by, Route::None);
        facts.source.belongs_to = Some(belongs_to);
        facts
    };
    let veth = DeviceSet::from_iter([VETH]);
    let mut own = of("192.0.2.1", door(ETH0, "eth0"), DeviceSet::NONE);
    assert_spoofed(own.clone(), "192.0.2.1 is this host's own address");
    own.source.is_broadcast = true;
    assert_spoofed(own, "192.0.2.1 is a broadcast address of this host's networks");
    for by in [door(ETH0, "eth0"), door(BR0, "br0")] {
        assert_spoofed(of("172.17.0.2", by, veth), "172.17.0.2 belongs to veth12");
    }
    assert_goes(of("172.17.0.2", door(VETH, "veth12"), veth), &["web-1", "web-2"], &[]);
}

#[test]
fn from_outside_rp_filter_decides_as_in_the_kernel() {
    let by = |rp_filter, route| {
        let mut facts = from("203.0.113.9", door(ETH1, "eth1"), route);
        facts.source.device = DeviceInfo { rp_filter, ..DeviceInfo::default() };
        facts
    };
    let both = ["web-1", "web-2"];
    for rp_filter in [0, 2] {
        assert_goes(by(rp_filter, via(ETH0)), &both, &[]);
    }
    assert_spoofed(by(1, via(ETH0)), "leads to eth0, and rp_filter is 1 →");
    assert_goes(by(0, Route::None), &both, &[]);
    for rp_filter in [1, 2] {
        let words = format!("no route back to 203.0.113.9, and rp_filter is {rp_filter} →");
        assert_spoofed(by(rp_filter, Route::None), &words);
    }
    // Forwarding is off, for one.
    assert_goes(by(1, Route::Unknown), &both, &[]);
    // Of a route to a container it does not depend.
    assert_spoofed(by(1, via(BR0)), "leads to br0 →");
}

#[test]
fn the_source_is_validated_last_before_a_flow_is_opened() {
    let spoofed = |change: fn(&mut Facts)| {
        let mut facts = from("203.0.113.9", door(BR1, "br1"), via(ETH0));
        change(&mut facts);
        facts
    };
    let not_allowed = spoofed(|facts| facts.found.as_mut().unwrap().allowed = false);
    assert_leaves(not_allowed, Verdict::NotAllowed, &["none of its networks"]);
    let empty = spoofed(|facts| facts.found.as_mut().unwrap().slots = Vec::new());
    assert_leaves(empty, Verdict::NoBackendReset, &["no backend"]);
    let ambiguous = spoofed(|facts| facts.found.as_mut().unwrap().taken = vec![1, 2]);
    assert_leaves(ambiguous, Verdict::FlowAmbiguous, &[]);
    assert_leaves(spoofed(|facts| facts.found = None), Verdict::NotOurs, &[]);
    let affine = spoofed(|facts| {
        let found = facts.found.as_mut().unwrap();
        (found.service.affinity_ticks, found.affinity) = (100, Some((2, 3, 0)));
    });
    assert_spoofed(affine, "new → source not valid on br1");
}

#[test]
fn a_flow_is_taken_over_by_nobody_on_the_other_side() {
    let on = |by: EntryDevice, route, reply_path, side| {
        let mut facts = from("203.0.113.9", by, route);
        let open = Remembered { reply_path, side, ..flow(2, State::Established, 3) };
        facts.found.as_mut().unwrap().flow = Some(open);
        facts
    };
    let (eth0, br0) = (ReplyPath::out_of(ETH0), ReplyPath::out_of(BR0));
    let begin = "existing flow → source not valid on";
    // Not even where the source would be valid.
    let inside = on(door(BR0, "br0"), via(BR0), eth0, Side::External);
    assert_spoofed(
        inside,
        &format!("{begin} br0: the flow is an outside client's, which came in by eth0 →"),
    );
    let outside = on(door(ETH0, "eth0"), via(ETH0), br0, Side::Internal);
    assert_spoofed(
        outside,
        &format!("{begin} eth0: the flow is a container's, which came in by br0 →"),
    );
    // On one side it depends on the source.
    let other_bridge = on(door(BR1, "br1"), via(BR0), br0, Side::Internal);
    assert_spoofed(other_bridge, &format!("{begin} br1: the route back to 203.0.113.9 leads to"));
    let mut link_local = on(door(ETH1, "eth1"), via(ETH1), eth0, Side::External);
    link_local.question.client = "[fe80::2]:51022".parse().unwrap();
    assert_spoofed(
        link_local,
        &format!("{begin} eth1: fe80::2 is link-local, and the flow came in by eth0"),
    );
    // A packet by the flow's own device pays nothing.
    assert_goes(on(door(BR0, "br0"), Route::None, br0, Side::Internal), &["web-2"], &[]);
}

#[test]
fn a_flow_that_moves_says_where_its_replies_go() {
    let on = |by: EntryDevice, route, reply_path, side| {
        let mut facts = from("203.0.113.9", by, route);
        let open = Remembered { reply_path, side, ..flow(2, State::Established, 3) };
        facts.found.as_mut().unwrap().flow = Some(open);
        facts
    };
    let outside = on(door(ETH1, "eth1"), via(ETH1), ReplyPath::out_of(ETH0), Side::External);
    assert_goes(outside, &["web-2"], &["(replies follow the flow from eth0 to eth1)"]);
    // A container that becomes a backend: by its bridge as before, until that is gone.
    let by_veth = || door(VETH, "veth12");
    let mut becomes = on(by_veth(), via(VETH), ReplyPath::out_of(BR0), Side::Internal);
    let words = ["(replies still leave by br0, where the flow was opened)"];
    assert_goes(becomes.clone(), &["web-2"], &words);
    becomes.source.devices.get_mut(&BR0).unwrap().info = None;
    assert_goes(becomes, &["web-2"], &["(replies follow the flow from br0 to veth12)"]);
    let own = ReplyPath::into_container(VETH);
    let stays = explain(on(by_veth(), via(VETH), own, Side::Internal));
    assert!(stays.notes.is_empty(), "{:?}", stays.notes);
}

#[test]
fn a_flow_that_is_over_or_silent_opens_another_only_from_a_valid_source() {
    let mut over = from("203.0.113.9", door(BR1, "br1"), via(ETH0));
    over.found.as_mut().unwrap().flow = Some(flow(2, State::Finished, 0));
    assert_spoofed(over, "new → source not valid on br1");
    // Its source was valid when the flow was opened, and is not any more.
    let mut silent = from("203.0.113.9", door(ETH0, "eth0"), via(BR0));
    let found = silent.found.as_mut().unwrap();
    found.service.flags = service::FAILOVER;
    found.flow = Some(Remembered { age: failover::SILENT_AFTER, ..flow(2, State::SynSent, 1) });
    assert_spoofed(silent.clone(), "new → source not valid on eth0");
    // Without another backend it stays where it is.
    silent.found.as_mut().unwrap().slots = vec![2];
    assert_goes(silent, &["web-2"], &["existing flow (syn-sent"]);
}

/// Docs: design record 17.
#[test]
fn an_answer_to_what_was_begun_here_is_the_hosts() {
    let begun = |protocol, balance: Balance| {
        let mut facts = with(|found| {
            found.is_begun_here = true;
            found.service.balance = balance as u8;
        });
        facts.question.protocol = protocol;
        explain(facts).fate
    };
    let is_answer = |fate| fate == Fate::Leaves(Verdict::OutboundAnswer);
    assert!(is_answer(begun(Protocol::Udp, Balance::Random)));
    assert!(is_answer(begun(Protocol::Udp, Balance::Maglev)));
    assert!(is_answer(begun(Protocol::Tcp, Balance::Maglev)));
    // Segments from the middle of a connection open no flow there, so nothing is asked.
    assert!(!is_answer(begun(Protocol::Tcp, Balance::Random)));
    let mut facts = with(|found| {
        found.is_begun_here = true;
        found.slots.clear();
    });
    facts.question.protocol = Protocol::Udp;
    let said = lines(&explain(facts));
    let expected = "an answer to what was begun here, from 198.51.100.7:80 with 203.0.113.9:51022 → left to this \
                    machine's own stack (outbound-answer)";
    assert!(said.contains(expected), "{said}");
}

#[test]
fn who_has_a_flow_keeps_it_whatever_was_begun_here() {
    let mut facts = with(|found| {
        found.is_begun_here = true;
        found.flow = Some(flow(2, State::Answered, 5));
    });
    facts.question.protocol = Protocol::Udp;
    let Fate::Goes(Because::Flow(..), to) = explain(facts).fate else { panic!("another fate") };
    assert_eq!(to, [(2, 1.0)]);
}

/// Facts about a packet for one of two backends, the second of which is the node n2.
fn in_cluster() -> Facts {
    let mut facts = with(|found| {
        let node = found.members.get_mut(&2).unwrap();
        node.name = "n2".to_owned();
        node.known.backend.forward_mode = ForwardMode::Node as u8;
    });
    facts.node = Some("n1".to_owned());
    facts
}

/// A packet of node n1's, out of the tunnel.
fn from_n1(change: impl FnOnce(&mut DialledService)) -> Facts {
    let mut facts = with(|found| {
        found.service.scope = Scope::Local as u8;
        change(found);
    });
    let from_node = Some(FromNode { name: "n1".to_owned(), index: 4 });
    facts.entry = Entry::Device(EntryDevice { from_node, ..door(ETH0, "eth0") });
    facts
}

#[test]
fn a_packet_for_another_node_says_how_to_ask_that() {
    let ask = "(on a node that gets it: samport explain 203.0.113.9:51022 198.51.100.7:80 --from-node n1)";
    assert_says(&explain(in_cluster()), &["n2 (50.0 %)", "through the tunnel to node n2", ask]);
    let mut udp = in_cluster();
    udp.question.protocol = Protocol::Udp;
    assert_says(&explain(udp), &["198.51.100.7:80/udp --from-node n1"]);
    let mut own = in_cluster();
    own.found.as_mut().unwrap().slots = vec![1];
    assert!(!lines(&explain(own)).contains("--from-node"));
}

#[test]
fn a_packet_of_another_node_gets_a_backend_of_this_one() {
    let entry = "eth0 ingress (tcx) → out of the tunnel, from node n1 → service 80/tcp";
    assert_says(&explain(from_n1(|_| ())), &[entry, "web-1 (50.0 %)", "web-2 (50.0 %)"]);
    let path = ReplyPath::through_tunnel(4);
    let of_flow = |found: &mut DialledService| {
        found.flow = Some(Remembered { reply_path: path, ..flow(2, State::Established, 3) });
    };
    assert_goes(from_n1(of_flow), &["web-2"], &["existing flow (established"]);
    // Whether there is a way back from here to the client is no question; whose address it is, is.
    let mut facts = from_n1(|_| ());
    facts.source = SourceFacts { routes: [Route::None; 2], ..source() };
    assert_eq!(explain(facts.clone()).refused, None);
    facts.question.client = "127.0.0.1:51022".parse().unwrap();
    assert_spoofed(facts, "127.0.0.1 is a loopback address");
}

#[test]
fn what_is_explained_is_as_it_was() {
    let mut nowhere = facts();
    nowhere.entry = Entry::Nowhere(Some("eth9".to_owned()));
    let mut not_served = facts();
    not_served.found = None;
    not_served.served = vec!["198.51.100.7:443/tcp".to_owned()];
    let mut on_the_host = facts();
    on_the_host.entry = Entry::Call(true);
    let mut pages = Pages::default();
    for (name, facts) in [
        ("a new connection", facts()),
        ("the same, round-robin", with(|found| found.service.balance = Balance::RoundRobin as u8)),
        ("an open flow", with(|found| found.flow = Some(flow(2, State::Established, 3)))),
        ("a client that is not allowed", with(|found| found.allowed = false)),
        ("no backend", with(|found| found.slots.clear())),
        ("a device without a program", nowhere),
        ("a port that is not served", not_served),
        ("a client on this machine", on_the_host),
        ("a service that another node has too", in_cluster()),
        ("out of the tunnel", from_n1(|_| ())),
    ] {
        let explanation = explain(facts);
        pages.add(name, &lines(&explanation));
        pages.add_json(&format!("{name}, -o json"), &document(&explanation));
    }
    pages.assert("explain");
}
