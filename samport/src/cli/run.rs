//! `samport run`: balances until it is stopped, then leaves nothing behind.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use ipnet::IpNet;
use samport_common::layout::bytes_per_flow;
use samport_common::verdict::Verdict;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::balance::Balancing;
use super::health::Health;
use super::limits::Limits;
use super::status;
use crate::allow;
use crate::api::{Server, Socket};
use crate::dataplane::{self, Dataplane, Hook, XdpMode, clean};
use crate::discovery::filter::{Filter, Filters};
use crate::discovery::static_::StaticBackend;
use crate::discovery::{self, Engine, Provider, docker, file, static_};
use crate::duration::read as time;
use crate::exit::{Exit, coded};
use crate::instance::{self, Instance};
use crate::listening;
use crate::metrics;
use crate::model::Snapshot;
use crate::netlink::Netlink;
use crate::ports::{Listen, PortSpec};
use crate::privileges;
use crate::reconcile::{Job, Reconciler};
use crate::routes::Forward;
use crate::seat;

/// Options of `samport run`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Interface clients come in by; all its addresses are served, and followed as they change. This
    /// machine's other addresses are served to its own containers.
    #[arg(
        short,
        long,
        required = true,
        value_name = "IFACE",
        env = "SAMPORT_IFACE",
        value_delimiter = ','
    )]
    iface: Vec<String>,
    /// Port to serve, and the containers' port if it is another; TCP, unless it ends in /udp. With an
    /// address before it, like 198.51.100.7:80 or [2001:db8::7]:80, it is served there alone, and a port
    /// without one on all other addresses. Without any, labels decide.
    #[arg(short, long, value_name = "[ADDR:]PORT[:TARGET][/tcp|udp]", env = "SAMPORT_PORT", value_delimiter = ',', value_parser = parse::<PortSpec>)]
    port: Vec<PortSpec>,
    /// A backend that is given here and needs no Docker; several may be given.
    #[arg(long, value_name = "IP[:PORT][@WEIGHT]", value_parser = parse::<StaticBackend>)]
    backend: Vec<StaticBackend>,
    /// Where backends come from [default: docker, or static with --backend, or file with --file]. Both
    /// docker and podman may be given.
    #[arg(long, value_enum, env = "SAMPORT_PROVIDER", value_delimiter = ',')]
    provider: Vec<ProviderName>,
    /// The engine's API, like unix:///var/run/docker.sock or tcp://127.0.0.1:2375. DOCKER_HOST counts
    /// too, and CONTAINER_HOST for Podman.
    #[arg(long, value_name = "URL", env = "SAMPORT_ENDPOINT")]
    endpoint: Option<String>,
    /// File of backends for --provider file; it is followed as it changes.
    #[arg(long, value_name = "PATH", env = "SAMPORT_FILE")]
    file: Option<PathBuf>,
    /// Containers to serve: label=K[=V], name=GLOB, image=NAME or network=NAME. Without any, those
    /// with a samport.* label. Filters of one kind are alternatives, different kinds all apply.
    #[arg(long, value_name = "FILTER", value_parser = parse::<Filter>)]
    filter: Vec<Filter>,
    /// Network whose clients are served, if not everybody's are; an address alone is itself only. A
    /// container's label samport.allow counts instead for the ports it serves. This machine's own
    /// processes are always served.
    #[arg(long, value_name = "CIDR", env = "SAMPORT_ALLOW", value_delimiter = ',', value_parser = parse_network)]
    allow: Vec<IpNet>,
    /// How packets get to backends: into the container's veth, by the neighbour table, through the
    /// host's stack and firewall, or the fastest of them that works for each.
    #[arg(long, value_enum, default_value = "auto", env = "SAMPORT_FORWARD")]
    forward: ForwardName,
    /// How the kernel programs are attached: tcx (Linux 6.6), tc filters, or what the kernel has. With
    /// xdp another one is in front of them where frames enter the machine; see docs/xdp.md for when
    /// that is worth it.
    #[arg(long, value_enum, default_value = "auto", env = "SAMPORT_HOOK")]
    hook: HookName,
    /// Which frames --hook xdp sees: the driver's own (native), what the stack makes of them (generic,
    /// on every device), or native where the driver can.
    #[arg(long, value_enum, default_value = "auto", env = "SAMPORT_XDP_MODE")]
    xdp_mode: XdpModeName,
    /// How long a backend that is leaving keeps its connections, at most: like 30s or 2h5m, or a number
    /// of seconds.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time, env = "SAMPORT_DRAIN")]
    drain: Duration,
    /// Leave clients on this machine itself alone: curl 127.0.0.1, or one of its own addresses.
    #[arg(long, env = "SAMPORT_NO_LOCAL")]
    no_local: bool,
    /// Where the control socket is, by which `samport drain` and others talk to this samport; only root may.
    /// [default: /run/samport/NAME.sock]
    #[arg(long, value_name = "PATH", env = "SAMPORT_SOCKET")]
    socket: Option<PathBuf>,
    /// Serve metrics for Prometheus at http://ADDR:PORT/metrics (docs/metrics.md). Whoever can reach it may
    /// read them.
    #[arg(long, value_name = "ADDR:PORT", env = "SAMPORT_METRICS")]
    metrics: Option<SocketAddr>,
    /// On exit leave everything working in the kernel; `samport clean` removes it.
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    health: Health,
    #[command(flatten)]
    balancing: Balancing,
    #[command(flatten)]
    limits: Limits,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum ProviderName {
    Docker,
    Podman,
    Static,
    File,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum ForwardName {
    Auto,
    Peer,
    Neigh,
    Stack,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum HookName {
    Auto,
    Tcx,
    Tc,
    Xdp,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum XdpModeName {
    Auto,
    Native,
    Generic,
}

/// Runs until SIGINT, SIGTERM or SIGHUP.
pub async fn run(args: Args, log: bool) -> Result<()> {
    let providers = args.providers()?;
    args.check_ports()?;
    privileges::require()?;
    // Before anything is touched, so that a signal during start-up also leads through the clean-up.
    let stop = stop_signal()?;
    tokio::pin!(stop);
    let Started { mut reconciler, snapshots, network, server, metrics } = tokio::select! {
        biased;
        () = &mut stop => {
            tracing::info!("stopped before it was ready; nothing is left");
            return Ok(());
        }
        started = start(&args, providers, log) => started?,
    };
    reconciler.run(snapshots, network, stop).await;
    drop((server, metrics));
    let verdicts = reconciler.finish(args.keep)?;
    say_goodbye(&verdicts, args.keep);
    Ok(())
}

/// A samport at work.
struct Started {
    reconciler: Reconciler,
    snapshots: watch::Receiver<Snapshot>,
    network: watch::Receiver<u64>,
    server: Server,
    metrics: Option<metrics::Server>,
}

/// Everything up to the line that says "ready". Whatever was done is undone if this fails, or is
/// dropped half-way.
async fn start(args: &Args, providers: Vec<Provider>, log: bool) -> Result<Started> {
    let namespace = instance::network_namespace()?;
    let ports: Vec<Listen> = args.port.iter().map(|port| port.listen).collect();
    instance::refuse_overlap(&args.iface, &ports, namespace)?;

    let (netlink, network) = Netlink::connect()?;
    // Before it is asked who listens on our ports: it may be us.
    let metrics = args.metrics.map(metrics::listen).transpose()?;
    let (snapshots, providers) = discovery::start_all(providers, &args.port).await?;
    let first = snapshots.borrow().clone();
    // After Docker, which knows its own publishers by name.
    listening::refuse_taken(&ports)?;
    let instance = Instance::claim(&instance::name_for(&args.iface, &ports, namespace))?;
    remove_leftovers(&instance, &args.iface, namespace)?;
    let socket_path = args.socket.clone().unwrap_or_else(|| instance.socket());
    let socket = Socket::bind(&socket_path)?;
    let options = dataplane::Options {
        flows: args.limits.flows,
        backends: args.limits.max_backends,
        syn_flood: args.limits.syn_flood,
        timeouts: args.limits.timeouts(),
        hook: args.hook.into(),
        xdp: (args.hook == HookName::Xdp).then(|| args.xdp_mode.into()),
        log,
        local: !args.no_local,
    };
    let mut dataplane = Dataplane::open(&instance, options)?;
    tokio::spawn(dataplane.collector(&args.limits.timeouts())?.run());
    if log && let Some(logs) = dataplane.take_logs() {
        tokio::spawn(dataplane::follow_logs(logs));
    }
    let job = Job {
        interfaces: args.iface.clone(),
        ports: args.port.clone(),
        allow: args.allow.iter().copied().collect(),
        forward: args.forward.into(),
        drain: args.drain,
        socket: socket_path,
        policy: args.balancing.policy(),
        max_backends: args.limits.max_backends,
        timeouts: args.limits.timeouts(),
        namespace,
    };
    let (desk, window) = seat::open();
    let name = instance.name().to_owned();
    let mut reconciler = Reconciler::new(job, netlink, dataplane, instance, desk);
    reconciler.start(&first).await?;
    let source = metrics::Source { instance: name.clone(), window: window.clone(), providers };
    let metrics = metrics.map(|at| metrics::Server::start(at, source)).transpose()?;
    let server = Server::start(socket, &name, window, status::document)?;
    say_ready(args, &reconciler);
    Ok(Started { reconciler, snapshots, network, server, metrics })
}

impl Args {
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
                return usage("only --provider docker and --provider podman go together");
            }
            if self.endpoint.is_some() {
                return usage(
                    "--endpoint is of one engine; for two, say DOCKER_HOST and CONTAINER_HOST",
                );
            }
        }
        names.iter().map(|name| self.provider(*name)).collect()
    }

    /// One provider, and whether the flags that go with it are there.
    fn provider(&self, name: ProviderName) -> Result<Provider> {
        let usage = |message: &str| Err(coded(Exit::Usage, message));
        if name != ProviderName::Static && !self.backend.is_empty() {
            return usage("--backend goes with --provider static only");
        }
        if name != ProviderName::File && self.file.is_some() {
            return usage("--file goes with --provider file only");
        }
        match name {
            ProviderName::Static if self.backend.is_empty() => {
                usage("--provider static needs at least one --backend IP:PORT")
            }
            ProviderName::Static | ProviderName::File if self.port.is_empty() => {
                usage("without Docker's labels there must be a -p PORT")
            }
            ProviderName::Static => Ok(Provider::Static(static_::Options {
                backends: self.backend.clone(),
                health: self.health.config(),
            })),
            ProviderName::File => match &self.file {
                Some(path) => Ok(Provider::File(file::Options {
                    path: path.clone(),
                    drain: self.drain,
                    health: self.health.config(),
                })),
                None => usage("--provider file needs --file PATH"),
            },
            ProviderName::Docker | ProviderName::Podman => Ok(Provider::Docker(docker::Options {
                engine: name.engine().unwrap_or(Engine::Docker),
                endpoint: self.endpoint.clone(),
                filters: Filters::new(self.filter.clone()),
                health: self.health.config(),
                drain: self.drain,
            })),
        }
    }

    /// No port may be served twice, no interface named twice.
    fn check_ports(&self) -> Result<()> {
        for (index, port) in self.port.iter().enumerate() {
            if self.port[..index].iter().any(|other| other.listen == port.listen) {
                let message =
                    format!("port {} is given twice; a port has one service", port.listen);
                return Err(coded(Exit::Usage, message));
            }
        }
        for (index, iface) in self.iface.iter().enumerate() {
            if self.iface[..index].contains(iface) {
                return Err(coded(Exit::Usage, format!("interface {iface} is given twice")));
            }
        }
        Ok(())
    }
}

