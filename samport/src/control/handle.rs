//! The control handle: what is known of every backend, served or not, and the way of an order from the
//! control socket into the reconcile loop and of its answer back.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use samport_common::choose::Balance;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use crate::control::commands::{CommandError, OperatorCommand};
use crate::model::groups::Group;
use crate::model::ports::Listen;
use crate::model::{Candidate, State};
use crate::plan::BackendKey;
use crate::system::instance::Record;

/// Orders that wait for the loop; who gives more has to wait too.
const WAITING: usize = 16;
/// How long the loop may take: a change of the kernel that fails is tried again every second.
const ANSWER: Duration = Duration::from_secs(20);

/// What tells a backend from all others for the operator: however its packets get there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BackendRef {
    /// What it serves on the host.
    pub listen: Listen,
    /// The container's id, or what stands for it.
    pub id: String,
    /// Where it answers.
    pub endpoint: SocketAddr,
}

impl From<&Candidate> for BackendRef {
    fn from(candidate: &Candidate) -> Self {
        let Candidate { listen, id, endpoint, .. } = candidate;
        Self { listen: *listen, id: id.clone(), endpoint: *endpoint }
    }
}

impl From<&BackendKey> for BackendRef {
    fn from(key: &BackendKey) -> Self {
        Self { listen: key.listen, id: key.id.clone(), endpoint: key.endpoint }
    }
}

/// A backend as the operator sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackendView {
    /// Which one.
    pub backend_ref: BackendRef,
    /// Name of its container.
    pub name: String,
    /// What its service is called, if it is called something.
    pub service: Option<String>,
    /// The group it is in.
    pub group: Option<Group>,
    /// Its weight, orders included.
    pub weight: u32,
    /// Where it is in its life.
    pub state: State,
    /// Where its tunnel ends, if it is another node.
    pub node: Option<IpAddr>,
    /// How packets get there, if the kernel has it.
    pub via: Option<String>,
    /// Whether its answers find their way to outside clients, as far as that is known and matters.
    pub route_back: Option<bool>,
    /// The id the kernel counts it under, if the kernel has it.
    pub index: Option<u32>,
    /// When its time to drain is over, if that is known.
    pub drains_until: Option<Instant>,
    /// It should take no new flows, but does: it is the last of its service.
    pub is_last: bool,
}

/// Everything the operator may ask for that is not counted in the kernel.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ControlView {
    /// Services, and how each chooses.
    pub services: BTreeMap<Listen, Balance>,
    /// Backends, served or not, in the order of their services and names.
    pub backends: Vec<BackendView>,
    /// How many containers are left out, each as often as there are reasons.
    pub left_out: u64,
    /// Whether this node is drained.
    pub node_drained: bool,
}

impl ControlView {
    /// What the record of an instance that is not running still says.
    #[must_use]
    pub fn of_record(record: &Record) -> Self {
        let service = |listen: Listen| {
            let of = record.services.iter().find(|service| service.listen == listen);
            of.and_then(|service| service.name.clone())
        };
        let seated =
            |backend: &crate::system::instance::BackendRecord| {
                let endpoint = backend.endpoint.parse().ok()?;
                Some(BackendView {
                    backend_ref: BackendRef { listen: backend.port, id: String::new(), endpoint },
                    name: backend.name.clone(),
                    service: service(backend.port),
                    group: None,
                    weight: backend.weight,
                    state: State::named(&backend.state)?,
                    node: record.nodes.iter().map(|node| node.address.ip()).find(|node| {
                        backend.via == "node" && endpoint.ip().to_canonical() == *node
                    }),
                    via: Some(backend.via.clone()),
                    route_back: backend.route_back,
                    // 0 means no id: it was not ready.
                    index: (backend.id > 0).then_some(backend.id),
                    drains_until: None,
                    is_last: false,
                })
            };
        Self {
            services: BTreeMap::new(),
            left_out: record.left_out.len() as u64,
            node_drained: record.orders.drains_this_node(),
            backends: record.backends.iter().filter_map(seated).collect(),
        }
    }
}

