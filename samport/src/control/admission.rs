//! Which of the offered backends are let in: their number is limited, and a port belongs to one application.
//! Pure.
//!
//! Whoever serves already goes first, then the others by their names. One that does not fit is left out with a
//! sentence, and all others are served; it is looked at again whenever anything changes.

mod applications;

use std::collections::{BTreeMap, BTreeSet};

use samport_common::layout::{MAX_ALLOWED, MAX_FRONTENDS, SHARED_BY};

use crate::model::Candidate;
use crate::model::allow::{self, Networks};
use crate::model::ports::Listen;
use applications::Applications;

pub use applications::ServiceConflict;

/// Candidates that are looked at, for each backend there is room for: those that start, fail or have drained take
/// no room in the kernel, but each is checked.
const CANDIDATES_FOR_EACH: usize = 2;

/// What there is room for, and who has the first say.
#[derive(Clone, Copy, Debug)]
pub struct AdmissionRules<'a> {
    /// The ports of `-p`.
    pub ports: &'a BTreeSet<Listen>,
    /// `--allow`.
    pub allow: &'a Networks,
    /// `--max-backends`.
    pub max_backends: u32,
    /// Addresses that every port is served on, by family: IPv4, IPv6.
    pub addresses: [usize; 2],
    /// `--service-conflict`.
    pub conflict: ServiceConflict,
    /// What labels have restricted ports to so far.
    pub restricted: &'a BTreeMap<Listen, Networks>,
}

/// Who is let in.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Admission {
    /// Those that are, in the order they were offered.
    pub candidates: Vec<Candidate>,
    /// Sentences about those that are not.
    pub left_out: BTreeSet<String>,
    /// Sentences about what is let in and looks like a mistake.
    pub notes: BTreeSet<String>,
    /// What labels restrict ports to. A port stays restricted while it has any container, although the one that said
    /// so has gone.
    pub restricted: BTreeMap<Listen, Networks>,
}

/// Decides about all candidates.
#[must_use]
pub fn admit(
    candidates: &[Candidate],
    is_served: impl Fn(&Candidate) -> bool,
    rules: AdmissionRules<'_>,
) -> Admission {
    let mut admission = Admission::default();
    let mut room = Room::of(candidates, rules);
    let mut applications = Applications::new(rules.conflict);
    let (served, others): (Vec<_>, Vec<_>) =
        (0..candidates.len()).partition(|at| is_served(&candidates[*at]));
    let mut admitted = BTreeSet::new();
    let mut left_out: BTreeMap<(&str, String), Vec<Listen>> = BTreeMap::new();
    for at in served.into_iter().chain(others) {
        let candidate = &candidates[at];
        let outcome = applications.check(candidate).and_then(|note| {
            room.take(candidate)?;
            Ok(note)
        });
        match outcome {
            Ok(note) => {
                applications.add(candidate);
                admission.notes.extend(note);
                admission.notes.extend(wider(candidate, rules.allow));
                admitted.insert(at);
            }
            Err(why) => {
                left_out.entry((&candidate.name, why)).or_default().push(candidate.listen);
            }
        }
    }
    let sentence = |((name, why), ports)| format!("{name} is left out on {}: {why}", listed(ports));
    admission.left_out = left_out.into_iter().map(sentence).collect();
    admission.candidates = admitted.into_iter().map(|at| candidates[at].clone()).collect();
    admission.restricted = restricted(&admission.candidates, room.labels, rules.restricted);
    admission
}

/// Whether one more backend fits beside this many, and one more port before its endpoint.
///
/// # Errors
/// Why not, and the way out.
pub fn has_room(backends: usize, most: u32, ports: usize) -> Result<(), String> {
    if ports >= SHARED_BY {
        return Err(format!("at most {SHARED_BY} ports of the host lead to one of a container's"));
    }
    if backends >= most as usize {
        return Err(format!("this samport has room for {most} backends; raise --max-backends"));
    }
    Ok(())
}

/// Ports, in words: the first few, and how many more there are.
fn listed(mut ports: Vec<Listen>) -> String {
    const NAMED: usize = 3;
    ports.sort_unstable();
    ports.dedup();
    let named: Vec<_> = ports.iter().take(NAMED).map(|port| port.brief()).collect();
    let plural = if ports.len() == 1 { "" } else { "s" };
    let more = match ports.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("port{plural} {}{more}", named.join(", "))
}

/// What labels restrict the ports of these candidates to.
fn restricted(
    candidates: &[Candidate],
    mut labels: BTreeMap<Listen, Networks>,
    before: &BTreeMap<Listen, Networks>,
) -> BTreeMap<Listen, Networks> {
    let ports: BTreeSet<Listen> = candidates.iter().map(|one| one.listen).collect();
    let of_port = |listen: Listen| {
        let networks = labels.remove(&listen).or_else(|| before.get(&listen).cloned())?;
        Some((listen, networks))
    };
    ports.into_iter().filter_map(of_port).collect()
}

/// What a label names beyond the flag, in words.
fn wider(candidate: &Candidate, flag: &Networks) -> Option<String> {
    let is_wider = |net: &&ipnet::IpNet| !flag.is_empty() && !allow::covers(flag, **net);
    let net = candidate.allow.iter().find(is_wider)?;
    Some(format!(
        "label samport.allow of {} names {net}, which --allow does not cover; a label only narrows --allow",
        candidate.name
    ))
}

