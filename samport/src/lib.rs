//! The loader of samport: finds backends, keeps the kernel's tables as they should be, and shows what
//! goes on. The program is `src/main.rs`; the library is there for it and for the tests.

pub mod api;
pub mod cli;
pub mod control;
pub mod dataplane;
pub mod diagnose;
pub mod discovery;
pub mod lab;
pub mod model;
pub mod net;
pub mod plan;
pub mod system;