/// Killed runs on our interfaces have left their programs working, before ours on the hook and with
/// backends that may be gone. They go before ours come.
fn remove_leftovers(ours: &Instance, interfaces: &[String], namespace: u64) -> Result<()> {
    for name in instance::known() {
        let Ok(record) = instance::read_record(&name) else { continue };
        let same = name == ours.name();
        let overlaps = record.namespace == namespace
            && record.interfaces.iter().any(|other| interfaces.contains(other));
        if !same && (!overlaps || instance::is_running(&name)) {
            continue;
        }
        tracing::info!("removing what a killed samport (pid {}) has left", record.pid);
        instance::remove_socket(&record);
        // Nobody else may start on top of it meanwhile.
        let claimed = if same { None } else { Some(Instance::claim(&name)?) };
        clean::remove_filters(&record.filters)?;
        clean::remove_pins(&name)?;
        drop(claimed);
    }
    clean::remove_pins(ours.name())
}

fn say_ready(args: &Args, reconciler: &Reconciler) {
    let interfaces = args.iface.join(", ");
    let ports: Vec<String> = args.port.iter().map(|port| port.place()).collect();
    let ports = if ports.is_empty() { "the ports of labels".to_owned() } else { ports.join(", ") };
    let (backends, hook) = (reconciler.serving(), reconciler.hooks());
    let plural = if backends == 1 { "" } else { "s" };
    let memory =
        u64::from(args.limits.flows) * (bytes_per_flow(4) + bytes_per_flow(16)) / (1 << 20);
    tracing::info!(
        "ready: {ports} on {interfaces} ({hook}), {backends} backend{plural}, room for {} connections ({memory} MiB)",
        args.limits.flows
    );
    if reconciler.xdp() == Some(XdpMode::Native) {
        tracing::info!(
            "native XDP sends into those containers whose veth takes bare frames, and leaves the others \
             to tc (docs/xdp.md)"
        );
    }
    if backends == 0 {
        tracing::warn!("no backend yet: until there is one, clients get this host's own answer");
    }
}

