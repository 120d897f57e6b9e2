//! A dataplane with a service and no devices, for programs that are run on bytes.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};
use samport::dataplane::program_run::harness::{Harness, Measured, Traffic};
use samport::dataplane::program_run::{Runner, XdpRunner};
use samport::dataplane::{Dataplane, Options};
use samport::lab::Namespace;
use samport::model::HostDevice;
use samport::model::ports::Listen;
use samport::plan::table::{Recipe, Region};
use samport::plan::{BackendId, BackendKey, Change, Frontend, Part, Policy, Route, ServiceKey};
use samport::system::instance::Instance;
use samport_common::flow::ServiceId;
use samport_common::harness::Order;
use samport_common::layout::{BackendState, DeviceInfo, DeviceSet, Scope};
use samport_common::source::Side;
use samport_tests::packet::Segment;

/// What clients dial.
pub const VIP: &str = "192.0.2.1:80";
/// Clients are 10.0.0.0/8; three bytes tell them apart.
const CLIENT: &str = "10.0.0.0:40000";
/// Where those bytes stand in what clients send: behind the first of the source address.
const IN_SOURCE: u32 = 14 + 12 + 1;
/// Where they stand in what clients get.
const IN_DESTINATION: u32 = 14 + 16 + 1;
/// The loopback device: it is there, and its own address is zero.
const DEVICE: u32 = 1;

/// A host that forwards, with a route to the clients.
pub fn network() -> Result<Namespace> {
    let network = Namespace::new("speed-kernel")?;
    network.sysctl("net/ipv4/ip_forward", "1")?;
    network.batch(
        "link add eth0 type veth peer name eth1\n\
         addr add 192.0.2.1/24 dev eth0\n\
         link set eth0 up\n\
         link set eth1 up\n\
         route add 10.0.0.0/8 via 192.0.2.2\n",
    )?;
    Ok(network)
}

/// The loaded programs, with one service over so many backends.
pub struct Bed {
    pub forward: Runner,
    pub reverse: Runner,
    pub xdp: XdpRunner,
    dataplane: Dataplane,
    backends: u32,
    /// Goes last: it gives the name back.
    _instance: Instance,
}

impl Bed {
    /// With room for so many flows.
    pub fn new(name: &str, flows: u32, backends: u32) -> Result<Self> {
        let instance = Instance::claim(&format!("speed-{}-{name}", std::process::id()))?;
        let options = Options {
            flows,
            flows6: 1_024,
            backends: backends.max(16),
            // What is measured is a flood of new flows; it is to be treated like any others.
            syn_flood: Some(u32::MAX),
            local: false,
            ..Options::default()
        };
        let mut dataplane = Dataplane::open(&instance, options)?;
        for index in 1..=backends {
            let (key, source) = backend(index);
            let id = BackendId { index, generation: 1 };
            let reverse_nat = vec![(service()?, id)];
            dataplane.apply(&Change::SetBackend {
                key,
                id,
                shared: false,
                weight: 1,
                state: BackendState::Serving,
                answers_on: DeviceSet::from_iter([DEVICE]),
            })?;
            dataplane.apply(&Change::SetReverseNat { source, reverse_nat })?;
        }
        let listen = Listen::tcp(80);
        // As many slots for each as the loader would make, as far as there are.
        let slots: Vec<u32> = (1..=backends).cycle().take(backends as usize * 16).collect();
        let region = Region { base: 0, len: u32::try_from(slots.len())? };
        let service_key = ServiceKey { listen, v6: false };
        let recipe = Recipe::NOTHING;
        dataplane.apply(&Change::WriteTable {
            service: service_key,
            part: Part::All,
            region,
            slots,
            recipe,
        })?;
        set_frontend(&mut dataplane, region, false)?;
        dataplane.apply(&Change::OpenPort(listen))?;
        set_rp_filter(&mut dataplane, LOOSE)?;
        let forward = dataplane.runner("samport_forward")?;
        let reverse = dataplane.runner("samport_reverse")?;
        let xdp = dataplane.xdp_runner(DEVICE)?;
        Ok(Self { forward, reverse, xdp, dataplane, backends, _instance: instance })
    }

    /// With an allow-list that no client is on.
    pub fn restricted(name: &str) -> Result<Self> {
        let mut bed = Self::new(name, 1_024, 1)?;
        set_frontend(&mut bed.dataplane, Region { base: 0, len: 1 }, true)?;
        Ok(bed)
    }

