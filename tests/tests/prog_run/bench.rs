//! A dataplane with services and backends and no devices.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use samport::dataplane::program_run::{Ran, Runner};
use samport::dataplane::{Dataplane, Options};
use samport::model::HostDevice;
use samport::model::ports::Listen;
use samport::plan::table::{Recipe, Region};
use samport::plan::{BackendId, BackendKey, Change, Frontend, Part, Policy, Route, ServiceKey};
use samport::system::instance::Instance;
use samport_common::flow::ServiceId;
use samport_common::layout::{BackendState, BackendStats, DeviceSet, Evidence, Scope};
use samport_common::verdict::Verdict;
use samport_tests::bpf::Map;
use samport_tests::packet::Segment;
use samport_tests::require_root;

use crate::UNSPEC;

pub const CLIENT: &str = "192.0.2.2:40000";
pub const CLIENT6: &str = "[2001:db8::2]:40000";
pub const VIP: &str = "192.0.2.1:80";
pub const VIP6: &str = "[2001:db8::1]:80";
/// A second address of the same service.
pub const VIP_B: &str = "192.0.2.3:80";
/// Another service.
pub const VIP_443: &str = "192.0.2.1:443";
pub const BACKENDS: [&str; 4] =
    ["172.30.0.10:9090", "172.30.0.11:9090", "[2001:db8:2::10]:9090", "[2001:db8:2::11]:9090"];
/// Benches made so far; each has a name of its own.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// The kernel only writes the index down; no packet leaves.
pub const DEVICE: u32 = 1;

/// Service ids by port and family.
pub fn service(port: u16, v6: bool) -> ServiceId {
    let id = match (port, v6) {
        (80, false) => 1,
        (80, true) => 2,
        (443, false) => 3,
        other => panic!("no service {other:?}"),
    };
    ServiceId::new(id).unwrap()
}

/// The MAC of the backend with this index.
pub fn mac(index: u32) -> [u8; 6] {
    [2, 0, 0, 0, 9, u8::try_from(index).unwrap()]
}

pub struct Bench {
    pub dataplane: Dataplane,
    instance: Instance,
}

impl Bench {
    /// Port 80 of `VIP`, `VIP_B` and `VIP6` over two backends of each family, ids 1 to 4.
    pub fn new() -> Self {
        Self::with_flows(8_192)
    }

    pub fn with_flows(flows: u32) -> Self {
        require_root();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let instance = Instance::claim(&format!("bench-{}-{count}", std::process::id())).unwrap();
        Self::on(instance, flows, false, 0)
    }

    /// The same as a node of a cluster.
    pub fn clustered() -> Self {
        require_root();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("bench-{}-node-{count}", std::process::id());
        Self::on(Instance::claim(&name).unwrap(), 1_024, true, 6_080)
    }

    /// The same with room for one IPv4 flow in the table, and for one beside, where the real one makes room: so
    /// that the third insert fails.
    pub fn with_room_for_two_flows() -> Self {
        require_root();
        let instance = Instance::claim(&format!("bench-{}-full", std::process::id())).unwrap();
        for name in ["FLOWS4", "OVERFLOW4"] {
            let table = samport::dataplane::pins::map_of(instance.name(), name);
            std::fs::create_dir_all(table.parent().unwrap()).unwrap();
            Map::pin_hash(&table, name, [8, 56, 1]).unwrap();
        }
        Self::on(instance, 1_024, false, 0)
    }

    /// The same with the programs for local clients.
    pub fn with_local_clients() -> Self {
        require_root();
        let name = format!("bench-{}-local", std::process::id());
        Self::on(Instance::claim(&name).unwrap(), 1_024, true, 0)
    }

    fn on(instance: Instance, flows: u32, local: bool, tunnel_port: u16) -> Self {
        let options = Options {
            flows,
            flows6: flows,
            backends: 16,
            syn_flood: Some(u32::MAX),
            local,
            tunnel_port,
            ..Options::default()
        };
        let dataplane = Dataplane::open(&instance, options).unwrap();
        let mut bench = Self { dataplane, instance };
        for (index, endpoint) in (1..).zip(BACKENDS) {
            bench.set_backend(index, endpoint, 80, 1, false);
        }
        bench.set_table(80, false, 0, &[1, 2]);
        bench.set_table(80, true, 2, &[3, 4]);
        bench.set_frontend(VIP, 0, 2);
        bench.set_frontend(VIP_B, 0, 2);
        bench.set_frontend(VIP6, 2, 2);
        bench.dataplane.apply(&Change::OpenPort(Listen::tcp(80))).unwrap();
        bench
    }

    pub fn set_backend(
        &mut self,
        index: u32,
        endpoint: &str,
        listen: u16,
        generation: u32,
        shared: bool,
    ) {
        let endpoint: SocketAddr = endpoint.parse().unwrap();
        let key = key(index, endpoint, listen);
        let source = key.source();
        let id = BackendId { index, generation };
        self.dataplane
            .apply(&Change::SetBackend {
                key,
                id,
                shared,
                weight: 1,
                state: BackendState::Serving,
                answers_on: DeviceSet::from_iter([DEVICE]),
            })
            .unwrap();
        let reverse_nat = vec![(service(listen, endpoint.is_ipv6()), id)];
        self.dataplane.apply(&Change::SetReverseNat { source, reverse_nat }).unwrap();
    }

    pub fn set_table(&mut self, port: u16, v6: bool, base: u32, slots: &[u32]) {
        let region = Region { base, len: u32::try_from(slots.len()).unwrap() };
        let service = ServiceKey { listen: Listen::tcp(port), v6 };
        self.dataplane
            .apply(&Change::WriteTable {
                service,
                part: Part::All,
                region,
                slots: slots.to_vec(),
                recipe: Recipe::NOTHING,
            })
            .unwrap();
    }

