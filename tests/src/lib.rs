//! What the tests of the whole are made of: the lab, samport as a child process, load, packets and
//! a Docker daemon of one's own. A new case should take a few lines.
#![allow(
    clippy::must_use_candidate,
    reason = "what acts on daemons and containers is called for its effect as often as for its value"
)]

pub mod daemon;
pub mod docker;
pub mod load;
pub mod packet;

use std::env;
use std::path::{Path, PathBuf};

pub use samport::lab::{BackendsFile, HOST_V4, HOST_V6, Lab, Namespace, Server, stats};

/// Ends the test unless it runs as root. Nothing is ever skipped: a skipped test looks like one
/// that has passed.
pub fn require_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test makes network namespaces and loads BPF programs: run `cargo xtask test` as root"
    );
}

/// Cargo's folder of the running test's profile: `target/debug` or `target/release`.
pub(crate) fn profile_folder() -> PathBuf {
    let test = env::current_exe().expect("the path of the running test");
    let deps = test.parent().expect("a test lies in a folder");
    deps.parent().unwrap_or_else(|| Path::new("/")).to_owned()
}
