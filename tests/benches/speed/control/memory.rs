//! The memory the kernel locks for flows.

use anyhow::Result;
use samport::dataplane::{Dataplane, Hook, Options, Timeouts, memory};
use samport::instance::Instance;
use samport_common::layout::{DEFAULT_BACKENDS, bytes_per_flow};
use samport_tests::Lab;
use samport_tests::speed::{Better, Figure, Report};

use crate::Args;

const SIZES: [u32; 3] = [10_000, 100_000, 1_000_000];
/// Bytes.
const MIB: f64 = 1_048_576.0;

pub fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let lab = Lab::builder().backends(0).build()?;
    let title = "Memory of all maps, with room for so many flows of IPv4 and as many of IPv6";
    let mut figure = Figure::new("memory.flows", title, "MiB", Better::Less);
    // The last one has a bar.
    for flows in SIZES.into_iter().skip(if args.quick { SIZES.len() - 1 } else { 0 }) {
        let locked = lab.host().run(|| locked(flows))?;
        let series = figure.series(&flows.to_string());
        series.samples.push(mib(locked.values().sum()));
        let of = |name: &str| mib(locked.get(name).copied().unwrap_or(0));
        series.beside.push(("FLOWS4 MiB".to_owned(), of("FLOWS4")));
        series.beside.push(("FLOWS6 MiB".to_owned(), of("FLOWS6")));
        let counted = u64::from(flows) * (bytes_per_flow(4) + bytes_per_flow(16));
        series.beside.push(("by bytes_per_flow MiB".to_owned(), mib(counted)));
    }
    report.add(figure);
    Ok(())
}

/// Bytes that the kernel says it has locked, by map.
fn locked(flows: u32) -> Result<std::collections::BTreeMap<String, u64>> {
    let instance = Instance::claim(&format!("bench-memory-{}", std::process::id()))?;
    let _dataplane = Dataplane::open(&instance, options(flows))?;
    let maps = memory::maps(instance.name())?;
    Ok(maps.into_iter().map(|map| (map.name, map.bytes)).collect())
}

/// The usual ones, with local clients.
fn options(flows: u32) -> Options {
    Options {
        flows,
        backends: DEFAULT_BACKENDS,
        syn_flood: None,
        timeouts: Timeouts::default(),
        hook: Hook::Auto,
        xdp: None,
        log: false,
        local: true,
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}
