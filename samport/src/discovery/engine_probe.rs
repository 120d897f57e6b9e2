//! One look at an engine, for `samport check`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use anyhow::Result;
use bollard::errors::Error;
use bollard::models::{ContainerSummary, SystemInfo, SystemVersion};
use bollard::query_parameters::ListContainersOptions;

use super::access;
use super::container::{Policy, offer};
use super::container_store::{Outcome, located};
use super::docker::{Inspector, in_time};
use super::endpoint::{Endpoint, Engine, Unreachable, refusal_by_mode};
use super::labels;
use super::published;
use crate::model::Candidate;
use crate::model::ports::{Listen, PortRanges, PortSpec};

/// An engine that answers.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Which.
    pub engine: Engine,
    /// Its version.
    pub version: String,
    /// Where it was asked.
    pub endpoint: Endpoint,
    /// Whether its containers are in network namespaces of a user's own.
    pub rootless: bool,
    /// Those ports that a container publishes already, and what is to be said about it.
    pub published: BTreeMap<Listen, String>,
    /// What its containers with labels of samport's offer on these ports, and where that is.
    pub candidates: Vec<Candidate>,
    /// Sentences about those of them that would not be served as their labels say.
    pub refused: Vec<String>,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} at {}", self.engine.name(), self.version, self.endpoint)
    }
}

/// Asks an engine who it is and what its containers publish.
///
/// # Errors
/// [`Unreachable`], or an invalid address.
pub async fn look(
    engine: Engine,
    endpoint: Option<&str>,
    ports: &[PortSpec],
    label_ports: &PortRanges,
) -> Result<Seen> {
    let variable = std::env::var(engine.variable()).ok();
    let endpoint = Endpoint::find(engine, endpoint, variable.as_deref())?;
    if let Endpoint::Unix(path) = &endpoint
        && access::is_refused(path)
    {
        // We could; a run could not.
        let reason = refusal_by_mode(&endpoint);
        return Err(Unreachable { engine, endpoint, reason }.into());
    }
    let asked = ask(&endpoint).await;
    let (version, info, running) =
        asked.map_err(|error| Unreachable::new(engine, &endpoint, &error))?;
    let policy =
        Policy { ports: ports.to_vec(), label_ports: label_ports.clone(), ..Policy::default() };
    let (candidates, refused) = candidates(&endpoint, policy, &running).await;
    let rootless = info.security_options.into_iter().flatten().any(|one| one.contains("rootless"));
    Ok(Seen {
        engine,
        version: version.version.unwrap_or_else(|| "of no version".to_owned()),
        endpoint,
        rootless,
        published: publishers(ports, &running),
        candidates,
        refused,
    })
}

async fn ask(
    endpoint: &Endpoint,
) -> Result<(SystemVersion, SystemInfo, Vec<ContainerSummary>), Error> {
    let client = endpoint.client()?;
    let version = in_time(client.version()).await?;
    let info = in_time(client.info()).await?;
    let running = in_time(client.list_containers(None::<ListContainersOptions>)).await?;
    Ok((version, info, running))
}

/// A container that cannot be asked about is left out.
async fn candidates(
    endpoint: &Endpoint,
    policy: Policy,
    running: &[ContainerSummary],
) -> (Vec<Candidate>, Vec<String>) {
    let (mut found, mut refused) = (Vec::new(), Vec::new());
    let Ok(client) = endpoint.client() else { return (found, refused) };
    let policy = Arc::new(policy);
    let inspector =
        Inspector { client, policy: Arc::clone(&policy), is_local: endpoint.is_local() };
    for container in running {
        let has_labels = container
            .labels
            .as_ref()
            .is_some_and(|labels| labels.keys().any(|label| label.starts_with(labels::PREFIX)));
        let Some(id) = container.id.as_deref().filter(|_| has_labels) else { continue };
        let Outcome::Found(view, at) = inspector.look(id, None).await else { continue };
        match offer(&view, &policy, None) {
            Ok(offer) => {
                refused.extend(offer.warnings.iter().cloned());
                found.extend(located(offer, &at, None));
            }
            Err(rejection) => refused.push(rejection.to_string()),
        }
    }
    (found, refused)
}

fn publishers(ports: &[PortSpec], running: &[ContainerSummary]) -> BTreeMap<Listen, String> {
    let sentence = |spec: &PortSpec| {
        let refused = published::refuse(std::slice::from_ref(spec), running).err()?;
        Some((spec.listen, refused.to_string()))
    };
    ports.iter().filter_map(sentence).collect()
}
