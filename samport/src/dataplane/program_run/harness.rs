//! Measuring a program by `BPF_PROG_TEST_RUN`, on a packet made for each run.

mod flood;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::maps::{Array, ProgramArray};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, TestRun as _, TestRunOptions, Xdp};
use samport_common::harness::{FRAME_WORDS, Order, Packets};
use zerocopy::IntoBytes as _;

use super::{Runner, XdpRunner, context};
use crate::dataplane::maps::MapCell;

pub use flood::Before;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/samport-harness"));

/// Programs of the harness that each do one thing that packet programs are made of.
pub const OPERATIONS: [&str; 13] = [
    "op_nothing",
    "op_array",
    "op_percpu",
    "op_hash",
    "op_lru",
    "op_lru_wide",
    "op_lru_insert",
    "op_ktime",
    "op_ktime_coarse",
    "op_random",
    "op_checksum",
    "op_redirect_peer",
    "op_ringbuf",
];

/// What packets a program is measured on.
#[derive(Clone, Debug)]
pub struct Traffic<'a> {
    /// The frame, from its Ethernet header on.
    pub frame: &'a [u8],
    /// Where in it the three bytes stand that tell clients apart: below 64.
    pub vary_at: u32,
    /// How many clients there are, up to 2^24.
    pub clients: u32,
    /// In which order they come.
    pub order: Order,
    /// Interface of this thread's network namespace on which the packets seem to arrive.
    pub ifindex: u32,
}

/// The programs that measure.
pub struct Harness {
    ebpf: Ebpf,
    /// The number of the next packet. It never begins again: a client that comes again is not a new one.
    number: u64,
}

/// What is measured.
#[derive(Clone, Copy)]
pub enum Measured<'a> {
    /// A program of the harness, by its name.
    Own(&'a str),
    /// A program at tc.
    Tc(&'a Runner),
    /// A program at XDP.
    Xdp(&'a XdpRunner),
    /// The program of the harness at XDP that does nothing.
    EmptyXdp,
}

impl Harness {
    /// Loads them.
    pub fn open() -> Result<Self> {
        if OBJECT.is_empty() {
            bail!("built with AYA_BUILD_SKIP=1: there are no programs in this binary");
        }
        let mut ebpf = Ebpf::load(OBJECT).context("read the harness")?;
        for name in OPERATIONS.iter().chain(&["harness", "empty", "sink"]) {
            let program: &mut SchedClassifier = ebpf
                .program_mut(name)
                .with_context(|| format!("there is no {name}"))?
                .try_into()?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        for name in ["harness_xdp", "empty_xdp", "flood", "sink_xdp"] {
            let program: &mut Xdp = ebpf
                .program_mut(name)
                .with_context(|| format!("there is no {name}"))?
                .try_into()?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        Ok(Self { ebpf, number: 0 })
    }

    /// The next packet is that of this client, where they come one after the other.
    pub const fn begin_with(&mut self, client: u32) {
        self.number = client as u64;
    }

    /// Runs the harness with a program `repeat` times and says how long one run took on average, the
    /// harness included.
    pub fn time(
        &mut self,
        measured: Measured<'_>,
        on: &Traffic<'_>,
        repeat: u32,
    ) -> Result<Duration> {
        self.make(on)?;
        self.number += u64::from(repeat);
        let is_xdp = matches!(measured, Measured::Xdp(_) | Measured::EmptyXdp);
        self.target(measured)?;
        let mut frame = on.frame.to_vec();
        frame.resize(frame.len().max(FRAME_WORDS * 8 + 2), 0);
        let context = context(on.ifindex);
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: (!is_xdp).then_some(&context),
            repeat,
            ..TestRunOptions::default()
        };
        let result = if is_xdp {
            let program: &Xdp =
                self.ebpf.program("harness_xdp").context("no harness")?.try_into()?;
            program.test_run(options)
        } else {
            let program: &SchedClassifier =
                self.ebpf.program("harness").context("no harness")?.try_into()?;
            program.test_run(options)
        };
        Ok(result.with_context(|| format!("run the harness on {} bytes", frame.len()))?.duration)
    }

    /// Puts the program that does nothing at ingress of a device of this thread's network namespace, until the
    /// harness is dropped.
    pub fn attach_empty(&mut self, device: &str) -> Result<()> {
        let program: &mut SchedClassifier =
            self.ebpf.program_mut("empty").context("there is no empty")?.try_into()?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let attached = program.attach_with_options(device, TcAttachType::Ingress, options);
        attached.with_context(|| format!("attach to {device}")).map(drop)
    }

    fn make(&mut self, on: &Traffic<'_>) -> Result<()> {
        let mut packets = Packets {
            frame: [0; FRAME_WORDS],
            number: self.number,
            vary_at: on.vary_at,
            order: on.order as u32,
            clients: on.clients,
            pad: 0,
        };
        let bytes = packets.frame.as_mut_bytes();
        let length = bytes.len().min(on.frame.len());
        bytes[..length].copy_from_slice(&on.frame[..length]);
        let map = self.ebpf.map_mut("PACKETS").context("there is no PACKETS")?;
        let mut map: Array<_, MapCell<Packets>> = Array::try_from(map)?;
        map.set(0, MapCell(packets), 0).context("set the packets")
    }

    fn target(&mut self, measured: Measured<'_>) -> Result<()> {
        let (map, fd) = match measured {
            Measured::Own(name) => {
                let program: &SchedClassifier = self
                    .ebpf
                    .program(name)
                    .with_context(|| format!("there is no {name}"))?
                    .try_into()?;
                ("MEASURED", program.fd()?.try_clone()?)
            }
            Measured::EmptyXdp => {
                let program: &Xdp =
                    self.ebpf.program("empty_xdp").context("no harness")?.try_into()?;
                ("MEASURED_XDP", program.fd()?.try_clone()?)
            }
            Measured::Tc(runner) => ("MEASURED", runner.0.fd()?.try_clone()?),
            Measured::Xdp(runner) => ("MEASURED_XDP", runner.0.try_clone()?),
        };
        let map = self.ebpf.map_mut(map).with_context(|| format!("there is no {map}"))?;
        ProgramArray::try_from(map)?.set(0, &fd, 0).context("put the measured program in its place")
    }
}
