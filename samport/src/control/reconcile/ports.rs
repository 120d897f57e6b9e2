//! Processes that take a port which is served already: they are told of nothing, so the user is.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;

use crate::control::handle::ControlView;
use crate::model::ports::Listen;
use crate::net::port_conflicts;

/// Between two looks: the kernel lists all sockets.
const LOOK: Duration = Duration::from_secs(30);

/// A look at an interval, until this is dropped.
pub(super) struct PortWatch(JoinHandle<()>);

impl PortWatch {
    /// Of the services that are shown.
    pub(super) fn begin(view: watch::Receiver<Arc<ControlView>>) -> Self {
        Self(tokio::spawn(async move {
            let mut said = BTreeSet::new();
            loop {
                sleep(LOOK).await;
                let ports = served(&view.borrow());
                let Ok(found) = spawn_blocking(move || port_conflicts::warnings(&ports)).await
                else {
                    return;
                };
                for sentence in found.difference(&said) {
                    tracing::warn!("{sentence}");
                }
                said = found;
            }
        }))
    }
}

impl Drop for PortWatch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The ports that are served. Where a backend is on the host's own network and has the same port, it is the one that
/// listens there.
fn served(view: &ControlView) -> Vec<Listen> {
    let is_own = |listen: &Listen| {
        view.backends.iter().any(|one| {
            let is_on_host = one.via.as_deref() == Some("stack");
            is_on_host && one.backend_ref.endpoint.port() == listen.port
        })
    };
    view.services.keys().filter(|listen| !is_own(listen)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::instance::{BackendRecord, Record};

    #[test]
    fn a_backend_of_the_host_itself_listens_on_its_own_port() {
        let backend = |via: &str, endpoint: &str| BackendRecord {
            id: 1,
            name: "web".into(),
            port: Listen::tcp(80),
            endpoint: endpoint.into(),
            weight: 1,
            state: "active".into(),
            via: via.into(),
            route_back: None,
        };
        for (via, endpoint, is_looked_at) in [
            ("stack", "192.0.2.1:80", false),
            ("stack", "192.0.2.1:8080", true),
            ("peer", "10.0.0.2:80", true),
        ] {
            let record = Record { backends: vec![backend(via, endpoint)], ..Record::default() };
            let mut view = ControlView::of_record(&record);
            view.services.insert(Listen::tcp(80), samport_common::choose::Balance::Random);
            assert_eq!(served(&view).len(), usize::from(is_looked_at), "{via} {endpoint}");
        }
    }
}
