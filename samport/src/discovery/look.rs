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
use super::docker::{Inspector, in_time};
use super::endpoint::{Endpoint, Engine, Unreachable, refusal_by_mode};
use super::labels;
use super::published;
use super::world::{Outcome, located};
use crate::model::Candidate;
use crate::ports::{Listen, PortSpec};

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
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} at {}", self.engine.name(), self.version, self.endpoint)
    }
}

/// Asks an engine who it is and what its containers publish.
///
/// # Errors
/// [`Unreachable`], or an address that is none.
pub async fn look(engine: Engine, endpoint: Option<&str>, ports: &[PortSpec]) -> Result<Seen> {
    let variable = std::env::var(engine.variable()).ok();
    let endpoint = Endpoint::find(engine, endpoint, variable.as_deref())?;
    if let Endpoint::Unix(path) = &endpoint
        && access::is_refused(path)
    {
        // We could; a run could not.
        let trouble = refusal_by_mode(&endpoint);
        return Err(Unreachable { engine, endpoint, trouble }.into());
    }
    let asked = ask(&endpoint).await;
    let (version, info, running) =
        asked.map_err(|error| Unreachable::new(engine, &endpoint, &error))?;
    let candidates = candidates(&endpoint, ports, &running).await;
    let rootless = info.security_options.into_iter().flatten().any(|one| one.contains("rootless"));
    Ok(Seen {
        engine,
        version: version.version.unwrap_or_else(|| "of no version".to_owned()),
        endpoint,
        rootless,
        published: publishers(ports, &running),
        candidates,
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

/// A container that cannot be asked about is none of ours.
async fn candidates(
    endpoint: &Endpoint,
    ports: &[PortSpec],
    running: &[ContainerSummary],
) -> Vec<Candidate> {
    let Ok(client) = endpoint.client() else { return Vec::new() };
    let policy = Arc::new(Policy { ports: ports.to_vec(), ..Policy::default() });
    let inspector =
        Inspector { client, policy: Arc::clone(&policy), is_local: endpoint.is_local() };
    let mut found = Vec::new();
    for container in running {
        let has_labels = container
            .labels
            .as_ref()
            .is_some_and(|labels| labels.keys().any(|label| label.starts_with(labels::PREFIX)));
        let Some(id) = container.id.as_deref().filter(|_| has_labels) else { continue };
        if let Outcome::Found(view, at) = inspector.look(id, None).await
            && let Ok(offer) = offer(&view, &policy, None)
        {
            found.extend(located(offer, &at, None));
        }
    }
    found
}

fn publishers(ports: &[PortSpec], running: &[ContainerSummary]) -> BTreeMap<Listen, String> {
    let sentence = |spec: &PortSpec| {
        let refused = published::refuse(std::slice::from_ref(spec), running).err()?;
        Some((spec.listen, refused.to_string()))
    };
    ports.iter().filter_map(sentence).collect()
}
