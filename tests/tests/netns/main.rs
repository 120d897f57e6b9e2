//! Real sockets between network namespaces, samport in the middle.

mod choice;
mod churn;
mod datagrams;
mod flows;
mod forwarding;
mod front;
mod identity;
mod local;
mod local_hooks;
mod paths;
mod transfer;

use samport_tests::{Lab, require_root};

/// A lab with nothing special.
fn lab(backends: u8) -> Lab {
    require_root();
    Lab::builder().backends(backends).build().unwrap()
}
