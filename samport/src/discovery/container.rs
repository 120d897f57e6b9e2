//! From a container to what it offers: pure, so that every rule can be tested without an engine.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use samport_common::wire::protocol::Protocol;

use super::filter::Filters;
use super::labels::{self, Labels};
use super::published::Published;
use crate::model::check::{CheckOrigin, Config, Method};
use crate::model::ports::{Listen, PortRanges, PortSpec};
use crate::model::{Application, Candidate, Condition, Egress, ServiceHints};
use crate::system::escape;

/// What samport wants to know of a container, taken from the engine's inspect answer.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ContainerView {
    /// The engine's id, hexadecimal.
    pub id: String,
    /// The name without a slash before it.
    pub name: String,
    /// Its first process, if it runs.
    pub pid: Option<u32>,
    /// Whether it runs; one that waits to be restarted does not.
    pub running: bool,
    /// Whether it is frozen.
    pub paused: bool,
    /// Whether it has been told to stop. Not from inspect: the watcher knows.
    pub stopping: bool,
    /// What its HEALTHCHECK says; `None` if it has none.
    pub health: Option<ContainerHealth>,
    /// All its labels.
    pub labels: BTreeMap<String, String>,
    /// The image as it was named at the start.
    pub image: String,
    /// Ports from EXPOSE.
    pub exposed: BTreeSet<Listen>,
    /// Ports of the host that the engine itself leads to it.
    pub published: BTreeSet<Published>,
    /// `bridge`, `host`, `none`, `container:ID` or a network's name.
    pub network_mode: String,
    /// The networks it is in, by name.
    pub networks: BTreeMap<String, Attachment>,
    /// STOPSIGNAL as given, a name or a number.
    pub stop_signal: Option<String>,
    /// When it was started, in the engine's words: to tell one run from the next.
    pub started_at: Option<String>,
}

/// A container's end in one network.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Attachment {
    /// Its IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// Its global IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// Its MAC.
    pub mac: Option<[u8; 6]>,
}

impl Attachment {
    /// The addresses it has, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ipv4.map(IpAddr::V4).into_iter().chain(self.ipv6.map(IpAddr::V6))
    }
}

/// The outcome of a container's HEALTHCHECK.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContainerHealth {
    /// Not passed yet.
    Starting,
    /// Passed.
    Healthy,
    /// Failed too often.
    Unhealthy,
}

/// What a run asks for, the same for all containers.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Policy {
    /// The `-p` list; if it is empty, labels decide which ports there are.
    pub ports: Vec<PortSpec>,
    /// The `--filter` list; if it is empty, labels decide which containers are meant.
    pub filters: Filters,
    /// `--health`.
    pub health: Config,
    /// `--label-ports`.
    pub label_ports: PortRanges,
}

/// Where a container is served, or was by the samport before: it stays there as long as it can.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ServedIn {
    /// The network's name, if it is known.
    pub network: Option<String>,
    /// The container's addresses there.
    pub addresses: BTreeSet<IpAddr>,
}

/// What a container offers.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Offer {
    /// One a port and address, `place` and `started` left open. None if the container is not meant.
    pub candidates: Vec<Candidate>,
    /// The network they are reached in.
    pub network: Attachment,
    /// What it is called; `None` for the host's.
    pub network_name: Option<String>,
    /// Sentences for the user about what is left out.
    pub warnings: Vec<String>,
}

/// Why a container that is meant cannot be served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rejection {
    sentence: String,
    /// Whether it may be gone by itself a moment later: a network that is still being set up.
    pub passing: bool,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl Rejection {
    fn new(view: &ContainerView, why: impl fmt::Display) -> Self {
        let sentence = format!("container {:?} is not served: {why}", view.name);
        Self { sentence, passing: false }
    }

    fn passing(view: &ContainerView, why: impl fmt::Display) -> Self {
        Self { passing: true, ..Self::new(view, why) }
    }
}

