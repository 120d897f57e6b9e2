//! Tables: one backend of many is another, and a new table is made, written and switched to. First by the
//! functions the loop calls, then through a running samport.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use samport::dataplane::{Dataplane, Options};
use samport::model::State;
use samport::model::ports::Listen;
use samport::plan::{Actual, BackendKey, Change, Desired, Policy, Route, Share, plan};
use samport::system::instance::Instance;
use samport_common::choose::Balance;
use samport_common::layout::{DeviceSet, MAX_BACKENDS, Scope};
use samport_tests::Lab;
use samport_tests::daemon::Daemon;
use samport_tests::speed::{Better, Figure, Report, Series, Spread};

use super::ms;
use crate::{Args, interrupt};

const SIZES: [u32; 4] = [10, 100, 1_000, 10_000];
/// How long anything may take before it is a failure.
const TIMEOUT: Duration = Duration::from_mins(1);

pub fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let lab = Lab::builder().backends(0).build()?;
    // One of them for all: loading the programs takes longer than anything measured here.
    let mut tables = lab.host().run(Tables::new)?;
    for (id, name, balance) in [
        ("control.table", "drawn", Balance::Random),
        ("control.table.maglev", "chosen by hash", Balance::Maglev),
    ] {
        let title =
            format!("One of so many backends added or taken out, {name}: plan, table, maps");
        let mut figure = Figure::new(id, title, "ms", Better::Less);
        for size in SIZES {
            interrupt::go_on()?;
            let measured = lab.host().run(|| tables.measure(size, balance, args.rounds()))?;
            measured.show(figure.series(&size.to_string()));
        }
        report.add(figure);
    }
    drop(tables);
    report.add(through_the_loop(args, &lab)?);
    Ok(())
}

/// Milliseconds, round by round.
#[derive(Default)]
struct Measured {
    whole: Vec<f64>,
    plan: Vec<f64>,
    apply: Vec<f64>,
    changes: usize,
}

impl Measured {
    fn show(self, series: &mut Series) {
        let median =
            |values: &[f64]| Spread::of(values.iter().copied()).map_or(0.0, |spread| spread.median);
        series.beside.push(("plan ms".to_owned(), median(&self.plan)));
        series.beside.push(("apply ms".to_owned(), median(&self.apply)));
        #[expect(clippy::cast_precision_loss, reason = "a handful")]
        series.beside.push(("changes".to_owned(), self.changes as f64));
        series.samples = self.whole;
    }
}

/// What the loop has: the kernel's maps, and what it knows of them.
struct Tables {
    actual: Actual,
    // Before its instance, whose pins it has.
    dataplane: Dataplane,
    _instance: Instance,
}

impl Tables {
    fn new() -> Result<Self> {
        let instance = Instance::claim(&format!("bench-table-{}", std::process::id()))?;
        let dataplane = Dataplane::open(&instance, options())?;
        let actual = Actual::with_room_for(MAX_BACKENDS);
        Ok(Self { actual, dataplane, _instance: instance })
    }

    fn measure(&mut self, size: u32, balance: Balance, rounds: u32) -> Result<Measured> {
        let mut desired = desired(size, balance);
        let changes = plan(&desired, &mut self.actual)?;
        self.apply(&changes)?;
        // In the middle, so that others move up.
        let (key, share) = backend(size / 2);
        let mut measured = Measured::default();
        for _ in 0..rounds {
            for is_there in [false, true] {
                if is_there {
                    desired.backends.insert(key.clone(), share.clone());
                } else {
                    desired.backends.remove(&key);
                }
                let begin = Instant::now();
                let changes = plan(&desired, &mut self.actual)?;
                let planned = begin.elapsed();
                self.apply(&changes)?;
                let whole = begin.elapsed();
                measured.whole.push(ms(whole));
                measured.plan.push(ms(planned));
                measured.apply.push(ms(whole.saturating_sub(planned)));
                measured.changes = changes.len();
            }
        }
        Ok(measured)
    }

    fn apply(&mut self, changes: &[Change]) -> Result<()> {
        for change in changes {
            self.dataplane.apply(change)?;
            self.actual.record(change);
        }
        Ok(())
    }
}

fn options() -> Options {
    Options {
        flows: 1_024,
        flows6: 1_024,
        backends: MAX_BACKENDS,
        local: false,
        ..Options::default()
    }
}

const WEB: Listen = Listen::tcp(80);

fn desired(size: u32, balance: Balance) -> Desired {
    let front: IpAddr = Ipv4Addr::new(192, 0, 2, 1).into();
    Desired {
        frontends: BTreeMap::from([(WEB, BTreeMap::from([(front, Scope::External)]))]),
        policies: BTreeMap::from([(WEB, Policy { balance, ..Policy::default() })]),
        backends: (0..size).map(backend).collect(),
        ..Desired::default()
    }
}

fn backend(number: u32) -> (BackendKey, Share) {
    let name = format!("web-{number:05}");
    let endpoint = endpoint(number);
    let key = BackendKey { listen: WEB, id: name.clone(), endpoint, route: Route::Stack };
    let (answers_on, leaves_by) = (DeviceSet::NONE, Vec::new());
    let (state, route_back) = (State::Active, None);
    (key, Share { name, weight: 1, group: None, state, answers_on, leaves_by, route_back })
}

fn endpoint(number: u32) -> SocketAddr {
    let [_, _, third, fourth] = (number + 1).to_be_bytes();
    (Ipv4Addr::new(10, 1, third, fourth), 9_090).into()
}

/// A running samport with the most backends, and a file in which one gets another weight: all that the loop
/// does with a change, and reading that file besides.
fn through_the_loop(args: &Args, lab: &Lab) -> Result<Figure> {
    let size = SIZES[SIZES.len() - 1];
    let title =
        format!("One of {size} backends in a file has another weight: from the file to the kernel");
    let mut figure = Figure::new("control.loop", title, "ms", Better::Less);
    let folder = tempfile::tempdir()?;
    let (path, new) = (folder.path().join("backends.toml"), folder.path().join("new"));
    fs::write(&path, file(size, 1))?;
    let path = path.to_str().context("a path in UTF-8")?;
    let daemon = Daemon::launch(
        lab.host(),
        &[
            "-i",
            "eth0",
            "-p",
            "80:9090",
            "--file",
            path,
            "--health",
            "none",
            "--forward",
            "stack",
            "--max-backends",
            "16384",
            "--no-local",
        ],
    );
    daemon.wait_for_line("ready: ", TIMEOUT);
    for round in 0..args.rounds() {
        interrupt::go_on()?;
        fs::write(&new, file(size, 2 + round))?;
        let (mark, begin) = (daemon.mark(), Instant::now());
        fs::rename(&new, path)?;
        let line = daemon.wait_for_line_after(mark, &format!("weight {}", 2 + round), TIMEOUT);
        let taken = line.at.saturating_duration_since(begin);
        figure.series(&size.to_string()).samples.push(ms(taken));
    }
    Ok(figure)
}

/// All of weight 1, but for one in the middle.
fn file(size: u32, weight: u32) -> String {
    let mut text = String::new();
    for number in 0..size {
        let weight = if number == size / 2 { weight } else { 1 };
        let (address, name) = (endpoint(number), format!("web-{number:05}"));
        // To a String this does not fail.
        let _ = writeln!(
            text,
            "[[backend]]\nname = \"{name}\"\naddress = \"{address}\"\nweight = {weight}\n"
        );
    }
    text
}
