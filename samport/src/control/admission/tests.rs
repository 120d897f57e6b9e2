//! Every limit that is kept here is filled: whoever was there stays, whoever comes then is named, and joins when
//! there is room.

use std::slice;

use super::*;
use crate::model::test::candidate;
use crate::model::{Application, Condition};

/// Candidates and what holds for them; by default there is room for all.
struct Fixture {
    ports: BTreeSet<Listen>,
    allow: Networks,
    max_backends: u32,
    addresses: [usize; 2],
    conflict: ServiceConflict,
    restricted: BTreeMap<Listen, Networks>,
    served: BTreeSet<String>,
}

impl Default for Fixture {
    fn default() -> Self {
        Self {
            ports: BTreeSet::new(),
            allow: Networks::new(),
            max_backends: 100,
            addresses: [1, 1],
            conflict: ServiceConflict::Refuse,
            restricted: BTreeMap::new(),
            served: BTreeSet::new(),
        }
    }
}

impl Fixture {
    fn admit(&mut self, candidates: &[Candidate]) -> Admission {
        let rules = AdmissionRules {
            ports: &self.ports,
            allow: &self.allow,
            max_backends: self.max_backends,
            addresses: self.addresses,
            conflict: self.conflict,
            restricted: &self.restricted,
        };
        let served = |candidate: &Candidate| self.served.contains(&candidate.id);
        let admission = admit(candidates, served, rules);
        self.restricted.clone_from(&admission.restricted);
        // As if they were healthy.
        self.served = admission.candidates.iter().map(|one| one.id.clone()).collect();
        admission
    }
}

fn names(admission: &Admission) -> Vec<&str> {
    admission.candidates.iter().map(|one| one.name.as_str()).collect()
}

fn on(name: &str, listen: Listen) -> Candidate {
    Candidate { listen, ..candidate(name) }
}

fn networks(first: u16, count: u16) -> Networks {
    (first..first + count)
        .map(|n| allow::network(&format!("10.{}.{}.0/24", n >> 8, n & 0xff)).unwrap())
        .collect()
}

fn limited(name: &str, port: u16, allow: Networks) -> Candidate {
    Candidate { allow, ..on(name, Listen::tcp(port)) }
}

/// Fills a limit with candidates called `full-…`, then offers `a-new` (first by its name) and, if the limit is one
/// of a port, `small`, which takes no room of it.
fn assert_limited(
    mut fixture: Fixture,
    full: &[Candidate],
    new: &Candidate,
    small: impl Into<Option<Candidate>>,
    limit: &str,
) {
    let everybody = fixture.admit(full);
    assert_eq!((everybody.candidates.len(), &everybody.left_out), (full.len(), &BTreeSet::new()));
    let small: Vec<_> = small.into().into_iter().collect();
    let all = [slice::from_ref(new), full, &small].concat();
    for _ in 0..2 {
        let admission = fixture.admit(&all);
        assert_eq!(names(&admission), names(&scene_without(&all, "a-new")), "{limit}");
        let [sentence] = &admission.left_out.iter().collect::<Vec<_>>()[..] else {
            panic!("{:?}", admission.left_out)
        };
        let port = new.listen.brief();
        assert!(sentence.starts_with(&format!("a-new is left out on port {port}: ")), "{sentence}");
        assert!(sentence.contains(limit), "{sentence}");
    }
    // The last of them goes, and there is room.
    let without_last: Vec<_> =
        all.iter().filter(|one| one.name != full[full.len() - 1].name).collect();
    let without_last: Vec<_> = without_last.into_iter().cloned().collect();
    let admission = fixture.admit(&without_last);
    assert_eq!(admission.candidates.len(), without_last.len(), "{:?}", admission.left_out);
}

fn scene_without(all: &[Candidate], name: &str) -> Admission {
    let candidates = all.iter().filter(|one| one.name != name).cloned().collect();
    Admission { candidates, ..Admission::default() }
}

fn full(count: u16, of: impl Fn(u16, &str) -> Candidate) -> Vec<Candidate> {
    (0..count).map(|n| of(n, &format!("full-{n:05}"))).collect()
}

