//! The loader of samport: finds backends, keeps the kernel's tables as they should be, and shows what
//! goes on. The program is `src/main.rs`; the library is there for it and for the tests.

mod allow;
pub mod api;
pub mod check;
pub mod cli;
pub mod dataplane;
pub mod discovery;
mod draining;
mod duration;
pub mod exit;
pub mod explain;
mod follow;
mod frontends;
pub mod groups;
pub mod health;
pub mod instance;
pub mod lab;
mod listening;
mod metrics;
pub mod model;
mod netdev;
pub mod netlink;
mod orders;
pub mod plan;
mod policy;
pub mod ports;
pub mod privileges;
pub mod reconcile;
pub mod routes;
mod seat;
mod service;
pub mod siblings;
pub mod site;
pub mod sockets;
pub mod table;
pub mod takeover;
pub mod wire_forms;
