//! What there is to say of a run, and whether it goes together.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use ipnet::IpNet;
use samport_common::layout::{MAX_ALLOWED, MAX_XDP_DEVICES};
use samport_common::seed::Seed;

use super::config::Config;
use super::names::{
    ForwardName, HookName, ProviderName, SandboxName, ServiceConflictName, XdpModeName,
};
use crate::cli::balance::Balancing;
use crate::cli::cluster::ClusterFlags;
use crate::cli::health::HealthFlags;
use crate::cli::limits::Limits;
use crate::dataplane;
use crate::discovery::filter::{Filter, Filters};
use crate::discovery::static_::StaticBackend;
use crate::discovery::{Engine, Provider, ProviderSettings, docker};
use crate::model::allow;
use crate::model::duration::read as time;
use crate::model::ports::{PortRange, PortRanges, PortSpec};
use crate::system::exit::{Exit, coded};

/// Options of `samport run` that a configuration file has keys for, and that file.
#[derive(clap::Args, Debug)]
pub struct Flags {
    /// Read options from a TOML file
    ///
    /// Its keys are the names of these flags (docs/reference/configuration.md). Command line and environment take precedence
    /// over the file. The file is reloaded when it changes.
    #[arg(long, value_name = "PATH", env = "SAMPORT_CONFIG")]
    pub(in crate::cli) config: Option<PathBuf>,
    /// Serve clients on this interface (required)
    ///
    /// All its addresses are served, also those that it gets later. The host's other addresses are served to
    /// its own containers. May be given several times.
    #[arg(short, long, value_name = "IFACE", env = "SAMPORT_IFACE", value_delimiter = ',')]
    iface: Vec<String>,
    /// Serve this port
    ///
    /// [ADDR:]PORT[:TARGET][/tcp|udp]: PORT:TARGET if the containers listen on another port; /udp for UDP. With
    /// an address before it, like 198.51.100.7:80 or [2001:db8::7]:80, only that address is served, and a port
    /// without one on all others. Without -p, labels of containers decide. May be given several times.
    #[arg(short, long, value_name = "PORT", env = "SAMPORT_PORT", value_delimiter = ',', value_parser = parse::<PortSpec>)]
    port: Vec<PortSpec>,
    /// Add a backend that is not a container
    ///
    /// [NAME=]IP[:PORT][@WEIGHT]. May be given several times. Needs no container engine.
    #[arg(long, value_name = "BACKEND", value_parser = parse::<StaticBackend>)]
    backend: Vec<StaticBackend>,
    /// Choose where backends come from
    ///
    /// Default: docker; static with --backend; file with --file. Both docker and podman may be given.
    #[arg(long, value_enum, env = "SAMPORT_PROVIDER", value_delimiter = ',')]
    provider: Vec<ProviderName>,
    /// Set the address of the container engine's API
    ///
    /// Like unix:///var/run/docker.sock or tcp://127.0.0.1:2375. DOCKER_HOST is honoured too, and
    /// CONTAINER_HOST for Podman.
    #[arg(long, value_name = "URL", env = "SAMPORT_ENDPOINT")]
    endpoint: Option<String>,
    /// Read backends from a TOML file
    ///
    /// For --provider file. The file is reloaded when it changes.
    #[arg(long, value_name = "PATH", env = "SAMPORT_FILE")]
    file: Option<PathBuf>,
    /// Serve only containers that match
    ///
    /// label=K[=V], name=GLOB, image=NAME or network=NAME. Filters of one kind are alternatives; different
    /// kinds must all match. Without a filter, containers with a samport.* label are served.
    #[arg(long, value_name = "FILTER", value_parser = parse::<Filter>)]
    filter: Vec<Filter>,
    /// Serve only clients in this network
    ///
    /// A network like 10.0.0.0/8, or an address. May be given several times. A container's label samport.allow
    /// narrows this for its ports and never widens it. The host's own processes are always served.
    #[arg(long, value_name = "CIDR", env = "SAMPORT_ALLOW", value_delimiter = ',', value_parser = parse_network)]
    allow: Vec<IpNet>,
    /// Limit the ports that labels may claim
    ///
    /// Ports and ranges, like 80,443,8000-8999. Default: all. Ports given with -p can always be used.
    #[arg(long, value_name = "PORTS", env = "SAMPORT_LABEL_PORTS", value_delimiter = ',', value_parser = parse::<PortRange>)]
    label_ports: Vec<PortRange>,
    /// Handle a port claimed twice
    ///
    /// By labels of different applications. refuse: the first one keeps it and the others are left out. merge:
    /// they share it. Containers belong to one application if they share the label samport.service or the
    /// Compose project; containers with neither belong to any.
    #[arg(
        long,
        value_enum,
        value_name = "HOW",
        default_value = "refuse",
        env = "SAMPORT_SERVICE_CONFLICT"
    )]
    service_conflict: ServiceConflictName,
    /// Set how packets reach backends
    ///
    /// peer: into the container's veth. neigh: by the neighbour table. stack: through the host's network stack
    /// and firewall. auto: the fastest that works for each backend.
    #[arg(long, value_enum, default_value = "auto", env = "SAMPORT_FORWARD")]
    forward: ForwardName,
    /// Choose how programs are attached
    ///
    /// tcx (Linux 6.6 and newer), tc filters, or auto. xdp adds a program that runs before them, where frames
    /// enter the machine; docs/concepts/xdp.md says when that is worth it.
    #[arg(long, value_enum, default_value = "auto", env = "SAMPORT_HOOK")]
    hook: HookName,
    /// Choose which frames --hook xdp sees
    ///
    /// native: in the driver. generic: in the stack, on every device. auto: native where the driver can.
    #[arg(
        long,
        hide_short_help = true,
        value_enum,
        default_value = "auto",
        env = "SAMPORT_XDP_MODE"
    )]
    xdp_mode: XdpModeName,
    /// Limit how long a backend drains
    ///
    /// A backend that leaves gets no new connections; open ones are closed after this time. Like 30s or 2h5m,
    /// or a number of seconds.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time, env = "SAMPORT_DRAIN")]
    drain: Duration,
    /// Do not serve processes of the host
    ///
    /// By default, curl 127.0.0.1 and the host's own addresses reach backends too.
    #[arg(long, env = "SAMPORT_NO_LOCAL")]
    no_local: bool,
    /// Set the path of the control socket
    ///
    /// `samport drain` and other commands use it; only root may. Default: /run/samport/NAME.sock
    #[arg(long, value_name = "PATH", env = "SAMPORT_SOCKET")]
    socket: Option<PathBuf>,
    /// Set the path of the hash seed
    ///
    /// maglev and source-hash choose by it. 32 hexadecimal digits, mode 0600; created if missing. It keeps
    /// outsiders from predicting which backend they get. Hosts that are to choose the same backends need the
    /// same seed. Default: /var/lib/samport/hash-seed
    #[arg(long, value_name = "PATH", env = "SAMPORT_HASH_SEED_FILE")]
    hash_seed_file: Option<PathBuf>,
    /// Drop root and continue as this user
    ///
    /// samport keeps the capabilities it needs, and the group of the engine's socket if it cannot connect
    /// otherwise: whoever may write to that socket is as good as root. All samports of a host need the same
    /// user. Default: root
    #[arg(long, value_name = "NAME", env = "SAMPORT_USER")]
    user: Option<String>,
    /// Restrict by Landlock and seccomp
    ///
    /// off: samport keeps the right to write root's files and to make all system calls. For a machine on which
    /// the restrictions keep it from working; please report that.
    #[arg(long, hide_short_help = true, value_enum, default_value = "on", env = "SAMPORT_SANDBOX")]
    sandbox: SandboxName,
    /// Serve Prometheus metrics
    ///
    /// At http://ADDR:PORT/metrics (docs/reference/metrics.md), to everybody who can reach it.
    #[arg(long, value_name = "ADDR:PORT", env = "SAMPORT_METRICS")]
    metrics: Option<SocketAddr>,
    /// Keep balancing after exit
    ///
    /// The kernel keeps forwarding; the next run takes over without losing a connection, and `samport clean`
    /// removes everything.
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    health: HealthFlags,
    #[command(flatten)]
    balancing: Balancing,
    #[command(flatten)]
    cluster: ClusterFlags,
    #[command(flatten)]
    limits: Limits,
}

