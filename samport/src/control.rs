//! The control loop: what is wanted is compared with what the kernel has, and the orders of an operator.

pub(crate) mod admission;
pub(crate) mod draining;
pub(crate) mod orders;
pub mod progress;
pub mod reconcile;
pub(crate) mod seat;
pub mod siblings;
pub mod takeover;
