//! Real sockets between network namespaces, samport in the middle.

mod allow;
mod authority;
mod balance;
mod blind;
mod choice;
mod churn;
mod cluster;
mod collector;
mod crowd;
mod datagram_flows;
mod datagrams;
mod engines;
mod escapes;
mod evidence;
mod exits;
mod explain;
mod failover;
mod flood;
mod flows;
mod forwarding;
mod front;
mod given;
mod hash_seed;
mod health;
mod identity;
mod inside;
mod kernels;
mod limits;
mod listeners;
mod listing;
mod local;
mod local_addresses;
mod local_choice;
mod local_counts;
mod local_hooks;
mod matrix;
mod metrics;
mod modes;
mod moves;
mod operator;
mod outbound;
mod paths;
mod refusals;
mod room;
mod routes;
mod sizes;
mod sources;
mod spoof;
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
