//! What a samport takes from its machine while nothing happens.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use samport_tests::Lab;
use samport_tests::daemon::{Backends, Daemon};
use samport_tests::speed::{Better, Figure, Report};

use super::ms;
use crate::{Args, interrupt};

/// One round of taking out what is over, and one of looking at everything, with the usual limits.
const WINDOW: Duration = Duration::from_secs(10);
const ROUNDS: u32 = 5;

pub fn measure(args: &Args, report: &mut Report) -> Result<()> {
    if args.quick {
        report.skip("a samport with nothing to do: too slow for --quick".to_owned());
        return Ok(());
    }
    let lab = Lab::builder().backends(2).build()?;
    let _servers = lab.serve(9090)?;
    let file = Backends::of(&lab, 9090);
    let daemon = Daemon::start(&lab, &["-i", "eth0", "-p", "80:9090", "--file", file.path()]);
    thread::sleep(Duration::from_secs(1));
    let title = "CPU time of a samport with two backends and nothing to do, in 10 s";
    let mut figure = Figure::new("control.idle", title, "ms", Better::Less);
    for _ in 0..ROUNDS {
        interrupt::go_on()?;
        let before = cpu_time(daemon.pid())?;
        thread::sleep(WINDOW);
        let used = cpu_time(daemon.pid())?.saturating_sub(before);
        figure.series("samport").samples.push(ms(used));
    }
    report.add(figure);
    Ok(())
}

/// What the threads of a process have run for, in the kernel too: the first number of each one's
/// `schedstat` (the kernel's Documentation/scheduler/sched-stats.rst).
fn cpu_time(pid: u32) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("list its threads")? {
        let path = task?.path().join("schedstat");
        // A thread may have ended meanwhile.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let first = text.split(' ').next().and_then(|number| number.parse().ok());
        sum += Duration::from_nanos(first.with_context(|| format!("read {}", path.display()))?);
    }
    Ok(sum)
}
