//! The server behind the control socket.

use std::sync::Arc;

use anyhow::Result;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use samport_common::choose::Balance;
use serde::Deserialize;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::Instant;

use super::report::{self, CountersByBackend};
use super::socket::Socket;
use super::types::{self, ErrorBody, Health, SCHEMA};
use crate::api::http_server;
use crate::control::commands::{self, CommandError, OperatorCommand};
use crate::control::handle::{BackendRef, ControlHandle, ControlView};
use crate::control::progress::Progress;
use crate::dataplane::inspect::Counters;
use crate::model::ports::Listen;

/// A server at work. Dropping it ends it and removes its socket.
#[derive(Debug)]
pub struct Server {
    task: JoinHandle<()>,
    _socket: Socket,
}

/// What every answer is made from.
#[derive(Debug)]
struct AppState {
    instance: String,
    control: ControlHandle,
    progress: Progress,
    status: fn(&str) -> Result<types::Status>,
}

type AppRef = State<Arc<AppState>>;

impl Server {
    /// Serves an instance. `status` makes the document that `samport status` shows.
    pub fn start(
        socket: Socket,
        instance: &str,
        control: ControlHandle,
        progress: Progress,
        status: fn(&str) -> Result<types::Status>,
    ) -> Result<Self> {
        let app = Arc::new(AppState { instance: instance.to_owned(), control, progress, status });
        let listener = socket.listener()?;
        let routes = routes(app);
        let task = tokio::spawn(async move { match http_server::serve(listener, routes).await {} });
        Ok(Self { task, _socket: socket })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn routes(app: Arc<AppState>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/backends", get(backends))
        .route("/v1/backends/{name}/drain", post(drain))
        .route("/v1/backends/{name}/undrain", post(undrain))
        .route("/v1/node/drain", post(drain_node))
        .route("/v1/node/undrain", post(undrain_node))
        .route("/v1/weights/{name}", put(weight))
        .route("/v1/services", get(services))
        .route("/v1/services/{name}/balance", put(balance))
        .route("/v1/services/{name}/allow/reset", post(reset_allow))
        .route("/v1/health", get(health))
        .fallback(async || ApiError(StatusCode::NOT_FOUND, "not found".to_owned()))
        .method_not_allowed_fallback(async || {
            let message = "method not allowed".to_owned();
            ApiError(StatusCode::METHOD_NOT_ALLOWED, message)
        })
        .with_state(app)
}

/// A status code and what is wrong.
#[derive(Debug)]
struct ApiError(StatusCode, String);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self(code, error) = self;
        (code, Json(ErrorBody { error })).into_response()
    }
}

