use super::*;
use crate::discovery::container::{Attachment, ContainerHealth};
use crate::model::check::{CheckOrigin, Config};
use crate::model::{Condition, HostDevice, Reach};

const REACH: Reach = Reach::Veth(HostDevice { ifindex: 7, mac: [2; 6], polls: false });

struct Fixture(ContainerStore);

impl Fixture {
    fn new() -> Self {
        Self::after(BTreeMap::new())
    }

    /// A world in which a samport before has served some.
    fn after(served: BTreeMap<String, ServedIn>) -> Self {
        let ports = vec!["80".parse().unwrap()];
        let policy = Policy {
            ports,
            filters: super::super::filter::Filters::default(),
            health: Config { source: CheckOrigin::None, ..Config::default() },
            label_ports: crate::model::ports::PortRanges::default(),
        };
        Self(ContainerStore::new(Arc::new(policy), served))
    }

    /// A world with `ids` running, all answered.
    fn with(ids: &[&str]) -> Self {
        let mut fixture = Self::new();
        for task in fixture.list(ids, true) {
            let question = question(task);
            let view = view(&question.id);
            assert_eq!(fixture.answer(question, view), None);
        }
        fixture
    }

    /// A list with the same marks for all.
    fn list(&mut self, ids: &[&str], all: bool) -> Vec<Task> {
        let one = |id: &&str| Listed { id: (*id).to_owned(), marks: String::new() };
        self.0.listed(ids.iter().map(one).collect(), self.0.now(), all)
    }

    fn event(&mut self, id: &str, event: Event) -> Option<Task> {
        let at = Some(SystemTime::UNIX_EPOCH);
        self.0.happened(Notice { id: id.into(), at, event })
    }

    fn answer(&mut self, question: Question, view: ContainerView) -> Option<Task> {
        let located = Located { reach: Some(REACH), ..Located::default() };
        let outcome = Outcome::Found(Box::new(view), located);
        self.0.answered(InspectResult { question, outcome })
    }

    fn shows(&self) -> String {
        let one = |c: &Candidate| format!("{} {} {:?}", c.name, c.endpoint.ip(), c.condition);
        self.0.candidates().iter().map(one).collect::<Vec<_>>().join(", ")
    }

    fn told(&self) -> usize {
        self.0.told.values().map(HashSet::len).sum()
    }
}

fn question(task: Task) -> Question {
    match task {
        Task::Inspect(question) | Task::AskAgain { question, .. } => question,
        Task::AwaitDrain { .. } => panic!("{task:?} asks nothing"),
    }
}

/// Container `N`, called `web-N`, at `10.0.0.N`.
fn view(id: &str) -> ContainerView {
    let network =
        Attachment { ipv4: Some([10, 0, 0, id.parse().unwrap()].into()), ..Attachment::default() };
    ContainerView {
        id: id.into(),
        name: format!("web-{id}"),
        pid: Some(1),
        running: true,
        labels: [("samport.enable".to_owned(), "true".to_owned())].into(),
        network_mode: "bridge".into(),
        networks: [("bridge".to_owned(), network)].into(),
        started_at: Some("first".into()),
        ..ContainerView::default()
    }
}

#[test]
fn it_is_settled_when_all_that_were_listed_are_answered() {
    let mut fixture = Fixture::new();
    assert!(fixture.0.is_settled());
    let mut tasks = fixture.list(&["1", "2"], true).into_iter().map(question);
    let (one, two) = (tasks.next().unwrap(), tasks.next().unwrap());
    fixture.answer(two, view("2"));
    assert!(!fixture.0.is_settled());
    fixture.0.answered(InspectResult { question: one, outcome: Outcome::Gone });
    assert!(fixture.0.is_settled());
    assert_eq!(fixture.shows(), "web-2 10.0.0.2 Unchecked");
}

