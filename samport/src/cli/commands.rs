//! `samport drain`, `undrain`, `weight`, `balance` and `allow`: orders to a running samport.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser};
use samport_common::choose::Balance;
use tokio::time::Instant;

use super::connection::Connection;
use super::output::say;
use super::progress::Progress;
use crate::api::client::{Client, escaped};
use crate::api::types::{self, Backend, Backends};
use crate::control::commands::OperatorCommand;
use crate::model::State;
use crate::model::duration::read as time;
use crate::system::exit::{Exit, coded};

/// Between two looks whether a backend has drained.
const LOOK: Duration = Duration::from_millis(100);

/// What is to drain, or not any more.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
struct Drained {
    /// Container name, beginning of its id, or ADDRESS:PORT
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    backend: Option<String>,
    /// This node of the cluster
    ///
    /// While a node is drained and other nodes can serve, new connections go to containers of those, whichever node
    /// clients dial. `samport healthcheck` fails on it: let keepalived, or whatever else moves the address that
    /// clients dial, ask that.
    #[arg(long)]
    this_node: bool,
}

/// Options of `samport drain`.
#[derive(clap::Args, Debug)]
pub struct DrainArgs {
    #[command(flatten)]
    what: Drained,
    /// Return when the backend has drained
    ///
    /// When its last connection is closed, or its time to drain is over. With --this-node: when no connection goes
    /// through this node any more.
    #[arg(long)]
    wait: bool,
    /// Limit the time to wait
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time, requires = "wait")]
    timeout: Duration,
    #[command(flatten)]
    connection: Connection,
}

/// Options of `samport undrain`.
#[derive(clap::Args, Debug)]
pub struct UndrainArgs {
    #[command(flatten)]
    what: Drained,
    #[command(flatten)]
    connection: Connection,
}

/// Options of `samport weight`.
#[derive(clap::Args, Debug)]
pub struct WeightArgs {
    /// Container name, beginning of its id, ADDRESS:PORT, or group
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    backend: String,
    /// Share relative to the others; 0 takes no new connections
    weight: u32,
    #[command(flatten)]
    connection: Connection,
}

/// Options of `samport balance`.
#[derive(clap::Args, Debug)]
pub struct BalanceArgs {
    /// How backends are chosen for new connections
    #[arg(value_parser = PossibleValuesParser::new(Balance::ALL.map(Balance::name)))]
    mode: String,
    /// Port of the service, like 80 or 53/udp; default: all services
    service: Option<String>,
    #[command(flatten)]
    connection: Connection,
}

