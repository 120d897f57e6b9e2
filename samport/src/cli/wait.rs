//! `samport wait`: returns when enough backends serve.

use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use super::connection::Connection;
use super::output::{Output, print_json};
use super::progress::Progress;
use crate::api::client::escaped;
use crate::api::types::Health;
use crate::model::duration::read as time;
use crate::system::exit::{Exit, code_of, coded};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// Options of `samport wait`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Wait for N containers that take new connections
    #[arg(long, value_name = "N")]
    healthy: usize,
    /// Port of the service, like 80 or 53/udp; default: every service
    service: Option<String>,
    /// Limit the time to wait
    ///
    /// Also for samport to start.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time)]
    timeout: Duration,
    /// Choose the format
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

/// Waits.
pub async fn run(args: Args) -> Result<()> {
    let deadline = Instant::now() + args.timeout;
    let path = match &args.service {
        Some(service) => {
            format!("/v1/health?healthy={}&service={}", args.healthy, escaped(service))
        }
        None => format!("/v1/health?healthy={}", args.healthy),
    };
    let mut progress = Progress::new();
    loop {
        let seen = match args.connection.client() {
            Ok(client) => client.look::<Health>(&path).await,
            Err(error) => Err(error),
        };
        match &seen {
            Ok(health @ Health { ok: true, healthy, .. }) => {
                match args.output {
                    Output::Json => print_json(health)?,
                    Output::Table | Output::Wide => println!("{healthy} healthy"),
                }
                return Ok(());
            }
            Ok(_) => {}
            // It may be about to start, but the wait for it is not longer than that.
            Err(error) if code_of(error) == Exit::Unreachable => {}
            Err(_) => return seen.map(|_| ()),
        }
        if Instant::now() >= deadline {
            let health = seen?;
            let Health { healthy, wanted, .. } = health;
            let message = format!("{healthy} of {wanted} are healthy after {:?}", args.timeout);
            return Err(coded(Exit::Timeout, message));
        }
        progress.tell(|| match &seen {
            Ok(Health { healthy, wanted, .. }) => format!("{healthy} of {wanted} are healthy …"),
            Err(error) => format!("{error:#}; waiting for it …"),
        });
        tokio::time::sleep(LOOK).await;
    }
}
