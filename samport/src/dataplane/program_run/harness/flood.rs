//! Sending frames as a network card's driver would take them in, and dropping what arrives.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{
    LinkOrder, SchedClassifier, TcAttachType, TestRun as _, TestRunAttrs, TestRunOptions, Xdp,
    XdpMode,
};

use super::{FRAME_WORDS, Harness, Traffic};

/// Frames sent at a time: what a driver is polled for in one go.
const BATCH: u32 = 64;

/// Where what arrives is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Before {
    /// Before there is an skb, by native XDP.
    Skb,
    /// Before the stack, behind all other programs at tc.
    Stack,
}

impl Harness {
    /// Sends this many frames out of `on.ifindex`, a device of this thread's network namespace, and says how long one
    /// took on average. What the other end of a veth makes of them is part of it: it is done in between, on the same
    /// CPU. That end takes frames only if it polls for them, as with GRO on.
    ///
    /// The frame is a TCP segment of IPv4 without options, with zeros where clients are told apart, and right checksums.
    ///
    /// Linux 5.18 at least: others have no live frames.
    pub fn flood(&mut self, on: &Traffic<'_>, frames: u32) -> Result<Duration> {
        self.make(on)?;
        self.number += u64::from(frames);
        let mut frame = on.frame.to_vec();
        frame.resize(frame.len().max(FRAME_WORDS * 8 + 2), 0);
        let context = frame_context(u32::try_from(frame.len())?, on.ifindex);
        let program: &Xdp = self.ebpf.program("flood").context("there is no flood")?.try_into()?;
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        let result = program.test_run(options);
        Ok(result.with_context(|| format!("send {frames} live frames"))?.duration)
    }

    /// Drops all that arrives at a device of this thread's network namespace, until the harness or the device goes.
    pub fn drop_all(&mut self, device: &str, before: Before) -> Result<()> {
        let attached = match before {
            Before::Skb => {
                let program: &mut Xdp = self
                    .ebpf
                    .program_mut("sink_xdp")
                    .context("there is no sink_xdp")?
                    .try_into()?;
                program.attach(device, XdpMode::Driver).map(drop)
            }
            Before::Stack => {
                let program: &mut SchedClassifier =
                    self.ebpf.program_mut("sink").context("there is no sink")?.try_into()?;
                let options = TcAttachOptions::TcxOrder(LinkOrder::last());
                program.attach_with_options(device, TcAttachType::Ingress, options).map(drop)
            }
        };
        attached.with_context(|| format!("attach to {device}"))
    }
}

/// A `struct xdp_md` (linux/bpf.h) of a frame of this many bytes.
fn frame_context(length: u32, ifindex: u32) -> [u8; 24] {
    let mut context = [0; 24];
    // data is 0, data_end:
    context[4..8].copy_from_slice(&length.to_ne_bytes());
    // ingress_ifindex, behind data_meta:
    context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
    context
}
