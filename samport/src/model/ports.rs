//! Ports as users write them: what clients dial on the host, and where it leads.

mod ranges;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use anyhow::{Result, anyhow, bail};
use samport_common::wire::protocol::Protocol;
use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use ranges::{PortRange, PortRanges};

/// Examples for error messages.
const LIKE: &str = "e.g. 198.51.100.7:80 or [2001:db8::7]:80";

/// A port of the host under one protocol, on one address or on all that are not given to others: what
/// makes a service that service. Written `80/tcp`, `198.51.100.7:80/tcp`, `[2001:db8::7]:80/tcp`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Listen {
    /// Port clients dial on the host, 1–65535.
    pub port: u16,
    /// By which protocol.
    pub protocol: Protocol,
    /// The address clients dial, if the service is of that one alone.
    pub addr: Option<IpAddr>,
}

impl Listen {
    /// A TCP port of every address.
    #[must_use]
    pub const fn tcp(port: u16) -> Self {
        Self { port, protocol: Protocol::Tcp, addr: None }
    }

    /// A UDP port of every address.
    #[must_use]
    pub const fn udp(port: u16) -> Self {
        Self { port, protocol: Protocol::Udp, addr: None }
    }

    /// The same port on one address.
    #[must_use]
    pub const fn at(self, addr: IpAddr) -> Self {
        Self { addr: Some(addr), ..self }
    }

    /// The same port on every address.
    #[must_use]
    pub const fn everywhere(self) -> Self {
        Self { addr: None, ..self }
    }

    /// Whether some address is served by both, or would be if neither gave way.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        let apart = self.addr.is_some() && other.addr.is_some() && self.addr != other.addr;
        self.everywhere() == other.everywhere() && !apart
    }

    /// Whether it may have addresses of a family.
    #[must_use]
    pub fn is_of_family(self, v6: bool) -> bool {
        self.addr.is_none_or(|addr| addr.is_ipv6() == v6)
    }

    /// As people write it: TCP goes without saying.
    #[must_use]
    pub fn brief(self) -> String {
        format!("{}{}", self.address_and_port(), suffix(self.protocol))
    }

    /// The same where a port alone would look like any other number: `:80`.
    #[must_use]
    pub fn place(self) -> String {
        format!("{}{}", if self.addr.is_none() { ":" } else { "" }, self.brief())
    }

    /// The same without the protocol.
    #[must_use]
    pub fn address_and_port(self) -> String {
        match self.addr {
            Some(addr) => SocketAddr::new(addr, self.port).to_string(),
            None => self.port.to_string(),
        }
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
        write!(f, "{}/{}", self.address_and_port(), self.protocol.name())
    }
}

impl FromStr for Listen {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (place, protocol) = split_protocol(text)?;
        let (addr, number) = split_address(place)?;
        let port = port(number).map_err(|error| part(text, number, "", &error))?;
        Ok(Self { port, protocol, addr })
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
        f.write_str("a port from 1 to 65535, as a number or like \"53/udp\" or \"198.51.100.7:80\"")
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

/// One `-p [ADDR:]PORT[:TARGET][/tcp|udp]`: a port of the host and where it leads in a container.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PortSpec {
    /// What clients dial.
    pub listen: Listen,
    /// Port of the containers, if the user has named one.
    pub target: Option<u16>,
}

impl PortSpec {
    /// As it was given, but never a number alone: `:80:9090`.
    #[must_use]
    pub fn place(self) -> String {
        format!("{}{self}", if self.listen.addr.is_none() { ":" } else { "" })
    }
}

impl FromStr for PortSpec {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (place, protocol) = split_protocol(text)?;
        let (addr, ports) = split_address(place)?;
        let (listen, target) = match ports.split_once(':') {
            Some((listen, target)) => (listen, Some(target)),
            None => (ports, None),
        };
        let listen = port(listen).map_err(|error| part(text, listen, "", &error))?;
        Ok(Self {
            listen: Listen { port: listen, protocol, addr },
            target: target
                .map(|number| port(number).map_err(|error| part(text, number, "target ", &error)))
                .transpose()?,
        })
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.listen.address_and_port())?;
        if let Some(target) = self.target {
            write!(f, ":{target}")?;
        }
        f.write_str(suffix(self.listen.protocol))
    }
}

/// The address before a port, and the rest. What is before the first colon is a port, unless it cannot
/// be meant as one.
fn split_address(text: &str) -> Result<(Option<IpAddr>, &str)> {
    let (address, rest) = match (text.strip_prefix('['), text.split_once(':')) {
        (Some(bracketed), _) => match bracketed.split_once("]:") {
            Some((address, rest)) => (address.parse::<Ipv6Addr>().map(IpAddr::from), rest),
            None => bail!("invalid port {text:?}: expected :PORT after the bracket, {LIKE}"),
        },
        (None, Some((before, rest))) if before.contains('.') => {
            (before.parse::<Ipv4Addr>().map(IpAddr::from), rest)
        }
        (None, _) if text.contains("::") || text.split(':').count() > 3 => {
            bail!("invalid port {text:?}: expected brackets around an IPv6 address, {LIKE}")
        }
        (None, Some((_, rest))) if rest.contains(':') => {
            bail!("invalid port {text:?}: expected ADDR:PORT:TARGET, {LIKE}")
        }
        (None, _) => return Ok((None, text)),
    };
    let Ok(address) = address else {
        bail!("invalid port {text:?}: expected PORT or ADDR:PORT, {LIKE}")
    };
    if address.is_unspecified() {
        bail!("invalid port {text:?}: a port without an address is served on all; use {rest}");
    }
    Ok((Some(address.to_canonical()), rest))
}

/// The error of a port that is a part of `text`, which is named too if it is more than that.
fn part(text: &str, number: &str, which: &str, error: &anyhow::Error) -> anyhow::Error {
    if text == number {
        return anyhow!("{error}");
    }
    anyhow!("invalid port {text:?}: invalid {which}port {number:?}, expected 1-65535")
}

/// Parses a port number, 1 to 65535.
pub fn port(text: &str) -> Result<u16> {
    match text.parse() {
        Ok(0) | Err(_) => bail!("invalid port {text:?}: expected 1-65535"),
        Ok(port) => Ok(port),
    }
}

/// What is before the slash, and the protocol after it; TCP without a slash.
fn split_protocol(text: &str) -> Result<(&str, Protocol)> {
    let Some((ports, name)) = text.split_once('/') else { return Ok((text, Protocol::Tcp)) };
    match Protocol::ALL.into_iter().find(|protocol| protocol.name() == name) {
        Some(protocol) => Ok((ports, protocol)),
        None => bail!("invalid port {text:?}: unknown protocol {name:?}, expected tcp or udp"),
    }
}

#[cfg(test)]
mod tests;
