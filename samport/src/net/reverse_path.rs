//! How the kernel validates sources by the reverse path (rp_filter), and where samport cannot do the same. Its
//! programs look routes up with `bpf_fib_lookup`, which is told addresses and a device, and finds one next hop.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use anyhow::{Context as _, Result};
use netlink_packet_core::Nla;
use rtnetlink::packet_route::rule::{
    RuleAction, RuleAttribute, RuleFlags, RuleMessage, RulePortRange,
};
use samport_common::source::STRICT;

use crate::net::netlink::{Device, Devices, Netlink, NextHops};

/// `rp_filter` of loose reverse path filtering.
const LOOSE: u8 = 2;

/// As many policy rules are named.
const NAMED_RULES: usize = 3;

/// Attributes of policy rules that rtnetlink has no names for (`FRA_…`, linux/fib_rules.h): padding, and masks of
/// what other attributes say.
const PAD: u16 = 18;
const FLOW_LABEL_MASK: u16 = 27;
const DSCP_MASK: u16 = 30;
/// `FRA_DSCP`.
const DSCP: u16 = 25;

/// How one device's sources are validated.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ReversePath {
    /// rp_filter as the kernel applies it: the larger of `all` and the device's own; 0, 1 (strict) or 2 (loose). Strict
    /// is lowered to loose where samport cannot look routes up as the kernel does.
    pub rp_filter: u8,
    /// Whether the device is a next hop of a route with several devices, IPv4 first.
    pub multipath: [bool; 2],
    /// Whether routes have to be asked for from this device because it is in a VRF (or is one). A port of a bridge
    /// that is in a VRF is not: there it is the bridge that has to be asked from.
    pub in_vrf: bool,
}

/// How the sources of all devices are validated.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ReversePaths {
    /// Each device's, by index.
    pub of: BTreeMap<u32, ReversePath>,
    /// Why strict is not strict, one sentence each; empty if no device has it.
    pub reasons: Vec<String>,
}

impl ReversePaths {
    /// Asks the kernel. Costs a read of a file for each device, and a list of all routes where that is needed and
    /// they have changed.
    ///
    /// # Errors
    /// If the kernel does not answer. A device that has vanished meanwhile is no error.
    pub async fn find(netlink: &Netlink, devices: &Devices) -> Result<Self> {
        let all = setting("all")?;
        let mut rp_filters = BTreeMap::new();
        for device in devices.values() {
            rp_filters.insert(device.ifindex, applied(all, setting(&device.name)?));
        }
        let rules = netlink.rules().await?;
        let next_hops = if devices.values().any(|device| needs_routes(device, &rp_filters)) {
            netlink.next_hops().await?
        } else {
            NextHops::default()
        };
        Ok(resolve(devices, &rp_filters, &rules, &next_hops))
    }
}

/// Whether the device has strict reverse path filtering, as far as the kernel is concerned.
///
/// # Errors
/// If the setting cannot be read.
pub fn is_strict(name: &str) -> Result<bool> {
    Ok(applied(setting("all")?, setting(name)?) == STRICT)
}

/// Whether forwarding is on for packets that come in by a device, without which `bpf_fib_lookup` does not answer
/// for it; yes where that is not to be seen, as in a kernel without IPv6.
#[must_use]
pub fn forwards(v6: bool, name: &str) -> bool {
    let family = if v6 { "ipv6" } else { "ipv4" };
    let value = fs::read_to_string(format!("/proc/sys/net/{family}/conf/{name}/forwarding"));
    value.map_or(true, |value| value.trim() != "0")
}

/// Reads `rp_filter` of a device, or of `all`; 0 if there is no such device. A device's folder has its very name, dots
/// included: it is only sysctl(8) that swaps dots and slashes. The kernel refuses names with a slash
/// (`dev_valid_name`), and devices that are called `all` or `default` (`devinet_sysctl_register`).
fn setting(name: &str) -> Result<i32> {
    let path = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().with_context(|| format!("{path} contains {text:?}")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error).with_context(|| format!("cannot read {path}")),
    }
}

/// What the kernel makes of `all` and the device's own: whatever is neither 0 nor 1 is loose.
fn applied(all: i32, own: i32) -> u8 {
    match all.max(own) {
        0 => 0,
        1 => STRICT,
        _ => LOOSE,
    }
}

/// Whether next hops matter: where another device's route would be a reason to refuse.
fn needs_routes(device: &Device, rp_filters: &BTreeMap<u32, u8>) -> bool {
    let is_strict = rp_filters.get(&device.ifindex) == Some(&STRICT);
    device.is_bridge || device.is_veth || device.is_ethernet && is_strict
}