impl Flags {
    /// What the flags ask for, as far as they go together. `log` says whether the kernel writes debug lines.
    pub(super) fn config(&self, log: bool) -> Result<Config> {
        if self.iface.is_empty() {
            let message = "no interface is given; use -i IFACE (--iface), SAMPORT_IFACE, or iface in the \
                           configuration file";
            return Err(coded(Exit::Usage, message));
        }
        let providers = self.providers()?;
        self.check_ports()?;
        self.check_room()?;
        let cluster = self.cluster.settings(&self.port)?;
        Ok(Config {
            interfaces: self.iface.clone(),
            ports: self.port.clone(),
            providers,
            terms: ProviderSettings {
                generation: 0,
                backends: self.backend.clone(),
                filters: Filters::new(self.filter.clone()),
                health: self.health.config(),
                label_ports: PortRanges::new(self.label_ports.clone()),
                drain: self.drain,
            },
            allow: self.allow.iter().copied().collect(),
            service_conflict: self.service_conflict.into(),
            forward: self.forward.into(),
            policy: self.balancing.policy(),
            spread: self.cluster.spread,
            socket: self.socket.clone(),
            metrics: self.metrics,
            dataplane: dataplane::Options {
                flows: self.limits.flows,
                flows6: self.limits.flows6(),
                backends: self.limits.max_backends,
                service_share: self.limits.service_share,
                syn_flood: self.limits.syn_flood,
                timeouts: self.limits.timeouts(),
                hash_seed: Seed::default(),
                hook: self.hook.into(),
                xdp: (self.hook == HookName::Xdp).then(|| self.xdp_mode.into()),
                log,
                local: !self.no_local,
                tunnel_port: cluster.as_ref().map_or(0, |cluster| cluster.tunnel_port),
            },
            cluster,
            hash_seed_file: self.hash_seed_file.clone(),
            user: self.user.clone(),
            sandbox: self.sandbox == SandboxName::On,
            keep: self.keep,
        })
    }

