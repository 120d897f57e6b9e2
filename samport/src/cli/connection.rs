//! Which running samport a command is for.

use std::path::PathBuf;

use anyhow::Result;

use crate::api::client::Client;

/// Options of every command that talks to a running samport.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Instance")]
pub(super) struct Connection {
    /// Ask the instance of this name
    ///
    /// As `samport status` shows it. Needed if several run in this network namespace.
    #[arg(long, value_name = "NAME", env = "SAMPORT_INSTANCE")]
    pub(super) instance: Option<String>,
    /// Ask the instance with this control socket
    #[arg(long, value_name = "PATH", env = "SAMPORT_SOCKET")]
    pub(super) socket: Option<PathBuf>,
}

impl Connection {
    /// The client of the instance that is meant.
    pub(super) fn client(&self) -> Result<Client> {
        match &self.socket {
            Some(path) => Ok(Client::of(path)),
            None => Client::find(self.instance.as_deref()),
        }
    }

    /// Whether it is an instance of this name that is meant, or may be.
    pub(super) fn may_mean(&self, name: &str) -> bool {
        self.socket.is_none() && self.instance.as_deref().is_none_or(|meant| meant == name)
    }
}
