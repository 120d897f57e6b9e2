//! The control loop: what is wanted is compared with what the kernel has, and the orders of an operator.

pub(crate) mod admission;
pub(crate) mod commands;
pub(crate) mod draining;
pub(crate) mod handle;
pub mod peers;
pub mod progress;
pub mod reconcile;
pub mod takeover;
