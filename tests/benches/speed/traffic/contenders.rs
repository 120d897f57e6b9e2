//! Who is measured, and how each is set up.

use std::env;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use samport::lab::{Backend, output_of};
use samport_tests::Lab;
use samport_tests::daemon::{Daemon, samport_binary};
use samport_tests::speed::Report;

use super::proxies::{self, Proxy};
use super::{BACKEND_PORT, FRONT_PORT, rules};

/// A way from the client to the backends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Contender {
    /// `samport run`, which finds the fastest way that works
    Samport,
    /// The same, told to use the neighbour table
    SamportNeigh,
    /// The same, told to go through the host's stack
    SamportStack,
    /// The same, with one more program at generic XDP
    SamportXdp,
    /// The same with its container on the host that is dialled, beside one with it on another
    SamportLocal,
    /// Another build of samport, the one that SAMPORT_OTHER_BUILD names
    SamportOther,
    /// No balancer: routed to one container, over the bridge
    Direct,
    /// The same on a host with Docker's rules, of which one lets it pass
    DirectDocker,
    /// One container, published by Docker
    DockerP,
    /// The article's DNAT rules with the statistic match, over all backends
    Iptables,
    /// A DNAT rule with a map and random numbers, over all backends
    Nftables,
    /// HAProxy in TCP mode on the host, over all backends
    Haproxy,
    /// nginx with its stream module on the host, over all backends
    Nginx,
    /// As many servers as backends in one container that Docker publishes, all on one port
    Reuseport,
}

use Contender::{
    Direct, DirectDocker, DockerP, Haproxy, Iptables, Nftables, Nginx, Reuseport, Samport,
    SamportLocal, SamportNeigh, SamportOther, SamportStack, SamportXdp,
};

/// The variable that names the build of [`SamportOther`].
const OTHER_BUILD: &str = "SAMPORT_OTHER_BUILD";

/// A contender at work. It ends when dropped.
pub struct Running {
    /// Where the client connects to.
    pub target: SocketAddrV4,
    _daemon: Option<Daemon>,
    proxy: Option<Proxy>,
}

impl Running {
    /// Its processes that packets pass through: what they use is part of what a connection costs.
    pub fn pids(&self) -> Vec<u32> {
        self.proxy.as_ref().map(Proxy::pid).into_iter().collect()
    }
}

