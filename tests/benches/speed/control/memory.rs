//! The memory the kernel locks for flows.

use anyhow::Result;
use samport::dataplane::{Dataplane, Options, memory};
use samport::system::instance::Instance;
use samport_common::layout::bytes_per_flow;
use samport_tests::Lab;
use samport_tests::speed::{Better, Figure, Report};

use crate::Args;

/// What is told of, and how many flows of IPv4 and of IPv6 there is room for. The last two have bars.
const SIZES: [(&str, u32, u32); 5] = [
    ("10000 of each", 10_000, 10_000),
    ("100000 of each", 100_000, 100_000),
    ("1000000 of each", MILLION, MILLION),
    ("1000000 of IPv4", MILLION, SMALLEST),
    ("1000000 of IPv6", SMALLEST, MILLION),
];
/// Those whose figures have bars.
const QUICK: usize = 2;
const MILLION: u32 = 1_000_000;
/// The least that `--flows` and `--flows6` take.
const SMALLEST: u32 = 1_024;
/// Bytes.
const MIB: f64 = 1_048_576.0;

pub fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let lab = Lab::builder().backends(0).build()?;
    let title = "Memory of all maps, with room for so many flows (--flows, --flows6)";
    let mut figure = Figure::new("memory.flows", title, "MiB", Better::Less);
    for (name, flows4, flows6) in
        SIZES.into_iter().skip(if args.quick { SIZES.len() - QUICK } else { 0 })
    {
        let locked = lab.host().run(|| locked(flows4, flows6))?;
        let series = figure.series(name);
        series.samples.push(mib(locked.values().sum()));
        let of = |name: &str| mib(locked.get(name).copied().unwrap_or(0));
        series.beside.push(("FLOWS4 MiB".to_owned(), of("FLOWS4")));
        series.beside.push(("FLOWS6 MiB".to_owned(), of("FLOWS6")));
        let counted =
            u64::from(flows4) * bytes_per_flow(4) + u64::from(flows6) * bytes_per_flow(16);
        series.beside.push(("by bytes_per_flow MiB".to_owned(), mib(counted)));
    }
    report.add(figure);
    Ok(())
}

/// Bytes that the kernel says it has locked, by map.
fn locked(flows4: u32, flows6: u32) -> Result<std::collections::BTreeMap<String, u64>> {
    let instance = Instance::claim(&format!("bench-memory-{}", std::process::id()))?;
    let _dataplane =
        Dataplane::open(&instance, Options { flows: flows4, flows6, ..Options::default() })?;
    let maps = memory::maps(instance.name())?;
    Ok(maps.into_iter().map(|map| (map.name, map.bytes)).collect())
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}