/// Options of `samport allow`.
#[derive(clap::Args, Debug)]
pub struct AllowArgs {
    /// Port of the service, like 80 or 53/udp, or its name
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    service: String,
    /// Forget restrictions by labels of removed containers
    ///
    /// The service is then restricted as the labels of its present containers say, within --allow.
    #[arg(long, required = true)]
    reset: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Lets a backend drain.
pub async fn drain(args: DrainArgs) -> Result<()> {
    let client = args.connection.client()?;
    let begin = Instant::now();
    let Some(backend) = args.what.backend else {
        return drain_node(&client, args.wait.then_some(begin + args.timeout)).await;
    };
    let drained = carry_out(&client, &OperatorCommand::Drain(backend)).await?;
    print_all(&drained);
    let last = drained.backends.iter().filter(|backend| backend.is_last);
    // Once, whatever number of addresses it has.
    let last: BTreeSet<_> = last.map(|backend| (&backend.service, &backend.name)).collect();
    for (service, name) in last {
        tracing::warn!(
            "no other backend of {service} serves: {name} keeps taking new connections until one does"
        );
    }
    if args.wait {
        wait_until_down(&client, &drained.backends, begin + args.timeout).await?;
    }
    Ok(())
}

/// Ends a drain.
pub async fn undrain(args: UndrainArgs) -> Result<()> {
    let client = args.connection.client()?;
    let order = args.what.backend.map_or(OperatorCommand::UndrainNode, OperatorCommand::Undrain);
    print_all(&carry_out(&client, &order).await?);
    Ok(())
}

/// Lets this node drain. With a deadline, waits until no connection goes through it any more.
async fn drain_node(client: &Client, deadline: Option<Instant>) -> Result<()> {
    print_all(&carry_out(client, &OperatorCommand::DrainNode).await?);
    let all = backends(client).await?;
    for service in services(client).await? {
        let is_other = |one: &Backend| one.node.is_some() && one.state == State::Active.name();
        let mut of_service = all.iter().filter(|one| one.service == service);
        if !of_service.any(is_other) {
            tracing::warn!(
                "no other node takes new connections of {service}: this one does until one can"
            );
        }
    }
    let Some(deadline) = deadline else { return Ok(()) };
    let mut progress = Progress::new();
    loop {
        let all = backends(client).await?;
        let open: u64 = all.iter().filter_map(|one| one.counters?.open).sum();
        if open == 0 {
            println!("drained");
            return Ok(());
        }
        let message = format!("{open} connections are open through this node");
        if Instant::now() >= deadline {
            return Err(coded(Exit::Timeout, message));
        }
        progress.tell(|| format!("{message} …"));
        tokio::time::sleep(LOOK).await;
    }
}

/// All backends of an instance.
async fn backends(client: &Client) -> Result<Vec<Backend>> {
    let Backends { backends, .. } = client.get("/v1/backends").await?;
    Ok(backends)
}

/// Gives a backend another weight.
pub async fn weight(args: WeightArgs) -> Result<()> {
    let client = args.connection.client()?;
    print_all(&carry_out(&client, &OperatorCommand::Weight(args.backend, args.weight)).await?);
    Ok(())
}

/// Has services choose in another way.
pub async fn balance(args: BalanceArgs) -> Result<()> {
    let client = args.connection.client()?;
    let services = match args.service {
        Some(service) => vec![service],
        None => services(&client).await?,
    };
    let balance = types::Balance { balance: args.mode };
    for service in services {
        let path = format!("/v1/services/{}/balance", escaped(&service));
        let _: Backends = client.put(&path, &balance).await?;
        say(&format!("{service} {}", balance.balance));
    }
    Ok(())
}

/// Forgets what labels restricted a service to that no container has any more.
pub async fn allow(args: AllowArgs) -> Result<()> {
    let client = args.connection.client()?;
    let service = args.service;
    carry_out(&client, &OperatorCommand::ResetAllow(service.clone())).await?;
    say(&format!("{service}: restricted as its containers' labels say now"));
    Ok(())
}

/// Has an order carried out: the backends it is about, as they are now.
pub(super) async fn carry_out(client: &Client, order: &OperatorCommand) -> Result<Backends> {
    match order {
        OperatorCommand::Drain(name) => {
            client.post(&format!("/v1/backends/{}/drain", escaped(name))).await
        }
        OperatorCommand::Undrain(name) => {
            client.post(&format!("/v1/backends/{}/undrain", escaped(name))).await
        }
        OperatorCommand::DrainNode => client.post("/v1/node/drain").await,
        OperatorCommand::UndrainNode => client.post("/v1/node/undrain").await,
        OperatorCommand::Weight(name, weight) => {
            let body = types::Weight { weight: *weight };
            client.put(&format!("/v1/weights/{}", escaped(name)), &body).await
        }
        OperatorCommand::Balance(service, mode) => {
            let body = types::Balance { balance: mode.name().to_owned() };
            client.put(&format!("/v1/services/{}/balance", escaped(service)), &body).await
        }
        OperatorCommand::ResetAllow(service) => {
            client.post(&format!("/v1/services/{}/allow/reset", escaped(service))).await
        }
    }
}

/// All services of an instance.
async fn services(client: &Client) -> Result<Vec<String>> {
    let types::Services { services, .. } = client.get("/v1/services").await?;
    Ok(services.into_iter().map(|service| service.service).collect())
}

fn print_all(backends: &Backends) {
    for backend in &backends.backends {
        say(&about(backend));
    }
}

/// One line: who it is and how it is.
fn about(backend: &Backend) -> String {
    let Backend { service, name, address, state, weight, .. } = backend;
    let open = backend.counters.and_then(|counters| counters.open);
    let open = open.map(|open| format!(", {open} open")).unwrap_or_default();
    let left = backend.drain_left_ms.map(|left| format!(", {} s left", left.div_ceil(1_000)));
    let left = left.unwrap_or_default();
    format!("{name} {address} on {service}: {state}, weight {weight}{open}{left}")
}

/// Waits until none of these backends has a connection any more.
async fn wait_until_down(client: &Client, drained: &[Backend], deadline: Instant) -> Result<()> {
    let is_meant = |one: &Backend| {
        let key = |one: &Backend| (one.service.clone(), one.id.clone(), one.address.clone());
        drained.iter().any(|other| key(other) == key(one))
    };
    let mut progress = Progress::new();
    loop {
        let all = backends(client).await?;
        let mut left = all.iter().filter(|one| is_meant(one));
        let Some(first) = left.find(|one| one.state != State::Down.name()) else {
            println!("drained");
            return Ok(());
        };
        if Instant::now() >= deadline {
            return Err(coded(Exit::Timeout, format!("still there: {}", about(first))));
        }
        let open = first.counters.and_then(|counters| counters.open);
        progress.tell(|| match open {
            Some(open) => format!("{} {}: {open} open …", first.name, first.address),
            None => format!("{} {} …", first.name, first.address),
        });
        tokio::time::sleep(LOOK).await;
    }
}
