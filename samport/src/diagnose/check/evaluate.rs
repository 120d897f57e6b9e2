//! What the facts mean. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::Facts;
use super::{Finding, Level, nodes};
use crate::control::admission;
use crate::control::reconcile::check_interfaces;
use crate::dataplane::{Bpffs, Tcx};
use crate::model::Candidate;
use crate::model::ports::Listen;
use crate::net::frontends::{self, assign, is_link_local};
use crate::net::netlink::Device;
use crate::net::placement;
use crate::system::exit::Exit;
use crate::system::hash_seed::Look;
use crate::system::privileges;
use crate::system::sandbox;

/// The oldest kernel whose hooks and helpers samport's programs have all they need of.
const OLDEST: (u16, u8) = (5, 14);

/// The oldest kernel they are known to load on: an older one's verifier may refuse them.
const KNOWN: (u16, u8) = (6, 1);

/// Some way in which `samport run` would fail.
const FAILED: Level = Level::Failure(Exit::Kernel);

/// One line for each thing worth a line, the machine first, then what was asked for.
#[must_use]
pub fn evaluate(facts: &Facts) -> Vec<Finding> {
    let mut findings = basics(facts);
    for name in &facts.interfaces {
        interface(facts, name, &mut findings);
    }
    sources(facts, &mut findings);
    engines(facts, &mut findings);
    if let Err(sentence) = &facts.alone {
        findings.push(Finding::said(FAILED, sentence));
    }
    admission(facts, &mut findings);
    ports(facts, &mut findings);
    nodes::evaluate(facts, &mut findings);
    findings.push(hash_seed(facts));
    firewall(facts, &mut findings);
    findings
}

/// Where choices by hash are as they are because of a secret, everybody should know where that is.
fn hash_seed(facts: &Facts) -> Finding {
    match &facts.hash_seed {
        Ok(Look::There(path)) => Finding::good(format!("hash seed: {}", path.display())),
        Ok(Look::New(path)) => {
            Finding::good(format!("hash seed: {}, which `samport run` will make", path.display()))
        }
        Ok(Look::UntilReboot(_, sentence)) => Finding::said(Level::Warning, sentence),
        // It may be there to be read by those only who may run samport.
        Err(sentence) if facts.privileges.is_err() => Finding::said(Level::Warning, sentence),
        Err(sentence) => Finding::said(Level::Failure(Exit::Usage), sentence),
    }
}

/// What is well about the machine is one line, what is not has one each.
fn basics(facts: &Facts) -> Vec<Finding> {
    let (mut well, mut findings) = (Vec::new(), Vec::new());
    match &facts.kernel {
        Ok((major, minor)) if (*major, *minor) < OLDEST => findings.push(Finding::said(
            FAILED,
            &format!("kernel {major}.{minor} is too old; Linux 5.14 or newer is needed"),
        )),
        Ok((major, minor)) if (*major, *minor) < KNOWN => findings.push(Finding::warning(
            format!(
                "kernel {major}.{minor} may refuse samport's programs; 6.1 is known to take them"
            ),
            "if `samport run` says so, take a newer one",
        )),
        Ok((major, minor)) => well.push(format!("kernel {major}.{minor}")),
        Err(sentence) => findings.push(Finding::said(Level::Warning, sentence)),
    }
    if facts.btf {
        well.push("BTF".to_owned());
    } else {
        findings.push(Finding::warning(
            "the kernel has no BTF: bpftool and others show samport's maps as bytes only",
            "a kernel with CONFIG_DEBUG_INFO_BTF shows their fields",
        ));
    }
    match &facts.tcx {
        Tcx::Present => well.push("tcx".to_owned()),
        Tcx::Absent => well.push("clsact (no tcx before Linux 6.6)".to_owned()),
        Tcx::Unknown(why) => findings.push(Finding::warning(
            format!("cannot find out whether the kernel has tcx: {why}"),
            "run this as root",
        )),
    }
    match &facts.privileges {
        Ok(()) => well.push(privileges::needed()),
        Err(sentence) => {
            findings.push(Finding::said(Level::Failure(Exit::Privileges), sentence));
        }
    }
    if !facts.sandbox {
        let way_out = "use --sandbox on unless samport fails with it; please report that";
        findings.push(Finding::warning(sandbox::OFF, way_out));
    }
    pins_and_local(facts, &mut well, &mut findings);
    if !well.is_empty() {
        findings.insert(0, Finding::good(well.join(" · ")));
    }
    findings
}

