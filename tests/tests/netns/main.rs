//! Real sockets between network namespaces, samport in the middle.

mod allow;
mod balance;
mod choice;
mod churn;
mod collector;
mod datagrams;
mod explain;
mod failover;
mod flood;
mod flows;
mod forwarding;
mod front;
mod given;
mod health;
mod identity;
mod inside;
mod kernels;
mod listing;
mod local;
mod local_choice;
mod local_hooks;
mod matrix;
mod metrics;
mod modes;
mod operator;
mod paths;
mod refusals;
mod routes;
mod timeouts;
mod trace;
mod transfer;
mod xdp;

use samport_tests::{Lab, require_root};

/// A lab with nothing special.
fn lab(backends: u8) -> Lab {
    require_root();
    Lab::builder().backends(backends).build().unwrap()
}
