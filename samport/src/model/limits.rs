//! The limits an instance runs with, as `status` shows them and its record keeps them.

use serde::{Deserialize, Serialize};

/// How much an instance remembers, and for how long after the last packet. 0 is what is not known.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Limits {
    /// Flows for IPv4: `--flows`.
    pub flows: u32,
    /// Flows for IPv6: `--flows6`.
    #[serde(default)]
    pub flows6: u32,
    /// Flows of both tables together whose client is not proven, while one is stored in that for IPv4: a quarter of it.
    #[serde(default)]
    pub unproven: u32,
    /// The same for IPv6.
    #[serde(default)]
    pub unproven6: u32,
    /// Percent of a table that one service may hold when others need room: `--service-share`.
    #[serde(default)]
    pub service_share: u8,
    /// Backends at a time: `--max-backends`.
    pub max_backends: u32,
    /// Seconds, `--tcp-syn-timeout`.
    pub tcp_syn_seconds: u64,
    /// Seconds, `--tcp-timeout`.
    pub tcp_seconds: u64,
    /// Seconds, `--tcp-fin-timeout`.
    pub tcp_fin_seconds: u64,
    /// Seconds, `--tcp-rst-timeout`.
    pub tcp_rst_seconds: u64,
    /// Seconds, `--udp-timeout`.
    pub udp_seconds: u64,
    /// Seconds, `--udp-unanswered-timeout`.
    pub udp_unanswered_seconds: u64,
    /// Seconds, `--drain`.
    pub drain_seconds: u64,
}