    /// Whether files are read that may be somebody else's.
    pub(in crate::cli) fn reads_files(&self) -> bool {
        self.file.is_some() || self.config.is_some() || self.cluster.reads_files()
    }

    /// Whether they go together, and a run could go by them.
    pub(in crate::cli) fn go_together(&self) -> Result<()> {
        self.config(false).map(|_| ())
    }

    /// Whether a file alone, of which these are the values, goes together. One that names no interface is a
    /// part of something: what is missing in it may be said elsewhere.
    pub(in crate::cli) fn check(&self) -> Result<()> {
        if self.iface.is_empty() { self.check_ports() } else { self.go_together() }
    }

    /// Where backends come from: one provider, or several engines.
    fn providers(&self) -> Result<Vec<Provider>> {
        let names = match (&self.provider[..], &self.backend[..], &self.file) {
            ([], [_, ..], _) => &[ProviderName::Static],
            ([], [], Some(_)) => &[ProviderName::File],
            ([], [], None) => &[ProviderName::Docker],
            (given, ..) => given,
        };
        let usage = |message: &str| Err(coded(Exit::Usage, message));
        if let [first, others @ ..] = names
            && !others.is_empty()
        {
            if others.contains(first) || others.len() > 1 {
                return usage("--provider is given twice with the same value");
            }
            if names.iter().any(|name| name.engine().is_none()) {
                return usage("only --provider docker and --provider podman can be combined");
            }
            if self.endpoint.is_some() {
                return usage(
                    "--endpoint is for one engine; for two, use DOCKER_HOST and CONTAINER_HOST",
                );
            }
        }
        names.iter().map(|name| self.provider(*name)).collect()
    }

    /// One provider, and whether the flags that go with it are there.
    fn provider(&self, name: ProviderName) -> Result<Provider> {
        let usage = |message: &str| Err(coded(Exit::Usage, message));
        if name != ProviderName::Static && !self.backend.is_empty() {
            return usage("--backend needs --provider static");
        }
        if name != ProviderName::File && self.file.is_some() {
            return usage("--file needs --provider file");
        }
        match name {
            ProviderName::Static if self.backend.is_empty() => {
                usage("--provider static needs at least one --backend IP:PORT")
            }
            ProviderName::Static | ProviderName::File if self.port.is_empty() => {
                usage("no port is given; use -p PORT")
            }
            ProviderName::Static => Ok(Provider::Static),
            ProviderName::File => match &self.file {
                Some(path) => Ok(Provider::File(path.clone())),
                None => usage("--provider file needs --file PATH"),
            },
            ProviderName::Docker | ProviderName::Podman => Ok(Provider::Docker(docker::Options {
                engine: name.engine().unwrap_or(Engine::Docker),
                endpoint: self.endpoint.clone(),
            })),
        }
    }

    /// What the flags alone ask for must find room; what containers ask for beside is left out by name.
    fn check_room(&self) -> Result<()> {
        let ports = self.port.len().max(1);
        for v6 in [false, true] {
            let networks = self.allow.iter().filter(|net| net.addr().is_ipv6() == v6).count();
            if networks * ports > MAX_ALLOWED as usize {
                let family = if v6 { "IPv6" } else { "IPv4" };
                let message = format!(
                    "--allow names {networks} {family} networks for each of {ports} ports, and the limit is \
                     {MAX_ALLOWED} in all; name fewer, or larger ones"
                );
                return Err(coded(Exit::Usage, message));
            }
        }
        if self.hook == HookName::Xdp && self.iface.len() > MAX_XDP_DEVICES as usize {
            let message =
                format!("--hook xdp serves at most {MAX_XDP_DEVICES} interfaces; use --hook auto");
            return Err(coded(Exit::Usage, message));
        }
        Ok(())
    }

    /// No port may be served twice, no interface named twice.
    fn check_ports(&self) -> Result<()> {
        for (index, port) in self.port.iter().enumerate() {
            if self.port[..index].iter().any(|other| other.listen == port.listen) {
                let message = format!("port {} is given twice; keep one", port.listen);
                return Err(coded(Exit::Usage, message));
            }
        }
        for (index, iface) in self.iface.iter().enumerate() {
            if self.iface[..index].contains(iface) {
                return Err(coded(
                    Exit::Usage,
                    format!("interface {iface} is given twice; keep one"),
                ));
            }
        }
        Ok(())
    }
}

pub(in crate::cli) fn parse<T: std::str::FromStr<Err = anyhow::Error>>(
    text: &str,
) -> Result<T, String> {
    text.parse().map_err(|error| format!("{error:#}"))
}

pub(in crate::cli) fn parse_network(text: &str) -> Result<IpNet, String> {
    allow::network(text).map_err(|error| error.to_string())
}