#[test]
fn a_container_that_starts_knows_when_and_where() {
    let mut fixture = Fixture::new();
    let asked = question(fixture.event("1", Event::Started).unwrap());
    assert_eq!(fixture.shows(), "");
    fixture.answer(asked, view("1"));
    let candidate = &fixture.0.candidates()[0];
    assert_eq!(candidate.started, Some(SystemTime::UNIX_EPOCH));
    assert_eq!(candidate.place, Some(REACH));
    assert_eq!(Fixture::with(&["1"]).0.candidates()[0].started, None);
}

#[test]
fn death_counts_at_once_and_answers_from_before_it_do_not() {
    let mut fixture = Fixture::with(&["1", "2"]);
    let stale = question(fixture.event("1", Event::Changed).unwrap());
    assert_eq!(fixture.event("1", Event::Died), None);
    assert_eq!(fixture.shows(), "web-2 10.0.0.2 Unchecked");
    fixture.answer(stale.clone(), view("1"));
    assert_eq!(fixture.shows(), "web-2 10.0.0.2 Unchecked");
    assert!(fixture.event("1", Event::Changed).is_none(), "it does not run");
    let again = question(fixture.event("1", Event::Started).unwrap());
    assert_eq!(fixture.event("1", Event::Died), None);
    // It is being inspected yet, and that is about the run before.
    assert_eq!(fixture.event("1", Event::Started), None);
    let fresh = question(fixture.answer(again, view("9")).unwrap());
    assert_eq!(fixture.shows(), "web-2 10.0.0.2 Unchecked");
    // A new run, a new address: the other container may have the old one.
    fixture.answer(fresh, ContainerView { name: "web-1".into(), ..view("5") });
    assert_eq!(fixture.shows(), "web-1 10.0.0.5 Unchecked, web-2 10.0.0.2 Unchecked");
}

#[test]
fn only_the_newest_answer_counts() {
    let mut fixture = Fixture::with(&["1"]);
    let older = question(fixture.event("1", Event::Changed).unwrap());
    assert_eq!(fixture.event("1", Event::Changed), None, "it is being inspected");
    let old = ContainerView { name: "old".into(), ..view("1") };
    let newer = question(fixture.answer(older, old).unwrap());
    assert_eq!(fixture.shows(), "web-1 10.0.0.1 Unchecked");
    fixture.answer(newer, ContainerView { name: "new".into(), ..view("1") });
    assert_eq!(fixture.shows(), "new 10.0.0.1 Unchecked");
}

/// Row E3 of the field faults.
#[test]
fn a_container_is_inspected_once_at_a_time_however_much_happens_to_it() {
    let mut fixture = Fixture::with(&["1", "2"]);
    let (mut running, mut inspected, mut drains) = (None, 0, 0);
    for number in 0..20_000_u32 {
        let event = match number % 4 {
            0 => Event::Changed,
            1 => Event::Paused(number % 8 < 4),
            2 => Event::Signalled(15),
            _ => Event::HealthChanged(None),
        };
        match fixture.event("1", event) {
            Some(Task::Inspect(question)) => {
                assert!(running.replace(question).is_none());
                inspected += 1;
            }
            Some(Task::AwaitDrain { .. }) => drains += 1,
            Some(task) => panic!("{task:?}"),
            None => {}
        }
        // One takes as long as a hundred events.
        if number % 100 == 99 {
            let name = format!("web-1-{}", number / 100);
            let asked = running.take().unwrap();
            let task = fixture.answer(asked, ContainerView { name, ..view("1") }).unwrap();
            running = Some(question(task));
            inspected += 1;
        }
    }
    assert_eq!((inspected, drains), (201, 1));
    // What was found is taken in now and then, though it was out of date each time.
    assert!(fixture.shows().contains("web-1-19"), "{}", fixture.shows());
    assert_eq!(fixture.answer(running.unwrap(), view("1")), None);
    assert!(fixture.shows().starts_with("web-1 10.0.0.1"), "{}", fixture.shows());
}