fn pins_and_local(facts: &Facts, well: &mut Vec<String>, findings: &mut Vec<Finding>) {
    match &facts.bpffs {
        Bpffs::Mounted => well.push("bpffs".to_owned()),
        Bpffs::NotMounted => findings.push(Finding::warning(
            "bpffs is not mounted at /sys/fs/bpf",
            "`samport run` mounts it; by hand: mount -t bpf bpf /sys/fs/bpf",
        )),
        Bpffs::NoPlace(why) => findings.push(Finding::said(
            FAILED,
            &format!("there is no place for bpffs ({why}); mount sysfs, on a kernel with BPF"),
        )),
    }
    match &facts.local {
        Ok(()) => well.push("cgroup2".to_owned()),
        Err(why) => findings.push(Finding::warning(
            format!("clients on this machine itself will not be served: {why}"),
            "mount cgroup2 at /sys/fs/cgroup, or use --no-local",
        )),
    }
}

fn interface(facts: &Facts, name: &String, findings: &mut Vec<Finding>) {
    if let Err(error) = check_interfaces(std::slice::from_ref(name), &facts.devices) {
        findings.push(Finding::said(FAILED, &error.to_string()));
        return;
    }
    let Some(device) = facts.devices.values().find(|device| device.name == *name) else { return };
    let link = facts.links.get(&device.ifindex).copied().unwrap_or_default();
    let addresses = addresses(device);
    if !link.is_up {
        let way_out = format!("ip link set {name} up");
        findings.push(Finding::warning(format!("{name} is down: no client can use it"), way_out));
    }
    if addresses.is_empty() {
        findings.push(Finding::warning(
            format!("{name} has no address that clients could dial"),
            format!("give it one (ip address add ADDRESS/PREFIX dev {name}); samport will follow"),
        ));
    }
    if link.is_up && !addresses.is_empty() {
        findings.push(Finding::good(format!("{name}: Ethernet, up, {addresses}")));
    }
    programs_on(facts, name, findings);
}

