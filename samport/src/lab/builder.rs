//! Putting the lab together.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};

use super::namespace::new_prefix;
use super::{Backend, Bridge, Lab, Namespace, output_of};

/// The host's address towards the client: what clients dial.
pub const HOST_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The client's address.
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The host's IPv6 address towards the client.
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// The client's IPv6 address.
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
/// The client's address behind a router, which has the usual one of the client then.
pub const FAR_CLIENT_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// The same for IPv6.
pub const FAR_CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, 2);

/// As many as there are addresses from 172.30.0.10 on.
pub(super) const MAX_BACKENDS: u8 = 240;

/// What is special about a lab. Made by [`Lab::builder`].
#[derive(Debug)]
pub struct Builder {
    prefix: String,
    /// Third byte of the containers' IPv4 addresses.
    network: u8,
    backends: u8,
    mtu: Option<u32>,
    tx_offload_off: bool,
    docker_like_firewall: bool,
    vips: Vec<IpAddr>,
    router_mtu: Option<u32>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            prefix: new_prefix(),
            network: 0,
            backends: 1,
            mtu: None,
            tx_offload_off: false,
            docker_like_firewall: false,
            vips: Vec::new(),
            router_mtu: None,
        }
    }
}

impl Builder {
    /// How many backends; the bridge is made with the first.
    #[must_use]
    pub fn backends(mut self, backends: u8) -> Self {
        self.backends = backends;
        self
    }

    /// The containers' networks: 172.30.N.0/24 and so on. Only IPv4's differ.
    #[must_use]
    pub(super) fn network(mut self, network: u8) -> Self {
        self.network = network;
        self
    }

    /// MTU of every device, in bytes.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// Every device computes its checksums itself, as a real network card's driver must.
    #[must_use]
    pub fn tx_offload_off(mut self) -> Self {
        self.tx_offload_off = true;
        self
    }

    /// The host forwards nothing by itself: `iptables -P FORWARD DROP`, which Docker sets.
    #[must_use]
    pub fn docker_like_firewall(mut self) -> Self {
        self.docker_like_firewall = true;
        self
    }

    /// One more address on the host's eth0.
    #[must_use]
    pub fn vip(mut self, vip: impl Into<IpAddr>) -> Self {
        self.vips.push(vip.into());
        self
    }

    /// Puts the client behind a router, on a link with this MTU. The client does not tell the other
    /// end of a connection that its link takes less than others: only the router does.
    #[must_use]
    pub fn behind_router(mut self, mtu: u32) -> Self {
        self.router_mtu = Some(mtu);
        self
    }

    /// What the names of its namespaces and the aliases of its devices begin with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Another prefix, of a larger lab that this is a part of.
    pub(super) fn with_prefix(mut self, prefix: String) -> Self {
        self.prefix = prefix;
        self
    }

    fn namespace(&self, role: &str) -> Result<Namespace> {
        Namespace::with_prefix(&self.prefix, role)
    }

    /// Makes it all.
    pub fn build(self) -> Result<Lab> {
        let (host, client) = (self.namespace("host")?, self.namespace("client")?);
        let router = self.router_mtu.map(|_| self.namespace("router")).transpose()?;
        let neighbour = router.as_ref().unwrap_or(&client);
        self.join_client_and_host(neighbour, &host).context("join client and host")?;
        if let (Some(router), Some(mtu)) = (&router, self.router_mtu) {
            join_client_and_router(&client, router, mtu).context("join client and router")?;
            host.batch(&format!(
                "route add default via {CLIENT_V4}\nroute add ::/0 via {CLIENT_V6}\n"
            ))?;
        }
        let backends = self.backends;
        let mut lab = Lab {
            client,
            _router: router,
            host,
            backends: Vec::new(),
            containers: Vec::new(),
            options: self,
            made: 0,
        };
        for _ in 0..backends {
            lab.add_backend()?;
        }
        Ok(lab)
    }

    fn join_client_and_host(&self, client: &Namespace, host: &Namespace) -> Result<()> {
        host.sysctl("net/ipv4/ip_forward", "1")?;
        host.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        for namespace in [client, host] {
            no_duplicate_detection(namespace)?;
        }
        let mtu = self.mtu_words();
        let vips = self.vips.iter().map(|vip| format!("addr add {vip} dev eth0{}\n", nodad(*vip)));
        host.batch(&format!(
            "link add name eth0 {mtu} type veth peer name eth0 {mtu} netns {}\n\
             link set eth0 alias {}-eth0\n\
             addr add {HOST_V4}/24 dev eth0\n\
             addr add {HOST_V6}/64 dev eth0 nodad\n\
             {}link set eth0 up\n",
            client.name(),
            host.name(),
            vips.collect::<String>()
        ))?;
        client.batch(&format!(
            "link set eth0 alias {}-eth0\n\
             addr add {CLIENT_V4}/24 dev eth0\n\
             addr add {CLIENT_V6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via {HOST_V4}\n\
             route add ::/0 via {HOST_V6}\n",
            client.name()
        ))?;
        self.tune(client, "eth0")?;
        self.tune(host, "eth0")?;
        if self.docker_like_firewall {
            output_of(host.command("iptables").args(["-w", "-P", "FORWARD", "DROP"]))?;
        }
        Ok(())
    }

