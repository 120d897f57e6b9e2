//! `samport explain`: what would become of a packet, and why. It reads what is in the kernel, whether
//! samport runs or not, and changes nothing there.

mod collect;

use std::net::SocketAddr;

use anyhow::{Result, anyhow};
use samport_common::wire::protocol::Protocol;

use super::instances;
use super::output::{Output, print_json, say};
use crate::diagnose::explain::{self, Question};
use crate::system::exit::{Exit, coded};
use crate::system::privileges;

/// Options of `samport explain`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Address and port of the client
    ///
    /// Like 203.0.113.9:51022 or [2001:db8::9]:51022. The client may be this machine or a container.
    #[arg(value_name = "CLIENT:PORT", value_parser = end)]
    client: SocketAddr,
    /// Address and port that the client dials
    ///
    /// Like 198.51.100.7:80 or 198.51.100.7:53/udp.
    #[arg(value_name = "HOST:PORT", value_parser = Dialled::parse)]
    dialled: Dialled,
    /// Explain a packet of UDP instead of TCP
    #[arg(long)]
    udp: bool,
    /// Assume that the packet arrives on this device
    ///
    /// Default: the device that the client is behind
    #[arg(long, value_name = "DEVICE")]
    iif: Option<String>,
    /// Explain a packet that this node has sent through the tunnel
    ///
    /// By its name in the cluster: what becomes of it at the second node, which selects a container.
    #[arg(long, value_name = "NODE", conflicts_with = "iif")]
    from_node: Option<String>,
    /// Choose the format
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// Ask the instance of this name
    ///
    /// As `samport status` shows it. Needed if several in this network namespace serve that address and port.
    #[arg(long, value_name = "NAME", env = "SAMPORT_INSTANCE")]
    instance: Option<String>,
}

/// An address and port, and the protocol if it is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Dialled {
    at: SocketAddr,
    protocol: Option<Protocol>,
}

impl Dialled {
    fn parse(text: &str) -> Result<Self, String> {
        let (place, protocol) = match text.rsplit_once('/') {
            Some((place, "tcp")) => (place, Some(Protocol::Tcp)),
            Some((place, "udp")) => (place, Some(Protocol::Udp)),
            Some((_, other)) => {
                return Err(format!("unknown protocol {other:?}: expected tcp or udp"));
            }
            None => (text, None),
        };
        Ok(Self { at: end(place)?, protocol })
    }
}

fn end(text: &str) -> Result<SocketAddr, String> {
    let like = "expected ADDRESS:PORT, e.g. 198.51.100.7:80 or [2001:db8::7]:80";
    let at: SocketAddr = text.parse().map_err(|_| format!("invalid address {text:?}: {like}"))?;
    if at.port() == 0 {
        return Err(format!("invalid address {text:?}: port 0, {like}"));
    }
    Ok(SocketAddr::new(at.ip().to_canonical(), at.port()))
}

/// How the packet comes in, as far as the command line tells.
#[derive(Clone, Copy)]
enum Said<'a> {
    /// By this device.
    Device(&'a str),
    /// Out of the tunnel, from this node.
    Node(&'a str),
}

/// Explains.
pub async fn run(args: Args) -> Result<()> {
    let question = args.question()?;
    privileges::require()?;
    let names = instances::instances(args.instance.as_deref())?;
    let facts = collect::collect(question, args.said(), &names).await?;
    let explanation = explain::explain(facts);
    match args.output {
        Output::Json => print_json(&explain::document(&explanation))?,
        Output::Table | Output::Wide => say(&explain::lines(&explanation)),
    }
    Ok(())
}

impl Args {
    fn said(&self) -> Option<Said<'_>> {
        let device = self.iif.as_deref().map(Said::Device);
        device.or_else(|| self.from_node.as_deref().map(Said::Node))
    }

    fn question(&self) -> Result<Question> {
        let Dialled { at: dialled, protocol } = self.dialled;
        let usage = |message: String| Err(coded(Exit::Usage, message));
        if self.client.is_ipv4() != dialled.is_ipv4() {
            return usage(format!(
                "client {} and host {dialled} differ in family; give two IPv4 or two IPv6 addresses",
                self.client
            ));
        }
        let protocol = match (protocol, self.udp) {
            (Some(Protocol::Tcp), true) => {
                return usage("/tcp and --udp contradict each other".to_owned());
            }
            (_, true) => Protocol::Udp,
            (said, false) => said.unwrap_or(Protocol::Tcp),
        };
        Ok(Question { client: self.client, dialled, protocol })
    }
}

/// Why none of several instances is meant.
fn ambiguous(names: &[String]) -> anyhow::Error {
    let names = names.join(", ");
    coded(Exit::Usage, anyhow!("several samports serve that; choose one with --instance: {names}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_addresses_with_ports() {
        assert_eq!(end("192.0.2.1:80").unwrap().to_string(), "192.0.2.1:80");
        assert_eq!(end("[::ffff:192.0.2.1]:80").unwrap().to_string(), "192.0.2.1:80");
        for wrong in ["192.0.2.1", "web:80", "2001:db8::7:80", "192.0.2.1:0", "192.0.2.1:99999", ""]
        {
            let said = end(wrong).unwrap_err();
            assert!(said.contains(&format!("{wrong:?}")) && said.contains("e.g."), "{said}");
        }
    }

    #[test]
    fn a_protocol_may_follow_the_port() {
        let of = |text| Dialled::parse(text).map(|dialled| dialled.protocol);
        assert_eq!(of("192.0.2.1:80"), Ok(None));
        assert_eq!(of("[2001:db8::7]:53/udp"), Ok(Some(Protocol::Udp)));
        assert_eq!(of("192.0.2.1:80/tcp"), Ok(Some(Protocol::Tcp)));
        assert!(of("192.0.2.1:80/sctp").unwrap_err().contains("tcp or udp"));
    }
}