fn resolve(
    devices: &Devices,
    rp_filters: &BTreeMap<u32, u8>,
    rules: &[RuleMessage],
    next_hops: &NextHops,
) -> ReversePaths {
    let mut reasons = Vec::new();
    if rp_filters.values().any(|rp_filter| *rp_filter == STRICT) {
        reasons.extend(reason_of_rules(rules));
        reasons.extend(next_hops.are_hidden.then(|| {
            reason("see the devices of routes by next hop objects (net.ipv4.nexthop_compat_mode=0)")
        }));
    }
    let master_is_vrf = |device: &Device| {
        device.master.is_some_and(|master| devices.get(&master).is_some_and(|device| device.is_vrf))
    };
    let of = devices.values().map(|device| {
        let rp_filter = match rp_filters.get(&device.ifindex) {
            Some(&STRICT) if !reasons.is_empty() => LOOSE,
            rp_filter => rp_filter.copied().unwrap_or_default(),
        };
        let multipath = next_hops.devices.each_ref().map(|of| of.contains(&device.ifindex));
        let in_vrf = device.is_vrf || master_is_vrf(device);
        (device.ifindex, ReversePath { rp_filter, multipath, in_vrf })
    });
    let of: BTreeMap<_, _> = of.collect();
    let is_one_of_several = |path: &ReversePath| path.rp_filter == STRICT && path.multipath[0];
    if of.values().any(is_one_of_several) {
        reasons.push(reason(
            "tell apart the next hops of a route that has several: a source may come in by any device that is \
             one of some route's",
        ));
    }
    ReversePaths { of, reasons }
}

fn reason(what: &str) -> String {
    format!(
        "sources are validated as with rp_filter=2 (loose) where it is 1 (strict): samport cannot {what}"
    )
}

fn reason_of_rules(rules: &[RuleMessage]) -> Option<String> {
    let found: Vec<String> = rules.iter().filter_map(describe).collect();
    let named = found.iter().take(NAMED_RULES).cloned().collect::<Vec<_>>().join(", ");
    let what = match found.len() {
        0 => return None,
        1 => format!("follow policy rule {named}"),
        2..=NAMED_RULES => format!("follow policy rules {named}"),
        count => format!("follow policy rules {named} and {} more", count - NAMED_RULES),
    };
    Some(reason(&what))
}

/// The rule's priority and what it matches, in the words of ip-rule(8), if it matches what a lookup is not told.
fn describe(rule: &RuleMessage) -> Option<String> {
    let (mut priority, mut table) = (0, u32::from(rule.header.table));
    let (mut fwmark, mut mask) = (0, 0);
    let mut matches = Vec::new();
    if rule.header.tos != 0 {
        matches.push(format!("tos {:#x}", rule.header.tos));
    }
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::Table(value) => table = *value,
            RuleAttribute::FwMark(value) => fwmark = *value,
            RuleAttribute::FwMask(value) => mask = *value,
            RuleAttribute::TunId(id) => matches.push(format!("tun_id {id}")),
            RuleAttribute::UidRange(uids) => {
                matches.push(format!("uidrange {}-{}", uids.start, uids.end));
            }
            RuleAttribute::IpProtocol(protocol) => {
                matches.push(format!("ipproto {}", u8::from(*protocol)));
            }
            RuleAttribute::SourcePortRange(ports) => matches.push(range("sport", *ports)),
            RuleAttribute::DestinationPortRange(ports) => matches.push(range("dport", *ports)),
            RuleAttribute::Other(other) => matches.extend(describe_other(other)),
            _ => {}
        }
    }
    // The kernel gives a mask with every mark; one of 0 matches all.
    if mask == u32::MAX {
        matches.insert(0, format!("fwmark {fwmark:#x}"));
    } else if mask != 0 {
        matches.insert(0, format!("fwmark {fwmark:#x}/{mask:#x}"));
    }
    if matches.is_empty() {
        return None;
    }
    let not = if rule.header.flags.contains(RuleFlags::Invert) { "not " } else { "" };
    let matches = matches.join(" ");
    let leads_to = match rule.header.action {
        RuleAction::ToTable => format!(" lookup {table}"),
        _ => String::new(),
    };
    Some(format!("{priority} ({not}{matches}{leads_to})"))
}

fn range(what: &str, RulePortRange { start, end }: RulePortRange) -> String {
    if start == end { format!("{what} {start}") } else { format!("{what} {start}-{end}") }
}

/// What rtnetlink does not know is taken for something that is matched.
fn describe_other(attribute: &impl Nla) -> Option<String> {
    match attribute.kind() {
        PAD | FLOW_LABEL_MASK..=DSCP_MASK => None,
        DSCP => {
            let mut value = vec![0; attribute.value_len()];
            attribute.emit_value(&mut value);
            Some(format!("dscp {}", value.first().copied().unwrap_or_default()))
        }
        kind => Some(format!("attribute {kind}")),
    }
}

#[cfg(test)]
mod tests;
