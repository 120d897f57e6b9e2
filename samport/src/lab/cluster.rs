//! Several hosts on one segment, each with containers behind a bridge, and a client.
//!
//! ```text
//! client 192.0.2.100 ──┐             ┌── host 1 192.0.2.1 ── br0 172.30.0.1 ── web-1, web-2, …
//!                      ├── switch ───┼── host 2 192.0.2.2 ── br0 172.30.0.1 ── web-1, web-2, …
//!                      │             └── …
//! ```
//!
//! The containers of all hosts have the same addresses, as Docker gives them, and no host has a route to another one's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};

use super::namespace::new_prefix;
use super::{Backend, Bridge, Builder, Namespace, Server, output_of};

/// The client's place on the segment.
const CLIENT: u8 = 100;

/// What is special about it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many hosts.
    pub hosts: u8,
    /// How many containers each has.
    pub backends: u8,
    /// MTU of the segment, in bytes.
    pub mtu: u32,
    /// Every device computes its checksums itself, and cuts no packets.
    pub offload_off: bool,
    /// Hosts drop what comes in by another device than the route back leads out of, and forward nothing by themselves.
    pub is_strict: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { hosts: 3, backends: 2, mtu: 1_500, offload_off: false, is_strict: true }
    }
}

/// The network. Namespaces go away with it.
#[derive(Debug)]
pub struct Cluster {
    client: Namespace,
    hosts: Vec<Host>,
    switch: Namespace,
}

/// One of the hosts.
#[derive(Debug)]
pub struct Host {
    number: u8,
    namespace: Namespace,
    backends: Vec<Backend>,
}

impl Cluster {
    /// Makes it all.
    ///
    /// # Errors
    /// If a command fails.
    pub fn build(options: Options) -> Result<Self> {
        Self::build_as(&Self::new_prefix(), options)
    }

    /// What the names of everything in one cluster begin with: nothing else on the machine is called so.
    #[must_use]
    pub fn new_prefix() -> String {
        new_prefix()
    }

    /// Makes it all, with names that begin with this.
    ///
    /// # Errors
    /// If a command fails.
    pub fn build_as(prefix: &str, options: Options) -> Result<Self> {
        let switch = Namespace::with_prefix(prefix, "switch")?;
        let alias = format!("{}-br0", switch.name());
        switch.batch(&format!(
            "link add name br0 type bridge\nlink set br0 alias {alias}\nlink set br0 up\n"
        ))?;
        let client = Namespace::with_prefix(prefix, "client")?;
        plug_in(&switch, &client, CLIENT, options).context("plug in the client")?;
        let make = |number| Host::make(prefix, number, &switch, options);
        let hosts = (1..=options.hosts).map(make).collect::<Result<_>>()?;
        Ok(Self { client, hosts, switch })
    }

    /// Where clients are.
    #[must_use]
    pub fn client(&self) -> &Namespace {
        &self.client
    }

    /// The hosts, in the order of their numbers, which begin with 1.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Takes a host off the segment.
    ///
    /// # Errors
    /// If a command fails.
    pub fn cut_off(&self, host: &Host) -> Result<()> {
        self.switch.ip(&["link", "set", &port(host.number), "down"]).map(drop)
    }

    /// Puts it back.
    ///
    /// # Errors
    /// If a command fails.
    pub fn join(&self, host: &Host) -> Result<()> {
        self.switch.ip(&["link", "set", &port(host.number), "up"]).map(drop)
    }

    /// The file of nodes, for all of them: each has all its containers ready behind this port, TCP and UDP.
    #[must_use]
    pub fn nodes_file(&self, port: u16) -> String {
        self.nodes_file_of(&[&port.to_string(), &format!("{port}/udp")])
    }

    /// The same, with all containers ready behind these ports: `80` or `53/udp`.
    #[must_use]
    pub fn nodes_file_of(&self, ports: &[&str]) -> String {
        let node = |host: &Host| {
            let (name, address, ready) = (host.name(), host.v4(), host.backends.len());
            let services = ports.iter().map(|port| format!("\"{port}\" = {ready}"));
            let services = services.collect::<Vec<_>>().join(", ");
            format!(
                "[[node]]\nname = \"{name}\"\naddress = \"{address}\"\n\
                 services = {{ {services} }}\n"
            )
        };
        self.hosts.iter().map(node).collect()
    }
}

impl Host {
    fn make(prefix: &str, number: u8, switch: &Namespace, options: Options) -> Result<Self> {
        let namespace = Namespace::with_prefix(prefix, &format!("n{number}"))?;
        plug_in(switch, &namespace, number, options)
            .with_context(|| format!("plug in {number}"))?;
        namespace.sysctl("net/ipv4/ip_forward", "1")?;
        namespace.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        if options.is_strict {
            for of in ["all", "default"] {
                namespace.sysctl(&format!("net/ipv4/conf/{of}/rp_filter"), "1")?;
            }
            output_of(namespace.command("iptables").args(["-w", "-P", "FORWARD", "DROP"]))?;
        }
        let prefix = format!("{}-", namespace.name());
        let mut builder = Builder::with_prefix(prefix).mtu(options.mtu);
        if options.offload_off {
            builder = builder.tx_offload_off();
        }
        builder.make_bridge(&namespace, Bridge::Backends)?;
        let backends = (0..options.backends).map(|index| builder.make_backend(&namespace, index));
        let backends = backends.collect::<Result<_>>()?;
        Ok(Self { number, namespace, backends })
    }

    /// `n1`, `n2` and so on.
    #[must_use]
    pub fn name(&self) -> String {
        format!("n{}", self.number)
    }

    /// Where samport runs.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its containers.
    #[must_use]
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// Its address on the segment.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        v4(self.number)
    }

    /// Its addresses on the segment, with a port: what clients dial.
    #[must_use]
    pub fn fronts(&self, port: u16) -> [SocketAddr; 2] {
        [IpAddr::V4(self.v4()), IpAddr::V6(v6(self.number))].map(|ip| SocketAddr::new(ip, port))
    }

    /// The name that a container's server answers with: `n1-web-1`, for one.
    #[must_use]
    pub fn server_name(&self, backend: &Backend) -> String {
        format!("{}-{}", self.name(), backend.name())
    }

    /// Starts a server in every container.
    ///
    /// # Errors
    /// If one cannot listen.
    pub fn serve(&self, port: u16) -> Result<Vec<Server>> {
        let serve = |backend: &Backend| {
            let name = self.server_name(backend);
            let served = backend.namespace().run(|| Server::bind(&name, port));
            served.with_context(|| format!("listen on port {port} in {name}"))
        };
        self.backends.iter().map(serve).collect()
    }
}

fn v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number)
}

fn v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, number.into())
}

/// The port of the switch that a host is plugged into.
fn port(number: u8) -> String {
    format!("port{number}")
}

fn plug_in(switch: &Namespace, host: &Namespace, number: u8, options: Options) -> Result<()> {
    let (port, mtu) = (port(number), options.mtu);
    host.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
    switch.batch(&format!(
        "link add name {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n\
         link set {port} master br0 alias {}-{port} up\n",
        host.name(),
        switch.name()
    ))?;
    host.batch(&format!(
        "link set eth0 alias {}-eth0\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\nlink set eth0 up\n",
        host.name(),
        v4(number),
        v6(number)
    ))?;
    if options.offload_off {
        let off = ["tx", "off", "tso", "off", "gso", "off", "gro", "off"];
        output_of(host.command("ethtool").args(["-K", "eth0"]).args(off))?;
    }
    Ok(())
}
