//! What a run says at its beginning and at its end.

use samport_common::layout::bytes_per_flow;
use samport_common::verdict::Verdict;

use super::config::Config;
use crate::control::reconcile::Reconciler;
use crate::dataplane::XdpMode;

/// That everything works from now on, and how.
pub(super) fn say_ready(config: &Config, reconciler: &Reconciler) {
    let interfaces = config.interfaces.join(", ");
    let ports: Vec<String> = config.ports.iter().map(|port| port.place()).collect();
    let ports = if ports.is_empty() { "the ports of labels".to_owned() } else { ports.join(", ") };
    let (backends, hook) = (reconciler.serving(), reconciler.hooks());
    let plural = if backends == 1 { "" } else { "s" };
    let (flows4, flows6) = (config.dataplane.flows, config.dataplane.flows6);
    let memory =
        (u64::from(flows4) * bytes_per_flow(4) + u64::from(flows6) * bytes_per_flow(16)) >> 20;
    let room = if flows4 == flows6 {
        format!("{flows4} connections")
    } else {
        format!("{flows4} connections over IPv4 and {flows6} over IPv6")
    };
    tracing::info!(
        "ready: {ports} on {interfaces} ({hook}), {backends} backend{plural}, room for {room} ({memory} MiB)"
    );
    if reconciler.xdp() == Some(XdpMode::Native) {
        tracing::info!(
            "native XDP sends into those containers whose veth takes bare frames, and leaves the others \
             to tc (docs/concepts/xdp.md)"
        );
    }
    if backends == 0 {
        tracing::warn!("no backend yet: until there is one, this host answers clients itself");
    }
}

/// What became of all packets, and what is left.
pub(super) fn say_goodbye(verdicts: &[u64], keep: bool) {
    let counted: Vec<String> = Verdict::ALL
        .iter()
        .zip(verdicts)
        .filter(|(_, count)| **count > 0)
        .map(|(verdict, count)| format!("{} {count}", verdict.name()))
        .collect();
    tracing::info!(
        "packets: {}",
        if counted.is_empty() { "none".into() } else { counted.join(", ") }
    );
    tracing::info!(
        "{}",
        if keep {
            "left in the kernel, which keeps forwarding; `samport clean` removes it"
        } else {
            "removed everything"
        }
    );
}
