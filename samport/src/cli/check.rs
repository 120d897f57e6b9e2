//! `samport check`: whether `samport run` would work here, and what it would get in the way of.

use std::path::PathBuf;

use anyhow::Result;
use ipnet::IpNet;
use samport_common::layout::{DEFAULT_BACKENDS, MAX_BACKENDS};

use super::cluster::ClusterFlags;
use super::output::{Output, print_json, say};
use super::run::{ProviderName, SandboxName, ServiceConflictName, parse, parse_network};
use super::table::{Column, LEFT, table, text};
use super::{BAD, DOUBTFUL, GOOD};
use crate::api::types::{self, SCHEMA};
use crate::diagnose::check::{CheckOptions, Finding, Level, Limits, collect, evaluate, exit_of};
use crate::discovery::Engine;
use crate::model::ports::{PortRange, PortRanges, PortSpec};
use crate::system::escape;
use crate::system::exit::coded;

/// Options of `samport check`: those of `samport run` that have to do with the machine.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Serve clients on this interface
    #[arg(short, long, value_name = "IFACE", env = "SAMPORT_IFACE", value_delimiter = ',')]
    iface: Vec<String>,
    /// Serve this port
    #[arg(short, long, value_name = "PORT", env = "SAMPORT_PORT", value_delimiter = ',', value_parser = parse::<PortSpec>)]
    port: Vec<PortSpec>,
    /// Choose where backends come from
    ///
    /// Default: docker
    #[arg(long, value_enum, env = "SAMPORT_PROVIDER", value_delimiter = ',')]
    provider: Vec<ProviderName>,
    /// Set the address of the container engine's API
    ///
    /// Like unix:///var/run/docker.sock or tcp://127.0.0.1:2375. DOCKER_HOST is honoured too, and
    /// CONTAINER_HOST for Podman.
    #[arg(long, value_name = "URL", env = "SAMPORT_ENDPOINT")]
    endpoint: Option<String>,
    /// Serve only clients in this network
    #[arg(long, value_name = "CIDR", env = "SAMPORT_ALLOW", value_delimiter = ',', value_parser = parse_network)]
    allow: Vec<IpNet>,
    /// Limit the ports that labels may claim
    ///
    /// Default: all
    #[arg(long, value_name = "PORTS", env = "SAMPORT_LABEL_PORTS", value_delimiter = ',', value_parser = parse::<PortRange>)]
    label_ports: Vec<PortRange>,
    /// Handle a port claimed twice
    #[arg(
        long,
        value_enum,
        value_name = "HOW",
        default_value = "refuse",
        env = "SAMPORT_SERVICE_CONFLICT"
    )]
    service_conflict: ServiceConflictName,
    /// Limit the number of backends
    #[arg(long, value_name = "N", default_value_t = DEFAULT_BACKENDS, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_BACKENDS)), env = "SAMPORT_MAX_BACKENDS")]
    max_backends: u32,
    /// Set the path of the hash seed
    ///
    /// maglev and source-hash choose by it. Default: /var/lib/samport/hash-seed
    #[arg(long, value_name = "PATH", env = "SAMPORT_HASH_SEED_FILE")]
    hash_seed_file: Option<PathBuf>,
    /// Restrict by Landlock and seccomp
    #[arg(long, value_enum, default_value = "on", env = "SAMPORT_SANDBOX")]
    sandbox: SandboxName,
    #[command(flatten)]
    cluster: ClusterFlags,
    /// Choose the format
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// Looks, prints a line for each thing, and ends with the code of the gravest failure.
pub async fn run(args: Args) -> Result<()> {
    let engines = if args.provider.is_empty() {
        vec![Engine::Docker]
    } else {
        args.provider.iter().filter_map(|name| name.engine()).collect()
    };
    let cluster = args.cluster.settings(&args.port)?;
    let asked = CheckOptions {
        interfaces: args.iface,
        ports: args.port,
        engines,
        endpoint: args.endpoint,
        label_ports: PortRanges::new(args.label_ports),
        limits: Limits {
            allow: args.allow.into_iter().collect(),
            max_backends: args.max_backends,
            conflict: args.service_conflict.into(),
        },
        hash_seed_file: args.hash_seed_file,
        sandbox: args.sandbox == SandboxName::On,
        cluster,
    };
    let findings = evaluate(&collect(asked).await?);
    match args.output {
        Output::Json => print_json(&document(&findings))?,
        Output::Table => findings.iter().for_each(print),
        Output::Wide => say(&table(&findings, &COLUMNS)),
    }
    match exit_of(&findings) {
        None => Ok(()),
        Some(exit) => Err(coded(exit, "`samport run` would not work here; see what has failed")),
    }
}

/// A line, with its first word coloured.
fn print(finding: &Finding) {
    let style = match finding.level {
        Level::Good => GOOD,
        Level::Warning => DOUBTFUL,
        Level::Failure(_) => BAD,
    };
    let line = finding.to_string();
    let line = escape::lines(&line);
    let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
    anstream::println!("{style}{word}{style:#} {rest}");
}

const COLUMNS: [Column<Finding>; 3] = [
    ("LEVEL", LEFT, |one| one.level.name().to_owned()),
    ("WHAT", LEFT, |one| one.what.clone()),
    ("WAY OUT", LEFT, |one| text(one.way_out.clone())),
];

fn document(findings: &[Finding]) -> types::Check {
    let ok = exit_of(findings).is_none();
    types::Check { schema: SCHEMA, ok, findings: findings.iter().map(line).collect() }
}

fn line(finding: &Finding) -> types::Finding {
    let level = match finding.level {
        Level::Good => "ok",
        Level::Warning => "warn",
        Level::Failure(_) => "fail",
    };
    let Finding { what, way_out, .. } = finding.clone();
    types::Finding { level: level.to_owned(), what, way_out }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{Service, Services, Version};
    use crate::model::snapshots::Pages;
    use crate::system::exit::Exit;

    /// Those of listings stand beside the listings.
    #[test]
    fn documents_are_as_they_were() {
        let finding = |level, what: &str, way_out: Option<&str>| Finding {
            level,
            what: what.to_owned(),
            way_out: way_out.map(str::to_owned),
        };
        let findings = [
            finding(Level::Good, "kernel 6.18", None),
            finding(Level::Warning, "eth0 is down", Some("ip link set eth0 up")),
            finding(Level::Failure(Exit::Kernel), "port 80 is taken", Some("stop it")),
        ];
        let service = Service { service: "80/tcp".into(), balance: "random".into() };
        let mut pages = Pages::default();
        pages.add("samport check -o wide", &table(&findings, &COLUMNS));
        pages.add_json("samport check -o json", &document(&findings));
        pages.add_json("GET /v1/services", &Services { schema: SCHEMA, services: vec![service] });
        let version = Version { schema: SCHEMA, version: "0.0.0".into(), map_layout: 1 };
        pages.add_json("samport version -o json", &version);
        pages.assert("documents");
    }
}