/// Says what a container offers under a policy. One that does not run, or is not meant, offers
/// nothing; one that is meant and cannot be served is an error with a sentence for the user. `served` is where it
/// has been served so far.
pub fn offer(
    view: &ContainerView,
    policy: &Policy,
    served: Option<&ServedIn>,
) -> Result<Offer, Rejection> {
    if !view.running || !selected(view, &policy.filters) {
        return Ok(Offer::default());
    }
    let mut labels = labels::read(&view.labels).map_err(|why| Rejection::new(view, why))?;
    let health = health(view, &labels, &policy.health)?;
    // A port that -p alone opens is the operator's: whose containers stand behind it he has said.
    let claims = !labels.ports.is_empty();
    let application = if claims { application(view, &labels) } else { Application::default() };
    let ports = ports(view, &mut labels, policy)?;
    let (network_name, network) = network(view, &labels, &policy.filters, served)?;
    let ports =
        if is_on_host(view) { without_clashes(view, &ports, &mut labels, policy)? } else { ports };
    let candidate = |listen: Listen, endpoint| Candidate {
        id: view.id.clone(),
        name: view.name.clone(),
        listen,
        endpoint,
        weight: labels.weight,
        drain: labels.drain,
        condition: condition(view, &health, listen.protocol),
        allow: labels.allow.clone(),
        hints: ServiceHints {
            application: application.clone(),
            service: service(view, &labels),
            ..labels.hints.clone()
        },
        place: None,
        egress: Egress::default(),
        started: None,
    };
    let candidates = ports
        .iter()
        .flat_map(|(listen, target)| {
            network.addresses().map(|ip| candidate(*listen, SocketAddr::new(ip, *target)))
        })
        .collect();
    let about = |warning: &String| format!("container {:?}: {warning}", view.name);
    let warnings = labels.warnings.iter().map(about).collect();
    Ok(Offer { candidates, network, network_name, warnings })
}

fn selected(view: &ContainerView, filters: &Filters) -> bool {
    if labels::excluded(&view.labels) {
        return false;
    }
    if filters.is_empty() { labels::present(&view.labels) } else { filters.matches(view) }
}

/// Whose word on its health holds, and how we ask if it is ours.
fn health(view: &ContainerView, labels: &Labels, default: &Config) -> Result<Config, Rejection> {
    if labels.health == Some(CheckOrigin::Docker) && view.health.is_none() {
        return Err(Rejection::new(
            view,
            "label samport.health=\"docker\", but it has no HEALTHCHECK; give its image one, or say \
             samport.health=tcp",
        ));
    }
    let source = labels.health.clone().unwrap_or_else(|| default.source.clone());
    Ok(Config { source, rhythm: labels.rhythm.over(default.rhythm) })
}

/// What it may do for services of a protocol. A UDP port cannot be asked whether it listens: without a
/// page its container's HEALTHCHECK is all there is to go by.
fn condition(view: &ContainerView, config: &Config, protocol: Protocol) -> Condition {
    if view.stopping || view.paused {
        return Condition::Draining;
    }
    match (&config.source, protocol) {
        (CheckOrigin::None, _) => return Condition::Unchecked,
        (CheckOrigin::Http(page), _) => return config.checked(Method::Http(page.clone())),
        (CheckOrigin::Tcp, Protocol::Tcp) => return config.checked(Method::Tcp),
        (CheckOrigin::Docker, _) | (CheckOrigin::Tcp, Protocol::Udp) => {}
    }
    match view.health {
        Some(ContainerHealth::Starting) => Condition::Starting,
        Some(ContainerHealth::Unhealthy) => Condition::Unhealthy,
        None if protocol == Protocol::Tcp => config.checked(Method::Tcp),
        None | Some(ContainerHealth::Healthy) => Condition::Ready,
    }
}

/// A name that Compose or another tool has given, fit for lists.
fn foreign_name(name: &str) -> String {
    escape::line(labels::shortened(name, labels::MAX_NAME).as_ref()).into_owned()
}

/// The name of its service: its label's, or Compose's for it.
fn service(view: &ContainerView, labels: &Labels) -> Option<String> {
    let compose = |what: &str| {
        let name = view.labels.get(&format!("com.docker.compose.{what}"))?;
        Some(foreign_name(name))
    };
    let own = labels.hints.service.clone();
    own.or_else(|| Some(format!("{}/{}", compose("project")?, compose("service")?)))
}

