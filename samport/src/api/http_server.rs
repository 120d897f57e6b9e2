//! What is served over HTTP, whoever connects and however: a limited number of connections at a time, each with a
//! time for its header and its request, and a size of both. `axum::serve` has none of these limits.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

/// Connections at a time. One more takes the place of the one that has waited longest without a request at work.
pub const CONNECTIONS: usize = 128;
/// For a request's header, and between two requests.
const HEADER: Duration = Duration::from_secs(10);
/// From a request's header to its answer, the body included. A client of ours waits for 30 s.
const REQUEST: Duration = Duration::from_secs(30);
/// Bytes of a header.
const HEADER_BYTES: usize = 16_384;
/// Bytes of a request's body.
const BODY_BYTES: usize = 65_536;
/// After a connection could not be taken, most likely for want of descriptors.
const RETRY: Duration = Duration::from_millis(100);

/// What takes connections.
pub trait Listener {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next one.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn next(&self) -> io::Result<Self::Stream> {
        Ok(self.accept().await?.0)
    }
}

impl Listener for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn next(&self) -> io::Result<Self::Stream> {
        Ok(self.accept().await?.0)
    }
}

/// A connection that is open.
struct Connection {
    task: tokio::task::AbortHandle,
    /// Whether a request is at work on it.
    is_busy: Arc<AtomicBool>,
}

/// Serves for as long as it is polled. Dropping it ends all connections.
pub async fn serve(listener: impl Listener, routes: Router) -> Infallible {
    let routes = routes.layer(DefaultBodyLimit::max(BODY_BYTES));
    let mut tasks: JoinSet<u64> = JoinSet::new();
    let mut open: BTreeMap<u64, Connection> = BTreeMap::new();
    let mut number = 0;
    loop {
        let stream = tokio::select! {
            Some(done) = tasks.join_next_with_id(), if !tasks.is_empty() => {
                let id = match &done {
                    Ok((id, _)) => *id,
                    Err(error) => error.id(),
                };
                open.retain(|_, one| one.task.id() != id);
                continue;
            }
            stream = listener.next(), if has_room(&open) => stream,
        };
        match stream {
            Ok(stream) => {
                number += 1;
                make_room(&mut open);
                let is_busy = Arc::default();
                let connection = connection(stream, routes.clone(), Arc::clone(&is_busy));
                let task = tasks.spawn(async move {
                    connection.await;
                    number
                });
                open.insert(number, Connection { task, is_busy });
            }
            Err(error) => {
                tracing::debug!("a connection cannot be taken: {error}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Whether one more connection can be taken, if need be in the place of another.
fn has_room(open: &BTreeMap<u64, Connection>) -> bool {
    open.len() < CONNECTIONS || open.values().any(|one| !one.is_busy.load(Relaxed))
}

/// Ends the connection that has been idle longest, if there are too many.
fn make_room(open: &mut BTreeMap<u64, Connection>) {
    if open.len() < CONNECTIONS {
        return;
    }
    let mut idle = open.iter().filter(|(_, one)| !one.is_busy.load(Relaxed));
    if let Some(number) = idle.next().map(|(number, _)| *number)
        && let Some(oldest) = open.remove(&number)
    {
        oldest.task.abort();
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    routes: Router,
    is_busy: Arc<AtomicBool>,
) {
    let routes = routes.layer(middleware::from_fn(move |request: Request, next: Next| {
        let is_busy = Arc::clone(&is_busy);
        async move {
            is_busy.store(true, Relaxed);
            let response = tokio::time::timeout(REQUEST, next.run(request)).await;
            is_busy.store(false, Relaxed);
            response.unwrap_or_else(|_| too_late())
        }
    }));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
        .await;
    if let Err(error) = served {
        tracing::trace!("a connection ended: {error}");
    }
}

fn too_late() -> Response<Body> {
    (StatusCode::REQUEST_TIMEOUT, "the request took too long\n").into_response()
}
