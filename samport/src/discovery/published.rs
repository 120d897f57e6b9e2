//! Ports that Docker publishes itself: whoever dials them would get samport's backends instead of
//! that container, without a visible reason.

use std::net::IpAddr;

use anyhow::Result;
use bollard::models::{ContainerSummary, PortBinding, PortSummary, PortSummaryTypeEnum};
use samport_common::wire::protocol::Protocol;

use crate::model::ports::{Listen, PortSpec};
use crate::system::exit::{Exit, coded};

/// A port of the host that leads to a container.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Published {
    /// The address; 0.0.0.0 and :: are all of a family, and none is all of both.
    ip: Option<IpAddr>,
    port: u16,
    protocol: Protocol,
}

impl Published {
    /// From the engine's list of containers; none if it is not published, or by a protocol that
    /// cannot be balanced.
    fn listed(port: &PortSummary) -> Option<Self> {
        let protocol = match port.typ {
            Some(PortSummaryTypeEnum::UDP) => Protocol::Udp,
            Some(PortSummaryTypeEnum::TCP) | None => Protocol::Tcp,
            Some(_) => return None,
        };
        let ip = port.ip.as_ref().and_then(|ip| ip.parse().ok());
        Some(Self { ip, port: port.public_port?, protocol })
    }

    /// From the engine's answer about one container: its own port, like `80/tcp`, and where that is bound.
    pub(super) fn bound(own: &str, binding: &PortBinding) -> Option<Self> {
        let own: Listen = own.parse().ok()?;
        let ip = binding.host_ip.as_ref().and_then(|ip| ip.parse().ok());
        let port = binding.host_port.as_ref()?.parse().ok()?;
        Some(Self { ip, port, protocol: own.protocol })
    }

    /// Whether its clients would be a service's.
    pub(super) fn takes(self, listen: Listen) -> bool {
        let meets = match (self.ip, listen.addr) {
            (None, _) => true,
            // No client comes in by loopback.
            (Some(ip), None) => !ip.is_loopback(),
            (Some(ip), Some(addr)) if ip.is_unspecified() => ip.is_ipv4() == addr.is_ipv4(),
            (Some(ip), Some(addr)) => ip == addr,
        };
        meets && (self.port, self.protocol) == (listen.port, listen.protocol)
    }
}

/// Refuses ports that a running container publishes.
///
/// # Errors
/// [`Exit::Conflict`], naming the container.
pub(super) fn refuse(ports: &[PortSpec], running: &[ContainerSummary]) -> Result<()> {
    for container in running {
        for published in container.ports.iter().flatten().filter_map(Published::listed) {
            if let Some(spec) = ports.iter().find(|spec| published.takes(spec.listen)) {
                let name = container.names.iter().flatten().next();
                let name = name.map_or("?", |name| name.trim_start_matches('/'));
                let message = format!(
                    "port {} is already published by container {name:?}; remove its `ports:` \
                     (-p), or choose another port",
                    spec.listen.brief()
                );
                return Err(coded(Exit::Conflict, message));
            }
        }
    }
    Ok(())
}

/// What the user is told of a container that publishes ports which are served already.
pub(super) fn warnings<'a>(
    name: &str,
    published: impl Iterator<Item = &'a Published>,
    served: &[Listen],
) -> Vec<String> {
    let taken = |one: &Published| served.iter().find(|listen| one.takes(**listen)).copied();
    let sentence = |listen: Listen| {
        format!(
            "container {name:?} publishes port {}, which samport serves: clients from outside get \
             samport's backends and never that container by it; remove its `ports:` (-p)",
            listen.brief()
        )
    };
    published.filter_map(taken).map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::exit::code_of;

    #[test]
    fn a_published_port_is_refused_by_the_containers_name() {
        let running: Vec<ContainerSummary> = serde_json::from_value(serde_json::json!([
            {"Names": ["/idle"], "Ports": [{"PrivatePort": 80, "Type": "tcp"}]},
            {"Names": ["/dns"], "Ports": [{"PrivatePort": 53, "PublicPort": 80, "Type": "udp"}]},
            {"Names": ["/local"],
             "Ports": [{"IP": "127.0.0.1", "PrivatePort": 80, "PublicPort": 80, "Type": "tcp"}]},
            {"Names": ["/one"],
             "Ports": [{"IP": "192.0.2.8", "PrivatePort": 80, "PublicPort": 443, "Type": "tcp"}]},
            {"Names": ["/all"],
             "Ports": [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}]},
            {"Names": ["/old-web"], "Ports": [{"PrivatePort": 8080, "PublicPort": 80, "Type": "tcp"}]},
        ]))
        .unwrap();
        let refused = |port: &str| {
            let error = refuse(&[port.parse().unwrap()], &running).err()?;
            assert_eq!(code_of(&error), Exit::Conflict);
            Some(error.to_string())
        };
        for (port, by) in [
            ("80", Some("old-web")),
            ("80/udp", Some("dns")),
            ("127.0.0.1:80", Some("local")),
            ("443", Some("one")),
            ("192.0.2.8:443", Some("one")),
            ("192.0.2.9:443", None),
            ("192.0.2.8:8080", Some("all")),
            ("[::1]:8080", None),
            ("81", None),
        ] {
            let message =
                by.map(|by| format!("port {port} is already published by container {by:?}"));
            let said = refused(port);
            assert_eq!(said.is_some(), message.is_some(), "{port}: {said:?}");
            assert!(said.unwrap_or_default().contains(&message.unwrap_or_default()), "{port}");
        }
    }

    #[test]
    fn only_ports_that_are_served_are_warned_of() {
        let bound = |own: &str, ip: &str, port: &str| {
            let (host_ip, host_port) = (Some(ip.to_owned()), Some(port.to_owned()));
            Published::bound(own, &PortBinding { host_ip, host_port })
        };
        assert_eq!(bound("80/sctp", "0.0.0.0", "80"), None);
        let published = [
            bound("9090/tcp", "0.0.0.0", "80"),
            bound("9090/tcp", "127.0.0.1", "443"),
            bound("53/udp", "", "53"),
        ];
        let published = published.map(Option::unwrap);
        let warned = |served: &[&str]| {
            let served: Vec<_> = served.iter().map(|text| text.parse().unwrap()).collect();
            warnings("late", published.iter(), &served)
        };
        assert_eq!(warned(&["443", "80/udp", "53", "[::1]:80"]), [""; 0]);
        let [first, second] = &warned(&["443", "192.0.2.1:80", "53/udp"])[..] else {
            panic!("two are served")
        };
        assert!(first.starts_with("container \"late\" publishes port 192.0.2.1:80,"), "{first}");
        assert!(second.starts_with("container \"late\" publishes port 53/udp,"), "{second}");
    }
}
