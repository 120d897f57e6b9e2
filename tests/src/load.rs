//! Requests, single ones and constant load, and how they are counted.

pub use samport::lab::{Connection, Failure, Load, Report, Response, Tally, get};

use samport::lab::Lab;
use std::net::SocketAddr;

/// Asks that many times from the lab's client, each time on a new connection; panics on the first
/// failure, also on an answer to another client address than the client's own.
pub fn ask(lab: &Lab, address: SocketAddr, requests: u32) -> Tally {
    lab.client().run(|| {
        let mut tally = Tally::default();
        for number in 1..=requests {
            let response = get(address, "/")
                .unwrap_or_else(|e| panic!("request {number} of {requests} to {address}: {e}"));
            assert_eq!(response.client, response.local_addr, "{} saw another", response.backend);
            tally.add(&response.backend);
        }
        tally
    })
}