impl From<CommandError> for ApiError {
    fn from(refusal: CommandError) -> Self {
        let code = match refusal {
            CommandError::Unknown(_) => StatusCode::NOT_FOUND,
            CommandError::Ambiguous(_) => StatusCode::CONFLICT,
            CommandError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(code, refusal.to_string())
    }
}

impl From<anyhow::Error> for ApiError {
    fn from(error: anyhow::Error) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"))
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

async fn status(State(app): AppRef) -> Result<Json<types::Status>, ApiError> {
    Ok(Json(aside(move || (app.status)(&app.instance)).await?))
}

async fn backends(State(app): AppRef) -> Result<Json<types::Backends>, ApiError> {
    app.report(|_| true).await
}

async fn drain(
    State(app): AppRef,
    Path(name): Path<String>,
) -> Result<Json<types::Backends>, ApiError> {
    app.carry_out(OperatorCommand::Drain(name)).await
}

async fn undrain(
    State(app): AppRef,
    Path(name): Path<String>,
) -> Result<Json<types::Backends>, ApiError> {
    app.carry_out(OperatorCommand::Undrain(name)).await
}

async fn drain_node(State(app): AppRef) -> Result<Json<types::Backends>, ApiError> {
    app.carry_out(OperatorCommand::DrainNode).await
}

async fn undrain_node(State(app): AppRef) -> Result<Json<types::Backends>, ApiError> {
    app.carry_out(OperatorCommand::UndrainNode).await
}

async fn weight(
    State(app): AppRef,
    Path(name): Path<String>,
    order: Result<Json<types::Weight>, JsonRejection>,
) -> Result<Json<types::Backends>, ApiError> {
    let Json(types::Weight { weight }) = order?;
    app.carry_out(OperatorCommand::Weight(name, weight)).await
}

async fn balance(
    State(app): AppRef,
    Path(name): Path<String>,
    order: Result<Json<types::Balance>, JsonRejection>,
) -> Result<Json<types::Backends>, ApiError> {
    let Json(types::Balance { balance }) = order?;
    let Some(mode) = Balance::ALL.into_iter().find(|mode| mode.name() == balance) else {
        let modes = Balance::ALL.map(Balance::name).join(", ");
        let message = format!("invalid balance mode {balance:?}: expected one of {modes}");
        return Err(ApiError(StatusCode::BAD_REQUEST, message));
    };
    app.carry_out(OperatorCommand::Balance(name, mode)).await
}

async fn reset_allow(
    State(app): AppRef,
    Path(name): Path<String>,
) -> Result<Json<types::Backends>, ApiError> {
    app.carry_out(OperatorCommand::ResetAllow(name)).await
}

async fn services(State(app): AppRef) -> Json<types::Services> {
    let view = app.control.view();
    let service = |(listen, balance): (&Listen, &Balance)| types::Service {
        service: listen.to_string(),
        balance: balance.name().to_owned(),
    };
    Json(types::Services { schema: SCHEMA, services: view.services.iter().map(service).collect() })
}

#[derive(Deserialize)]
struct HealthQuestion {
    healthy: usize,
    service: Option<String>,
}

async fn health(
    State(app): AppRef,
    question: Result<Query<HealthQuestion>, QueryRejection>,
) -> Result<(StatusCode, Json<Health>), ApiError> {
    let Query(HealthQuestion { healthy, service }) = question?;
    let view = app.control.view();
    let service = service.map(|name| commands::service_called(&name, &view)).transpose()?;
    let health = report::health(&view, healthy, service, app.progress.trouble());
    let code = if health.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((code, Json(health)))
}

impl AppState {
    async fn carry_out(&self, order: OperatorCommand) -> Result<Json<types::Backends>, ApiError> {
        let about = self.control.order(order).await?;
        self.report(|backend_ref| about.contains(backend_ref)).await
    }

    async fn report(
        &self,
        is_meant: impl Fn(&BackendRef) -> bool,
    ) -> Result<Json<types::Backends>, ApiError> {
        let (view, instance) = (self.control.view(), self.instance.clone());
        let counted = {
            let (view, instance) = (Arc::clone(&view), instance.clone());
            aside(move || count(&instance, &view)).await?
        };
        let all = report::backends(&view, &counted, Instant::now());
        let backend_refs = view.backends.iter().map(|one| is_meant(&one.backend_ref));
        let backends =
            all.into_iter().zip(backend_refs).filter_map(|(one, meant)| meant.then_some(one));
        let backends = backends.collect();
        Ok(Json(types::Backends { schema: SCHEMA, instance, running: true, backends }))
    }
}

/// What the kernel has counted of a view's backends.
pub(super) fn count(instance: &str, view: &ControlView) -> Result<CountersByBackend> {
    let counters = Counters::open(instance)?;
    let known = view.backends.iter().filter_map(|one| one.index);
    known.map(|index| Ok((index, counted(&counters, index)?))).collect()
}

fn counted(counters: &Counters, index: u32) -> Result<types::Counters> {
    let (stats, handshakes) = (counters.backend(index)?, counters.handshakes(index)?);
    let suspicion = counters.suspicion(index)?;
    Ok(types::Counters {
        open: Some(counters.open_flows(index)?),
        flows: stats.flows,
        refused: stats.refused,
        silent: stats.silent,
        unreachable: stats.unreachable,
        for_one_peer: stats.for_one_peer,
        evidence_confirmed: suspicion.confirmed.into(),
        evidence_refuted: suspicion.refuted.into(),
        packets_in: stats.packets_in,
        bytes_in: stats.bytes_in,
        packets_out: stats.packets_out,
        bytes_out: stats.bytes_out,
        handshake_p50_us: report::within(&handshakes, 50),
        handshake_p99_us: report::within(&handshakes, 99),
    })
}

/// System calls that may take a while, away from what serves others.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T, ApiError> {
    let done = spawn_blocking(work).await;
    let done =
        done.map_err(|error| ApiError(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(done?)
}
