//! `samport run`: balances until it is stopped, then leaves nothing behind.

mod config;
mod dry;
mod flags;
mod names;
mod prepare;
mod reload;
mod reloadable;
mod said;

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use self::config::Config;
use self::reload::{ReloadHandles, Reloader};
use self::said::{say_goodbye, say_ready};
use super::progress::Patience;
use super::status;
use crate::api::metrics;
use crate::api::{Server, Socket};
use crate::cluster::{self, NodeList, ProbedFrom};
use crate::control::handle;
use crate::control::progress::Progress;
use crate::control::reconcile::{NewRules, Reconciler};
use crate::control::takeover;
use crate::dataplane::{self, Dataplane};
use crate::discovery::{self, ProviderSettings, ProviderStatus};
use crate::model::Snapshot;
use crate::net::frontends;
use crate::net::netlink::Netlink;
use crate::net::port_conflicts;
use crate::system::hash_seed::SeedFile;
use crate::system::instance::{self, Instance};
use crate::system::kernel;
use crate::system::privileges;
use crate::system::resyncs::Resyncs;
use crate::system::sd_notify;

pub use self::flags::Flags;
pub(super) use self::flags::{parse, parse_network};
pub(super) use self::names::{ProviderName, SandboxName, ServiceConflictName};
pub use self::prepare::{Prepared, prepare};

/// The verb's name.
pub(super) const NAME: &str = "run";

/// Options of `samport run`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Print what would be served, and exit
    ///
    /// Names the backends, how they would be reached, and what would prevent a run. Loads, attaches and writes
    /// nothing.
    // Before those that have headings of their own.
    #[arg(long, display_order = 90)]
    dry_run: bool,
    // Parsed again, with the configuration file.
    #[command(flatten)]
    _flags: Flags,
}

/// Runs until SIGINT or SIGTERM; SIGHUP has the configuration read again.
pub async fn run(args: &Args, prepared: Prepared) -> Result<()> {
    let Prepared { asked, config, held } = prepared;
    // Without what a dry run does not make.
    let Some(held) = held.filter(|_| !args.dry_run) else { return dry::run(&config).await };
    // Before anything is touched, so that a signal during start-up also leads through the clean-up.
    let stop = stop_signal()?;
    tokio::pin!(stop);
    let hang_up = signal(SignalKind::hangup())?;
    let Started { mut reconciler, snapshots, network, server, rules, handles } = tokio::select! {
        biased;
        () = &mut stop => {
            tracing::info!("stopped before it was ready; nothing was changed");
            return Ok(());
        }
        started = start(&config, &held.hash_seed) => started?,
    };
    sd_notify::ready();
    let mut reloader = Reloader::new(asked, config, hang_up, handles).await;
    // Whatever the loop waits for: it is dropped there.
    tokio::select! {
        biased;
        () = &mut stop => {}
        never = reconciler.run(snapshots, network, rules) => match never {},
        never = reloader.follow() => match never {},
    }
    sd_notify::stopping();
    drop(server);
    let keep = reloader.config().keep;
    // The metrics' server with it.
    drop(reloader);
    let verdicts = reconciler.finish(keep)?;
    drop(held);
    say_goodbye(&verdicts, keep);
    Ok(())
}

/// A samport at work.
struct Started {
    reconciler: Reconciler,
    snapshots: watch::Receiver<Snapshot>,
    network: watch::Receiver<u64>,
    server: Server,
    rules: mpsc::Receiver<NewRules>,
    handles: ReloadHandles,
}