impl Contender {
    /// What `--against` and the tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Samport => "samport",
            SamportNeigh => "samport-neigh",
            SamportStack => "samport-stack",
            SamportXdp => "samport-xdp",
            SamportLocal => "samport-local",
            SamportOther => "samport-other",
            Direct => "direct",
            DirectDocker => "direct-docker",
            DockerP => "docker-p",
            Iptables => "iptables",
            Nftables => "nftables",
            Haproxy => "haproxy",
            Nginx => "nginx",
            Reuseport => "reuseport",
        }
    }

    /// Whether it is to give every backend its share. The others have one backend.
    pub fn balances(self) -> bool {
        !matches!(self, Direct | DirectDocker | DockerP)
    }

    /// What it needs, if that is not there.
    fn missing(self) -> Option<String> {
        if self == SamportOther && other_build().is_none() {
            return Some(format!("{OTHER_BUILD} names no build"));
        }
        let needed: &[&str] = match self {
            Direct | SamportStack => &[],
            Haproxy => &["iptables-restore", "haproxy"],
            Nginx => &["iptables-restore", "nginx", proxies::STREAM_MODULE],
            Nftables => &["iptables-restore", "nft"],
            SamportXdp => &["iptables-restore", "ethtool"],
            // samport too: it is measured on a host that has Docker's rules.
            Samport | SamportLocal | SamportNeigh | SamportOther | DirectDocker | DockerP
            | Iptables | Reuseport => &["iptables-restore"],
        };
        let missing = needed.iter().find(|needed| !is_there(needed))?;
        Some(format!("there is no {missing}"))
    }

    /// The namespaces of the servers, in which each is numbered by its place.
    pub fn places(self, lab: &Lab) -> Vec<&samport_tests::Namespace> {
        let places = lab.backends().iter().map(Backend::namespace);
        match self {
            Reuseport => {
                places.clone().next().into_iter().cycle().take(lab.backends().len()).collect()
            }
            _ => places.collect(),
        }
    }

    /// Sets it up in a lab's host.
    pub fn set_up(self, lab: &Lab) -> Result<Running> {
        let containers: Vec<SocketAddr> =
            lab.backends().iter().map(|backend| backend.v4(BACKEND_PORT)).collect();
        let (mut daemon, mut proxy) = (None, None);
        let mut target = lab.front(FRONT_PORT);
        // Docker's rules would drop what goes through the stack: there, the firewall has its say.
        if !matches!(self, Direct | DirectDocker | SamportStack | DockerP | Reuseport) {
            rules::docker_without_ports(lab)?;
        }
        match self {
            Direct => target = containers[0],
            DirectDocker => {
                rules::docker_with_one_let_in(lab, containers[0])?;
                target = containers[0];
            }
            DockerP | Reuseport => rules::docker_with_published(lab, containers[0])?,
            Iptables => rules::statistic(lab, &containers)?,
            Nftables => rules::numgen(lab, &containers)?,
            Haproxy => proxy = Some(proxies::haproxy(&lab.into(), &containers)?),
            Nginx => proxy = Some(proxies::nginx(&lab.into(), &containers)?),
            Samport | SamportLocal => daemon = Some(start_samport(lab, &containers, &[])),
            SamportOther => {
                daemon = Some(start_build(&build_of(self), lab, &containers, &[]));
            }
            SamportNeigh => {
                daemon = Some(start_samport(lab, &containers, &["--forward", "neigh"]));
            }
            SamportStack => {
                daemon = Some(start_samport(lab, &containers, &["--forward", "stack"]));
            }
            SamportXdp => {
                // XDP cannot complete a checksum that the sender has left to its network card.
                let mut ethtool = lab.client().command("ethtool");
                output_of(ethtool.args(["-K", "eth0", "tx", "off"]))?;
                let options = ["--hook", "xdp", "--xdp-mode", "generic"];
                daemon = Some(start_samport(lab, &containers, &options));
            }
        }
        let SocketAddr::V4(target) = target else { bail!("{target} is not IPv4") };
        Ok(Running { target, _daemon: daemon, proxy })
    }
}

/// samport, and those of `usual` that it is measured beside unless the user says otherwise, and another build of it
/// everywhere if there is one or it is asked for. Who lacks a program is named in the report.
pub fn chosen(wanted: &[Contender], usual: &[Contender], report: &mut Report) -> Vec<Contender> {
    let others = usual.iter().filter(|one| wanted.is_empty() || wanted.contains(one));
    let mut chosen = vec![Samport];
    chosen.extend(others.filter(|one| **one != Samport));
    if wanted.contains(&SamportOther) || (wanted.is_empty() && other_build().is_some()) {
        chosen.push(SamportOther);
    }
    chosen.retain(|contender| match contender.missing() {
        Some(why) => {
            report.skip(format!("{}: {why}", contender.name()));
            false
        }
        None => true,
    });
    chosen
}

fn start_samport(lab: &Lab, containers: &[SocketAddr], options: &[&str]) -> Daemon {
    start_build(&samport_binary(), lab, containers, options)
}

fn start_build(build: &Path, lab: &Lab, containers: &[SocketAddr], options: &[&str]) -> Daemon {
    let ports = format!("{FRONT_PORT}:{BACKEND_PORT}");
    let backends: Vec<String> = containers.iter().map(|one| format!("--backend={one}")).collect();
    let mut args = vec!["-i", "eth0", "-p", &ports];
    args.extend(options);
    args.extend(backends.iter().map(String::as_str));
    Daemon::start_binary(build, lab.host(), &args)
}

/// The build that samport is measured beside.
fn other_build() -> Option<PathBuf> {
    env::var_os(OTHER_BUILD).map(PathBuf::from)
}

/// The build of samport that a contender is.
pub fn build_of(contender: Contender) -> PathBuf {
    match contender {
        SamportOther => other_build().unwrap_or_default(),
        _ => samport_binary(),
    }
}

/// The binary that is measured.
pub fn measured_binary() -> PathBuf {
    samport_binary()
}

/// Whether a program is in PATH, or a file where it is said to be.
fn is_there(needed: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    Path::new(needed).is_absolute() && Path::new(needed).exists()
        || env::split_paths(&path).any(|folder| folder.join(needed).exists())
}