fn addresses(device: &Device) -> String {
    let usable = device.addresses.iter().filter(|addr| !is_link_local(**addr));
    usable.map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn programs_on(facts: &Facts, name: &String, findings: &mut Vec<Finding>) {
    if let Some(program) = facts.at_xdp.get(name).filter(|program| !is_ours(program)) {
        findings.push(Finding::warning(
            format!(
                "{name} has an XDP program, {program}: it gets every frame before samport does"
            ),
            "what it passes on is balanced; --hook xdp cannot be used beside it",
        ));
    }
    let foreign = facts.at_tcx.get(name).into_iter().flatten().filter(|program| !is_ours(program));
    let foreign: Vec<&str> = foreign.map(String::as_str).collect();
    if !foreign.is_empty() {
        let programs = foreign.join(", ");
        findings.push(Finding::warning(
            format!("{name} has other programs at tcx, which come before samport: {programs}"),
            "what they pass on is balanced, and nothing else",
        ));
    }
}

/// All of samport's programs are called so.
fn is_ours(program: &str) -> bool {
    program.starts_with("samport_")
}

/// What keeps samport from validating sources as it should.
fn sources(facts: &Facts, findings: &mut Vec<Finding>) {
    // Most machines do not forward IPv6, and do not serve it either.
    let serves_ipv6 = frontends::serve_ipv6(&facts.interfaces, &facts.devices);
    for (family, forwards, matters, way_out) in [
        (4, facts.forwarding[0], true, ""),
        (
            6,
            facts.forwarding[1],
            serves_ipv6,
            ", which forgets default routes from router advertisements where accept_ra is not 2",
        ),
    ] {
        if matters && !forwards {
            let setting = format!("net.ipv{family}.conf.lo.forwarding");
            findings.push(Finding::warning(
                format!(
                    "IPv{family} forwarding is off ({setting}): samport cannot check that the sources of \
                     containers' packets are theirs"
                ),
                format!("sysctl -w {setting}=1{way_out}"),
            ));
        }
    }
    if facts.strict.is_empty() {
        return;
    }
    let strict = facts.strict.join(", ");
    match &facts.not_strict {
        Ok(reasons) => findings.extend(reasons.iter().map(|reason| {
            let way_out = format!("on {strict}, use --allow CIDR to say who is served");
            Finding::warning(reason.clone(), way_out)
        })),
        Err(why) => findings.push(Finding::said(
            Level::Warning,
            &format!("cannot find out whether strict rp_filter on {strict} can be honoured: {why}"),
        )),
    }
}

fn engines(facts: &Facts, findings: &mut Vec<Finding>) {
    for engine in &facts.engines {
        match engine {
            Ok(seen) if seen.rootless => findings.push(Finding::warning(
                format!("{seen} is rootless: its containers have no interface samport could reach"),
                "run the engine as root",
            )),
            Ok(seen) => {
                findings.push(Finding::good(seen.to_string()));
                let said = |one: &Candidate| {
                    let leads_out = placement::leads_out(one, &facts.devices, &facts.interfaces);
                    let v6 = one.endpoint.is_ipv6();
                    (leads_out == Some(false)).then(|| placement::no_way_back(&one.name, v6))
                };
                // One for each port it serves.
                let sentences: BTreeSet<_> = seen.candidates.iter().filter_map(said).collect();
                let warning = |said: &String| Finding::said(Level::Warning, said);
                findings.extend(sentences.iter().map(warning));
            }
            Err(sentence) => {
                findings.push(Finding::said(Level::Failure(Exit::Unreachable), sentence));
            }
        }
    }
}

/// Containers that would be left out, whoever's engine they are of.
fn admission(facts: &Facts, findings: &mut Vec<Finding>) {
    let ports: BTreeSet<Listen> = facts.ports.iter().map(|(port, _)| *port).collect();
    let terms = admission::AdmissionRules {
        ports: &ports,
        allow: &facts.limits.allow,
        max_backends: facts.limits.max_backends,
        addresses: frontends::outer_addresses(&facts.devices, &facts.interfaces),
        conflict: facts.limits.conflict,
        restricted: &BTreeMap::new(),
    };
    let seen: Vec<_> = facts.engines.iter().flatten().collect();
    let offered: Vec<_> = seen.iter().flat_map(|seen| seen.candidates.iter().cloned()).collect();
    let admitted = admission::admit(&offered, |_| false, terms);
    let refused: BTreeSet<String> = seen.iter().flat_map(|seen| seen.refused.clone()).collect();
    let said = refused.iter().chain(&admitted.left_out).chain(&admitted.notes);
    findings.extend(said.map(|sentence| Finding::said(Level::Warning, sentence)));
}

fn ports(facts: &Facts, findings: &mut Vec<Finding>) {
    for (port, taken) in &facts.ports {
        findings.push(match taken {
            Ok(()) => Finding::good(format!("port {} is free", port.brief())),
            Err(sentence) => Finding::said(FAILED, sentence),
        });
    }
    let listens: BTreeSet<Listen> = facts.ports.iter().map(|(port, _)| *port).collect();
    let complaints = assign(&facts.devices, &facts.interfaces, &listens).complaints;
    findings.extend(complaints.iter().map(|said| Finding::said(Level::Warning, said)));
}

fn firewall(facts: &Facts, findings: &mut Vec<Finding>) {
    let places: Vec<String> = facts.ports.iter().map(|(port, _)| port.place()).collect();
    let what = if places.is_empty() { "served ports".to_owned() } else { places.join(", ") };
    match &facts.inspectors {
        Ok(inspectors) => {
            let who: BTreeSet<String> = inspectors.iter().map(ToString::to_string).collect();
            findings.extend(who.iter().map(|who| {
                Finding::warning(
                    format!("{who} is active: traffic on {what} will bypass it"),
                    "use --allow CIDR to say who is served",
                )
            }));
            if who.is_empty() {
                findings.push(Finding::good("no firewall rules for what comes in"));
            }
        }
        Err(why) => findings.push(Finding::warning(
            format!("cannot find out whether there is a firewall: {why}"),
            format!("if there is, traffic on {what} will bypass it: use --allow CIDR"),
        )),
    }
}

#[cfg(test)]
mod tests;
