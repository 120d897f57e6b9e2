//! Several hosts, each with containers behind a bridge, and a client: on one segment, or on two with routers between.
//!
//! ```text
//! client 192.0.2.100 ──┐             ┌── host 1 192.0.2.1 ── br0 172.30.0.1 ── web-1, web-2, …
//!                      ├── switch ───┼── host 2 192.0.2.2 ── br0 172.30.0.1 ── web-1, web-2, …
//!                      │             └── …
//! ```
//!
//! With routers, the first host and the client are on one segment, and all others beyond both routers on another one.
//!
//! The containers of all hosts have the same addresses, as Docker gives them, and no host has a route to another one's; or,
//! if asked for, each host N has 172.30.N.0/24, and everybody's routes to and from the client lead through the first host.

mod routers;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};

use super::namespace::new_prefix;
use super::traces::{listed, text};
use super::{Backend, Bridge, Builder, Namespace, Server, output_of};

pub use routers::Routers;

/// The client's place on its segment.
const CLIENT: u8 = 100;
/// A router's place on its segment.
const ROUTER: u8 = 200;

/// What hosts are plugged into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Segment {
    /// 192.0.2.0/24 and 2001:db8:1::/64, where the client is.
    Near,
    /// 198.51.100.0/24 and 2001:db8:3::/64, beyond the routers.
    Far,
}

impl Segment {
    const fn bridge(self) -> &'static str {
        match self {
            Self::Near => "br0",
            Self::Far => "br1",
        }
    }

    const fn v4(self, number: u8) -> Ipv4Addr {
        match self {
            Self::Near => Ipv4Addr::new(192, 0, 2, number),
            Self::Far => Ipv4Addr::new(198, 51, 100, number),
        }
    }

    const fn v6(self, number: u8) -> Ipv6Addr {
        let net = match self {
            Self::Near => 1,
            Self::Far => 3,
        };
        Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, number as u16)
    }
}

/// What is special about it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many hosts.
    pub hosts: u8,
    /// How many containers each has.
    pub backends: u8,
    /// How many the first one has, if others than that.
    pub backends_of_first: Option<u8>,
    /// MTU of the segment, in bytes.
    pub mtu: u32,
    /// Every device computes its checksums itself, and cuts no packets.
    pub offload_off: bool,
    /// Hosts drop what comes in by another device than the route back leads out of, and forward nothing by themselves.
    pub is_strict: bool,
    /// What is between the first host with the client, and all others; `None` puts all on one segment.
    pub routers: Option<Routers>,
    /// Each host's containers have an IPv4 network of their own, which can be reached by plain routing: from the client and
    /// back through the first host. Nothing but routes is in its way if `is_strict` is not set. Without routers.
    pub is_routed: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            hosts: 3,
            backends: 2,
            backends_of_first: None,
            mtu: 1_500,
            offload_off: false,
            is_strict: true,
            routers: None,
            is_routed: false,
        }
    }
}

/// The network. Namespaces go away with it.
#[derive(Debug)]
pub struct Cluster {
    prefix: String,
    client: Namespace,
    hosts: Vec<Host>,
    routers: Vec<Namespace>,
    switch: Namespace,
}