    /// With a device that takes no client from outside, as their routes lead elsewhere.
    pub fn strict(name: &str) -> Result<Self> {
        let mut bed = Self::new(name, 1_024, 1)?;
        set_rp_filter(&mut bed.dataplane, STRICT)?;
        Ok(bed)
    }

    /// How many instructions the verifier has walked through for a program.
    pub fn verified_instructions(&mut self, program: &str) -> Result<u32> {
        self.dataplane.verified_instructions(program)
    }

    /// Opens the flows of the first so many clients, as far as their third segment.
    pub fn establish(&self, harness: &mut Harness, clients: u32) -> Result<()> {
        // No more at a time than may be half-open: what does not fit would be kept beside the table.
        for first in (0..clients).step_by(AT_A_TIME as usize) {
            let count = AT_A_TIME.min(clients - first);
            let mut pass = |runner, traffic: &Traffic<'_>| {
                harness.begin_with(first);
                harness.time(Measured::Tc(runner), traffic, count).map(drop)
            };
            pass(&self.forward, &client_traffic(&from_client(Flags::Syn), clients, Order::Each))?;
            // Whose a flow is, is not known: each backend answers all clients, and its own are served.
            for index in 1..=self.backends {
                let answer = between(&endpoint(index).to_string(), CLIENT, Flags::SynAck);
                pass(&self.reverse, &backend_traffic(&answer, clients, Order::Each))?;
            }
            pass(&self.forward, &client_traffic(&from_client(Flags::Ack), clients, Order::Each))?;
        }
        Ok(())
    }
}

/// Connections that are opened at a time: fewer than a quarter of the smallest table here.
const AT_A_TIME: u32 = 10_000;

/// `rp_filter` of the device.
const STRICT: u8 = 1;
const LOOSE: u8 = 2;

fn set_rp_filter(dataplane: &mut Dataplane, rp_filter: u8) -> Result<()> {
    let (side, lookup_ifindex) = (Side::External as u8, DeviceSet::HOST);
    let device = DeviceInfo { lookup_ifindex, side, rp_filter, ..DeviceInfo::default() };
    dataplane.apply(&Change::SetDevice(DEVICE, device))
}

/// Serves the VIP, to everybody or to nobody.
fn set_frontend(dataplane: &mut Dataplane, region: Region, restricted: bool) -> Result<()> {
    let to = Frontend {
        id: service()?,
        region,
        scope: Scope::External,
        restricted,
        shared: false,
        nodes: false,
        policy: Policy::default(),
    };
    let vip: SocketAddr = VIP.parse().context("parse the VIP")?;
    dataplane.apply(&Change::SetFrontend { addr: vip.ip(), listen: Listen::tcp(80), to })
}

/// Flags of a segment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flags {
    Syn,
    SynAck,
    Ack,
}

/// Packets that clients send.
pub fn client_traffic(frame: &[u8], clients: u32, order: Order) -> Traffic<'_> {
    Traffic { frame, vary_at: IN_SOURCE, clients, order, ifindex: DEVICE }
}

/// Packets that clients get.
pub fn backend_traffic(frame: &[u8], clients: u32, order: Order) -> Traffic<'_> {
    Traffic { frame, vary_at: IN_DESTINATION, clients, order, ifindex: DEVICE }
}

/// A client's segment to the service.
pub fn from_client(flags: Flags) -> Vec<u8> {
    between(CLIENT, VIP, flags)
}

/// The first backend's segment to a client.
pub fn from_backend(flags: Flags) -> Vec<u8> {
    between(&endpoint(1).to_string(), CLIENT, flags)
}

/// A segment in a frame for this machine.
pub fn between(source: &str, destination: &str, flags: Flags) -> Vec<u8> {
    let parse = |text: &str| text.parse().expect("an address and a port");
    let mut segment = Segment::new(parse(source), parse(destination));
    segment.destination_mac = [0; 6];
    segment.tcp.syn = flags != Flags::Ack;
    segment.tcp.ack = flags != Flags::Syn;
    segment.payload = vec![b'x'; 64];
    segment.frame()
}

fn endpoint(index: u32) -> SocketAddr {
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 0)) + index);
    SocketAddr::new(address.into(), 9090)
}

fn service() -> Result<ServiceId> {
    ServiceId::new(1).context("1 is a service's id")
}

fn backend(index: u32) -> (BackendKey, samport::plan::Source) {
    let mac = [2, 0, 0, 0, 0, 1];
    let route = Route::Peer(HostDevice { ifindex: DEVICE, mac, polls: false });
    let id = format!("web-{index}");
    let key = BackendKey { listen: Listen::tcp(80), id, endpoint: endpoint(index), route };
    let source = key.source();
    (key, source)
}