/// What labels say of a project's name.
const PROJECTS: [&str; 3] =
    ["com.docker.compose.project", "io.podman.compose.project", "com.docker.stack.namespace"];

/// Whose it is, as far as its labels and its image tell.
fn application(view: &ContainerView, labels: &Labels) -> Application {
    Application {
        service: labels.hints.service.clone(),
        project: PROJECTS
            .iter()
            .find_map(|label| view.labels.get(*label))
            .map(|name| foreign_name(name)),
        image: repository(&view.image).map(str::to_owned),
    }
}

/// An image's name without tag and digest; `None` for one that is named by its id.
fn repository(image: &str) -> Option<&str> {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let (path, last) = name.rsplit_once('/').map_or(("", name), |(path, last)| (path, last));
    let last = last.split_once(':').map_or(last, |(last, _)| last);
    let is_id = path.is_empty()
        && (last == "sha256" || (last.len() >= 12 && last.bytes().all(|b| b.is_ascii_hexdigit())));
    let length = if path.is_empty() { last.len() } else { path.len() + 1 + last.len() };
    (!is_id && !last.is_empty()).then(|| &name[..length])
}

/// The ports it serves, as pairs of listen and target.
fn ports(
    view: &ContainerView,
    labels: &mut Labels,
    policy: &Policy,
) -> Result<Vec<(Listen, u16)>, Rejection> {
    let flags = &policy.ports;
    let own = std::mem::take(&mut labels.ports);
    if own.is_empty() {
        if flags.is_empty() {
            let why = "nothing says on which port; give -p PORT or label it samport.port=PORT";
            return Err(Rejection::new(view, why));
        }
        let ports = flags.iter().map(|spec| (spec.listen, target(view, labels, *spec, None)));
        return Ok(ports.collect());
    }
    let mut ports = Vec::new();
    let mut beyond = Vec::new();
    for spec in own {
        if flags.is_empty() && !policy.label_ports.has(spec.listen.port) {
            beyond.push(spec.listen.brief());
            continue;
        }
        let flag = flags.iter().find(|flag| flag.listen == spec.listen);
        match flag {
            None if !flags.is_empty() => labels.warnings.push(format!(
                "its labels name port {0}, which no -p opens; add -p {0} or take it off the label",
                spec.listen.brief()
            )),
            _ => {
                let flag = flag.copied().unwrap_or(PortSpec { target: None, ..spec });
                ports.push((spec.listen, target(view, labels, flag, spec.target)));
            }
        }
    }
    if !beyond.is_empty() {
        let why = format!(
            "its labels claim port {}, and --label-ports lets labels claim {} only; take it off the label, or \
             add it to --label-ports",
            beyond.join(", "),
            policy.label_ports
        );
        if ports.is_empty() {
            return Err(Rejection::new(view, why));
        }
        labels.warnings.push(why);
    }
    Ok(ports)
}

/// The container's port: `-p 80:9090`, then its labels, then EXPOSE if it is clear (that is, names one
/// port of the protocol), then the same.
fn target(view: &ContainerView, labels: &Labels, flag: PortSpec, own: Option<u16>) -> u16 {
    let mut exposed = view.exposed.iter().filter(|one| one.protocol == flag.listen.protocol);
    let exposed = exposed.next().filter(|_| exposed.next().is_none()).map(|only| only.port);
    flag.target.or(labels.target).or(own).or(exposed).unwrap_or(flag.listen.port)
}

/// Whether its network is the machine's.
fn is_on_host(view: &ContainerView) -> bool {
    view.network_mode == "host"
}