    /// What its maps are pinned under.
    pub fn name(&self) -> &str {
        self.instance.name()
    }

    /// Serves an address to clients of allowed networks only, of which there are none.
    pub fn restrict(&mut self, vip: &str) {
        let vip: SocketAddr = vip.parse().unwrap();
        let to = Frontend {
            id: service(vip.port(), vip.is_ipv6()),
            region: Region { base: 0, len: 2 },
            scope: Scope::External,
            restricted: true,
            shared: false,
            nodes: false,
            policy: Policy::default(),
        };
        let (addr, listen) = (vip.ip(), Listen::tcp(vip.port()));
        self.dataplane.apply(&Change::SetFrontend { addr, listen, to }).unwrap();
    }

    pub fn set_frontend(&mut self, vip: &str, base: u32, len: u32) {
        self.with_policy(vip, base, len, Policy::default());
    }

    /// What is counted of a backend.
    pub fn stats(&self, index: u32) -> BackendStats {
        let counters = samport::dataplane::inspect::Counters::open(self.instance.name()).unwrap();
        counters.backend(index).unwrap()
    }

    /// Connections that a backend has failed.
    pub fn evidence(&self, index: u32) -> Evidence {
        samport::dataplane::map_reader::Answers::open(self.instance.name())
            .unwrap()
            .backend(index)
            .unwrap()
            .evidence
    }

    /// Flows a backend has ever got.
    pub fn total_flows(&self, index: u32) -> u64 {
        self.stats(index).flows
    }

    /// Flows of a backend that are open.
    pub fn open_flows(&self, index: u32) -> u64 {
        self.dataplane.open_flows(index).unwrap()
    }

    pub fn with_policy(&mut self, vip: &str, base: u32, len: u32, policy: Policy) {
        let vip: SocketAddr = vip.parse().unwrap();
        let id = service(vip.port(), vip.is_ipv6());
        let (addr, listen) = (vip.ip(), Listen::tcp(vip.port()));
        let to = Frontend {
            id,
            region: Region { base, len },
            scope: Scope::External,
            restricted: false,
            shared: false,
            nodes: false,
            policy,
        };
        self.dataplane.apply(&Change::SetFrontend { addr, listen, to }).unwrap();
    }

    pub fn empty_the_table(&mut self) {
        for vip in [VIP, VIP_B, VIP6] {
            self.set_frontend(vip, 0, 0);
        }
    }

    /// All new flows of both families go to one backend each.
    pub fn only(&mut self, v4: u32, v6: u32) {
        self.set_table(80, false, 0, &[v4, v4]);
        self.set_table(80, true, 2, &[v6, v6]);
    }

    pub fn retire(&mut self, index: u32) {
        let endpoint: SocketAddr = BACKENDS[index as usize - 1].parse().unwrap();
        let (key, id) = (key(index, endpoint, 80), BackendId { index, generation: 1 });
        self.dataplane.apply(&Change::RetireBackend { key, id }).unwrap();
    }

    pub fn runner(&mut self, program: &str) -> Runner {
        self.dataplane.runner(program).unwrap()
    }

    /// Runs a program and says which verdicts were counted meanwhile.
    pub fn run(&mut self, program: &str, frame: &[u8]) -> (Ran, Vec<Verdict>) {
        let before = self.dataplane.verdicts().unwrap();
        let ran = self.runner(program).run(frame, DEVICE).unwrap();
        let after = self.dataplane.verdicts().unwrap();
        let counted = Verdict::ALL
            .iter()
            .zip(before.iter().zip(&after))
            .flat_map(|(verdict, (before, after))| {
                std::iter::repeat_n(*verdict, usize::try_from(after - before).unwrap())
            })
            .collect();
        (ran, counted)
    }

    /// The packet goes on as it came, and is counted once, under this verdict.
    pub fn expect_untouched(&mut self, program: &str, frame: &[u8], verdict: Verdict) {
        let (ran, counted) = self.run(program, frame);
        assert_eq!(counted, [verdict]);
        assert_eq!(ran.action, UNSPEC, "{}", verdict.name());
        assert_eq!(ran.bytes, frame, "{}", verdict.name());
    }

    /// The packet leaves with this verdict and this action; what it looks like then.
    pub fn expect(
        &mut self,
        program: &str,
        frame: &[u8],
        verdict: Verdict,
        action: i32,
    ) -> Vec<u8> {
        let (ran, counted) = self.run(program, frame);
        assert_eq!(counted, [verdict]);
        assert_eq!(ran.action, action, "{}", verdict.name());
        ran.bytes
    }

    /// Sends a client's segment through and says which backend it was sent to.
    pub fn forward(&mut self, segment: &Segment) -> SocketAddr {
        let frame = at_host(segment.clone()).frame();
        let out = self.expect("samport_forward", &frame, Verdict::ForwardPeer, crate::REDIRECT);
        Segment::read(&out).destination
    }
}

fn key(index: u32, endpoint: SocketAddr, listen: u16) -> BackendKey {
    let route = Route::Peer(HostDevice { ifindex: DEVICE, mac: mac(index), polls: false });
    BackendKey { listen: Listen::tcp(listen), id: format!("web-{index}"), endpoint, route }
}

/// The segment in a frame for this machine: test runs happen on the loopback device, whose address
/// is zero.
pub fn at_host(segment: Segment) -> Segment {
    Segment { destination_mac: [0; 6], ..segment }
}