/// An order, and where its answer goes.
#[derive(Debug)]
pub struct Request {
    /// What is to be done.
    pub order: OperatorCommand,
    /// Gets the backends it was about once the kernel has it.
    pub answer: oneshot::Sender<Result<Vec<BackendRef>, CommandError>>,
}

/// The loop's end: takes orders, shows how things are.
#[derive(Debug)]
pub struct CommandReceiver {
    requests: mpsc::Receiver<Request>,
    view: watch::Sender<Arc<ControlView>>,
}

/// The other end: gives orders, looks.
#[derive(Clone, Debug)]
pub struct ControlHandle {
    requests: mpsc::Sender<Request>,
    view: watch::Receiver<Arc<ControlView>>,
}

/// A desk and the window to it.
#[must_use]
pub fn open() -> (CommandReceiver, ControlHandle) {
    let (send, requests) = mpsc::channel(WAITING);
    let (view, look) = watch::channel(Arc::default());
    (CommandReceiver { requests, view }, ControlHandle { requests: send, view: look })
}

impl CommandReceiver {
    /// The next order; never, if no sender is left.
    pub async fn next(&mut self) -> Request {
        match self.requests.recv().await {
            Some(request) => request,
            None => std::future::pending().await,
        }
    }

    /// What is shown now.
    #[must_use]
    pub fn shown(&self) -> Arc<ControlView> {
        self.view.borrow().clone()
    }

    /// Follows what is shown.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<ControlView>> {
        self.view.subscribe()
    }

    /// Shows something else.
    pub fn show(&self, view: ControlView) {
        self.view.send_replace(Arc::new(view));
    }
}

impl ControlHandle {
    /// Gives an order and waits until the kernel has it.
    pub async fn order(&self, order: OperatorCommand) -> Result<Vec<BackendRef>, CommandError> {
        let (answer, answered) = oneshot::channel();
        let ending = || CommandError::Failed("samport is ending".to_owned());
        let given = async {
            self.requests.send(Request { order, answer }).await.map_err(|_| ending())?;
            answered.await.unwrap_or_else(|_| Err(ending()))
        };
        let late = || format!("the control loop has not answered within {ANSWER:?}");
        timeout(ANSWER, given).await.unwrap_or_else(|_| Err(CommandError::Failed(late())))
    }

    /// How things are.
    #[must_use]
    pub fn view(&self) -> Arc<ControlView> {
        self.view.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_order_is_answered_by_who_takes_it() {
        let (mut receiver, control) = open();
        let order = OperatorCommand::Drain("web-1".into());
        let given = tokio::spawn(async move { control.order(order).await });
        let request = receiver.next().await;
        assert_eq!(request.order, OperatorCommand::Drain("web-1".into()));
        request.answer.send(Err(CommandError::Unknown("none".into()))).unwrap();
        assert_eq!(given.await.unwrap(), Err(CommandError::Unknown("none".into())));
    }

    #[tokio::test]
    async fn an_order_to_a_loop_that_ends_is_answered_all_the_same() {
        let (receiver, control) = open();
        drop(receiver);
        let answer = control.order(OperatorCommand::Undrain("web-1".into())).await;
        assert_eq!(answer, Err(CommandError::Failed("samport is ending".into())));
    }

    #[test]
    fn a_record_shows_its_backends() {
        let backend = crate::system::instance::BackendRecord {
            id: 7,
            name: "web-1".into(),
            port: Listen::tcp(80),
            endpoint: "10.0.0.2:8080".into(),
            weight: 3,
            state: "draining".into(),
            via: "peer".into(),
            route_back: Some(false),
        };
        let strange =
            crate::system::instance::BackendRecord { state: "tired".into(), ..backend.clone() };
        let record = Record { backends: vec![backend, strange], ..Record::default() };
        let view = ControlView::of_record(&record);
        assert_eq!(view.backends.len(), 1, "{view:?}");
        let seated = &view.backends[0];
        assert_eq!(
            (seated.name.as_str(), seated.index, seated.state),
            ("web-1", Some(7), State::Draining)
        );
    }
}
