//! What is looked at before anything is attached.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Result;

use crate::model::{Candidate, Snapshot};
use crate::net::netlink::Devices;
use crate::system::exit::{Exit, coded};

/// All interfaces must be there and speak Ethernet.
pub(crate) fn check_interfaces(names: &[String], devices: &Devices) -> Result<()> {
    for name in names {
        let Some(device) = devices.values().find(|device| device.name == *name) else {
            let known: Vec<_> = devices.values().map(|d| d.name.as_str()).collect();
            let known = known.join(", ");
            let message = format!("there is no interface {name:?}; this machine has {known}");
            return Err(coded(Exit::Failure, message));
        };
        if !device.is_ethernet {
            let message = format!(
                "{name} carries no Ethernet frames (a tunnel or lo), which this version needs"
            );
            return Err(coded(Exit::Failure, message));
        }
    }
    Ok(())
}

/// Backends must have something of their family to stand behind. One that has not is named; if that
/// is all of them, the run makes no sense. (A container with addresses of both families may well
/// stand behind an interface with one.)
pub(crate) fn check_families(
    names: &[String],
    snapshot: &Snapshot,
    devices: &Devices,
) -> Result<()> {
    let served: BTreeSet<bool> = devices
        .values()
        .filter(|device| names.contains(&device.name))
        .flat_map(|device| device.addresses.iter().map(IpAddr::is_ipv6))
        .collect();
    let fits = |candidate: &&Candidate| {
        let v6 = candidate.endpoint.is_ipv6();
        match candidate.listen.addr {
            Some(addr) => addr.is_ipv6() == v6,
            None => served.contains(&v6),
        }
    };
    let fitting: BTreeSet<_> = snapshot.candidates.iter().filter(fits).map(|c| &c.id).collect();
    for misfit in snapshot.candidates.iter().filter(|candidate| !fitting.contains(&candidate.id)) {
        let family = if misfit.endpoint.is_ipv6() { "IPv6" } else { "IPv4" };
        let front = match misfit.listen.addr {
            Some(_) => misfit.listen.brief(),
            None => names.join(", "),
        };
        let message = format!(
            "backend {} is {family}, but {front} has no {family} address to serve it on; give it one, or \
             take a backend of the other family",
            misfit.endpoint,
        );
        if fitting.is_empty() {
            return Err(coded(Exit::Failure, message));
        }
        tracing::warn!("{message}");
    }
    Ok(())
}
