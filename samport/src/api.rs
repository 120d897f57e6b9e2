//! The control socket: HTTP with JSON for the operator on this machine. docs/reference/api.md is its description.

pub mod client;
pub(crate) mod http_server;
pub(crate) mod metrics;
mod report;
mod server;
mod socket;
pub mod types;

use anyhow::Result;
use tokio::time::Instant;

use crate::control::handle::ControlView;
use crate::system::instance;

pub use server::Server;
pub use socket::Socket;

/// The backends of an instance that is not running, by what it has left.
pub fn left_behind(name: &str) -> Result<types::Backends> {
    let view = ControlView::of_record(&instance::read_record(name)?);
    let counted = server::count(name, &view)?;
    let backends = report::backends(&view, &counted, Instant::now());
    Ok(types::Backends {
        schema: types::SCHEMA,
        instance: name.to_owned(),
        running: false,
        backends,
    })
}
