//! Where other nodes come from: the flags under "Cluster".

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use samport_common::wire::protocol::Protocol;

use crate::cluster::{self, MAX_NODES, NodeSource, Settings, TUNNEL_PORT};
use crate::model::Spread;
use crate::model::ports::PortSpec;
use crate::system::exit::{Exit, coded};

/// Flags of `samport run` about other nodes.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Cluster")]
pub(super) struct ClusterFlags {
    /// Choose where other nodes come from
    ///
    /// A node is a host that runs samport. Each sends connections to the containers of all, as --spread says, and
    /// any node's address serves them. file: with --cluster-file. Default: this host is on its own.
    #[arg(long, value_name = "SOURCE", value_enum, env = "SAMPORT_CLUSTER")]
    cluster: Option<SourceName>,
    /// Read nodes from a TOML file
    ///
    /// For --cluster file. All nodes can have the same one; the entry with this node's name is left out. The file
    /// is reloaded when it changes.
    #[arg(long, value_name = "PATH", env = "SAMPORT_CLUSTER_FILE")]
    cluster_file: Option<PathBuf>,
    /// Set the name of this node
    ///
    /// Default: the host's name.
    #[arg(long, value_name = "NAME", value_parser = cluster::name, env = "SAMPORT_NODE")]
    node: Option<String>,
    /// Set the address where other nodes reach this one
    ///
    /// Default: the first address of the first interface, for each family.
    #[arg(long, hide_short_help = true, value_name = "IP", value_parser = cluster::address, env = "SAMPORT_NODE_ADDRESS")]
    node_address: Option<IpAddr>,
    /// Set the UDP port of the tunnels between nodes
    ///
    /// This node's, and that of nodes whose entries name none.
    #[arg(long, hide_short_help = true, value_name = "PORT", default_value_t = TUNNEL_PORT, value_parser = clap::value_parser!(u16).range(1..), env = "SAMPORT_TUNNEL_PORT")]
    tunnel_port: u16,
    /// Choose which nodes get connections
    ///
    /// all: those of all nodes alike. local-first: this node's while any is ready, else the other nodes'. local:
    /// this node's only. A container's label samport.spread takes precedence for its ports.
    #[arg(long, value_name = "HOW", default_value = Spread::All.name(), value_parser = spreads(), env = "SAMPORT_SPREAD")]
    pub(super) spread: Spread,
    /// Limit the number of nodes
    ///
    /// With more of them, the last good list stays in force.
    #[arg(long, hide_short_help = true, value_name = "N", default_value_t = MAX_NODES, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_NODES)), env = "SAMPORT_MAX_NODES")]
    max_nodes: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum SourceName {
    File,
}

impl ClusterFlags {
    /// What they ask for, beside these ports; `None` for a host on its own.
    pub(super) fn settings(&self, ports: &[PortSpec]) -> Result<Option<Settings>> {
        let usage = |message: &str| Err(coded(Exit::Usage, message));
        let source = match (self.cluster, &self.cluster_file) {
            (Some(SourceName::File), Some(path)) => NodeSource::File(path.clone()),
            (Some(SourceName::File), None) => {
                return usage("--cluster file needs --cluster-file PATH");
            }
            (None, Some(_)) => return usage("--cluster-file needs --cluster file"),
            (None, None) if self.node.is_some() => return usage("--node needs --cluster"),
            (None, None) if self.node_address.is_some() => {
                return usage("--node-address needs --cluster");
            }
            (None, None) => return Ok(None),
        };
        let is_tunnel = |spec: &&PortSpec| {
            spec.listen.protocol == Protocol::Udp && spec.listen.port == self.tunnel_port
        };
        if let Some(spec) = ports.iter().find(is_tunnel) {
            let port = spec.listen.brief();
            return usage(&format!(
                "port {port} is where tunnels of other nodes end; use another --tunnel-port on all nodes"
            ));
        }
        Ok(Some(Settings {
            source,
            node: self.node.clone().map_or_else(host_name, Ok)?,
            address: self.node_address,
            tunnel_port: self.tunnel_port,
            spread: self.spread,
            max_nodes: self.max_nodes,
        }))
    }

