//! Ports as users write them: what clients dial on the host, and where it leads.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use samport_common::wire::protocol::Protocol;
use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A port of the host under one protocol: what makes a service that service. Written `80/tcp`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Listen {
    /// Port clients dial on the host, 1–65535.
    pub port: u16,
    /// By which protocol.
    pub protocol: Protocol,
}

impl Listen {
    /// A TCP port.
    #[must_use]
    pub const fn tcp(port: u16) -> Self {
        Self { port, protocol: Protocol::Tcp }
    }

    /// A UDP port.
    #[must_use]
    pub const fn udp(port: u16) -> Self {
        Self { port, protocol: Protocol::Udp }
    }

    /// As people write it: TCP goes without saying.
    #[must_use]
    pub fn brief(self) -> String {
        format!("{}{}", self.port, suffix(self.protocol))
    }
}

const fn suffix(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "",
        Protocol::Udp => "/udp",
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol.name())
    }
}

impl FromStr for Listen {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (number, protocol) = split_protocol(text)?;
        Ok(Self { port: port(number)?, protocol })
    }
}

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Listen {
    /// Takes `"53/udp"`, and a bare number for TCP.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListenVisitor)
    }
}

struct ListenVisitor;

impl Visitor<'_> for ListenVisitor {
    type Value = Listen;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a port from 1 to 65535, as a number or like \"53/udp\"")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Listen, E> {
        match u16::try_from(number) {
            Ok(0) | Err(_) => Err(E::invalid_value(Unexpected::Unsigned(number), &self)),
            Ok(port) => Ok(Listen::tcp(port)),
        }
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Listen, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(number), &self)),
        }
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Listen, E> {
        text.parse().map_err(|error| E::custom(format!("{error:#}")))
    }
}

/// One `-p PORT[:TARGET][/tcp|udp]`: a port of the host and where it leads in a container.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PortSpec {
    /// What clients dial.
    pub listen: Listen,
    /// Port of the containers, if the user has named one.
    pub target: Option<u16>,
}

impl FromStr for PortSpec {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (ports, protocol) = split_protocol(text)?;
        let (listen, target) = match ports.split_once(':') {
            Some((listen, target)) => (listen, Some(target)),
            None => (ports, None),
        };
        let listen = port(listen).with_context(|| format!("listen port of {text:?}"))?;
        Ok(Self {
            listen: Listen { port: listen, protocol },
            target: target
                .map(|t| port(t).with_context(|| format!("target port of {text:?}")))
                .transpose()?,
        })
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.listen.port)?;
        if let Some(target) = self.target {
            write!(f, ":{target}")?;
        }
        f.write_str(suffix(self.listen.protocol))
    }
}

/// Parses a port number, 1 to 65535.
pub fn port(text: &str) -> Result<u16> {
    match text.parse() {
        Ok(0) | Err(_) => bail!("{text:?} is no port; give a number from 1 to 65535"),
        Ok(port) => Ok(port),
    }
}

/// What is before the slash, and the protocol after it; TCP if there is none.
fn split_protocol(text: &str) -> Result<(&str, Protocol)> {
    let Some((ports, name)) = text.split_once('/') else { return Ok((text, Protocol::Tcp)) };
    match Protocol::ALL.into_iter().find(|protocol| protocol.name() == name) {
        Some(protocol) => Ok((ports, protocol)),
        None => bail!("{text:?}: no protocol {name:?}; say tcp or udp"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_and_written() {
        for (text, listen, target, shown) in [
            ("80", Listen::tcp(80), None, "80"),
            ("80:9090", Listen::tcp(80), Some(9090), "80:9090"),
            ("80:9090/tcp", Listen::tcp(80), Some(9090), "80:9090"),
            ("53/udp", Listen::udp(53), None, "53/udp"),
            ("53:5353/udp", Listen::udp(53), Some(5353), "53:5353/udp"),
        ] {
            let spec: PortSpec = text.parse().unwrap();
            assert_eq!(spec, PortSpec { listen, target });
            assert_eq!(spec.to_string(), shown);
        }
    }

    #[test]
    fn a_service_is_a_port_under_a_protocol() {
        for (text, listen, full, brief) in [
            ("80", Listen::tcp(80), "80/tcp", "80"),
            ("80/tcp", Listen::tcp(80), "80/tcp", "80"),
            ("53/udp", Listen::udp(53), "53/udp", "53/udp"),
        ] {
            assert_eq!(text.parse::<Listen>().unwrap(), listen);
            assert_eq!((listen.to_string().as_str(), listen.brief().as_str()), (full, brief));
        }
        assert_ne!(Listen::tcp(53), Listen::udp(53));
    }

    #[test]
    fn what_is_no_port_is_refused_by_name() {
        for text in ["0", "65536", "80:x", "80:0", "", ":80", "80:", "80:81:82", "80/sctp", "80/"] {
            let error = format!("{:#}", text.parse::<PortSpec>().unwrap_err());
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn records_hold_port_and_protocol_and_a_number_is_tcp() {
        let read = serde_json::from_str::<Vec<Listen>>;
        let both = vec![Listen::tcp(80), Listen::udp(53)];
        assert_eq!(serde_json::to_string(&both).unwrap(), r#"["80/tcp","53/udp"]"#);
        assert_eq!(read(r#"[80,"53/udp"]"#).unwrap(), both);
        for (text, word) in [("[0]", "1 to 65535"), ("[-1]", "1 to 65535"), ("[\"x\"]", "\"x\"")] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
