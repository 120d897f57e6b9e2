//! `samport healthcheck` and `samport flows`: what their exit codes say.

use std::fs;

use samport_tests::daemon::{Daemon, samport};
use samport_tests::eventually;
use samport_tests::served::{Served, text};

use crate::{ended, lab};

/// Row D1 of the field faults: nobody says that all is well while nothing is kept up to date.
#[test]
fn a_loop_that_completes_no_round_is_not_healthy_and_says_why() {
    let mut served = Served::start(lab(2), &["--drain", "1"]);
    let host = served.lab.host();
    let in_the_way = format!("/run/samport/{}.new", text(&served.status().0, "name"));
    let control = || served.status().0["control_loop"].clone();
    let rounds = control()["rounds"].as_u64().unwrap();
    fs::create_dir(&in_the_way).unwrap();
    served.file.remove("web-2");
    let why = format!("cannot write /run/samport/{}.json", text(&served.status().0, "name"));
    let said = "the control loop has not completed a round for 3";
    served.daemon.wait_for_line(said, samport_tests::TIMEOUT);
    ended(host, &["healthcheck"]).assert(1, &[said, &why]);
    let control = || served.status().0["control_loop"].clone();
    let now = control();
    assert!(now["is_stalled"].as_bool().unwrap() && text(&now, "error").starts_with(&why), "{now}");
    // It tries again every second.
    assert!(now["rounds"].as_u64().unwrap() > rounds + 10, "{now}");
    let table = samport(host, &["status", "-o", "wide"]).stdout;
    assert!(String::from_utf8(table).unwrap().contains(said));
    fs::remove_dir(&in_the_way).unwrap();
    served.daemon.wait_for_line("the control loop goes on", samport_tests::TIMEOUT);
    eventually("samport is healthy again", || {
        let now = control();
        (!now["is_stalled"].as_bool().unwrap() && text(&now, "error").is_empty()).then_some(())
    });
    ended(host, &["healthcheck"]).assert(0, &[]);
    served.daemon.stop();
}

#[test]
fn a_samport_is_healthy_while_every_service_has_a_backend() {
    let mut served = Served::start(lab(2), &["--drain", "100"]);
    let host = served.lab.host();
    ended(host, &["healthcheck"]).assert(0, &[]);
    served.order(&["drain", "web-1"]);
    ended(host, &["healthcheck"]).assert(0, &[]);
    served.change(("-", "web-2", ""), |file| file.remove("web-2"));
    ended(served.lab.host(), &["healthcheck"]).assert(1, &["80/tcp"]);
    served.order(&["undrain", "web-1"]);
    ended(served.lab.host(), &["healthcheck"]).assert(0, &[]);
}

#[test]
fn one_service_without_a_backend_is_enough_to_be_unhealthy() {
    let lab = lab(1);
    let file = samport_tests::daemon::Backends::none();
    let address = lab.backends()[0].v4(9090);
    let listed = format!("[[backend]]\nname = \"web-1\"\naddress = \"{address}\"\nlisten = 80\n");
    file.write_text(&listed);
    let _servers = lab.serve(9090).unwrap();
    let args = ["-i", "eth0", "-p", "80", "-p", "81", "--file", file.path()];
    let daemon = Daemon::start(&lab, &args);
    let ended = ended(lab.host(), &["healthcheck"]);
    ended.assert(1, &["81/tcp"]);
    assert!(!ended.said.contains("80/tcp"), "{}", ended.said);
    daemon.stop();
}

#[test]
fn without_a_samport_neither_has_an_answer() {
    let lab = lab(0);
    ended(lab.host(), &["healthcheck"]).assert(3, &["samport does not run"]);
    ended(lab.host(), &["healthcheck", "--socket", "/run/nowhere.sock"])
        .assert(3, &["/run/nowhere.sock"]);
    ended(lab.host(), &["flows"]).assert(3, &["samport does not run"]);
    ended(lab.host(), &["flows", "--instance", "eth0:99@1"]).assert(3, &["eth0:99@1"]);
    ended(lab.host(), &["flows", "--follow", "--limit", "3"]).assert(2, &["--limit"]);
}