/// Of one that is started again all the time no answer is taken in that is about a run before.
#[test]
fn an_answer_about_the_run_before_never_counts() {
    let mut fixture = Fixture::new();
    let mut asked = question(fixture.event("1", Event::Started).unwrap());
    for _ in 0..10 {
        assert_eq!(fixture.event("1", Event::Died), None);
        assert_eq!(fixture.event("1", Event::Started), None);
        asked = question(fixture.answer(asked, view("9")).unwrap());
        assert_eq!(fixture.shows(), "");
    }
    fixture.answer(asked, view("1"));
    assert_eq!(fixture.shows(), "web-1 10.0.0.1 Unchecked");
}

/// Row D2 of the field faults.
#[test]
fn a_list_asks_about_whom_it_says_something_new_and_all_after_a_gap() {
    let mut fixture = Fixture::with(&["1", "2", "3"]);
    assert_eq!(fixture.list(&["1", "2", "3"], false), []);
    let marked = |id: &str, marks: &str| Listed { id: id.into(), marks: marks.into() };
    let list = vec![marked("1", ""), marked("2", "paused"), marked("4", "")];
    let now = fixture.0.now();
    let asked: Vec<_> =
        fixture.0.listed(list.clone(), now, false).into_iter().map(question).collect();
    assert_eq!(asked.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["2", "4"]);
    assert_eq!(fixture.shows(), "web-1 10.0.0.1 Unchecked, web-2 10.0.0.2 Unchecked");
    for question in asked {
        let answer = view(&question.id);
        assert_eq!(fixture.answer(question, answer), None);
    }
    let now = fixture.0.now();
    assert_eq!(fixture.0.listed(list.clone(), now, false), []);
    assert_eq!(fixture.0.listed(list, now, true).len(), 3);
}

#[test]
fn who_starts_while_a_list_is_made_is_not_gone() {
    let mut fixture = Fixture::with(&["1"]);
    let since = fixture.0.now();
    let asked = question(fixture.event("2", Event::Started).unwrap());
    fixture.answer(asked, view("2"));
    let list = vec![Listed { id: "1".into(), marks: String::new() }];
    assert_eq!(fixture.0.listed(list.clone(), since, false), []);
    assert_eq!(fixture.shows(), "web-1 10.0.0.1 Unchecked, web-2 10.0.0.2 Unchecked");
    let now = fixture.0.now();
    fixture.0.listed(list, now, false);
    assert_eq!(fixture.shows(), "web-1 10.0.0.1 Unchecked");
}

#[test]
fn what_an_event_says_counts_at_once() {
    let mut fixture = Fixture::with(&["1"]);
    for (event, expected) in [
        (Event::Paused(true), "web-1 10.0.0.1 Draining"),
        (Event::Paused(false), "web-1 10.0.0.1 Unchecked"),
        (Event::LeftNetwork("other".into()), "web-1 10.0.0.1 Unchecked"),
        (Event::LeftNetwork("bridge".into()), ""),
    ] {
        let asked = question(fixture.event("1", event).unwrap());
        assert_eq!(fixture.shows(), expected);
        let known = fixture.0.containers.get("1").and_then(|container| container.view.clone());
        if let Some(known) = known {
            fixture.answer(asked, known);
        }
    }
    // Nothing is published that may be different once the question is answered.
    assert_eq!(fixture.told(), 0);
}

/// Container `N`, in several networks: its address in the M-th is `10.0.M.N`.
fn in_networks(id: &str, networks: &[&str]) -> ContainerView {
    let attachment = |name: &&str| {
        let third = name.parse().unwrap();
        let ipv4 = Some([10, 0, third, id.parse().unwrap()].into());
        ((*name).to_owned(), Attachment { ipv4, ..Attachment::default() })
    };
    ContainerView { networks: networks.iter().map(attachment).collect(), ..view(id) }
}

/// A scene, and its container by the networks it is in from now on.
fn with_networks(fixture: &mut Fixture, event: Event, networks: &[&str]) -> String {
    let asked = question(fixture.event("1", event).unwrap());
    assert_eq!(fixture.answer(asked, in_networks("1", networks)), None);
    fixture.shows()
}