    pub(super) fn make_bridge(&self, host: &Namespace, bridge: Bridge) -> Result<()> {
        let (name, v4, v6) = (bridge.name(), self.v4(bridge, 1), bridge.v6(1));
        host.batch(&format!(
            "link add name {name} {} type bridge\n\
             link set {name} alias {}-{name}\n\
             addr add {v4}/24 dev {name}\n\
             addr add {v6}/64 dev {name} nodad\n\
             link set {name} up\n",
            self.mtu_words(),
            host.name()
        ))
        .context("make the bridge")?;
        self.tune(host, name)
    }

    pub(super) fn make_backend(&self, host: &Namespace, index: u8) -> Result<Backend> {
        let number = u16::from(index) + 1;
        let backend = Backend {
            namespace: self.namespace(&format!("web-{number}"))?,
            v4: self.v4(Bridge::Backends, 10 + index),
            v6: Bridge::Backends.v6(0x10 + u16::from(index)),
            host_interface: format!("veth{number}"),
            name: format!("web-{number}"),
        };
        self.plug_in(host, &backend, Bridge::Backends)?;
        Ok(backend)
    }

    pub(super) fn make_container(
        &self,
        host: &Namespace,
        bridge: Bridge,
        index: u8,
    ) -> Result<Backend> {
        let number = u16::from(index) + 1;
        let container = Backend {
            namespace: self.namespace(&format!("app-{number}"))?,
            v4: self.v4(bridge, 250 - index),
            v6: bridge.v6(0x1000 + number),
            host_interface: format!("vapp{number}"),
            name: format!("app-{number}"),
        };
        self.plug_in(host, &container, bridge)?;
        Ok(container)
    }

    fn plug_in(&self, host: &Namespace, backend: &Backend, bridge: Bridge) -> Result<()> {
        let Backend { namespace, v4, v6, host_interface, .. } = backend;
        no_duplicate_detection(namespace)?;
        let mtu = self.mtu_words();
        let (master, gateway_v4, gateway_v6) = (bridge.name(), self.v4(bridge, 1), bridge.v6(1));
        host.batch(&format!(
            "link add name {host_interface} {mtu} type veth peer name eth0 {mtu} netns {}\n\
             link set {host_interface} master {master} alias {}-{host_interface} up\n",
            namespace.name(),
            host.name()
        ))
        .with_context(|| format!("plug in {}", backend.name))?;
        namespace.batch(&format!(
            "link set eth0 alias {}-eth0\n\
             addr add {v4}/24 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via {gateway_v4}\n\
             route add ::/0 via {gateway_v6}\n",
            namespace.name()
        ))?;
        self.tune(namespace, "eth0")?;
        self.tune(host, host_interface)
    }

    fn tune(&self, namespace: &Namespace, interface: &str) -> Result<()> {
        if self.tx_offload_off {
            output_of(namespace.command("ethtool").args(["-K", interface, "tx", "off"]))?;
        }
        Ok(())
    }

    fn v4(&self, bridge: Bridge, last: u8) -> Ipv4Addr {
        let [first, second, _, last] = bridge.v4(last).octets();
        Ipv4Addr::new(first, second, self.network, last)
    }

    fn mtu_words(&self) -> String {
        self.mtu.map(|mtu| format!("mtu {mtu}")).unwrap_or_default()
    }
}

fn join_client_and_router(client: &Namespace, router: &Namespace, mtu: u32) -> Result<()> {
    router.sysctl("net/ipv4/ip_forward", "1")?;
    router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    no_duplicate_detection(client)?;
    router.batch(&format!(
        "link add name eth1 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n\
         link set eth1 alias {}-eth1\n\
         addr add 203.0.113.1/24 dev eth1\n\
         addr add 2001:db8:5::1/64 dev eth1 nodad\n\
         link set eth1 up\n",
        client.name(),
        router.name()
    ))?;
    client.batch(&format!(
        "link set eth0 alias {}-eth0\n\
         addr add {FAR_CLIENT_V4}/24 dev eth0\n\
         addr add {FAR_CLIENT_V6}/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via 203.0.113.1 advmss 1460\n\
         route add ::/0 via 2001:db8:5::1 advmss 1440\n",
        client.name()
    ))
}

/// IPv6 addresses, link-local ones too, work immediately instead of after a second.
fn no_duplicate_detection(namespace: &Namespace) -> Result<()> {
    namespace.sysctl("net/ipv6/conf/default/accept_dad", "0")
}

fn nodad(address: IpAddr) -> &'static str {
    if address.is_ipv6() { " nodad" } else { "" }
}
