//! Running samport: what it leaves behind, who it gets along with, what it says.

mod bad_input;
mod chaos;
mod check;
mod cleanup;
mod cluster;
mod completions;
mod config;
mod dry_run;
mod engine;
mod engine_events;
mod errors;
mod explain;
mod foreign;
mod hash_seed;
mod healthcheck;
mod help;
mod instances;
mod killed;
mod leftovers;
mod link_flap;
mod metrics;
mod network_churn;
mod operator;
mod package;
mod privileges;
mod sandbox;
mod schemas;
mod service;
mod status;
mod takeover;
mod text_file;
mod top;
mod upgrade;
mod user;

use std::process::Output;

use samport_tests::daemon::{HASH_SEED_FILE, hash_seed_file, samport_binary};
use samport_tests::{Lab, Namespace, require_root};

/// A lab with nothing special.
fn lab(backends: u8) -> Lab {
    require_root();
    Lab::builder().backends(backends).build().unwrap()
}

/// How a command has ended, and what it said on standard error.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    said: String,
}

/// Runs samport to its end. What should have been refused and runs instead is stopped: code 124.
fn ended(namespace: &Namespace, args: &[&str]) -> Ended {
    ended_with(namespace, &[], args)
}

/// The same through another command, like `setpriv --reuid=65534`.
fn ended_with(namespace: &Namespace, wrapper: &[&str], args: &[&str]) -> Ended {
    let mut command = namespace.command("timeout");
    command.arg("180").args(wrapper).arg(samport_binary()).args(args);
    // Of the machine that runs the tests.
    command.env_remove("DOCKER_HOST").env(HASH_SEED_FILE, hash_seed_file());
    let Output { status, stderr, .. } = command.output().unwrap();
    Ended { code: status.code(), said: String::from_utf8_lossy(&stderr).into_owned() }
}

impl Ended {
    /// Panics unless it has ended with this code and named all of this.
    fn assert(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.said);
        for word in words {
            assert!(self.said.contains(word), "nothing about {word:?} in: {}", self.said);
        }
        assert!(!self.said.contains("panicked"), "{}", self.said);
    }
}