#[test]
fn a_container_stays_in_the_network_it_is_served_in_while_others_come_and_go() {
    let mut fixture = Fixture::new();
    let changed = || Event::Changed;
    let left = |name: &str| Event::LeftNetwork(name.to_owned());
    assert_eq!(with_networks(&mut fixture, Event::Started, &["2"]), "web-1 10.0.2.1 Unchecked");
    for networks in [&["1", "2"][..], &["1", "2", "3"], &["2", "3"], &["2"], &["2", "3"]] {
        assert_eq!(with_networks(&mut fixture, changed(), networks), "web-1 10.0.2.1 Unchecked");
    }
    assert_eq!(with_networks(&mut fixture, left("3"), &["2"]), "web-1 10.0.2.1 Unchecked");
    assert_eq!(fixture.told(), 0);
    // Started again, it is the same container.
    with_networks(&mut fixture, changed(), &["1", "2"]);
    assert_eq!(fixture.event("1", Event::Died), None);
    assert_eq!(
        with_networks(&mut fixture, Event::Started, &["1", "2"]),
        "web-1 10.0.2.1 Unchecked"
    );
    // Out of that network, it goes to the only other one, and stays there.
    let asked = question(fixture.event("1", left("2")).unwrap());
    assert_eq!(fixture.shows(), "", "its address may be another's");
    assert_eq!(fixture.answer(asked, in_networks("1", &["1"])), None);
    assert_eq!(fixture.shows(), "web-1 10.0.1.1 Unchecked");
    assert_eq!(
        with_networks(&mut fixture, changed(), &["1", "2", "3"]),
        "web-1 10.0.1.1 Unchecked"
    );
    // Which of two others is meant is not known.
    assert_eq!(with_networks(&mut fixture, left("1"), &["2", "3"]), "");
    assert_eq!(fixture.told(), 1);
    // A removed container is forgotten: the next one is seen for the first time.
    assert_eq!(fixture.event("1", Event::Removed), None);
    assert_eq!(with_networks(&mut fixture, Event::Started, &["1", "2"]), "");
}

#[test]
fn a_container_stays_where_the_samport_before_has_served_it() {
    let addresses = [[10, 0, 2, 1].into()].into();
    let before = ServedIn { network: None, addresses };
    let mut fixture = Fixture::after([("1".to_owned(), before)].into());
    let shown = with_networks(&mut fixture, Event::Started, &["1", "2", "3"]);
    assert_eq!(shown, "web-1 10.0.2.1 Unchecked");
    // It has left that network meanwhile.
    let before = ServedIn { network: None, addresses: [[10, 0, 4, 1].into()].into() };
    let mut fixture = Fixture::after([("1".to_owned(), before)].into());
    assert_eq!(with_networks(&mut fixture, Event::Started, &["1", "2"]), "");
    assert_eq!(fixture.told(), 1);
}

#[test]
fn health_counts_at_once_too() {
    let mut fixture = Fixture::new();
    fixture.0.policy =
        Arc::new(Policy { health: Config::default(), ..(*fixture.0.policy).clone() });
    let asked = question(fixture.event("1", Event::Started).unwrap());
    fixture.answer(asked, ContainerView { health: Some(ContainerHealth::Starting), ..view("1") });
    assert_eq!(fixture.0.candidates()[0].condition, Condition::Starting);
    fixture.event("1", Event::HealthChanged(Some(ContainerHealth::Healthy)));
    assert_eq!(fixture.0.candidates()[0].condition, Condition::Ready);
    fixture.event("1", Event::HealthChanged(Some(ContainerHealth::Unhealthy)));
    assert_eq!(fixture.0.candidates()[0].condition, Condition::Unhealthy);
}

