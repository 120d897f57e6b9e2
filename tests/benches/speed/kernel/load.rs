//! What the programs cost under real traffic, as the kernel counts it.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result};
use samport::dataplane::program_run::harness::Harness;
use samport_tests::speed::{Better, Figure, Report};
use samport_tests::{Lab, bpf};

use crate::traffic::client::After;
use crate::traffic::contenders::Contender;
use crate::traffic::test_bed::{From, RequestOptions};
use crate::{Args, interrupt};

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// The programs, by the names that the kernel knows. What they call counts as theirs.
const PROGRAMS: [&str; 3] = ["samport_forward", "samport_reverse", "empty"];

/// New connections, whose packets also go through a program that does nothing, at the client's end.
pub fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let title = format!(
        "a run under {} s of new connections, as the kernel counts (kernel.bpf_stats_enabled, which costs as much as \
         the empty program shows)",
        args.seconds()
    );
    let figure = Figure::new("kernel.load", title, "ns", Better::Less);
    let mut figure = figure.of_different_things();
    let asking = RequestOptions::new(args, From::Client, args.backends, After::Another);
    let _counting = Counting::begin()?;
    for _ in 0..args.rounds() {
        interrupt::go_on()?;
        let (sample, runs) =
            asking.measure_with(Contender::Samport, Bystander::attach, |_| runs())?;
        let connections = f64::from(sample.outcome.answered().max(1));
        for name in PROGRAMS {
            let Some(&Runs { count, time_ns }) = runs.get(name) else { continue };
            let series = figure.series(name.trim_start_matches("samport_"));
            series.samples.push(time_ns / count);
            series.beside = vec![("runs a connection".to_owned(), count / connections)];
        }
    }
    report.add(figure);
    Ok(())
}

/// A program that does nothing, at the client's device.
struct Bystander {
    _harness: Harness,
}

impl Bystander {
    fn attach(lab: &Lab) -> Result<Self> {
        let mut harness = Harness::open()?;
        lab.client().run(|| harness.attach_empty("eth0"))?;
        Ok(Self { _harness: harness })
    }
}

/// How often a program has run, and how long in all.
struct Runs {
    count: f64,
    time_ns: f64,
}

/// Of all programs that have run: there are no others of these names while the benchmark runs, or they have
/// nothing to do.
fn runs() -> Result<BTreeMap<String, Runs>> {
    let mut runs: BTreeMap<String, Runs> = BTreeMap::new();
    for bpf::Runs { program, count, time_ns, .. } in bpf::runs().context("ask for the programs")? {
        let sum = runs.entry(program).or_insert(Runs { count: 0.0, time_ns: 0.0 });
        #[expect(clippy::cast_precision_loss, reason = "a minute is less than 2^52 ns")]
        let (count, time_ns) = (count as f64, time_ns as f64);
        sum.count += count;
        sum.time_ns += time_ns;
    }
    Ok(runs)
}

/// The kernel counts runs until this is dropped.
pub struct Counting {
    before: String,
}

impl Counting {
    pub fn begin() -> Result<Self> {
        let before = fs::read_to_string(SWITCH).with_context(|| format!("read {SWITCH}"))?;
        fs::write(SWITCH, "1").with_context(|| format!("write {SWITCH}"))?;
        Ok(Self { before })
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        if let Err(error) = fs::write(SWITCH, self.before.trim()) {
            eprintln!("put {SWITCH} back to {}: {error}", self.before.trim());
        }
    }
}
