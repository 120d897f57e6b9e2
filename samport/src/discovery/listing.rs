//! The engine's list of the containers that run, as far as it says that one is to be asked about.

use std::collections::BTreeMap;
use std::time::Duration;

use bollard::models::ContainerSummary;
use tokio::time::Instant;

use super::container_store::Listed;

/// Between two lists of the containers, if nothing is missed.
const LIST_AGAIN: Duration = Duration::from_secs(30);

/// Lists of the containers.
pub(super) struct Listing {
    /// When the next one is due.
    pub(super) due: Instant,
    /// Whether one is under way.
    pub(super) is_running: bool,
    /// Whether something may have been missed before it: then all are asked about.
    pub(super) after_gap: bool,
    /// Whether something may have been missed since it was asked for.
    pub(super) again: bool,
}

impl Default for Listing {
    fn default() -> Self {
        let due = Instant::now() + LIST_AGAIN;
        Self { due, is_running: false, after_gap: false, again: false }
    }
}

/// What the world is told of a list.
pub(super) fn listed(running: Vec<ContainerSummary>) -> Vec<Listed> {
    let one = |mut summary: ContainerSummary| {
        let id = summary.id.take()?;
        Some(Listed { id, marks: marks(summary) })
    };
    running.into_iter().filter_map(one).collect()
}

/// What changes when a container is started again, renamed, paused, connected or found well: in an arbitrary order.
/// Not how long it has been running.
fn marks(summary: ContainerSummary) -> String {
    let mut names = summary.names.unwrap_or_default();
    names.sort();
    let labels: BTreeMap<_, _> = summary.labels.unwrap_or_default().into_iter().collect();
    let networks = summary.network_settings.and_then(|settings| settings.networks);
    let networks: BTreeMap<_, _> = networks.unwrap_or_default().into_iter().collect();
    let networks: Vec<_> = networks
        .into_iter()
        .map(|(name, at)| {
            let addresses = (at.ip_address, at.global_ipv6_address, at.mac_address);
            (name, at.network_id, at.endpoint_id, addresses)
        })
        .collect();
    let status = summary.status.unwrap_or_default();
    // "Up 3 minutes (healthy)".
    let health = status.split_once('(').map(|(_, health)| health.to_owned());
    format!("{names:?} {:?} {:?} {labels:?} {networks:?} {health:?}", summary.image, summary.state)
}

#[cfg(test)]
mod tests {
    use bollard::models::{ContainerSummaryNetworkSettings, EndpointSettings};

    use super::*;

    fn summary(status: &str, endpoint: &str) -> ContainerSummary {
        let at = EndpointSettings { endpoint_id: Some(endpoint.into()), ..Default::default() };
        let networks = ["a", "b", "c"].map(|name| (name.to_owned(), at.clone()));
        let networks = Some(networks.into_iter().collect());
        ContainerSummary {
            id: Some("c1".into()),
            names: Some(vec!["/web-1".into()]),
            status: Some(status.into()),
            network_settings: Some(ContainerSummaryNetworkSettings { networks }),
            ..ContainerSummary::default()
        }
    }

    #[test]
    fn a_container_has_other_marks_when_something_has_happened_to_it() {
        let before = marks(summary("Up 3 minutes (healthy)", "e1"));
        // The order of networks is another each time.
        for _ in 0..20 {
            assert_eq!(marks(summary("Up 4 minutes (healthy)", "e1")), before);
        }
        for (status, endpoint) in [
            ("Up 3 minutes (unhealthy)", "e1"),
            ("Up 3 minutes", "e1"),
            ("Up 3 minutes (Paused)", "e1"),
            // It was started again.
            ("Up 3 minutes (healthy)", "e2"),
        ] {
            assert_ne!(marks(summary(status, endpoint)), before, "{status} {endpoint}");
        }
        let nameless = ContainerSummary::default();
        assert!(listed(vec![nameless, summary("Up", "e1")]).len() == 1);
    }
}