#[test]
fn other_filters_leave_some_out_and_ask_where_newcomers_are() {
    let mut fixture = Fixture::with(&["1", "2"]);
    assert!(matches!(fixture.event("1", Event::Signalled(15)), Some(Task::AwaitDrain { .. })));
    let all = Arc::clone(&fixture.0.policy);
    let filters = super::super::filter::Filters::new(vec!["name=web-1".parse().unwrap()]);
    let asked = fixture.0.go_by(Arc::new(Policy { filters, ..(*all).clone() }));
    assert_eq!(fixture.shows(), "web-1 10.0.0.1 Draining");
    let mut asked: Vec<_> = asked.into_iter().map(question).collect();
    let asked = asked.pop().filter(|one| one.id == "2" && asked.is_empty());
    let asked = asked.expect("who is not meant any more may be told why");
    assert!(!fixture.0.is_judged());
    assert_eq!(fixture.0.go_by(all), [], "it is being inspected");
    assert_eq!(fixture.shows(), "web-1 10.0.0.1 Draining", "where web-2 is has not been asked");
    let asked = question(fixture.answer(asked, view("2")).unwrap());
    // Not before the engine has said where web-2 is is the policy in force.
    assert!(!fixture.0.is_judged());
    fixture.answer(asked, view("2"));
    assert!(fixture.0.is_judged());
    assert_eq!(fixture.shows(), "web-1 10.0.0.1 Draining, web-2 10.0.0.2 Unchecked");
}

#[test]
fn events_of_strangers_ask_nothing() {
    let mut fixture = Fixture::new();
    for event in [Event::Changed, Event::Paused(true), Event::Died, Event::Signalled(15)] {
        assert_eq!(fixture.event("1", event), None);
    }
}

#[test]
fn its_stop_signal_drains_until_it_dies_or_turns_out_to_run_on() {
    let mut fixture = Fixture::with(&["1"]);
    let Some(Task::AwaitDrain { number: first, .. }) = fixture.event("1", Event::Signalled(15))
    else {
        panic!("the stop signal starts no drain");
    };
    assert_eq!(fixture.shows(), "web-1 10.0.0.1 Draining");
    // Other news do not end it.
    let asked = question(fixture.event("1", Event::Changed).unwrap());
    fixture.answer(asked, view("1"));
    assert_eq!(fixture.shows(), "web-1 10.0.0.1 Draining");
    // A second signal gives it the whole time again, once the first one's is over.
    assert_eq!(fixture.event("1", Event::Signalled(9)), None);
    let Some(Task::AwaitDrain { number: second, .. }) = fixture.0.drain_is_over("1".into(), first)
    else {
        panic!("SIGKILL starts no drain");
    };
    let asked = question(fixture.0.drain_is_over("1".into(), second).unwrap());
    assert_eq!(fixture.shows(), "web-1 10.0.0.1 Draining");
    // The question being overtaken by another does not lose that the time is over.
    assert_eq!(fixture.event("1", Event::Changed), None);
    let newer = question(fixture.answer(asked, view("1")).unwrap());
    fixture.answer(newer, view("1"));
    assert_eq!(fixture.shows(), "web-1 10.0.0.1 Unchecked");
}

#[test]
fn its_own_time_to_drain_goes_before_the_runs() {
    let mut fixture = Fixture::with(&["1"]);
    let asked = question(fixture.event("1", Event::Changed).unwrap());
    let mut changed = view("1");
    changed.labels.insert("samport.drain".into(), "5s".into());
    fixture.answer(asked, changed);
    assert_eq!(fixture.0.candidates()[0].drain, Some(Duration::from_secs(5)));
    match fixture.event("1", Event::Signalled(15)) {
        Some(Task::AwaitDrain { drain, .. }) => assert_eq!(drain, Some(Duration::from_secs(5))),
        other => panic!("the stop signal leads to {other:?}"),
    }
}

#[test]
fn only_signals_that_stop_it_drain_it() {
    for (own, number, drains) in [
        (None, 15, true),
        (None, 9, true),
        (None, 1, false),
        (Some("SIGQUIT"), 3, true),
        (Some("SIGQUIT"), 9, true),
        (Some("SIGQUIT"), 15, false),
        (Some("37"), 37, true),
        (Some("nonsense"), 15, true),
    ] {
        let view = ContainerView { stop_signal: own.map(Into::into), ..view("1") };
        assert_eq!(stops(Some(&view), number), drains, "{own:?} {number}");
    }
    assert!(stops(None, 15));
}

