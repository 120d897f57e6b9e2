//! The words the parts of the loader talk in: what providers offer and what is wanted of the kernel.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};

/// One `-p PORT[:TARGET][/tcp]`: a port of the host and where it leads in a container.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PortSpec {
    /// Port clients dial on the host, 1–65535.
    pub listen: u16,
    /// Port of the containers, if the user has named one.
    pub target: Option<u16>,
}

impl FromStr for PortSpec {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        match protocol {
            "tcp" => {}
            "udp" => bail!("{text:?}: this version balances TCP only"),
            other => bail!("{text:?}: no protocol {other:?}; say tcp"),
        }
        let (listen, target) = match ports.split_once(':') {
            Some((listen, target)) => (listen, Some(target)),
            None => (ports, None),
        };
        Ok(Self {
            listen: port(listen).with_context(|| format!("listen port of {text:?}"))?,
            target: target
                .map(|t| port(t).with_context(|| format!("target port of {text:?}")))
                .transpose()?,
        })
    }
}

/// Parses a port number, 1 to 65535.
pub fn port(text: &str) -> Result<u16> {
    match text.parse() {
        Ok(0) | Err(_) => bail!("{text:?} is no port; give a number from 1 to 65535"),
        Ok(port) => Ok(port),
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.target {
            Some(target) => write!(f, "{}:{target}", self.listen),
            None => write!(f, "{}", self.listen),
        }
    }
}

/// A backend as a provider sees it. A container with an IPv4 and an IPv6 address, or behind two
/// ports, makes several.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// What tells it from all others, also from a later one of the same name and address: the
    /// container's id, or what stands for it.
    pub id: String,
    /// Name of the container, or what stands for it. May change.
    pub name: String,
    /// The host port it serves.
    pub listen: u16,
    /// Where it answers.
    pub endpoint: SocketAddr,
    /// Its share relative to the others; 0 takes no new flows.
    pub weight: u32,
    /// What the provider thinks of it.
    pub condition: Condition,
    /// How its packets reach it, where the provider knows better than the routing table.
    pub place: Option<Place>,
    /// When it was started, if that was just now: for the line that says how long it took.
    pub started: Option<SystemTime>,
}

/// What a provider thinks of a candidate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// May serve at once.
    Ready,
    /// May serve as soon as a TCP connection to its endpoint succeeds.
    ProbeFirst,
    /// Must not serve yet: its own health check has not passed.
    Starting,
    /// Gets no new flows, keeps the ones it has: stopping, paused or unhealthy.
    Draining,
}

/// Where a backend's packets go in and come out: the host's end of its veth.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Place {
    /// Index of the host's end of the veth, in the host's network namespace.
    pub ifindex: u32,
    /// MAC of the container's end.
    pub mac: [u8; 6],
}

/// Everything a provider offers at one moment. Each snapshot replaces the one before.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Snapshot {
    /// The candidates, in a stable order.
    pub candidates: Vec<Candidate>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        let spec = |text: &str| text.parse::<PortSpec>().unwrap();
        assert_eq!(spec("80"), PortSpec { listen: 80, target: None });
        assert_eq!(spec("80:9090"), PortSpec { listen: 80, target: Some(9090) });
        assert_eq!(spec("80:9090/tcp").to_string(), "80:9090");
    }

    #[test]
    fn what_is_no_port_is_refused_by_name() {
        for text in
            ["0", "65536", "80:x", "80:0", "", ":80", "80:", "80:81:82", "80/udp", "80/sctp"]
        {
            let error = format!("{:#}", text.parse::<PortSpec>().unwrap_err());
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
