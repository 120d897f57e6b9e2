//! Checks of our own: what they find out, and what becomes of a backend's traffic then.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;

use samport_tests::daemon::{Backends, Daemon};
use samport_tests::load::{Connection, Load, ask};
use samport_tests::served::{LISTEN, Served, Status, TARGET, text};
use samport_tests::{Lab, TIMEOUT, eventually};

use crate::lab;

/// Often enough for a test, seldom enough for a busy machine.
const OFTEN: [&str; 4] = ["--health-interval", "100ms", "--health-timeout", "1s"];
/// The port of pages that are not the server's.
const ASIDE: u16 = 8081;

/// A page that a test itself answers, check by check.
struct Page(TcpListener);

impl Page {
    /// The page of the first backend.
    fn of_first(lab: &Lab) -> Self {
        let at = lab.backends()[0].v4(ASIDE);
        Self(lab.backends()[0].namespace().run(|| TcpListener::bind(at)).unwrap())
    }

    /// Waits for checks and answers each with the next status.
    fn answer(&self, statuses: &[u16]) {
        for status in statuses {
            let (mut stream, _) = self.0.accept().unwrap();
            let lines = BufReader::new(&stream).lines().map(Result::unwrap);
            let head: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
            assert_eq!(head[0], "GET /up HTTP/1.1");
            write!(stream, "HTTP/1.1 {status} as told\r\nContent-Length: 0\r\n\r\n").unwrap();
        }
    }
}

/// samport before one backend that is as healthy as its page.
fn before_a_page(lab: &Lab, options: &[&str]) -> (Daemon, Backends) {
    let file = Backends::of(lab, TARGET);
    let port = format!("{LISTEN}:{TARGET}");
    let usual = ["-i", "eth0", "-p", &port, "--file", file.path(), "--health", "http:8081/up"];
    (Daemon::launch(lab.host(), &[&usual[..], options].concat()), file)
}

fn said(daemon: &Daemon, text: &str) -> bool {
    daemon.lines().iter().any(|line| line.text.contains(text))
}

fn hear(daemon: &Daemon, text: &str) {
    daemon.wait_for_line(text, TIMEOUT);
}

/// The states of all backends, in the order of their names.
fn states(lab: &Lab) -> Vec<String> {
    let status = eventually("samport is there", || Status::all_in(lab.host()).pop());
    let mut named: Vec<_> =
        status.backends().iter().map(|one| (text(one, "name"), text(one, "state"))).collect();
    named.sort_unstable();
    named.into_iter().map(|(name, state)| format!("{name} {state}")).collect()
}

/// A connection to one of the backends, kept open.
fn hold(lab: &Lab, name: &str) -> Connection {
    eventually(&format!("a connection to {name}"), || {
        let mut one = lab.client().run(|| Connection::open(lab.front(LISTEN))).ok()?;
        (one.get("/").ok()?.backend == name).then_some(one)
    })
}

#[test]
fn rise_and_fall_count_checks_in_a_row_and_flapping_changes_nothing() {
    let lab = lab(1);
    let page = Page::of_first(&lab);
    let _servers = lab.serve(TARGET).unwrap();
    let patient = ["--health-interval", "100ms", "--health-timeout", "20s"];
    let counts = ["--health-rise", "3", "--health-fall", "2"];
    let (daemon, _file) = before_a_page(&lab, &[patient, counts].concat());
    let endpoint = lab.backends()[0].v4(TARGET);

    page.answer(&[200, 200, 503, 200, 200]);
    assert!(!said(&daemon, "+ web-1"));
    page.answer(&[200]);
    hear(&daemon, &format!("+ web-1 {endpoint} on :80"));

    page.answer(&[500, 302, 500, 200, 500]);
    assert!(!said(&daemon, "unhealthy"));
    page.answer(&[404]);
    hear(&daemon, &format!("- web-1 {endpoint} on :80 unhealthy: answered 404 (2 times)"));
    assert_eq!(states(&lab), ["web-1 unhealthy"]);

    page.answer(&[200, 200, 500, 200, 200]);
    assert!(!said(&daemon, "again"));
    page.answer(&[200]);
    hear(&daemon, &format!("+ web-1 {endpoint} on :80 healthy again"));
    assert_eq!(states(&lab), ["web-1 active"]);
}

