use std::net::TcpListener;

use super::*;
use crate::model::allow::Networks;
use crate::model::check::{Config, Rhythm};
use crate::model::ports::Listen;
use crate::model::{Egress, ServiceHints};

/// Longest wait for a check: nothing is measured by it.
const PATIENT: Duration = Duration::from_secs(20);

fn candidate(endpoint: SocketAddr, rhythm: Rhythm) -> Candidate {
    let config = Config { source: crate::model::check::CheckOrigin::Tcp, rhythm };
    let listen = Listen::tcp(80);
    Candidate {
        id: "c1".into(),
        name: "web-1".into(),
        listen,
        endpoint,
        weight: 1,
        drain: None,
        condition: config.of_listed(listen.protocol),
        allow: Networks::new(),
        hints: ServiceHints::default(),
        place: None,
        egress: Egress::default(),
        started: None,
    }
}

/// A rhythm in which nothing happens by itself once a backend has started.
fn hourly(fall: u32) -> Rhythm {
    Rhythm { interval: Duration::from_hours(1), fall, ..Rhythm::default() }
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn changed(health: &mut HealthChecks) {
    tokio::time::timeout(PATIENT, health.changed()).await.expect("a change in time");
}

#[tokio::test]
async fn a_server_that_comes_late_is_noticed() {
    let (reserved, endpoint) = listener();
    drop(reserved);
    let candidate = candidate(endpoint, hourly(1));
    let mut health = HealthChecks::default();
    assert_eq!(health.state(&candidate), State::Starting);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(health.state(&candidate), State::Starting);
    let _server = TcpListener::bind(endpoint).unwrap();
    changed(&mut health).await;
    assert_eq!(health.state(&candidate), State::Active);
    health.keep_only(&[]);
    assert_eq!(health.state(&candidate), State::Starting, "it has been forgotten");
}

#[tokio::test]
async fn one_that_is_suspected_is_checked_at_once_and_told_with_the_reason() {
    let (server, endpoint) = listener();
    let candidate = candidate(endpoint, hourly(2));
    let mut health = HealthChecks::default();
    health.state(&candidate);
    changed(&mut health).await;
    drop(server);
    health.check_now("127.0.0.1:1".parse().unwrap());
    health.check_now(endpoint);
    changed(&mut health).await;
    assert_eq!(health.state(&candidate), State::Unhealthy);
    assert_eq!(health.failure("c1", endpoint), Some("connection refused (2 times)"));
    assert_eq!(health.failure("c2", endpoint), None);

    let _server = TcpListener::bind(endpoint).unwrap();
    health.check_now(endpoint);
    changed(&mut health).await;
    assert_eq!(health.state(&candidate), State::Active);
    assert_eq!(health.failure("c1", endpoint), None);
}

/// Whether a connection comes to a listener before the interval is over.
async fn is_asked(server: TcpListener) -> (bool, TcpListener) {
    server.set_nonblocking(true).unwrap();
    let server = tokio::net::TcpListener::from_std(server).unwrap();
    let asked = tokio::time::timeout(Duration::from_millis(200), server.accept()).await.is_ok();
    (asked, server.into_std().unwrap())
}

#[tokio::test]
async fn one_that_drains_is_left_alone_and_what_was_known_of_it_stays() {
    let (server, endpoint) = listener();
    let candidate = candidate(endpoint, hourly(1));
    let draining = Candidate { condition: Condition::Draining, ..candidate.clone() };
    let mut health = HealthChecks::default();
    health.state(&candidate);
    changed(&mut health).await;
    let (asked, server) = is_asked(server).await;
    assert!(asked);

    health.keep_only(std::slice::from_ref(&draining));
    assert_eq!(health.state(&draining), State::Draining);
    health.check_now(endpoint);
    let (asked, server) = is_asked(server).await;
    assert!(!asked, "a result would change nothing");

    health.keep_only(std::slice::from_ref(&candidate));
    assert_eq!(health.state(&candidate), State::Active, "it is not starting once more");
    assert!(is_asked(server).await.0, "it is checked again");
}

#[tokio::test]
async fn what_the_engine_says_needs_no_check() {
    let mut health = HealthChecks::default();
    let (server, endpoint) = listener();
    for (condition, state) in [
        (Condition::Ready, State::Active),
        (Condition::Unchecked, State::Active),
        (Condition::Starting, State::Starting),
        (Condition::Unhealthy, State::Unhealthy),
        (Condition::Draining, State::Draining),
    ] {
        let candidate = Candidate { condition, ..candidate(endpoint, hourly(1)) };
        assert_eq!(health.state(&candidate), state);
    }
    assert!(!is_asked(server).await.0);
}

/// A check at the interval, a HEALTHCHECK or none by default: all may be asked on evidence. Not UDP, and not
/// those whose user says `--health none`.
#[tokio::test]
async fn on_evidence_all_are_asked_but_those_that_nothing_of_ours_may_ask() {
    let mut health = HealthChecks::default();
    let (_server, endpoint) = listener();
    let checked = candidate(endpoint, hourly(1));
    let Condition::Checked(check) = checked.condition.clone() else { panic!("{checked:?}") };
    let with = |condition| Candidate { condition, ..checked.clone() };
    assert_eq!(health.check_on_evidence(endpoint), None);

    health.state(&with(Condition::Ready));
    let method = health.check_on_evidence(endpoint).map(|check| check.method);
    assert_eq!(method, Some(Method::Tcp));
    for condition in [Condition::Unchecked, Condition::Draining, Condition::Unhealthy] {
        health.state(&with(Condition::Ready));
        health.state(&with(condition.clone()));
        assert_eq!(health.check_on_evidence(endpoint), None, "{condition:?}");
    }
    health.state(&Candidate { listen: Listen::udp(80), ..with(Condition::Ready) });
    assert_eq!(health.check_on_evidence(endpoint), None);

    health.state(&with(Condition::Ready));
    health.keep_only(&[]);
    assert_eq!(health.check_on_evidence(endpoint), None, "it is gone");
    health.state(&checked);
    assert_eq!(health.check_on_evidence(endpoint), Some(check));
    health.keep_only(&[with(Condition::Draining)]);
    assert_eq!(health.check_on_evidence(endpoint), None, "it takes no new connections");
}