/// One of the hosts.
#[derive(Debug)]
pub struct Host {
    number: u8,
    segment: Segment,
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
        for segment in [Segment::Near, Segment::Far] {
            let bridge = segment.bridge();
            switch.batch(&format!(
                "link add name {bridge} type bridge\nlink set {bridge} alias {}-{bridge} up\n",
                switch.name()
            ))?;
        }
        let plug = Plug { switch: &switch, options };
        let client = Namespace::with_prefix(prefix, "client")?;
        plug.plug_in(&client, CLIENT, Segment::Near).context("plug in the client")?;
        let make = |number| Host::make(prefix, number, plug);
        let hosts = (1..=options.hosts).map(make).collect::<Result<_>>()?;
        let routers = match options.routers {
            Some(routers) => routers.make(prefix, plug).context("make the routers")?,
            None => Vec::new(),
        };
        let prefix = prefix.to_owned();
        let cluster = Self { prefix, client, hosts, routers, switch };
        if options.is_routed {
            cluster.add_routes().context("add routes to the containers")?;
        }
        if options.offload_off {
            cluster.namespaces().try_for_each(turn_offload_off)?;
        }
        Ok(cluster)
    }

    fn add_routes(&self) -> Result<()> {
        let first = Segment::Near.v4(1);
        self.client.batch(&format!("route add 172.30.0.0/16 via {first}\n"))?;
        for host in &self.hosts {
            let others = self.hosts.iter().filter(|other| other.number != host.number);
            let mut routes: Vec<_> = others
                .map(|other| format!("route add 172.30.{}.0/24 via {}\n", other.number, other.v4()))
                .collect();
            if host.number != 1 {
                let client = Segment::Near.v4(CLIENT);
                routes.push(format!("route add {client}/32 via {first}\n"));
            }
            host.namespace.batch(&routes.concat())?;
        }
        Ok(())
    }

    /// What the names of its namespaces and the aliases of its devices begin with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// All of them.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        let hosts = self.hosts.iter().flat_map(Host::namespaces);
        [&self.client, &self.switch].into_iter().chain(&self.routers).chain(hosts)
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
    fn make(prefix: &str, number: u8, plug: Plug<'_>) -> Result<Self> {
        let options = plug.options;
        let namespace = Namespace::with_prefix(prefix, &format!("n{number}"))?;
        let is_far = options.routers.is_some() && number > 1;
        let segment = if is_far { Segment::Far } else { Segment::Near };
        if options.is_routed {
            // The client would be told of a shorter way.
            for of in ["all", "default"] {
                namespace.sysctl(&format!("net/ipv4/conf/{of}/send_redirects"), "0")?;
            }
        }
        plug.plug_in(&namespace, number, segment).with_context(|| format!("plug in {number}"))?;
        namespace.sysctl("net/ipv4/ip_forward", "1")?;
        namespace.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        if options.is_strict {
            for of in ["all", "default"] {
                namespace.sysctl(&format!("net/ipv4/conf/{of}/rp_filter"), "1")?;
            }
            for program in ["iptables", "ip6tables"] {
                output_of(namespace.command(program).args(["-w", "-P", "FORWARD", "DROP"]))?;
            }
        }
        let network = if options.is_routed { number } else { 0 };
        let builder = Builder::default().with_prefix(format!("{prefix}n{number}-"));
        let builder = builder.network(network).mtu(options.mtu);
        builder.make_bridge(&namespace, Bridge::Backends)?;
        let count = options.backends_of_first.filter(|_| number == 1).unwrap_or(options.backends);
        let backends = (0..count).map(|index| builder.make_backend(&namespace, index));
        let backends = backends.collect::<Result<_>>()?;
        Ok(Self { number, segment, namespace, backends })
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

    fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        std::iter::once(&self.namespace).chain(self.backends.iter().map(Backend::namespace))
    }

    /// Its containers.
    #[must_use]
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// Its address on the segment.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        self.segment.v4(self.number)
    }

    /// Its addresses on the segment, with a port: what clients dial.
    #[must_use]
    pub fn fronts(&self, port: u16) -> [SocketAddr; 2] {
        let addresses = [IpAddr::V4(self.v4()), IpAddr::V6(self.segment.v6(self.number))];
        addresses.map(|ip| SocketAddr::new(ip, port))
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

/// The port of the switch that a host is plugged into.
fn port(number: u8) -> String {
    format!("port{number}")
}

/// Plugs namespaces into the switch.
#[derive(Clone, Copy)]
struct Plug<'a> {
    switch: &'a Namespace,
    options: Options,
}

impl Plug<'_> {
    fn plug_in(self, host: &Namespace, number: u8, segment: Segment) -> Result<()> {
        let Self { switch, options } = self;
        let (mtu, bridge) = (options.mtu, segment.bridge());
        let port = if number == ROUTER { format!("up-{bridge}") } else { port(number) };
        host.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        switch.batch(&format!(
            "link add name {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n\
             link set {port} alias {}-{port} master {bridge} up\n",
            host.name(),
            switch.name()
        ))?;
        host.batch(&format!(
            "link set eth0 alias {}-eth0\n\
             addr add {}/24 dev eth0\n\
             addr add {}/64 dev eth0 nodad\n\
             link set eth0 up\n",
            host.name(),
            segment.v4(number),
            segment.v6(number)
        ))?;
        if options.routers.is_some() && number != ROUTER {
            host.batch(&format!(
                "route add default via {}\nroute add ::/0 via {}\n",
                segment.v4(ROUTER),
                segment.v6(ROUTER)
            ))?;
        }
        Ok(())
    }
}

/// Makes all devices of a namespace compute checksums themselves, and neither cut packets nor join them.
fn turn_offload_off(namespace: &Namespace) -> Result<()> {
    const OFF: [&str; 8] = ["tx", "off", "tso", "off", "gso", "off", "gro", "off"];
    let devices = listed(&namespace.ip(&["-j", "link", "show"])?)?;
    for device in devices.iter().map(|device| text(device, "ifname")).filter(|name| *name != "lo") {
        output_of(namespace.command("ethtool").args(["-K", device]).args(OFF))?;
    }
    Ok(())
}
