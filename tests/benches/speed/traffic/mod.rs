//! Real traffic: samport beside what else people use.

mod client;
pub mod connections;
pub mod contenders;
mod rules;
mod sample;
mod server;

/// Where the servers listen in their namespaces.
const BACKEND_PORT: u16 = 9090;
/// Where clients dial.
const FRONT_PORT: u16 = 80;
