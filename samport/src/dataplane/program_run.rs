//! Running a loaded program on bytes, without any device: `BPF_PROG_TEST_RUN`.

pub mod harness;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aya::maps::ProgramArray;
use aya::programs::{
    Program, ProgramFd, SchedClassifier, TestRun as _, TestRunOptions, TestRunResult,
};

use super::{Dataplane, load, xdp};

/// What a program made of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ran {
    /// What it told the kernel to do: a `TC_ACT` code.
    pub action: i32,
    /// The packet afterwards.
    pub bytes: Vec<u8>,
}

/// Names of the programs of the tunnel.
pub const OF_TUNNEL: [&str; load::OF_TUNNEL.len()] = {
    let [(_, unwrap), (_, inner), (_, wrap), (_, probe), (_, too_big)] = load::OF_TUNNEL;
    [unwrap, inner, wrap, probe, too_big]
};
/// Names of all programs that see packets, but for those of the tunnel.
pub const PROGRAMS: [&str; load::PROGRAMS.len()] = load::PROGRAMS;
/// Names of all programs for local clients. The kernel runs them on sockets only.
pub const LOCAL_PROGRAMS: [&str; 10] = [
    "samport_connect4",
    "samport_connect6",
    "samport_sendmsg4",
    "samport_sendmsg6",
    "samport_recvmsg4",
    "samport_recvmsg6",
    "samport_getpeername4",
    "samport_getpeername6",
    "samport_close",
    "samport_sockops",
];

/// A loaded program that can be run on bytes, from several threads at a time.
pub struct Runner(SchedClassifier);

impl Runner {
    /// Runs the program once on a frame, at an interface of this thread's network namespace.
    pub fn run(&self, frame: &[u8], ifindex: u32) -> Result<Ran> {
        let mut bytes = vec![0; frame.len() + 256];
        let result = self.test_run(frame, &mut bytes, ifindex, 1)?;
        bytes.truncate(result.data_size_out.try_into().unwrap_or(frame.len()));
        Ok(Ran { action: result.return_value.cast_signed(), bytes })
    }

    /// Runs the program `repeat` times, each on what the run before has left of the packet, and
    /// says how long one run took on average.
    pub fn time(&self, frame: &[u8], ifindex: u32, repeat: u32) -> Result<Duration> {
        let mut bytes = vec![0; frame.len() + 256];
        Ok(self.test_run(frame, &mut bytes, ifindex, repeat)?.duration)
    }

    fn test_run(
        &self,
        frame: &[u8],
        bytes: &mut [u8],
        ifindex: u32,
        repeat: u32,
    ) -> Result<TestRunResult> {
        let context = context(ifindex);
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(bytes),
            ctx_in: Some(&context),
            repeat,
            ..TestRunOptions::default()
        };
        self.0.test_run(options).with_context(|| format!("run a program on {} bytes", frame.len()))
    }
}

/// The loaded XDP program, to be run by a [`harness::Harness`].
pub struct XdpRunner(ProgramFd);

impl Dataplane {
    /// The XDP program, to be run on frames of an interface. Its own address is zero.
    pub fn xdp_runner(&mut self, ifindex: u32) -> Result<XdpRunner> {
        xdp::make_known(&mut self.ebpf, ifindex)?;
        let program = xdp::load(&mut self.ebpf)?.fd().context("samport_xdp is not loaded")?;
        Ok(XdpRunner(program.try_clone().context("open samport_xdp")?))
    }

    /// A program by its name, to be run.
    pub fn runner(&mut self, program: &str) -> Result<Runner> {
        // aya gives a second handle on a program only by way of a pin.
        let pin = self.pins.map(&format!("runner_{program}"));
        let classifier = load::classifier(&mut self.ebpf, program)?;
        classifier.pin(&pin).with_context(|| format!("pin {program}"))?;
        let runner = SchedClassifier::from_pin(&pin).with_context(|| format!("open {program}"));
        std::fs::remove_file(&pin).with_context(|| format!("unpin {program}"))?;
        Ok(Runner(runner?))
    }

    /// Takes a program away from where others go on to it: `index` is one of `samport_common::layout::program`.
    pub fn take_away(&mut self, index: u32) -> Result<()> {
        let map = self.ebpf.map_mut("PROGRAMS").context("there is no map PROGRAMS")?;
        let mut programs = ProgramArray::try_from(map).context("open PROGRAMS")?;
        programs.clear_index(&index).with_context(|| format!("clear PROGRAMS[{index}]"))
    }

    /// Loads the XDP program, which otherwise waits for an interface.
    pub fn load_xdp(&mut self) -> Result<()> {
        xdp::load(&mut self.ebpf).map(drop)
    }

    /// How many instructions the verifier walked through to accept a program.
    pub fn verified_instructions(&mut self, program: &str) -> Result<u32> {
        if PROGRAMS.contains(&program) || OF_TUNNEL.contains(&program) {
            load::classifier(&mut self.ebpf, program)?;
        }
        let found = self.ebpf.program_mut(program);
        let info = match found.with_context(|| format!("there is no program {program}"))? {
            Program::SchedClassifier(program) => program.info(),
            Program::CgroupSockAddr(program) => program.info(),
            Program::CgroupSock(program) => program.info(),
            Program::SockOps(program) => program.info(),
            Program::Xdp(program) => program.info(),
            _ => bail!("{program} is of another type"),
        };
        info.with_context(|| format!("ask for {program}"))?
            .verified_instruction_count()
            .context("this kernel does not tell")
    }
}

/// A `__sk_buff` that says which interface the packet is on. The kernel refuses one in which any
/// field is set that a test may not set.
fn context(ifindex: u32) -> [u8; 192] {
    /// Offset of `ifindex` in `struct __sk_buff` (linux/bpf.h).
    const IFINDEX: usize = 40;
    let mut context = [0; 192];
    context[IFINDEX..IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
    context
}
