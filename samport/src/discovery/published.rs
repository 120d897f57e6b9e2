//! Ports that Docker publishes itself: whoever dials them would get samport's backends instead of
//! that container, and nobody would know why.

use std::net::IpAddr;

use anyhow::Result;
use bollard::models::{ContainerSummary, PortSummary, PortSummaryTypeEnum};
use samport_common::wire::protocol::Protocol;

use crate::exit::{Exit, coded};
use crate::ports::{Listen, PortSpec};

/// Refuses ports that a running container publishes.
///
/// # Errors
/// [`Exit::Conflict`], naming the container.
pub(super) fn refuse(ports: &[PortSpec], running: &[ContainerSummary]) -> Result<()> {
    for container in running {
        let published = container.ports.iter().flatten();
        for published in published {
            if let Some(spec) = ports.iter().find(|spec| takes(published, spec.listen)) {
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

/// Whether a published port is this one.
fn takes(published: &PortSummary, listen: Listen) -> bool {
    let kind = match listen.protocol {
        Protocol::Tcp => PortSummaryTypeEnum::TCP,
        Protocol::Udp => PortSummaryTypeEnum::UDP,
    };
    let is_in_the_way = match (ip(published), listen.addr) {
        (None, _) => true,
        // No client comes in by loopback.
        (Some(ip), None) => !ip.is_loopback(),
        (Some(ip), Some(addr)) if ip.is_unspecified() => ip.is_ipv4() == addr.is_ipv4(),
        (Some(ip), Some(addr)) => ip == addr,
    };
    is_in_the_way
        && published.public_port == Some(listen.port)
        && published.typ.is_none_or(|typ| typ == kind)
}

fn ip(port: &PortSummary) -> Option<IpAddr> {
    port.ip.as_ref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::code_of;

    #[test]
    fn a_published_port_is_refused_by_the_containers_name() {
        let running: Vec<ContainerSummary> = serde_json::from_value(serde_json::json!([
            {"Names": ["/idle"], "Ports": [{"PrivatePort": 80, "Type": "tcp"}]},
            {"Names": ["/dns"], "Ports": [{"PrivatePort": 53, "PublicPort": 80, "Type": "udp"}]},
            {"Names": ["/local"],
             "Ports": [{"IP": "127.0.0.1", "PrivatePort": 80, "PublicPort": 80, "Type": "tcp"}]},
            {"Names": ["/old-web"], "Ports": [{"PrivatePort": 8080, "PublicPort": 80, "Type": "tcp"}]},
        ]))
        .unwrap();
        let error = refuse(&["80".parse().unwrap()], &running).unwrap_err();
        assert_eq!(code_of(&error), Exit::Conflict);
        assert!(error.to_string().contains("published by container \"old-web\""), "{error}");
        assert!(refuse(&["81".parse().unwrap()], &running).is_ok());
        let error = refuse(&["80/udp".parse().unwrap()], &running).unwrap_err().to_string();
        assert!(error.contains("port 80/udp is already published by container \"dns\""), "{error}");
    }
}
