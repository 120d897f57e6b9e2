use samport_common::layout::DeviceSet;

use super::*;
use crate::model::{self, State};
use crate::plan::Route;

const LIMIT: Duration = Duration::from_secs(30);

/// A service on port 80 with backends `web-1`, `web-2`, … in these states.
struct Fixture {
    drains: Drains,
    begin: Instant,
    open: Option<u64>,
    ending: Ending,
    gone: usize,
}

impl Fixture {
    fn new() -> Self {
        let (drains, begin) = (Drains::default(), Instant::now());
        Self { drains, begin, open: None, ending: Ending::EmptyOrAfter(LIMIT), gone: 0 }
    }

    /// Who is left in what is desired, so long after the beginning.
    fn after(&mut self, time: Duration, states: &[State]) -> Vec<String> {
        let candidates: Vec<_> = (1..).zip(states).map(|(number, _)| candidate(number)).collect();
        let mut desired = Desired::default();
        for (candidate, state) in candidates.iter().zip(states) {
            let share = Share {
                name: candidate.name.clone(),
                weight: 1,
                group: None,
                state: *state,
                answers_on: DeviceSet::NONE,
                leaves_by: Vec::new(),
                route_back: None,
            };
            desired.backends.insert(key(candidate), share);
        }
        let (open, ending, now) = (self.open, self.ending, self.begin + time);
        self.gone =
            self.drains.settle(&mut desired, &candidates, |_, _| ending, |_| open, now).len();
        desired.backends.into_values().map(|share| share.name).collect()
    }

    fn backend_ref() -> BackendRef {
        BackendRef::from(&candidate(1))
    }
}

fn candidate(number: u8) -> Candidate {
    Candidate {
        endpoint: ([10, 0, 0, number], 80).into(),
        ..model::test::candidate(&format!("web-{number}"))
    }
}

fn key(candidate: &Candidate) -> BackendKey {
    let Candidate { listen, id, endpoint, .. } = candidate.clone();
    BackendKey { listen, id, endpoint, route: Route::Stack }
}

const DRAINS: [State; 2] = [State::Draining, State::Active];

#[test]
fn who_drains_goes_down_when_its_time_is_over() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.after(Duration::ZERO, &DRAINS), ["web-1", "web-2"]);
    assert_eq!(fixture.drains.until(&Fixture::backend_ref()), Some(fixture.begin + LIMIT));
    assert_eq!(fixture.after(LIMIT / 2, &DRAINS), ["web-1", "web-2"]);
    assert!(fixture.drains.any());
    assert_eq!(fixture.after(LIMIT, &DRAINS), ["web-2"]);
    assert!(!fixture.drains.any() && fixture.drains.down().contains_key(&Fixture::backend_ref()));
    // And stays so, whatever time it is given.
    assert_eq!(fixture.after(LIMIT + LOOK, &DRAINS), ["web-2"]);
}

#[test]
fn who_has_no_flow_left_goes_down_early_but_not_at_once() {
    let mut fixture = Fixture::new();
    fixture.open = Some(0);
    assert_eq!(fixture.after(Duration::ZERO, &DRAINS).len(), 2);
    fixture.open = Some(1);
    assert_eq!(fixture.after(LOOK, &DRAINS).len(), 2);
    fixture.open = Some(0);
    assert_eq!(fixture.after(2 * LOOK, &DRAINS), ["web-2"]);
}

#[test]
fn its_provider_ends_a_drain_of_its_own() {
    let mut fixture = Fixture::new();
    (fixture.ending, fixture.open) = (Ending::Empty, Some(3));
    for time in [Duration::ZERO, LIMIT, 100 * LIMIT] {
        assert_eq!(fixture.after(time, &DRAINS).len(), 2);
    }
    assert_eq!(fixture.drains.until(&Fixture::backend_ref()), None);
    fixture.open = Some(0);
    assert_eq!(fixture.after(101 * LIMIT, &DRAINS), ["web-2"]);
}

/// It may become healthy again, and is better than no backend if all others go.
#[test]
fn who_is_unhealthy_never_goes_down() {
    let mut fixture = Fixture::new();
    fixture.open = Some(0);
    for time in [Duration::ZERO, LOOK, LIMIT, 2 * LIMIT] {
        assert_eq!(fixture.after(time, &[State::Unhealthy, State::Active]).len(), 2);
    }
    assert!(!fixture.drains.any());
}

#[test]
fn all_that_drain_go_on_serving_and_have_their_time_from_when_another_serves() {
    let mut fixture = Fixture::new();
    fixture.open = Some(0);
    let all = [State::Draining, State::Draining];
    for time in [Duration::ZERO, LIMIT, 2 * LIMIT] {
        assert_eq!(fixture.after(time, &all).len(), 2);
        assert!(!fixture.drains.any(), "nothing to wait for");
        assert_eq!(fixture.drains.until(&Fixture::backend_ref()), None);
    }
    // Not even one that has no time at all.
    fixture.ending = Ending::EmptyOrAfter(Duration::ZERO);
    assert_eq!(fixture.after(2 * LIMIT, &all).len(), 2);
    (fixture.open, fixture.ending) = (Some(1), Ending::EmptyOrAfter(LIMIT));
    assert_eq!(fixture.after(3 * LIMIT, &DRAINS).len(), 2);
    assert!(fixture.drains.any());
    assert_eq!(fixture.after(7 * LIMIT / 2, &DRAINS).len(), 2);
    assert_eq!(fixture.after(4 * LIMIT, &DRAINS), ["web-2"]);
}

#[test]
fn who_is_wanted_again_serves_and_drains_anew() {
    let mut fixture = Fixture::new();
    fixture.after(Duration::ZERO, &DRAINS);
    assert_eq!(fixture.after(LIMIT, &DRAINS), ["web-2"]);
    let active = [State::Active; 2];
    assert_eq!(fixture.after(LIMIT, &active).len(), 2);
    assert!(fixture.drains.down().is_empty());
    assert_eq!(fixture.after(LIMIT + LOOK, &DRAINS).len(), 2);
    assert_eq!(fixture.after(2 * LIMIT + LOOK, &DRAINS), ["web-2"]);
}

#[test]
fn who_is_gone_is_forgotten() {
    let mut fixture = Fixture::new();
    fixture.after(Duration::ZERO, &DRAINS);
    fixture.after(LIMIT, &DRAINS);
    assert_eq!(fixture.drains.down().len(), 1);
    fixture.after(LIMIT, &[]);
    assert!(fixture.drains.down().is_empty());
    assert_eq!(fixture.gone, 1);
}
