//! How fast samport is, beside what else people use, beside an empty program, and beside itself with
//! more of everything.
//!
//! Started by `cargo xtask bench`; the method and its reasons are in `docs/internals/benchmarks/README.md`.

mod control;
mod flood;
mod interrupt;
mod kernel;
mod machine;
mod traffic;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::builder::PossibleValue;
use clap::{Parser as _, ValueEnum as _};
use samport_tests::require_root;
use samport_tests::speed::Report;

use machine::Machine;
use traffic::contenders::Contender;

/// How fast samport is, in namespaces of its own
#[derive(clap::Parser)]
#[command(name = "speed", bin_name = "cargo xtask bench --")]
pub struct Args {
    /// Less of everything, in less than 3 minutes
    #[arg(long)]
    pub quick: bool,
    /// Rounds; in each, every contender is measured once [default: 7, or 5 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: Option<u32>,
    /// Length of a measurement [default: 2, or 0.5 with --quick]
    #[arg(long, value_parser = seconds)]
    pub seconds: Option<f64>,
    /// Which parts are measured [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_enum)]
    pub only: Vec<Part>,
    /// Whom samport is measured beside [default: all, or with --quick those that have a bar]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_enum)]
    pub against: Vec<Contender>,
    /// Backends that contenders balance over
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub backends: u8,
    /// Connections open at a time: enough to keep all CPUs busy, or waiting is measured
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u8).range(1..))]
    pub at_once: u8,
    /// Keeps the raw figures
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draws the figures that have bars
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// `cargo bench` gives it to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A part of the benchmark.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Part {
    /// New connections a second
    Connections,
    /// Requests a second over connections that stay open, and how long they take
    Requests,
    /// Bytes a second
    Bulk,
    /// New connections from the machine itself
    Local,
    /// A container on another host: through the tunnel, a proxy, plain routing (with --quick only if named)
    Cluster,
    /// What a packet costs in the programs alone
    Kernel,
    /// What the programs cost under real traffic
    Load,
    /// What a frame costs in a flood of them, at XDP and at tc
    Flood,
    /// How soon clients go where a container has started, and not where one ends
    Events,
    /// How soon one backend of many is another
    Tables,
    /// How soon many containers serve that were there before samport
    Discovery,
    /// What a samport with nothing to do takes
    Idle,
    /// The memory that flows take
    Memory,
}

impl Part {
    /// In the order they are measured.
    const ALL: [Self; 13] = [
        Self::Connections,
        Self::Requests,
        Self::Bulk,
        Self::Local,
        Self::Cluster,
        Self::Kernel,
        Self::Load,
        Self::Flood,
        Self::Events,
        Self::Tables,
        Self::Discovery,
        Self::Idle,
        Self::Memory,
    ];

    /// Its name, and what it is about.
    fn heading(self) -> String {
        let value = self.to_possible_value().unwrap_or_else(|| PossibleValue::new("all"));
        let about = value.get_help().map(ToString::to_string).unwrap_or_default();
        format!("{}: {about}", value.get_name())
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    require_root();
    for file in [&args.json, &args.svg].into_iter().flatten() {
        let folder = absolute(file).parent().is_some_and(Path::is_dir);
        ensure!(folder, "cannot write {}: there is no such folder", file.display());
    }
    interrupt::listen()?;
    let machine = Machine::look()?;
    let mut report = Report::new(machine.heading(), machine.json());
    for part in args.parts() {
        interrupt::go_on()?;
        eprintln!("{}", part.heading());
        match part {
            Part::Connections => traffic::connections::measure(&args, &mut report)?,
            Part::Requests => traffic::requests::measure(&args, &mut report)?,
            Part::Bulk => traffic::bulk::measure(&args, &mut report)?,
            Part::Local => traffic::local::measure(&args, &mut report)?,
            Part::Cluster => traffic::cluster::measure(&args, &mut report)?,
            Part::Kernel => kernel::packets::measure(&args, &mut report)?,
            Part::Load => kernel::load::measure(&args, &mut report)?,
            Part::Flood => flood::measure(&args, &mut report)?,
            Part::Events => control::events::measure(&args, &mut report)?,
            Part::Tables => control::tables::measure(&args, &mut report)?,
            Part::Discovery => control::discovery::measure(&args, &mut report)?,
            Part::Idle => control::idle::measure(&args, &mut report)?,
            Part::Memory => control::memory::measure(&args, &mut report)?,
        }
    }
    println!("\n{}", report.table());
    if let Some(file) = &args.json {
        write(file, &format!("{:#}\n", report.json()))?;
    }
    if let Some(file) = &args.svg {
        write(file, &report.svg())?;
    }
    Ok(())
}

impl Args {
    fn parts(&self) -> Vec<Part> {
        let wanted = |part: &Part| self.only.is_empty() || self.only.contains(part);
        Part::ALL.into_iter().filter(wanted).collect()
    }

    /// How often everything is measured.
    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 5 } else { 7 })
    }

    /// How long a measurement takes.
    fn seconds(&self) -> f64 {
        self.seconds.unwrap_or(if self.quick { 0.5 } else { 2.0 })
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    let file = absolute(file);
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))
}

/// `cargo bench` runs benchmarks in the package's folder; PWD still names the one cargo was started in.
fn absolute(file: &Path) -> PathBuf {
    env::var_os("PWD").map(PathBuf::from).unwrap_or_default().join(file)
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number from 0.1 to 60".to_owned()),
    }
}