/// Case 80: more backends than there may be.
#[test]
fn more_candidates_than_are_looked_at_are_left_out_by_name() {
    let fixture = Fixture { max_backends: 3, ..Fixture::default() };
    let all = full(6, |_, name| candidate(name));
    assert_limited(fixture, &all, &candidate("a-new"), None, "--max-backends");
}

#[test]
fn more_ports_than_frontends_are_left_out_by_name() {
    for addresses in [[1, 1], [1, 7], [3, 0], [0, 0]] {
        let each = addresses.into_iter().max().unwrap().max(1);
        let count = u16::try_from(MAX_FRONTENDS as usize / each).unwrap();
        let fixture = Fixture { addresses, max_backends: 10_000, ..Fixture::default() };
        let all = full(count, |n, name| on(name, Listen::tcp(1_000 + n)));
        let small = on("small", Listen::tcp(1_000));
        assert_limited(fixture, &all, &on("a-new", Listen::tcp(80)), small, "4096 addresses");
    }
}

#[test]
fn a_container_that_is_left_out_on_many_ports_is_named_once() {
    let mut fixture = Fixture { addresses: [MAX_FRONTENDS as usize, 1], ..Fixture::default() };
    let all: Vec<_> = (80..=90).map(|port| on("hog", Listen::tcp(port))).collect();
    let admission = fixture.admit(&all);
    assert_eq!(admission.left_out.len(), 1);
    let sentence = admission.left_out.first().unwrap();
    assert!(sentence.starts_with("hog is left out on ports 81, 82, 83 and 7 more: "), "{sentence}");
}

/// The operator's own ports are there before anybody's labels.
#[test]
fn ports_of_the_command_line_take_their_room_first() {
    let ports: BTreeSet<_> = (0..4_095).map(|n| Listen::tcp(1_000 + n)).collect();
    let mut fixture = Fixture { ports, ..Fixture::default() };
    let on_p = on("on-p", Listen::tcp(1_000));
    let all = [on("a", Listen::tcp(80)), on("b", Listen::tcp(81)), on_p];
    assert_eq!(names(&fixture.admit(&all)), ["a", "on-p"]);
}

#[test]
fn more_networks_than_allow_lists_hold_are_left_out_by_name() {
    // Of 1,024 each; those of one port that name the same take no more.
    let all = full(16, |n, name| limited(name, 1_000 + n, networks(n * 1_024, 1_024)));
    let new = limited("a-new", 80, networks(0, 1));
    let small = limited("small", 1_000, networks(0, 1));
    assert_limited(Fixture::default(), &all, &new, small, "16384");
    // On one port they are united.
    let all = full(16, |n, name| limited(name, 80, networks(n * 1_024, 1_024)));
    let new = limited("a-new", 80, [allow::network("192.0.2.1").unwrap()].into());
    let small = limited("small", 80, networks(5, 1));
    assert_limited(Fixture::default(), &all, &new, small, "16384");
}

#[test]
fn every_port_that_labels_open_has_a_copy_of_the_operators_list() {
    let fixture = Fixture { allow: networks(0, 4_096), ..Fixture::default() };
    let all = full(4, |n, name| on(name, Listen::tcp(1_000 + n)));
    // One of the other family needs no room of this one.
    let small = on("small", Listen::tcp(1_000));
    assert_limited(fixture, &all, &on("a-new", Listen::tcp(80)), small, "16384");
}

#[test]
fn a_label_that_leaves_nothing_of_allow_serves_nobody_and_is_named() {
    let mut fixture = Fixture { allow: networks(0, 1), ..Fixture::default() };
    let out = limited("out", 80, networks(9, 1));
    let wide = limited("wide", 80, [allow::network("0.0.0.0/0").unwrap()].into());
    let admission = fixture.admit(&[candidate("a"), out, wide]);
    assert_eq!(names(&admission), ["a", "wide"]);
    assert!(admission.left_out.first().unwrap().contains("samport.allow names no network"));
    let note = admission.notes.first().unwrap();
    assert!(note.contains("wide names 0.0.0.0/0, which --allow does not cover"), "{note}");
}