fn say_goodbye(verdicts: &[u64], keep: bool) {
    let counted: Vec<String> = Verdict::ALL
        .iter()
        .zip(verdicts)
        .filter(|(_, count)| **count > 0)
        .map(|(verdict, count)| format!("{} {count}", verdict.name()))
        .collect();
    tracing::info!(
        "packets: {}",
        if counted.is_empty() { "none".into() } else { counted.join(", ") }
    );
    tracing::info!(
        "{}",
        if keep {
            "left at work in the kernel; `samport clean` removes it"
        } else {
            "removed everything"
        }
    );
}

/// Resolves at the first signal that asks the program to end.
fn stop_signal() -> Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    })
}

pub(super) fn parse<T: std::str::FromStr<Err = anyhow::Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error| format!("{error:#}"))
}

fn parse_network(text: &str) -> Result<IpNet, String> {
    allow::network(text).map_err(|error| error.to_string())
}

impl ProviderName {
    /// The engine, if it is one.
    pub(super) const fn engine(self) -> Option<Engine> {
        match self {
            Self::Docker => Some(Engine::Docker),
            Self::Podman => Some(Engine::Podman),
            Self::Static | Self::File => None,
        }
    }
}

impl From<ForwardName> for Forward {
    fn from(name: ForwardName) -> Self {
        match name {
            ForwardName::Auto => Self::Auto,
            ForwardName::Peer => Self::Peer,
            ForwardName::Neigh => Self::Neighbour,
            ForwardName::Stack => Self::Stack,
        }
    }
}

impl From<HookName> for Hook {
    fn from(name: HookName) -> Self {
        match name {
            HookName::Auto | HookName::Xdp => Self::Auto,
            HookName::Tcx => Self::Tcx,
            HookName::Tc => Self::Tc,
        }
    }
}

impl From<XdpModeName> for XdpMode {
    fn from(name: XdpModeName) -> Self {
        match name {
            XdpModeName::Auto => Self::Auto,
            XdpModeName::Native => Self::Native,
            XdpModeName::Generic => Self::Generic,
        }
    }
}
