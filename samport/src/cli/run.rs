//! `samport run`: balances until it is stopped, then leaves nothing behind.

mod config;
mod flags;
mod names;
mod said;

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use self::config::Config;
use self::said::{say_goodbye, say_ready};
use super::{asked, status};
use crate::api::{Server, Socket};
use crate::dataplane::{self, Dataplane, clean};
use crate::discovery;
use crate::instance::{self, Instance};
use crate::listening;
use crate::metrics;
use crate::model::Snapshot;
use crate::netlink::Netlink;
use crate::privileges;
use crate::reconcile::Reconciler;
use crate::seat;

pub use self::flags::Flags;
pub(super) use self::flags::parse;
pub(super) use self::names::ProviderName;

/// The verb's name.
pub(super) const NAME: &str = "run";

/// Options of `samport run`.
#[derive(clap::Args, Debug)]
pub struct Args {
    // Parsed again, with the configuration file.
    #[command(flatten)]
    _flags: Flags,
}

/// Runs until SIGINT, SIGTERM or SIGHUP.
pub async fn run(_: &Args, log: bool) -> Result<()> {
    let config = asked::configuration()?.flags.config(log)?;
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
        started = start(&config) => started?,
    };
    reconciler.run(snapshots, network, stop).await;
    drop((server, metrics));
    let verdicts = reconciler.finish(config.keep)?;
    say_goodbye(&verdicts, config.keep);
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
async fn start(config: &Config) -> Result<Started> {
    let namespace = instance::network_namespace()?;
    let ports = config.listens();
    instance::refuse_overlap(&config.interfaces, &ports, namespace)?;

    let (netlink, network) = Netlink::connect()?;
    // Before it is asked who listens on our ports: it may be us.
    let metrics = config.metrics.map(metrics::listen).transpose()?;
    let (snapshots, providers) =
        discovery::start_all(config.providers.clone(), &config.ports).await?;
    let first = snapshots.borrow().clone();
    // After Docker, which knows its own publishers by name.
    listening::refuse_taken(&ports)?;
    let instance = Instance::claim(&instance::name_for(&config.interfaces, &ports, namespace))?;
    remove_leftovers(&instance, &config.interfaces, namespace)?;
    let socket_path = config.socket.clone().unwrap_or_else(|| instance.socket());
    let socket = Socket::bind(&socket_path)?;
    let mut dataplane = Dataplane::open(&instance, config.dataplane)?;
    tokio::spawn(dataplane.collector(&config.dataplane.timeouts)?.run());
    if config.dataplane.log
        && let Some(logs) = dataplane.take_logs()
    {
        tokio::spawn(dataplane::follow_logs(logs));
    }
    let job = config.job(socket_path, namespace);
    let (desk, window) = seat::open();
    let name = instance.name().to_owned();
    let mut reconciler = Reconciler::new(job, netlink, dataplane, instance, desk);
    reconciler.start(&first).await?;
    let source = metrics::Source { instance: name.clone(), window: window.clone(), providers };
    let metrics = metrics.map(|at| metrics::Server::start(at, source)).transpose()?;
    let server = Server::start(socket, &name, window, status::document)?;
    say_ready(config, &reconciler);
    Ok(Started { reconciler, snapshots, network, server, metrics })
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