/// Everything up to the line that says "ready". Whatever was done is undone if this fails, or is
/// dropped half-way.
async fn start(config: &Config, hash_seed: &SeedFile) -> Result<Started> {
    let namespace = instance::network_namespace()?;
    let ports = config.listens();
    instance::refuse_overlap(&config.interfaces, &ports, namespace, None)?;

    let resyncs = Resyncs::default();
    let (netlink, network) = Netlink::connect(&resyncs)?;
    // Before it is asked who listens on our ports: it may be us.
    let metrics = config.metrics.map(metrics::listen).transpose()?;
    let (terms_in, terms) = watch::channel(config.terms.clone());
    let networks = takeover::served_before(&config.interfaces, namespace);
    let (snapshots, mut providers) =
        discovery::start_all(config.providers.clone(), &config.ports, &terms, &networks, &resyncs)
            .await?;
    let addresses = networks.values().flat_map(|served| &served.addresses);
    let used_before = addresses.map(IpAddr::to_canonical).collect();
    let probed_from = Some(ProbedFrom { interfaces: &config.interfaces, used_before });
    let (snapshots, nodes, source) =
        with_nodes(config, snapshots, terms, probed_from, &netlink, &resyncs).await?;
    providers.extend(source);
    let first = snapshots.borrow().clone();
    // After Docker, which knows its own publishers by name.
    port_conflicts::refuse_taken(&ports)?;
    let mut instance = Instance::claim(&instance::name_for(&config.interfaces, &ports, namespace))?;
    let options = dataplane::Options { hash_seed: hash_seed.seed, ..config.dataplane };
    // Until all is well, what others have left stays as it is.
    instance.keep(true);
    let before = takeover::prepare(&instance, &config.interfaces, namespace)?;
    instance.keep(before.is_some());
    let socket_path = config.socket.clone().unwrap_or_else(|| instance.socket());
    let socket = Socket::bind(&socket_path)?;
    let loading = Patience::with("the kernel looks at the programs");
    let mut dataplane = match &before {
        Some(record) => Dataplane::take_over(&instance, options, record)?,
        None => Dataplane::open(&instance, options)?,
    };
    tokio::spawn(dataplane.collector(&config.dataplane)?.run());
    if config.dataplane.log
        && let Some(logs) = dataplane.take_logs()
    {
        tokio::spawn(dataplane::follow_logs(logs));
    }
    let job = config.job(nodes.clone(), socket_path, hash_seed.clone(), namespace);
    let (receiver, control) = handle::open();
    let name = instance.name().to_owned();
    let progress = Progress::begin(resyncs);
    let mut reconciler =
        Reconciler::new(job, netlink, dataplane, instance, receiver, progress.clone());
    if let Some(record) = before {
        reconciler.adopt(record)?;
    }
    drop(loading);
    reconciler.start(&first).await?;
    let source = metrics::MetricsSource {
        instance: name.clone(),
        control: control.clone(),
        providers,
        nodes,
        progress: progress.clone(),
    };
    let metrics = metrics.map(|at| metrics::Server::start(at, source.clone())).transpose()?;
    let server = Server::start(socket, &name, control, progress.clone(), status::document)?;
    privileges::settle();
    say_ready(config, &reconciler);
    let (rules_in, rules) = mpsc::channel(1);
    let handles = ReloadHandles { terms: terms_in, rules: rules_in, metrics, source };
    Ok(Started { reconciler, snapshots, network, server, rules, handles })
}

/// What providers offer and, if there is a cluster, what other nodes do; these nodes, and how their source is doing.
async fn with_nodes(
    config: &Config,
    own: watch::Receiver<Snapshot>,
    terms: watch::Receiver<ProviderSettings>,
    probed_from: Option<ProbedFrom<'_>>,
    netlink: &Netlink,
    resyncs: &Resyncs,
) -> Result<(watch::Receiver<Snapshot>, NodeList, Option<Arc<ProviderStatus>>)> {
    let Some(settings) = &config.cluster else { return Ok((own, NodeList::none(), None)) };
    let drain = move || terms.borrow().drain;
    let cluster =
        cluster::start(settings, &config.ports, drain, probed_from, netlink, resyncs).await?;
    if let Some(sentence) = kernel::version().ok().and_then(|one| cluster.nodes.lack(one))
        && frontends::serve_ipv6(&config.interfaces, &netlink.devices().await?)
    {
        tracing::warn!("{sentence}");
    }
    let all = discovery::join(vec![own, cluster.snapshots]);
    Ok((all, cluster.nodes, Some(cluster.status)))
}

/// Resolves at the first signal that asks the program to end.
pub(super) fn stop_signal() -> Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
