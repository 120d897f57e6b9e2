//! A small network of namespaces: a client, a host and backends behind the host's bridge.
//!
//! ```text
//! client                        host                         web-1, web-2, …
//! eth0 192.0.2.2 ------- eth0 192.0.2.1
//!      2001:db8:1::2          2001:db8:1::1
//!                             br0 172.30.0.1 -- vethN ------ eth0 172.30.0.(10+i)
//!                                 2001:db8:2::1                   2001:db8:2::10 + i
//! ```
//!
//! Containers that are no backends can be plugged in too, there or into another bridge, `br1`.
//!
//! `samport demo`, the tests and the benchmark all use it. Everything is gone when it is dropped.
//! Names and addresses are the same in every lab; the namespaces, and with them the devices, are each lab's own.

mod backends_file;
mod builder;
mod client;
pub mod cluster;
mod footprint;
mod load;
mod namespace;
pub mod server;
pub mod stats;
mod traces;
mod watched;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};

pub use backends_file::BackendsFile;
pub use builder::{Builder, CLIENT_V4, CLIENT_V6, FAR_CLIENT_V4, FAR_CLIENT_V6, HOST_V4, HOST_V6};
pub use client::{Connection, Response, get};
pub use footprint::Footprint;
pub use load::{Failure, Load, Report, Tally};
pub use namespace::{NETNS_DIR, Namespace, describe, output_of};
pub use server::Server;
pub use traces::{Traces, objects_of};
pub use watched::{Echo, Line, Watched};

/// The network. Namespaces go away with it.
#[derive(Debug)]
pub struct Lab {
    client: Namespace,
    /// Between client and host, if there is one.
    _router: Option<Namespace>,
    host: Namespace,
    backends: Vec<Backend>,
    containers: Vec<Backend>,
    options: Builder,
    /// Backends made so far; names and addresses are not used twice.
    made: u8,
}

/// A bridge of the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bridge {
    /// `br0`, 172.30.0.0/24 and 2001:db8:2::/64: where the backends are.
    Backends,
    /// `br1`, 172.31.0.0/24 and 2001:db8:4::/64.
    Other,
}

impl Bridge {
    /// The device's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Backends => "br0",
            Self::Other => "br1",
        }
    }

    /// An IPv4 address of its network; 1 is the host's own, the gateway.
    #[must_use]
    pub const fn v4(self, last: u8) -> Ipv4Addr {
        match self {
            Self::Backends => Ipv4Addr::new(172, 30, 0, last),
            Self::Other => Ipv4Addr::new(172, 31, 0, last),
        }
    }

    /// An IPv6 address of its network; 1 is the host's own, the gateway.
    #[must_use]
    pub const fn v6(self, last: u16) -> Ipv6Addr {
        let net = match self {
            Self::Backends => 2,
            Self::Other => 4,
        };
        Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, last)
    }
}

/// A namespace behind the bridge: what a container is to a host.
#[derive(Debug)]
pub struct Backend {
    name: String,
    namespace: Namespace,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    host_interface: String,
}

impl Lab {
    /// A lab with one backend and nothing special, to be changed and built.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Where clients are.
    #[must_use]
    pub fn client(&self) -> &Namespace {
        &self.client
    }

    /// Where samport runs.
    #[must_use]
    pub fn host(&self) -> &Namespace {
        &self.host
    }

    /// The backends, oldest first.
    #[must_use]
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// The host's IPv4 address and a port: what clients dial.
    #[must_use]
    pub fn front(&self, port: u16) -> SocketAddr {
        SocketAddr::new(HOST_V4.into(), port)
    }

    /// The host's IPv6 address and a port.
    #[must_use]
    pub fn front_v6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(HOST_V6.into(), port)
    }

    /// Plugs another backend into the bridge, as a container that starts.
    pub fn add_backend(&mut self) -> Result<&Backend> {
        ensure!(self.made < builder::MAX_BACKENDS, "a lab has {} backends at most", self.made);
        if self.made == 0 {
            self.options.make_bridge(&self.host, Bridge::Backends)?;
        }
        let backend = self.options.make_backend(&self.host, self.made)?;
        self.made += 1;
        self.backends.push(backend);
        Ok(&self.backends[self.backends.len() - 1])
    }

    /// The containers that are no backends, oldest first.
    #[must_use]
    pub fn containers(&self) -> &[Backend] {
        &self.containers
    }

    /// Plugs a container that is no backend into a bridge, which is made if it is not there.
    pub fn add_container(&mut self, bridge: Bridge) -> Result<&Backend> {
        let count = u8::try_from(self.containers.len()).ok().filter(|count| *count < 100);
        let index = count.context("a lab has 100 containers at most")?;
        if self.host.ip(&["link", "show", "dev", bridge.name()]).is_err() {
            self.options.make_bridge(&self.host, bridge)?;
        }
        self.containers.push(self.options.make_container(&self.host, bridge, index)?);
        Ok(&self.containers[self.containers.len() - 1])
    }

    /// Unplugs a backend: its namespace goes, and its veth with it.
    pub fn remove_backend(&mut self, name: &str) -> Result<()> {
        let index = self.backends.iter().position(|backend| backend.name == name);
        let backend = self.backends.remove(index.with_context(|| format!("no backend {name}"))?);
        // Ask for it: the kernel alone takes its time once the name is gone.
        self.host.ip(&["link", "del", &backend.host_interface])?;
        Ok(())
    }

    /// Starts a server in every backend.
    pub fn serve(&self, port: u16) -> Result<Vec<Server>> {
        self.backends.iter().map(|backend| backend.serve(port)).collect()
    }

    /// Asks the server at an address once, on a new connection from the client.
    pub fn get(&self, address: SocketAddr, path: &str) -> io::Result<Response> {
        self.client.run(|| get(address, path))
    }
}

impl Backend {
    /// `web-1`, `web-2` and so on.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its IPv4 address and a port.
    #[must_use]
    pub fn v4(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.v4), port)
    }

    /// Its IPv6 address and a port.
    #[must_use]
    pub fn v6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V6(self.v6), port)
    }

    /// The host's end of its veth.
    #[must_use]
    pub fn host_interface(&self) -> &str {
        &self.host_interface
    }

    /// Starts a server with the backend's name.
    pub fn serve(&self, port: u16) -> Result<Server> {
        self.namespace
            .run(|| Server::bind(&self.name, port))
            .with_context(|| format!("listen on port {port} in {}", self.name))
    }
}
