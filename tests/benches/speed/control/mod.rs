//! How fast samport follows: from an engine's event to the first connection that goes another way, from one
//! table to the next, from its own start to the last of many containers. And what it takes meanwhile.

pub mod discovery;
pub mod events;
pub mod idle;
pub mod memory;
mod prober;
mod real;
pub mod tables;

use std::time::{Duration, Instant};

/// Milliseconds.
fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Milliseconds from one moment to a later one; 0 if it was not later.
fn ms_between(from: Instant, to: Instant) -> f64 {
    ms(to.saturating_duration_since(from))
}
