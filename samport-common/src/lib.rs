//! The pure core of samport.
//!
//! Everything the balancer decides about a packet is decided here, by functions without a clock,
//! without randomness and without a map: time and random numbers are parameters, effects are
//! returned as data. The same code is compiled for the kernel (`samport-ebpf`) and for the host,
//! where it is tested exhaustively and by property.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::cast_possible_truncation
    )
)]

pub mod checksum;
pub mod choose;
pub mod conntrack;
pub mod encap;
pub mod exit;
pub mod failover;
pub mod family;
pub mod flow;
pub mod frame;
pub mod harness;
pub mod layout;
pub mod outbound;
pub mod packet;
pub mod reset;
pub mod rewrite;
pub mod seed;
pub mod sock_lb;
pub mod source;
pub mod trace;
pub mod verdict;
pub mod wire;
