//! `samport healthcheck` and `samport flows`: what their exit codes say.

use samport_tests::daemon::Daemon;
use samport_tests::served::Served;

use crate::{ended, lab};

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
