use samport_common::choose::Load;
use samport_common::conntrack::Seconds;
use samport_common::layout::Backend;

use super::*;

const VIP: &str = "198.51.100.7:80";
const CLIENT: &str = "203.0.113.9:51022";
const SLOTS: [u32; 2] = [1, 2];

fn member(id: u8, life: Life, state: &str) -> Member {
    let mut addr = [0; 16];
    addr[10..].copy_from_slice(&[0xff, 0xff, 172, 18, 0, id]);
    let backend = Backend {
        addr,
        port: 8_080_u16.to_be_bytes(),
        mac: [0; 6],
        ifindex: 7,
        generation: 3,
        weight: 1,
        life: life as u8,
        via: Via::Peer as u8,
        shared: 0,
        takes_frames: 0,
    };
    let known = Known { backend, load: Load { open: 0, weight: 1 }, suspect_until: 0 };
    Member {
        known,
        name: format!("web-{id}"),
        state: state.to_owned(),
        device: Some(format!("veth{id}")),
    }
}

fn facts() -> Facts {
    let service = Service {
        slots: 2,
        affinity_ticks: 0,
        id: 1,
        scope: Scope::Everybody as u8,
        balance: Balance::Random as u8,
        flags: 0,
        pad: 0,
    };
    let found = Found {
        service,
        listen: Listen::tcp(80),
        name: "80/tcp".to_owned(),
        allowed: true,
        flow: None,
        taken: Vec::new(),
        affinity: None,
        slots: SLOTS.to_vec(),
        turn: 0,
        members: [1, 2].map(|id| (id.into(), member(id, Life::Serving, "active"))).into(),
        others: vec![("web-3".to_owned(), "is starting".to_owned())],
    };
    let door = Door { ifindex: 2, name: "eth0".to_owned(), is_outer: true, hook: "tcx".to_owned() };
    Facts {
        question: Question {
            client: CLIENT.parse().unwrap(),
            dialled: VIP.parse().unwrap(),
            protocol: Protocol::Tcp,
        },
        instance: "eth0:80@1".to_owned(),
        entry: Entry::Device(door),
        found: Some(found),
        served: Vec::new(),
        now_tick: 1_000,
        timeouts: Timeouts::new(&Seconds::DEFAULT),
    }
}

/// The facts with something special about the service.
fn with(change: impl FnOnce(&mut Found)) -> Facts {
    let mut facts = facts();
    change(facts.found.as_mut().unwrap());
    facts
}

fn flow(backend: u32, state: State, idle_ticks: u32) -> Remembered {
    Remembered { backend, generation: 3, state, idle_ticks, age: 0 }
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
    let drains = |found: &mut Found| {
        found.members.insert(2, member(2, Life::Draining, "draining"));
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
    let gone = |found: &mut Found| {
        found.members.insert(2, member(2, Life::Down, "down"));
        found.flow = Some(flow(2, State::Established, 0));
    };
    assert_leaves(with(gone), Verdict::GoneReset, &["its backend is gone → answered with a reset"]);
    let reused = |found: &mut Found| {
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
fn hashes_lead_to_one_backend() {
    let by = |balance: Balance| {
        with(|found| {
            found.service.balance = balance as u8;
            found.members.insert(3, member(3, Life::Serving, "active"));
            found.slots = vec![1, 2, 3];
        })
    };
    for balance in [Balance::Maglev, Balance::SourceHash] {
        for port in 51_000..51_010 {
            let mut facts = by(balance);
            facts.question.client.set_port(port);
            let client = facts.question.client;
            let hash = crate::dataplane::answers::hash(client, balance == Balance::Maglev);
            let slot = samport_common::choose::slot(hash, 3).unwrap() as usize;
            let expected = format!("web-{}", slot + 1);
            assert_goes(facts, &[&expected], &[&format!("new, {} → {expected}", balance.name())]);
        }
    }
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
    found.members.insert(2, member(2, Life::Draining, "draining"));
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
    let inside = with(|found| found.service.scope = Scope::Inside as u8);
    assert_leaves(inside, Verdict::NotOurs, &["clients on this machine and in its containers"]);
    let mut bridge = with(|found| found.service.scope = Scope::Inside as u8);
    let Entry::Device(door) = &mut bridge.entry else { panic!("a device") };
    door.is_outer = false;
    assert_goes(bridge, &["web-1", "web-2"], &[]);
}

#[test]
fn without_a_backend_it_is_as_the_service_says() {
    let empty = |found: &mut Found| found.slots = Vec::new();
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
        found.service.scope = Scope::Inside as u8;
        found.members.get_mut(&2).unwrap().known.backend.via = Via::Child as u8;
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