/// Checks go from the host to the backend's own address: no client of ours, and no flow.
#[test]
fn checks_are_counted_as_nobodys_traffic() {
    let lab = lab(1);
    let page = Page::of_first(&lab);
    let (daemon, _file) = before_a_page(&lab, &["--health-interval", "100ms"]);
    page.answer(&[200]);
    hear(&daemon, "+ web-1");
    page.answer(&[200; 5]);
    let status = Status::all_in(lab.host()).pop().unwrap();
    assert_eq!(
        (status.sum("flows"), status.sum("packets_in"), status.sum("packets_out")),
        (0, 0, 0)
    );
    assert_eq!(status.0["flow_table"]["inserted"], 0);
    for verdict in ["forward-peer", "reply", "local-forward", "no-backend", "mid-flow-miss"] {
        assert_eq!(status.verdict(verdict), 0, "{verdict}");
    }
    // What the backend answers passes our program on its veth, which finds no flow for it.
    assert!(status.verdict("not-a-reply") > 0);
}

/// Accepting connections is not enough where a page is asked for, and coming back is.
#[test]
fn a_backend_whose_page_fails_gets_no_new_connections_and_keeps_those_it_has() {
    let options = [&["--health", "http:/health", "--drain", "0"][..], &OFTEN].concat();
    let mut served = Served::start(lab(2), &options);
    let mut held = hold(&served.lab, "web-2");
    served.servers[1].set_health(500);
    served.change(("-", "web-2", "unhealthy: answered 500 (3 times)"), |_| ());
    for front in served.fronts() {
        assert_eq!(ask(&served.lab, front, 40).of("web-1"), 40);
    }
    // However short the time to drain is: it does not leave.
    assert_eq!(held.get("/").unwrap().backend, "web-2");

    served.servers[1].set_health(200);
    served.change(("+", "web-2", "healthy again"), |_| ());
    let tally = ask(&served.lab, served.fronts()[0], 60);
    assert!(tally.of("web-1") > 0 && tally.of("web-2") > 0, "{tally}");
    assert_eq!(held.get("/").unwrap().backend, "web-2");
}

#[test]
fn a_server_that_is_gone_and_comes_back_is_noticed_by_connecting() {
    let mut served = Served::start(lab(2), &[&["--health", "tcp"][..], &OFTEN].concat());
    drop(served.servers.pop());
    served.change(("-", "web-2", "unhealthy: connection refused (3 times)"), |_| ());
    for front in served.fronts() {
        assert_eq!(ask(&served.lab, front, 40).of("web-1"), 40);
    }
    served.servers.push(served.lab.backends()[1].serve(TARGET).unwrap());
    served.change(("+", "web-2", "healthy again"), |_| ());
    let tally = ask(&served.lab, served.fronts()[1], 60);
    assert!(tally.of("web-2") > 0, "{tally}");
}

#[test]
fn a_server_that_accepts_and_never_answers_is_given_up_after_the_timeout() {
    let options = ["--health", "http:/health", "--health-fall", "1"];
    let mut served = Served::start(lab(2), &[&options[..], &OFTEN].concat());
    served.servers[1].set_health(0);
    served.change(("-", "web-2", "unhealthy: no answer within 1s"), |_| ());
    assert_eq!(ask(&served.lab, served.fronts()[0], 40).of("web-1"), 40);
}

/// Better served by one that is unhealthy than not at all.
#[test]
fn when_all_are_unhealthy_clients_are_still_served() {
    let mut served = Served::start(lab(2), &[&["--health", "http:/health"][..], &OFTEN].concat());
    let load = Load::start(served.lab.client(), served.fronts()[0], 1);
    for (index, name) in ["web-1", "web-2"].into_iter().enumerate() {
        served.servers[index].set_health(503);
        served.change(("-", name, "unhealthy: answered 503"), |_| ());
    }
    let before = load.so_far().tally;
    assert!(load.wait_for_more(100, TIMEOUT), "{}", load.so_far());
    let report = load.stop();
    report.assert_no_failure();
    let since = report.tally.since(&before);
    assert!(since.of("web-1") > 0 && since.of("web-2") > 0, "{since}");
}

/// A backend that has never been healthy gets nothing, not even when nobody else is there.
#[test]
fn a_backend_that_starts_gets_no_traffic_even_if_it_is_the_only_one() {
    let lab = lab(1);
    let (daemon, _file) = before_a_page(&lab, &["--health-interval", "100ms"]);
    hear(&daemon, "ready: ");
    assert_eq!(states(&lab), ["web-1 starting"]);
    let page = Page::of_first(&lab);
    let _servers = lab.serve(TARGET).unwrap();
    page.answer(&[503; 5]);
    assert!(lab.get(lab.front(LISTEN), "/").is_err());
    assert_eq!(states(&lab), ["web-1 starting"]);
    assert!(!said(&daemon, "+ web-1"));
    page.answer(&[200]);
    hear(&daemon, "+ web-1");
    assert_eq!(ask(&lab, lab.front(LISTEN), 10).of("web-1"), 10);
    assert_eq!(states(&lab), ["web-1 active"]);
}
