//! `samport healthcheck`: whether samport answers and every service has a backend.

use anyhow::Result;

use super::connection::Connection;
use crate::api::client::escaped;
use crate::api::types::{Health, Services};
use crate::system::exit::{Exit, coded};

/// Options of `samport healthcheck`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    connection: Connection,
}

/// Succeeds if all is well.
///
/// # Errors
/// [`Exit::Unreachable`] if samport does not answer; plain failure, naming the services, if some have no
/// backend that takes new connections, if there is no service, if this node is drained, or if the control loop has not
/// completed a round for 30 seconds.
pub async fn run(args: Args) -> Result<()> {
    let client = args.connection.client()?;
    let Services { services, .. } = client.get("/v1/services").await?;
    if services.is_empty() {
        return Err(coded(Exit::Failure, "there is no service"));
    }
    let mut without = Vec::new();
    for one in services {
        let path = format!("/v1/health?healthy=1&service={}", escaped(&one.service));
        let health: Health = client.look(&path).await?;
        if let Some(trouble) = health.trouble {
            return Err(coded(Exit::Failure, trouble));
        }
        if health.node_drained {
            let why = "this node is drained; `samport undrain --this-node` ends that";
            return Err(coded(Exit::Failure, why));
        }
        if !health.ok {
            without.push(one.service);
        }
    }
    if without.is_empty() {
        return Ok(());
    }
    let without = without.join(", ");
    Err(coded(Exit::Failure, format!("no backend takes new connections of {without}")))
}
