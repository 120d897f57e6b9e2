//! Real traffic: samport beside what else people use.

pub mod bulk;
pub mod client;
pub mod cluster;
pub mod connections;
pub mod contenders;
pub mod local;
mod node_bed;
mod options;
mod outcome;
mod proxies;
pub mod requests;
mod rules;
mod sample;
mod server;
mod streams;
pub mod test_bed;

/// Where the servers listen in their namespaces.
const BACKEND_PORT: u16 = 9090;
/// Where clients dial.
const FRONT_PORT: u16 = 80;
