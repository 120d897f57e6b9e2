//! What must hold for any bytes whatever, one function a fuzz target. Each panics if it does not.
//!
//! `tests/fuzz` calls them with what libFuzzer invents, `tests/replay.rs` with every input that is
//! kept: on stable, with every other test. None reads anything but its bytes, so that an input fails
//! everywhere or nowhere.

pub mod conntrack;
pub mod encap;
mod fields;
pub mod parse;
pub mod rewrite;
mod second_parser;
mod sum;

/// A fuzz target: a function that panics if something that must hold does not.
pub type Check = fn(&[u8]);

/// All targets, by the name of their folder of inputs.
pub const TARGETS: [(&str, Check); 4] = [
    ("conntrack", conntrack::check),
    ("encap", encap::check),
    ("parse", parse::check),
    ("rewrite", rewrite::check),
];
