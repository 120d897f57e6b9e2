//! A network in which frames are sent at a host.

use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use samport::dataplane::program_run::harness::{Before, Harness, Traffic};
use samport::lab::output_of;
use samport_common::harness::Order;
use samport_tests::daemon::Daemon;
use samport_tests::engine::{Container, Engine};
use samport_tests::served::Status;
use samport_tests::{Lab, Namespace, raw};
use serde_json::Value;

use super::kind::{CLIENT, CLIENTS, Kind};
use super::path::Path;

use crate::control::events::{NamespaceProcess, mac_of};
use crate::kernel::bed::{Flags, backend_traffic, between, client_traffic};

/// How long containers may take to serve.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A host with two containers. Fields are dropped from first to last.
pub struct Target {
    daemon: Option<Daemon>,
    _engine: Engine,
    _inhabitants: Vec<NamespaceProcess>,
    pub path: Path,
    lab: Lab,
}

/// What became of a flood.
pub struct Sample {
    /// Nanoseconds a frame.
    pub ns: f64,
    /// Which part of the frames got where they were to go.
    pub arrived: f64,
    /// Which part of them samport has counted as what they are.
    pub as_meant: f64,
}

impl Target {
    pub fn set_up(path: Path, harness: &mut Harness) -> Result<Self> {
        let lab = Lab::builder().backends(2).build()?;
        lab.host().batch("route add 10.0.0.0/8 via 192.0.2.2 dev eth0\n")?;
        let engine = Engine::start().context("start an engine")?;
        let inhabitants =
            lab.backends().iter().map(NamespaceProcess::of).collect::<Result<Vec<_>>>()?;
        // A veth takes bare frames if it polls, and GRO is what makes it.
        gro_on(lab.host(), "eth0")?;
        let containers = lab.backends().iter().zip(&inhabitants);
        for ((backend, process), labels) in containers.zip([Kind::SERVED, Kind::RESTRICTED]) {
            gro_on(lab.host(), backend.host_interface())?;
            gro_on(backend.namespace(), "eth0")?;
            backend.namespace().run(|| harness.drop_all("eth0", Before::Stack))?;
            let (name, pid, address) = (backend.name(), process.pid(), backend.v4(0).ip());
            let container = Container::new(name, pid, address, &mac_of(backend)?);
            engine.has([container.labelled(labels)]);
        }
        let daemon = path.options().map(|options| start_samport(&lab, &engine, options));
        // Behind samport: what passes on would cost more in the stack than all that is measured.
        let before = if path == Path::Generator { Before::Skb } else { Before::Stack };
        lab.host().run(|| harness.drop_all("eth0", before))?;
        Ok(Self { daemon, _engine: engine, _inhabitants: inhabitants, path, lab })
    }

    /// Sends so many frames, and looks at what became of them.
    pub fn flood(&self, harness: &mut Harness, kind: Kind, frames: u32) -> Result<Sample> {
        if kind == Kind::Open && self.daemon.is_some() {
            self.open_flows(harness)?;
        }
        let (arrived, counted) = (self.arrived(kind)?, self.counted(kind));
        let time = self.send(harness, &kind.frame(), kind.clients(), frames)?;
        let arrived = self.arrived(kind)? - arrived;
        let counted = self.counted(kind).zip(counted).map(|(after, before)| after - before);
        // A few others may be among them, like a neighbour's question.
        let part = |some: u64| u32::try_from(some).map_or(1.0, f64::from) / f64::from(frames);
        Ok(Sample {
            ns: time.as_secs_f64() * 1e9,
            arrived: part(arrived).min(1.0),
            as_meant: counted.map_or(1.0, part),
        })
    }

    /// Opens a connection of each client, as far as its third segment.
    fn open_flows(&self, harness: &mut Harness) -> Result<()> {
        self.send(harness, &Kind::Syn.frame(), CLIENTS, CLIENTS)?;
        let backend = &self.lab.backends()[0];
        let answer = between(&backend.v4(80).to_string(), CLIENT, Flags::SynAck);
        let (ifindex, _) = look(backend.namespace())?;
        let traffic = Traffic { ifindex, ..backend_traffic(&answer, CLIENTS, Order::Each) };
        backend.namespace().run(|| harness.flood(&traffic, CLIENTS))?;
        self.send(harness, &Kind::Open.frame(), CLIENTS, CLIENTS)?;
        Ok(())
    }

    /// Frames from the client's side; how long one takes on average.
    fn send(
        &self,
        harness: &mut Harness,
        frame: &[u8],
        clients: u32,
        frames: u32,
    ) -> Result<Duration> {
        let mut frame = frame.to_vec();
        frame[..6].copy_from_slice(&raw::mac(self.lab.host(), "eth0"));
        let (ifindex, _) = look(self.lab.client())?;
        let traffic = Traffic { ifindex, ..client_traffic(&frame, clients, Order::Each) };
        self.lab.client().run(|| {
            stay_here()?;
            harness.flood(&traffic, frames)
        })
    }

    /// Frames that have got as far as they are to: to the host, or to the container.
    fn arrived(&self, kind: Kind) -> Result<u64> {
        let reaches_container = kind.is_forwarded() && self.daemon.is_some();
        let namespace =
            if reaches_container { self.lab.backends()[0].namespace() } else { self.lab.host() };
        look(namespace).map(|(_, received)| received)
    }

    /// Packets that left as those of this kind are to, if anybody counts.
    fn counted(&self, kind: Kind) -> Option<u64> {
        self.daemon.as_ref()?;
        let status = Status::all_in(self.lab.host()).pop()?;
        Some(status.verdict(kind.verdict(self.path)))
    }
}

fn start_samport(lab: &Lab, engine: &Engine, options: &[&str]) -> Daemon {
    let url = engine.url();
    let usual = ["-i", "eth0", "--health", "none", "--endpoint", &url];
    let daemon = Daemon::start(lab, &[&usual, options].concat());
    for backend in lab.backends() {
        daemon.wait_for_line(&format!("+ {}", backend.name()), TIMEOUT);
    }
    daemon
}

/// The index of a namespace's eth0, and how many packets it has taken in, whatever became of them.
fn look(namespace: &Namespace) -> Result<(u32, u64)> {
    let shown = namespace.ip(&["-s", "-j", "link", "show", "dev", "eth0"])?;
    let shown: Value = serde_json::from_str(&shown).context("read what ip shows")?;
    let ifindex = shown[0]["ifindex"].as_u64().and_then(|index| index.try_into().ok());
    let received = shown[0]["stats64"]["rx"]["packets"].as_u64();
    ifindex.zip(received).context("ip shows no index or no counters of eth0")
}

fn gro_on(namespace: &Namespace, device: &str) -> Result<()> {
    output_of(namespace.command("ethtool").args(["-K", device, "gro", "on"])).map(drop)
}

/// Keeps this thread on its CPU: what the other end does is done there too.
fn stay_here() -> Result<()> {
    let mut here = CpuSet::new();
    here.set(sched_getcpu());
    sched_setaffinity(None, &here).context("stay on a CPU")
}
