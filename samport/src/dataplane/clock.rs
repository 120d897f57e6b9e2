//! The clock of the programs: what they are told once, so that jiffies tell them the time.

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::Array;
use aya::programs::{TestRun as _, TestRunOptions};
use rustix::time::{ClockId, clock_getres};
use samport_common::layout::Clock;

use super::load;
use super::maps::MapCell;

/// Says how long a jiffy is, and has a program set the clock by it.
///
/// # Errors
/// If the kernel does not run it; then nothing is set.
pub(super) fn set(ebpf: &mut Ebpf) -> Result<()> {
    // The coarse clock counts jiffies: its resolution is the length of one.
    let jiffy = clock_getres(ClockId::MonotonicCoarse);
    let jiffy_ns = u64::try_from(jiffy.tv_nsec).context("a jiffy of less than no time")?;
    write(ebpf, Clock { jiffy_ns, begin_ns: 0 })?;
    let program = load::classifier(ebpf, "samport_clock")?;
    let ran = program.test_run(TestRunOptions { data_in: Some(&[0; 64]), ..Default::default() });
    if let Err(error) = ran {
        write(ebpf, Clock::default())?;
        return Err(error).context("run samport_clock");
    }
    Ok(())
}

fn write(ebpf: &mut Ebpf, clock: Clock) -> Result<()> {
    let map = ebpf.map_mut("CLOCK").context("the object has no map CLOCK")?;
    let mut map: Array<_, MapCell<Clock>> =
        Array::try_from(map).context("CLOCK is another type")?;
    map.set(0, MapCell(clock), 0).context("write CLOCK")
}