#[test]
fn after_a_resync_the_vanished_are_gone_and_the_others_never_were_away() {
    let mut fixture = Fixture::with(&["1", "2"]);
    let tasks = fixture.list(&["2", "3"], true);
    assert_eq!(fixture.shows(), "web-2 10.0.0.2 Unchecked");
    for task in tasks {
        let asked = question(task);
        let answer = view(&asked.id);
        fixture.answer(asked, answer);
    }
    assert_eq!(fixture.shows(), "web-2 10.0.0.2 Unchecked, web-3 10.0.0.3 Unchecked");
}

#[test]
fn a_restart_nobody_told_of_ends_the_drain() {
    let mut fixture = Fixture::with(&["1"]);
    fixture.event("1", Event::Signalled(15));
    let asked = question(fixture.list(&["1"], true).remove(0));
    fixture.answer(asked, ContainerView { started_at: Some("second".into()), ..view("1") });
    assert_eq!(fixture.shows(), "web-1 10.0.0.1 Unchecked");
}

#[test]
fn a_missing_address_is_asked_for_again_before_anyone_is_told() {
    let mut fixture = Fixture::new();
    let mut asked = question(fixture.event("1", Event::Started).unwrap());
    let bare = || {
        let networks = [("bridge".to_owned(), Attachment::default())].into();
        ContainerView { networks, ..view("1") }
    };
    let mut delays = Vec::new();
    while let Some(Task::AskAgain { question: again, delay }) =
        fixture.answer(asked.clone(), bare())
    {
        assert_eq!(fixture.told(), 0);
        delays.push(delay.as_millis());
        asked = question(fixture.0.ask_again(again).unwrap());
    }
    assert_eq!(delays, [10, 20, 40, 80, 160, 320]);
    assert_eq!(fixture.told(), 1);
}

#[test]
fn each_reason_is_told_once_until_the_container_is_removed() {
    let mut fixture = Fixture::with(&["1"]);
    let wrong = |key: &str| {
        let labels = [(key.to_owned(), "x".to_owned())].into();
        ContainerView { labels, ..view("1") }
    };
    for (key, told) in [("samport.port", 1), ("samport.port", 1), ("samport.weight", 2)] {
        let asked = question(fixture.event("1", Event::Changed).unwrap());
        fixture.answer(asked, wrong(key));
        assert_eq!(fixture.told(), told);
    }
    assert_eq!(fixture.shows(), "");
    fixture.event("1", Event::Died);
    assert_eq!(fixture.told(), 2);
    fixture.event("1", Event::Removed);
    assert_eq!(fixture.told(), 0);
}

#[test]
fn a_question_that_fails_changes_nothing_and_is_asked_again() {
    let mut fixture = Fixture::with(&["1"]);
    let asked = question(fixture.event("1", Event::Changed).unwrap());
    let outcome = Outcome::Failed("no route".into());
    let task = fixture.0.answered(InspectResult { question: asked.clone(), outcome }).unwrap();
    assert_eq!(task, Task::AskAgain { question: asked.clone(), delay: AFTER_FAILURE });
    assert_eq!(fixture.shows(), "web-1 10.0.0.1 Unchecked");
    // Somebody else asks before that.
    let newer = question(fixture.event("1", Event::Changed).unwrap());
    assert_eq!(fixture.0.ask_again(asked.clone()), None);
    fixture.answer(newer, view("1"));
    assert_eq!(fixture.0.ask_again(asked), None);
}

#[test]
fn one_found_not_running_is_gone() {
    let mut fixture = Fixture::with(&["1"]);
    let asked = question(fixture.event("1", Event::Changed).unwrap());
    fixture.answer(asked, ContainerView { running: false, ..view("1") });
    assert_eq!(fixture.shows(), "");
    assert_eq!(fixture.event("1", Event::Changed), None);
}