/// On the host's network a container cannot listen on a port that samport serves: what is sent to it
/// there would come back to samport.
fn without_clashes(
    view: &ContainerView,
    ports: &[(Listen, u16)],
    labels: &mut Labels,
    policy: &Policy,
) -> Result<Vec<(Listen, u16)>, Rejection> {
    let flags = policy.ports.iter().map(|spec| spec.listen);
    let served: BTreeSet<Listen> = flags.chain(ports.iter().map(|(listen, _)| *listen)).collect();
    let (clashing, free): (Vec<_>, Vec<_>) = ports.iter().copied().partition(|(listen, target)| {
        // On which of the host's addresses it listens is not known.
        let at = Listen { port: *target, ..listen.everywhere() };
        served.iter().any(|served| served.overlaps(at))
    });
    let why = clashing.first().map(|(listen, target)| {
        format!(
            "it was started with --network host, where port {target} is for samport to serve; let it \
             listen on another port and say -p {}:PORT or label it samport.target=PORT",
            listen.address_and_port()
        )
    });
    match why {
        Some(why) if free.is_empty() => return Err(Rejection::new(view, why)),
        Some(why) => labels.warnings.push(why),
        None => {}
    }
    Ok(free)
}

/// The one network it is reached in, and its name unless it is the host's. Which one is meant has to be clear only
/// until it is served: networks that it is connected to later change nothing.
fn network(
    view: &ContainerView,
    labels: &Labels,
    filters: &Filters,
    served: Option<&ServedIn>,
) -> Result<(Option<String>, Attachment), Rejection> {
    own_network(view)?;
    if is_on_host(view) {
        // Which of the host's addresses is not the container's to say.
        let (ipv4, ipv6) = (Some(Ipv4Addr::UNSPECIFIED), Some(Ipv6Addr::UNSPECIFIED));
        return Ok((None, Attachment { ipv4, ipv6, mac: None }));
    }
    let names = || view.networks.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let (name, network) = if let Some(name) = &labels.network {
        view.networks.get_key_value(name).ok_or_else(|| {
            let why = format!("label samport.network={name:?}, but its networks are: {}", names());
            Rejection::new(view, why)
        })?
    } else {
        let found = only_network(view, filters);
        found.or_else(|| network_served_in(view, served?)).ok_or_else(|| {
            let why = format!(
                "it is in several networks; label it samport.network=NAME, NAME being one of: {}",
                names()
            );
            Rejection::new(view, why)
        })?
    };
    if network.addresses().next().is_none() {
        let why = format!(
            "it has no address in network {name:?}; connect it to a network that gives one"
        );
        return Err(Rejection::passing(view, why));
    }
    Ok((Some(name.clone()), *network))
}

/// The network it is served in: that of its address, or, after another start, that of the name.
fn network_served_in<'a>(
    view: &'a ContainerView,
    served: &ServedIn,
) -> Option<(&'a String, &'a Attachment)> {
    let has_address =
        |network: &Attachment| network.addresses().any(|ip| served.addresses.contains(&ip));
    let by_address = view.networks.iter().find(|(_, network)| has_address(network));
    by_address.or_else(|| view.networks.get_key_value(served.network.as_ref()?))
}

/// The network, if there is no doubt: the only one, or the only one that a filter names.
fn only_network<'a>(
    view: &'a ContainerView,
    filters: &Filters,
) -> Option<(&'a String, &'a Attachment)> {
    if view.networks.len() == 1 {
        return view.networks.first_key_value();
    }
    let mut named = view.networks.iter().filter(|(name, _)| filters.names_network(name));
    named.next().filter(|_| named.next().is_none())
}

/// Refuses containers without a network interface of their own.
fn own_network(view: &ContainerView) -> Result<(), Rejection> {
    match view.network_mode.as_str() {
        "none" => Err(Rejection::new(
            view,
            "it was started with --network none; start it in a network that reaches the host",
        )),
        "host" => Ok(()),
        mode if mode.starts_with("container:") => Err(Rejection::new(
            view,
            format!(
                "it uses the network of container {:.12}; put the samport labels on that one",
                &mode["container:".len()..]
            ),
        )),
        mode if mode.starts_with("slirp4netns") || mode.starts_with("pasta") => {
            Err(Rejection::new(
                view,
                "rootless Podman gives it no network interface; run it as root in a bridge network",
            ))
        }
        _ if view.networks.is_empty() => Err(Rejection::passing(
            view,
            "it is in no network; connect it to one with `docker network connect`",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
