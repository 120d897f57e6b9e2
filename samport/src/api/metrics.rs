//! `--metrics`: what the kernel has counted, as OpenMetrics over HTTP. Nothing in it names a client.

mod sample;
mod text;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::api::http_server;
use crate::cluster::NodeList;
use crate::control::handle::ControlHandle;
use crate::control::progress::Progress;
use crate::discovery::ProviderStatus;
use crate::system::exit::{Coded as _, Exit};
use sample::Sample;

/// Of OpenMetrics 1.0.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What every scrape is made from.
#[derive(Clone, Debug)]
pub struct MetricsSource {
    /// Name of the instance.
    pub instance: String,
    /// Its backends.
    pub control: ControlHandle,
    /// Where they come from.
    pub providers: Vec<Arc<ProviderStatus>>,
    /// Other nodes.
    pub nodes: NodeList,
    /// How the control loop gets on.
    pub progress: Progress,
}

/// A server at work. Dropping it ends it.
#[derive(Debug)]
pub struct Server(JoinHandle<()>);

/// Takes the address, so that a wrong one is known before anything is attached. It answers no request yet.
///
/// # Errors
/// [`Exit::Conflict`] if somebody listens there.
pub fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).map_err(|error| {
        let (exit, way_out) = match error.kind() {
            ErrorKind::AddrInUse => (Exit::Conflict, ": another program listens there"),
            ErrorKind::AddrNotAvailable => (Exit::Failure, ": this machine has no such address"),
            _ => (Exit::Failure, ""),
        };
        let message = format!("serve --metrics {address}{way_out}; choose another ADDR:PORT");
        Err::<(), _>(error).exit(exit, message).unwrap_err()
    })?;
    listener.set_nonblocking(true).context("cannot set up the listener for --metrics")?;
    Ok(listener)
}

impl Server {
    /// Serves `/metrics`.
    pub fn start(listener: TcpListener, source: MetricsSource) -> Result<Self> {
        let listener =
            tokio::net::TcpListener::from_std(listener).context("cannot watch --metrics")?;
        let routes = Router::new().route("/metrics", get(scrape)).with_state(Arc::new(source));
        Ok(Self(tokio::spawn(async move { match http_server::serve(listener, routes).await {} })))
    }

    /// Ends it, and returns when nothing listens there any more.
    pub async fn end(mut self) {
        self.0.abort();
        // An error says that it was aborted.
        let _ = (&mut self.0).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn scrape(State(source): State<Arc<MetricsSource>>) -> Response {
    let written = spawn_blocking(move || text::of(Sample::take(&source)?)).await;
    match written.map_err(anyhow::Error::from).flatten() {
        Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::system::exit::code_of;

    #[test]
    fn an_address_that_is_taken_or_not_ours_is_named() {
        let free: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        let listener = listen(free).unwrap();
        let taken = listener.local_addr().unwrap();
        let foreign: SocketAddr = "192.0.2.1:9".parse().unwrap();
        for (address, exit) in [(taken, Exit::Conflict), (foreign, Exit::Failure)] {
            let error = listen(address).unwrap_err();
            assert_eq!(code_of(&error), exit, "{error:#}");
            assert!(error.to_string().contains(&address.to_string()), "{error:#}");
        }
    }
}
