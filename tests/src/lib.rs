//! What the tests of the whole are made of: the lab, samport as a child process, load, packets and
//! a Docker daemon of one's own. A new case should take a few lines.
#![allow(
    clippy::must_use_candidate,
    reason = "what acts on daemons and containers is called for its effect as often as for its value"
)]

pub mod attacker;
pub mod bpf;
pub mod daemon;
pub mod datagrams;
pub mod docker;
pub mod engine;
mod engine_wire;
pub mod fake_engine;
pub mod flood;
pub mod frames;
pub mod http;
pub mod load;
pub mod open_connections;
pub mod own_mounts;
pub mod packet;
pub mod podman;
pub mod proxy;
pub mod raw;
pub mod screen;
pub mod served;
pub mod socket;
pub mod speed;
pub mod traces;

use std::env;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

pub use samport::lab::{
    Backend, BackendsFile, CLIENT_V4, HOST_V4, HOST_V6, Lab, Namespace, Server, stats,
};

/// Ends the test unless it runs as root. Nothing is ever skipped: a skipped test looks like one
/// that has passed.
pub fn require_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test makes network namespaces and loads BPF programs: run `cargo xtask test` as root"
    );
}

/// The number that a variable of the environment says, if it is set; panics if that is none.
pub fn number_in<N: FromStr>(variable: &str) -> Option<N> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("invalid {variable} {text:?}: expected a number")))
}

/// How long anything may take that is waited for: nothing is measured by it, the machine may be busy. It is longer than
/// the time that a backend drains for by default.
pub const TIMEOUT: Duration = Duration::from_mins(1);

/// Waits until a look around finds something; panics with `what` if it does not in time.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < TIMEOUT, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Cargo's folder of the running test's profile: `target/debug` or `target/release`.
pub(crate) fn profile_folder() -> PathBuf {
    let test = env::current_exe().expect("the path of the running test");
    let deps = test.parent().expect("a test lies in a folder");
    deps.parent().unwrap_or_else(|| Path::new("/")).to_owned()
}
