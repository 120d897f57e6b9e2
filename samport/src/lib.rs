//! The loader of samport: finds backends, keeps the kernel's tables as they should be, and shows what
//! goes on. The program is `src/main.rs`; it and the tests use the library.

pub mod api;
pub mod cli;
pub mod cluster;
pub mod control;
pub mod dataplane;
pub mod diagnose;
pub mod discovery;
pub mod lab;
pub mod model;
pub mod net;
pub mod plan;
pub mod system;
