use super::*;
use crate::discovery::container::{Attachment, Health};
use crate::health::spec::{Config, Source};
use crate::model::{Condition, Place, Site};

const SITE: Site = Site::Veth(Place { ifindex: 7, mac: [2; 6], polls: false });

struct Scene(World);

impl Scene {
    fn new() -> Self {
        let ports = vec!["80".parse().unwrap()];
        let policy = Policy {
            ports,
            filters: super::super::filter::Filters::default(),
            health: Config { source: Source::None, ..Config::default() },
        };
        Self(World::new(Arc::new(policy)))
    }

    /// A world with `ids` running, all answered.
    fn with(ids: &[&str]) -> Self {
        let mut scene = Self::new();
        let tasks = scene.0.listed(ids.iter().map(|id| (*id).to_owned()).collect());
        for task in tasks {
            let question = question(task);
            let view = view(&question.id);
            assert_eq!(scene.answer(question, view), None);
        }
        scene
    }

    fn event(&mut self, id: &str, event: Event) -> Option<Task> {
        let at = Some(SystemTime::UNIX_EPOCH);
        self.0.happened(Notice { id: id.into(), at, event })
    }

    fn answer(&mut self, question: Question, view: ContainerView) -> Option<Task> {
        let located = Located { site: Some(SITE), instead: None };
        let outcome = Outcome::Found(Box::new(view), located);
        self.0.answered(Answer { question, outcome })
    }

