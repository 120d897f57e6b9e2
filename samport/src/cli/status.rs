//! `samport status`: what runs, who gets how much, and what became of every packet.

use std::fmt::Write as _;

use anyhow::Result;
use samport_common::layout::BackendStats;
use samport_common::verdict::Verdict;
use serde_json::json;

use super::output::Output;
use crate::dataplane::inspect::{Counters, Flows};
use crate::dataplane::pins;
use crate::instance::{self, BackendRecord, Record};
use crate::privileges;

/// Options of `samport status`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// How to show it.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// One instance, with its counters.
struct Shown {
    name: String,
    running: bool,
    record: Record,
    verdicts: Vec<(Verdict, u64)>,
    flows: Flows,
    backends: Vec<(BackendRecord, BackendStats)>,
}

/// Shows every instance on this machine, also one that was killed.
pub fn run(args: &Args) -> Result<()> {
    privileges::require()?;
    let shown: Vec<Shown> =
        pins::instances().iter().filter_map(|name| look_or_say_why_not(name)).collect();
    match args.output {
        Output::Json => println!("{:#}", as_json(&shown)),
        Output::Table if shown.is_empty() => println!("samport does not run on this machine"),
        Output::Table => print!("{}", as_table(&shown)),
    }
    Ok(())
}

/// The document of one instance.
pub(super) fn document(name: &str) -> Result<serde_json::Value> {
    Ok(as_json(&[look_at(name)?]))
}

/// An instance that starts, ends or is broken hides no other.
fn look_or_say_why_not(name: &str) -> Option<Shown> {
    match look_at(name) {
        Ok(shown) => Some(shown),
        Err(error) => {
            tracing::warn!("{name} cannot be read: {error:#}");
            None
        }
    }
}

fn look_at(name: &str) -> Result<Shown> {
    let counters = Counters::open(name)?;
    let record = instance::read_record(name).unwrap_or_default();
    let verdicts = Verdict::ALL.iter().copied().zip(counters.verdicts.iter().copied()).collect();
    let backends = record
        .backends
        .iter()
        .map(|backend| Ok((backend.clone(), counters.backend(backend.id)?)))
        .collect::<Result<_>>()?;
    Ok(Shown {
        running: instance::is_running(name),
        name: name.to_owned(),
        record,
        verdicts,
        flows: counters.flows,
        backends,
    })
}

fn as_json(shown: &[Shown]) -> serde_json::Value {
    let instances: Vec<_> = shown
        .iter()
        .map(|instance| {
            let verdicts: serde_json::Map<_, _> = instance
                .verdicts
                .iter()
                .map(|(verdict, count)| (verdict.name().to_owned(), json!(count)))
                .collect();
            let backends: Vec<_> = instance
                .backends
                .iter()
                .map(|(backend, stats)| {
                    json!({
                        "name": backend.name, "port": backend.port, "endpoint": backend.endpoint,
                        "state": backend.state, "weight": backend.weight, "via": backend.via,
                        "flows": stats.flows,
                        "packets_in": stats.packets_in, "bytes_in": stats.bytes_in,
                        "packets_out": stats.packets_out, "bytes_out": stats.bytes_out,
                    })
                })
                .collect();
            let flows = instance.flows;
            json!({
                "name": instance.name, "running": instance.running, "pid": instance.record.pid,
                "version": instance.record.version, "interfaces": instance.record.interfaces,
                "ports": instance.record.ports, "hook": instance.record.hook,
                "local": instance.record.local,
                "backends": backends, "verdicts": verdicts,
                "flow_table": {
                    "capacity": flows.capacity, "ipv4": flows.left4, "ipv6": flows.left6,
                    "inserted": flows.inserted, "expired": flows.expired,
                    "evicted": flows.evicted,
                },
            })
        })
        .collect();
    json!({ "schema": 1, "instances": instances })
}

fn as_table(shown: &[Shown]) -> String {
    let mut text = String::new();
    for instance in shown {
        let Record { pid, hook, local, .. } = &instance.record;
        let state = if instance.running {
            let local = if *local { "local clients too" } else { "no local clients" };
            format!("pid {pid}, {hook}, {local}")
        } else {
            "its process is gone, the kernel works on; `samport clean` removes it".to_owned()
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} ({state})", instance.name);
        let _ = writeln!(
            text,
            "  {:<24} {:<9} {:<28} {:<9} {:>6} {:<6} {:>12} {:>7}",
            "BACKEND", "PORT", "ADDRESS", "STATE", "WEIGHT", "VIA", "CONNECTIONS", "SHARE"
        );
        let all: u64 = instance.backends.iter().map(|(_, stats)| stats.flows).sum();
        for (backend, stats) in &instance.backends {
            let BackendRecord { name, port, endpoint, state, weight, via, .. } = backend;
            let share = stats.flows * 1_000 / all.max(1);
            let share = format!("{}.{} %", share / 10, share % 10);
            let _ = writeln!(
                text,
                "  {name:<24} {:<9} {endpoint:<28} {state:<9} {weight:>6} {via:<6} {:>12} {share:>7}",
                port.brief(),
                stats.flows
            );
        }
        let Flows { capacity, left4, left6, .. } = instance.flows;
        let _ = writeln!(
            text,
            "  flows remembered: {left4} of {capacity} for IPv4, {left6} of {capacity} for IPv6; {} had \
             to make room",
            instance.flows.evicted
        );
        let _ = writeln!(text, "  {:<24} {:>14}", "VERDICT", "PACKETS");
        for (verdict, count) in instance.verdicts.iter().filter(|(_, count)| *count > 0) {
            let _ = writeln!(text, "  {:<24} {count:>14}  {}", verdict.name(), verdict.meaning());
        }
    }
    text
}
