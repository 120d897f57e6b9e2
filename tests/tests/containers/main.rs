//! Real containers: a Docker engine of one's own in the lab's host, samport before its containers.
//!
//! Nothing here is measured but what samport itself says of a container's start; whatever is waited
//! for has 20 seconds.

mod canary;
mod clients;
mod dockerd;
mod drivers;
mod filters;
mod health;
mod image;
mod labels;
mod life;
mod networks;
mod operator;
mod overlay;
mod podman;
mod proxy;
mod published;
mod rolling;
mod scale;
mod seeds;
mod several_networks;
mod veth;
mod xdp;

use std::net::SocketAddr;

use samport::lab::{Line, output_of};
use samport_tests::daemon::Daemon;
use samport_tests::docker::{Dockerd, Options};
use samport_tests::load::{Load, Tally, ask};
use samport_tests::stats::{chi_square, chi_square_limit};
use samport_tests::{Lab, TIMEOUT, eventually, require_root};

/// What makes a container one of samport's.
const LABEL: [&str; 2] = ["--label", "samport.port=80"];

/// A daemon without containers, which knows the server's image.
fn engine() -> Dockerd {
    engine_with(Options::default())
}

fn engine_with(options: Options) -> Dockerd {
    require_root();
    let lab = Lab::builder().backends(0).build().unwrap();
    // A machine that forwards already is left as open as it is: Docker says `-P FORWARD DROP` only
    // where it is Docker itself that turns forwarding on.
    lab.host().sysctl("net/ipv4/ip_forward", "0").unwrap();
    let docker = Dockerd::start_in(lab, options);
    docker.import_server_image();
    docker
}

/// A daemon with containers that samport serves by their label.
fn engine_of(names: &[&str]) -> Dockerd {
    let docker = engine();
    for name in names {
        docker.run_server(name, &LABEL);
    }
    docker
}

/// Starts `samport run -i eth0 OPTIONS…` beside the daemon and waits until it is ready.
fn start_samport(docker: &Dockerd, options: &[&str]) -> Daemon {
    let url = docker.url();
    let args = [&["-i", "eth0", "--endpoint", &url], options].concat();
    Daemon::start(docker.lab(), &args)
}

/// The usual samport, when all of these containers serve.
fn serve(docker: &Dockerd, names: &[&str]) -> Daemon {
    let samport = start_samport(docker, &["-p", "80:9090"]);
    for name in names {
        wait_until_serving(&samport, 0, name);
    }
    samport
}

/// What clients dial.
fn front(docker: &Dockerd) -> SocketAddr {
    docker.lab().front(80)
}

/// Asks port 80 that many times; panics on the first failure.
fn ask_front(docker: &Dockerd, requests: u32) -> Tally {
    ask(docker.lab(), front(docker), requests)
}

/// Constant requests to port 80 from outside.
fn load(docker: &Dockerd) -> Load {
    Load::start(docker.lab().client(), front(docker), 2)
}

/// The first line of samport's after a mark that has all these parts.
fn heard(samport: &Daemon, mark: usize, parts: &[&str]) -> Line {
    eventually(&format!("samport says {parts:?}"), || {
        let lines = samport.lines();
        let has_all = |line: &&Line| parts.iter().all(|part| line.text.contains(part));
        lines[mark..].iter().find(has_all).cloned()
    })
}

fn said(samport: &Daemon, mark: usize, text: &str) -> bool {
    samport.lines()[mark..].iter().any(|line| line.text.contains(text))
}

/// The line by which a container has come.
fn wait_until_serving(samport: &Daemon, mark: usize, name: &str) -> Line {
    heard(samport, mark, &[&format!("+ {name} "), " by "])
}

fn wait_until_draining(samport: &Daemon, mark: usize, name: &str) {
    heard(samport, mark, &[&format!("- {name} "), " draining"]);
}

fn wait_until_gone(samport: &Daemon, mark: usize, name: &str) {
    heard(samport, mark, &[&format!("- {name} "), " gone"]);
}

/// Who has answered.
fn names(tally: &Tally) -> Vec<&str> {
    tally.iter().map(|(name, _)| name).collect()
}

/// Waits for more answers than any gap could hide.
fn wait_for_more(load: &Load) {
    assert!(load.wait_for_more(200, TIMEOUT), "no more answers: {}", load.so_far());
}

/// Panics unless requests are shared by the weights, in the order of the containers' names. Fair
/// shares look unfair once in a thousand times, so they may do so once.
fn assert_shares(docker: &Dockerd, weights: &[f64]) {
    let limit = chi_square_limit(weights.len() - 1);
    let tallies = [(); 2].map(|()| ask_front(docker, 300));
    let is_fair = |tally: &Tally| {
        let counts = tally.counts();
        counts.len() == weights.len() && chi_square(&counts, weights) < limit
    };
    let said = tallies.iter().map(Tally::to_string).collect::<Vec<_>>().join("\n\n");
    assert!(tallies.iter().any(is_fair), "not shared as {weights:?}:\n{said}");
}

/// The firewall of the engine's host, without its counters and the time.
fn firewall(docker: &Dockerd) -> String {
    let save = |program: &str| {
        let rules = output_of(&mut docker.lab().host().command(program));
        rules.unwrap_or_else(|e| panic!("{e:#}"))
    };
    let rules = save("iptables-save") + &save("ip6tables-save");
    let lines = rules.lines().filter(|line| !line.starts_with('#'));
    // `:FORWARD DROP [12:720]`: packets and bytes.
    lines.map(|line| line.split(" [").next().unwrap_or(line)).collect::<Vec<_>>().join("\n")
}