    /// Whether a file is read that may be somebody else's.
    pub(super) const fn reads_files(&self) -> bool {
        self.cluster_file.is_some()
    }
}

/// The host's name, if a node can be called that.
fn host_name() -> Result<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    cluster::name(name.trim()).map_err(|error| {
        coded(
            Exit::Usage,
            format!("the host's name cannot be that of this node: {error}; use --node NAME"),
        )
    })
}

fn spreads() -> impl clap::builder::TypedValueParser<Value = Spread> {
    PossibleValuesParser::new(Spread::ALL.map(Spread::name)).try_map(|name| name.parse::<Spread>())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        cluster: ClusterFlags,
    }

    fn settings(args: &[&str], ports: &[&str]) -> Result<Option<Settings>, String> {
        let flags = Flags::try_parse_from([&["run"], args].concat()).map_err(|e| e.to_string())?;
        let ports: Vec<_> = ports.iter().map(|text| text.parse().unwrap()).collect();
        flags.cluster.settings(&ports).map_err(|error| format!("{error:#}"))
    }

    const FILE: [&str; 3] = ["--cluster=file", "--cluster-file=n.toml", "--node=n1"];

    #[test]
    fn a_host_on_its_own_has_no_cluster() {
        assert_eq!(settings(&[], &["6080/udp"]), Ok(None));
        // As in a configuration file that several hosts share.
        assert_eq!(settings(&["--spread=local", "--tunnel-port=7000"], &[]), Ok(None));
    }

    #[test]
    fn every_flag_sets_its_own_part() {
        let default = Settings {
            source: NodeSource::File("n.toml".into()),
            node: "n1".to_owned(),
            address: None,
            tunnel_port: 6080,
            spread: Spread::All,
            max_nodes: 256,
        };
        let address = Some([192, 0, 2, 1].into());
        for (flags, expected) in [
            (&[][..], default.clone()),
            (&["--node-address=192.0.2.1"], Settings { address, ..default.clone() }),
            (&["--tunnel-port=7000"], Settings { tunnel_port: 7000, ..default.clone() }),
            (&["--spread=local-first"], Settings { spread: Spread::LocalFirst, ..default.clone() }),
            (&["--max-nodes=3"], Settings { max_nodes: 3, ..default.clone() }),
        ] {
            assert_eq!(settings(&[&FILE, flags].concat(), &["80", "6080"]), Ok(Some(expected)));
        }
        let named = settings(&FILE[..2], &[]).unwrap().unwrap().node;
        assert_eq!(named, host_name().unwrap());
        assert_ne!(named, "n1");
    }

    #[test]
    fn what_does_not_go_together_is_refused_with_the_way_out() {
        for (flags, ports, words) in [
            (&["--cluster=file"][..], &[][..], "--cluster file needs --cluster-file PATH"),
            (&["--cluster-file=n.toml"], &[], "--cluster-file needs --cluster file"),
            (&["--node=n1"], &[], "--node needs --cluster"),
            (&["--node-address=192.0.2.1"], &[], "--node-address needs --cluster"),
            (&FILE, &["80", "6080/udp"], "port 6080/udp is where tunnels of other nodes end"),
            (&["--cluster=swarm"], &[], "possible values: file"),
            (&["--node=a/b"], &[], "invalid node name \"a/b\""),
            (&["--node-address=127.0.0.1"], &[], "loopback"),
            (&["--tunnel-port=0"], &[], "1..=65535"),
            (&["--spread=near"], &[], "all, local-first, local"),
            (&["--max-nodes=257"], &[], "1..=256"),
        ] {
            let error = settings(flags, ports).unwrap_err();
            assert!(error.contains(words), "{flags:?}: {error}");
        }
    }
}