/// What is left of the limits.
struct Room<'a> {
    rules: AdmissionRules<'a>,
    candidates: usize,
    ports: BTreeSet<Listen>,
    /// Frontends in use, by family.
    frontends: [usize; 2],
    /// Networks that labels name.
    labels: BTreeMap<Listen, Networks>,
    /// Networks in each port's allow-list, and in all of them, by family.
    networks: BTreeMap<Listen, [usize; 2]>,
    all_networks: [usize; 2],
}

impl<'a> Room<'a> {
    /// What the ports of `-p` leave.
    fn of(candidates: &[Candidate], rules: AdmissionRules<'a>) -> Self {
        let mut room = Self {
            rules,
            candidates: rules.max_backends as usize * CANDIDATES_FOR_EACH,
            ports: BTreeSet::new(),
            frontends: [0; 2],
            labels: BTreeMap::new(),
            networks: BTreeMap::new(),
            all_networks: [0; 2],
        };
        let labelled = candidates.iter().filter(|one| !one.allow.is_empty());
        let labelled: BTreeSet<Listen> = labelled.map(|one| one.listen).collect();
        let kept = rules.restricted.iter().filter(|(listen, _)| !labelled.contains(listen));
        room.labels = kept.map(|(listen, networks)| (*listen, networks.clone())).collect();
        for listen in rules.ports {
            room.open(*listen);
            let networks = room.networks_with(*listen, &Networks::new());
            room.charge(*listen, networks);
        }
        room
    }

    /// Takes what a candidate needs; nothing if that is not all there.
    fn take(&mut self, candidate: &Candidate) -> Result<(), String> {
        let AdmissionRules { max_backends, allow, .. } = self.rules;
        if self.candidates == 0 {
            return Err(format!(
                "more than {CANDIDATES_FOR_EACH} containers for each of the {max_backends} backends there is \
                 room for; raise --max-backends"
            ));
        }
        let listen = candidate.listen;
        if !self.ports.contains(&listen) {
            self.check_frontends(listen)?;
        }
        let labels = &candidate.allow;
        if !labels.is_empty() && allow::narrowed(allow, labels).is_empty() {
            return Err("its label samport.allow names no network that --allow covers, so it could serve no \
                        client; name some of those"
                .to_owned());
        }
        let is_known = self.labels.get(&listen).is_some_and(|known| labels.is_subset(known));
        if !is_known || !self.networks.contains_key(&listen) {
            let networks = self.networks_with(listen, labels);
            self.check_networks(listen, networks)?;
            self.charge(listen, networks);
            if !labels.is_empty() {
                self.labels.entry(listen).or_default().extend(labels.iter().copied());
            }
        }
        self.candidates -= 1;
        self.open(listen);
        Ok(())
    }

    /// Frontends that a port needs: at least its own address or 127.0.0.1.
    fn frontends_of(&self, listen: Listen) -> [usize; 2] {
        match listen.addr {
            Some(addr) => [usize::from(addr.is_ipv4()), usize::from(addr.is_ipv6())],
            None => self.rules.addresses.map(|count| count.max(1)),
        }
    }

    fn open(&mut self, listen: Listen) {
        if self.ports.insert(listen) {
            let more = self.frontends_of(listen);
            self.frontends = [0, 1].map(|family| self.frontends[family] + more[family]);
        }
    }

    fn check_frontends(&self, listen: Listen) -> Result<(), String> {
        let more = self.frontends_of(listen);
        if [0, 1].iter().all(|at| self.frontends[*at] + more[*at] <= MAX_FRONTENDS as usize) {
            return Ok(());
        }
        Err(format!(
            "{} ports are served already, and there is room for {MAX_FRONTENDS} addresses times ports of each \
             family; serve fewer ports, or fewer interfaces",
            self.ports.len()
        ))
    }

    /// How many networks a port's allow-list has with these labels too.
    fn networks_with(&self, listen: Listen, labels: &Networks) -> [usize; 2] {
        let known = self.labels.get(&listen);
        let all: Networks = known.into_iter().flatten().chain(labels).copied().collect();
        let flag = self.rules.allow;
        let list = if all.is_empty() { flag.clone() } else { allow::narrowed(flag, &all) };
        let v6 = list.iter().filter(|net| net.addr().is_ipv6()).count();
        [list.len() - v6, v6]
    }

    fn check_networks(&self, listen: Listen, networks: [usize; 2]) -> Result<(), String> {
        let before = self.networks.get(&listen).copied().unwrap_or_default();
        let with = |at: usize| self.all_networks[at] - before[at] + networks[at];
        if [0, 1].iter().all(|at| with(*at) <= MAX_ALLOWED as usize || networks[*at] <= before[*at])
        {
            return Ok(());
        }
        Err(format!(
            "its allow-list has {} networks, and there is room for {MAX_ALLOWED} in all allow-lists, for each \
             family; name fewer, or larger ones, in samport.allow or --allow",
            networks[0].max(networks[1])
        ))
    }

    fn charge(&mut self, listen: Listen, networks: [usize; 2]) {
        let before = self.networks.insert(listen, networks).unwrap_or_default();
        self.all_networks = [0, 1].map(|at| self.all_networks[at] - before[at] + networks[at]);
    }
}

#[cfg(test)]
mod tests;