#[test]
fn a_restriction_stays_while_its_port_has_any_container() {
    let mut fixture = Fixture::default();
    let listen = Listen::tcp(80);
    let (office, home) = (networks(1, 1), networks(2, 1));
    for (candidates, expected) in [
        (vec![candidate("plain")], None),
        (vec![candidate("plain"), limited("office", 80, office.clone())], Some(&office)),
        // The one with the label has gone.
        (vec![candidate("plain")], Some(&office)),
        // All that have a say say something else.
        (vec![candidate("plain"), limited("home", 80, home.clone())], Some(&home)),
        (vec![candidate("other")], Some(&home)),
        // The service has gone.
        (vec![], None),
        (vec![candidate("plain")], None),
    ] {
        assert_eq!(fixture.admit(&candidates).restricted.get(&listen), expected);
    }
}

fn of(name: &str, service: Option<&str>, project: Option<&str>, image: &str) -> Candidate {
    let mut one = candidate(name);
    let own = |text: Option<&str>| text.map(str::to_owned);
    let (service, project, image) = (own(service), own(project), own(Some(image)));
    one.hints.application = Application { service, project, image };
    one
}

#[test]
fn two_applications_on_one_port_are_reported_and_the_first_keeps_it() {
    let shop = of("shop-1", None, Some("shop"), "nginx");
    let blog = of("blog-1", None, Some("blog"), "nginx");
    let mut fixture = Fixture::default();
    assert_eq!(names(&fixture.admit(slice::from_ref(&shop))), ["shop-1"]);
    let admission = fixture.admit(&[blog.clone(), shop.clone()]);
    assert_eq!(names(&admission), ["shop-1"]);
    let sentence = admission.left_out.first().unwrap();
    for word in
        ["blog-1", "port 80", "project \"blog\"", "shop-1", "project \"shop\"", "samport.service"]
    {
        assert!(sentence.contains(word), "{sentence}");
    }
    // While it leaves it keeps no other application out, and what it has.
    let leaving = Candidate { condition: Condition::Draining, ..shop };
    assert_eq!(names(&fixture.admit(&[blog.clone(), leaving.clone()])), ["blog-1", "shop-1"]);
    // Or the operator allows it.
    let mut merged = Fixture { conflict: ServiceConflict::Merge, ..Fixture::default() };
    let shop = Candidate { condition: Condition::Ready, ..leaving };
    let admission = merged.admit(&[blog, shop]);
    assert_eq!(names(&admission), ["blog-1", "shop-1"]);
    let note = admission.notes.first().unwrap();
    assert!(note.contains("shared by blog-1") && note.contains("shop-1"), "{note}");
}

#[test]
fn those_with_a_service_a_project_or_an_image_in_common_are_one_application() {
    for (one, other, is_noted) in [
        (
            of("a", Some("web"), Some("blue"), "app"),
            of("b", Some("web"), Some("green"), "app"),
            false,
        ),
        (of("a", None, Some("shop"), "app"), of("b", Some("web"), Some("shop"), "other"), false),
        // Two `docker run`s of one image, and of two.
        (of("a", None, None, "app"), of("b", None, None, "app"), false),
        (of("a", None, None, "app"), of("b", None, None, "other"), true),
        (of("a", None, None, "app"), of("b", None, Some("shop"), "app"), true),
        (candidate("a"), of("b", None, Some("shop"), "app"), false),
    ] {
        let admission = Fixture::default().admit(&[one.clone(), other.clone()]);
        assert_eq!(names(&admission), ["a", "b"], "{one:?} {other:?}");
        assert_eq!(admission.notes.len(), usize::from(is_noted), "{:?}", admission.notes);
    }
}

/// Who belongs to two of them brings them together.
#[test]
fn a_container_in_between_makes_two_applications_one() {
    let (blue, green) = (of("a", None, Some("blue"), "app"), of("c", None, Some("green"), "app"));
    let between = of("b", Some("web"), Some("blue"), "app");
    let named = of("d", Some("web"), Some("green"), "app");
    assert_eq!(names(&Fixture::default().admit(&[blue, between, green.clone()])), ["a", "b"]);
    assert_eq!(names(&Fixture::default().admit(&[named, green])), ["d", "c"]);
}
