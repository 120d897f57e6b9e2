//! Who is measured, and how each is set up.

use std::env;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::PathBuf;

use anyhow::{Result, bail};
use samport_tests::Lab;
use samport_tests::daemon::{Daemon, samport_binary};
use samport_tests::speed::Report;

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
    /// No balancer: routed to one container, over the bridge
    Direct,
    /// One container, published by Docker
    DockerP,
    /// The article's DNAT rules with the statistic match, over all backends
    Iptables,
}

/// A contender at work. It ends when dropped.
pub struct Running {
    /// Where the client connects to.
    pub target: SocketAddrV4,
    _daemon: Option<Daemon>,
}

impl Contender {
    /// Whom samport is measured beside unless the user says otherwise.
    pub const USUAL: [Self; 3] = [Self::Direct, Self::DockerP, Self::Iptables];

    /// What `--against` and the table call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Samport => "samport",
            Self::SamportNeigh => "samport-neigh",
            Self::SamportStack => "samport-stack",
            Self::Direct => "direct",
            Self::DockerP => "docker-p",
            Self::Iptables => "iptables",
        }
    }

    /// Whether it is to give every backend its share. The others have one backend.
    pub fn balances(self) -> bool {
        match self {
            Self::Samport | Self::SamportNeigh | Self::SamportStack | Self::Iptables => true,
            Self::Direct | Self::DockerP => false,
        }
    }

    /// The program it needs, if that is not there.
    pub fn missing(self) -> Option<&'static str> {
        // samport too: it is measured on a host that has Docker's rules.
        let needs_iptables = !matches!(self, Self::Direct | Self::SamportStack);
        (needs_iptables && !is_in_path("iptables-restore")).then_some("iptables-restore")
    }

    /// Sets it up in a lab's host.
    pub fn set_up(self, lab: &Lab) -> Result<Running> {
        let containers: Vec<SocketAddr> =
            lab.backends().iter().map(|backend| backend.v4(BACKEND_PORT)).collect();
        let mut daemon = None;
        let mut target = lab.front(FRONT_PORT);
        match self {
            Self::Direct => target = containers[0],
            Self::DockerP => rules::docker_with_published(lab, containers[0])?,
            Self::Iptables => rules::statistic(lab, &containers)?,
            Self::Samport => {
                rules::docker_without_ports(lab)?;
                daemon = Some(start_samport(lab, &containers, "auto"));
            }
            Self::SamportNeigh => {
                rules::docker_without_ports(lab)?;
                daemon = Some(start_samport(lab, &containers, "neigh"));
            }
            // Docker's rules would drop it: through the stack, the firewall has its say.
            Self::SamportStack => daemon = Some(start_samport(lab, &containers, "stack")),
        }
        let SocketAddr::V4(target) = target else { bail!("{target} is not IPv4") };
        Ok(Running { target, _daemon: daemon })
    }
}

fn start_samport(lab: &Lab, containers: &[SocketAddr], forward: &str) -> Daemon {
    let ports = format!("{FRONT_PORT}:{BACKEND_PORT}");
    let backends: Vec<String> = containers.iter().map(|one| format!("--backend={one}")).collect();
    let mut args = vec!["-i", "eth0", "-p", &ports, "--forward", forward];
    args.extend(backends.iter().map(String::as_str));
    Daemon::start(lab, &args)
}

/// samport, and those it is measured beside: what the user says, or else the usual ones. Whoever lacks a program is
/// named in the report.
pub fn chosen(wanted: &[Contender], usual: &[Contender], report: &mut Report) -> Vec<Contender> {
    let others = if wanted.is_empty() { usual } else { wanted };
    let mut chosen = vec![Contender::Samport];
    for contender in others {
        if !chosen.contains(contender) {
            chosen.push(*contender);
        }
    }
    chosen.retain(|contender| match contender.missing() {
        Some(what) => {
            report.skip(format!("{}: there is no {what}", contender.name()));
            false
        }
        None => true,
    });
    chosen
}

/// The binary that is measured.
pub fn measured_binary() -> PathBuf {
    samport_binary()
}

fn is_in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).exists())
}