    fn shows(&self) -> String {
        let one = |c: &Candidate| format!("{} {} {:?}", c.name, c.endpoint.ip(), c.condition);
        self.0.snapshot().candidates.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    fn told(&self) -> usize {
        self.0.told.values().map(HashSet::len).sum()
    }
}

fn question(task: Task) -> Question {
    match task {
        Task::Inspect { question, .. } => question,
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
    let mut scene = Scene::new();
    assert!(scene.0.is_settled());
    let mut tasks = scene.0.listed(vec!["1".into(), "2".into()]).into_iter().map(question);
    let (one, two) = (tasks.next().unwrap(), tasks.next().unwrap());
    scene.answer(two, view("2"));
    assert!(!scene.0.is_settled());
    scene.0.answered(Answer { question: one, outcome: Outcome::Gone });
    assert!(scene.0.is_settled());
    assert_eq!(scene.shows(), "web-2 10.0.0.2 Ready");
}

#[test]
fn a_container_that_starts_knows_when_and_where() {
    let mut scene = Scene::new();
    let asked = question(scene.event("1", Event::Started).unwrap());
    assert_eq!(scene.shows(), "");
    scene.answer(asked, view("1"));
    let candidate = &scene.0.snapshot().candidates[0];
    assert_eq!(candidate.started, Some(SystemTime::UNIX_EPOCH));
    assert_eq!(candidate.place, Some(SITE));
    assert_eq!(Scene::with(&["1"]).0.snapshot().candidates[0].started, None);
}

#[test]
fn death_counts_at_once_and_answers_from_before_it_do_not() {
    let mut scene = Scene::with(&["1", "2"]);
    let stale = question(scene.event("1", Event::Changed).unwrap());
    assert_eq!(scene.event("1", Event::Died), None);
    assert_eq!(scene.shows(), "web-2 10.0.0.2 Ready");
    scene.answer(stale.clone(), view("1"));
    assert_eq!(scene.shows(), "web-2 10.0.0.2 Ready");
    let fresh = question(scene.event("1", Event::Started).unwrap());
    scene.answer(stale, view("9"));
    assert_eq!(scene.shows(), "web-2 10.0.0.2 Ready");
    // A new run, a new address: the other container may have the old one.
    scene.answer(fresh, ContainerView { name: "web-1".into(), ..view("5") });
    assert_eq!(scene.shows(), "web-1 10.0.0.5 Ready, web-2 10.0.0.2 Ready");
}

#[test]
fn only_the_newest_answer_counts() {
    let mut scene = Scene::with(&["1"]);
    let older = question(scene.event("1", Event::Changed).unwrap());
    let newer = question(scene.event("1", Event::Changed).unwrap());
    scene.answer(newer, ContainerView { name: "new".into(), ..view("1") });
    scene.answer(older, ContainerView { name: "old".into(), ..view("1") });
    assert_eq!(scene.shows(), "new 10.0.0.1 Ready");
}

#[test]
fn what_an_event_says_counts_at_once() {
    let mut scene = Scene::with(&["1"]);
    for (event, expected) in [
        (Event::Paused(true), "web-1 10.0.0.1 Draining"),
        (Event::Paused(false), "web-1 10.0.0.1 Ready"),
        (Event::LeftNetwork("other".into()), "web-1 10.0.0.1 Ready"),
        (Event::LeftNetwork("bridge".into()), ""),
    ] {
        assert!(matches!(scene.event("1", event), Some(Task::Inspect { .. })));
        assert_eq!(scene.shows(), expected);
    }
    // Nobody is told what may be different once the question is answered.
    assert_eq!(scene.told(), 0);
}

#[test]
fn health_counts_at_once_too() {
    let mut scene = Scene::new();
    scene.0.policy = Arc::new(Policy { health: Config::default(), ..(*scene.0.policy).clone() });
    let asked = question(scene.event("1", Event::Started).unwrap());
    scene.answer(asked, ContainerView { health: Some(Health::Starting), ..view("1") });
    assert_eq!(scene.0.snapshot().candidates[0].condition, Condition::Starting);
    scene.event("1", Event::HealthChanged(Some(Health::Healthy)));
    assert_eq!(scene.0.snapshot().candidates[0].condition, Condition::Ready);
    scene.event("1", Event::HealthChanged(Some(Health::Unhealthy)));
    assert_eq!(scene.0.snapshot().candidates[0].condition, Condition::Unhealthy);
}

#[test]
fn other_filters_leave_some_out_and_ask_where_newcomers_are() {
    let mut scene = Scene::with(&["1", "2"]);
    assert!(matches!(scene.event("1", Event::Signalled(15)), Some(Task::AwaitDrain { .. })));
    let all = Arc::clone(&scene.0.policy);
    let filters = super::super::filter::Filters::new(vec!["name=web-1".parse().unwrap()]);
    let asked = scene.0.go_by(Arc::new(Policy { filters, ..(*all).clone() }));
    assert_eq!(scene.shows(), "web-1 10.0.0.1 Draining");
    let asked: Vec<_> = asked.into_iter().map(|task| question(task).id).collect();
    assert_eq!(asked, ["2"], "who is not meant any more may be told why");
    let mut asked = scene.0.go_by(all);
    assert_eq!(scene.shows(), "web-1 10.0.0.1 Draining", "where web-2 is, nobody has asked");
    let asked = question(asked.remove(0));
    scene.answer(asked, view("2"));
    assert_eq!(scene.shows(), "web-1 10.0.0.1 Draining, web-2 10.0.0.2 Ready");
}

#[test]
fn events_of_strangers_ask_nothing() {
    let mut scene = Scene::new();
    for event in [Event::Changed, Event::Paused(true), Event::Died, Event::Signalled(15)] {
        assert_eq!(scene.event("1", event), None);
    }
}

#[test]
fn its_stop_signal_drains_until_it_dies_or_turns_out_to_run_on() {
    let mut scene = Scene::with(&["1"]);
    let Some(Task::AwaitDrain { number: first, .. }) = scene.event("1", Event::Signalled(15))
    else {
        panic!("the stop signal starts no drain");
    };
    assert_eq!(scene.shows(), "web-1 10.0.0.1 Draining");
    // Other news do not end it.
    let asked = question(scene.event("1", Event::Changed).unwrap());
    scene.answer(asked, view("1"));
    assert_eq!(scene.shows(), "web-1 10.0.0.1 Draining");
    // A second signal gives it the whole time again.
    let Some(Task::AwaitDrain { number: second, .. }) = scene.event("1", Event::Signalled(9))
    else {
        panic!("SIGKILL starts no drain");
    };
    assert_eq!(scene.0.drain_is_over("1".into(), first), None);
    let asked = question(scene.0.drain_is_over("1".into(), second).unwrap());
    assert_eq!(scene.shows(), "web-1 10.0.0.1 Draining");
    // The question being overtaken by another does not lose that the time is over.
    let newer = question(scene.event("1", Event::Changed).unwrap());
    scene.answer(asked, view("1"));
    scene.answer(newer, view("1"));
    assert_eq!(scene.shows(), "web-1 10.0.0.1 Ready");
}

#[test]
fn its_own_time_to_drain_goes_before_the_runs() {
    let mut scene = Scene::with(&["1"]);
    let asked = question(scene.event("1", Event::Changed).unwrap());
    let mut changed = view("1");
    changed.labels.insert("samport.drain".into(), "5s".into());
    scene.answer(asked, changed);
    assert_eq!(scene.0.snapshot().candidates[0].drain, Some(Duration::from_secs(5)));
    match scene.event("1", Event::Signalled(15)) {
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
    let mut scene = Scene::with(&["1", "2"]);
    let tasks = scene.0.listed(vec!["2".into(), "3".into()]);
    assert_eq!(scene.shows(), "web-2 10.0.0.2 Ready");
    for task in tasks {
        let asked = question(task);
        let answer = view(&asked.id);
        scene.answer(asked, answer);
    }
    assert_eq!(scene.shows(), "web-2 10.0.0.2 Ready, web-3 10.0.0.3 Ready");
}

#[test]
fn a_restart_nobody_told_of_ends_the_drain() {
    let mut scene = Scene::with(&["1"]);
    scene.event("1", Event::Signalled(15));
    let asked = question(scene.0.listed(vec!["1".into()]).remove(0));
    scene.answer(asked, ContainerView { started_at: Some("second".into()), ..view("1") });
    assert_eq!(scene.shows(), "web-1 10.0.0.1 Ready");
}

#[test]
fn a_missing_address_is_asked_for_again_before_anyone_is_told() {
    let mut scene = Scene::new();
    let mut asked = question(scene.event("1", Event::Started).unwrap());
    let bare = || {
        let networks = [("bridge".to_owned(), Attachment::default())].into();
        ContainerView { networks, ..view("1") }
    };
    let mut delays = Vec::new();
    while let Some(Task::Inspect { question, delay }) = scene.answer(asked.clone(), bare()) {
        assert_eq!(scene.told(), 0);
        delays.push(delay.as_millis());
        asked = question;
    }
    assert_eq!(delays, [10, 20, 40, 80, 160, 320]);
    assert_eq!(scene.told(), 1);
}

#[test]
fn each_reason_is_told_once_until_the_container_is_removed() {
    let mut scene = Scene::with(&["1"]);
    let wrong = |key: &str| {
        let labels = [(key.to_owned(), "x".to_owned())].into();
        ContainerView { labels, ..view("1") }
    };
    for (key, told) in [("samport.port", 1), ("samport.port", 1), ("samport.weight", 2)] {
        let asked = question(scene.event("1", Event::Changed).unwrap());
        scene.answer(asked, wrong(key));
        assert_eq!(scene.told(), told);
    }
    assert_eq!(scene.shows(), "");
    scene.event("1", Event::Died);
    assert_eq!(scene.told(), 2);
    scene.event("1", Event::Removed);
    assert_eq!(scene.told(), 0);
}

#[test]
fn a_question_that_fails_changes_nothing_and_is_asked_again() {
    let mut scene = Scene::with(&["1"]);
    let asked = question(scene.event("1", Event::Changed).unwrap());
    let outcome = Outcome::Failed("no route".into());
    let task = scene.0.answered(Answer { question: asked.clone(), outcome }).unwrap();
    assert_eq!(task, Task::Inspect { question: asked, delay: AFTER_FAILURE });
    assert_eq!(scene.shows(), "web-1 10.0.0.1 Ready");
}

#[test]
fn one_found_not_running_is_gone() {
    let mut scene = Scene::with(&["1"]);
    let asked = question(scene.event("1", Event::Changed).unwrap());
    scene.answer(asked, ContainerView { running: false, ..view("1") });
    assert_eq!(scene.shows(), "");
    assert_eq!(scene.event("1", Event::Changed), None);
}
