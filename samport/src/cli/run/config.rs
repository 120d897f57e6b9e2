//! What a run is to do.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::api::types::Limits;
use crate::cluster::{self, NodeList};
use crate::control::admission::ServiceConflict;
use crate::control::reconcile::{LoopSettings, RunConfig};
use crate::dataplane;
use crate::discovery::{Provider, ProviderSettings};
use crate::model::Spread;
use crate::model::allow::Networks;
use crate::model::ports::{Listen, PortSpec};
use crate::net::routes::Forward;
use crate::plan::Policy;
use crate::system::hash_seed::SeedFile;

/// What a run is to do, wherever that was said.
#[derive(Clone, Debug)]
pub(super) struct Config {
    /// Interfaces clients come in by.
    pub(super) interfaces: Vec<String>,
    /// Ports; empty if labels say which.
    pub(super) ports: Vec<PortSpec>,
    /// Where backends come from.
    pub(super) providers: Vec<Provider>,
    /// Where other nodes come from, if this one is not on its own.
    pub(super) cluster: Option<cluster::Settings>,
    /// What of providers may be changed while they run.
    pub(super) terms: ProviderSettings,
    /// Who may use ports of which labels say nothing; empty for everybody.
    pub(super) allow: Networks,
    /// What becomes of applications that claim one port.
    pub(super) service_conflict: ServiceConflict,
    /// How packets get to backends.
    pub(super) forward: Forward,
    /// How ports choose, as far as labels say nothing else.
    pub(super) policy: Policy,
    /// Which nodes' containers get connections, as far as labels say nothing else.
    pub(super) spread: Spread,
    /// The control socket, if it is not where it would be.
    pub(super) socket: Option<PathBuf>,
    /// Where metrics are served.
    pub(super) metrics: Option<SocketAddr>,
    /// What can be chosen when the kernel programs are loaded, but for the seed.
    pub(super) dataplane: dataplane::Options,
    /// The file of the seed, if it is not where it would be.
    pub(super) hash_seed_file: Option<PathBuf>,
    /// Who it goes on as, if not as who has started it.
    pub(super) user: Option<String>,
    /// Whether it restricts itself by Landlock and seccomp.
    pub(super) sandbox: bool,
    /// Whether everything stays at work in the kernel at the end.
    pub(super) keep: bool,
}

impl Config {
    /// The ports, without what is behind them.
    pub(super) fn listens(&self) -> Vec<Listen> {
        self.ports.iter().map(|port| port.listen).collect()
    }

    /// What the loop applies where labels say nothing else.
    pub(super) fn rules(&self) -> LoopSettings {
        let service_conflict = self.service_conflict;
        let (drain, policy, spread) = (self.terms.drain, self.policy, self.spread);
        LoopSettings { allow: self.allow.clone(), service_conflict, drain, policy, spread }
    }

    /// Takes over what may be changed while it runs.
    pub(super) fn take(&mut self, new: Self) {
        let Self { terms, allow, service_conflict, policy, spread, metrics, keep, .. } = new;
        *self =
            Self { terms, allow, service_conflict, policy, spread, metrics, keep, ..self.clone() };
    }

    /// What the loop is to do with these nodes, its control socket there and this seed, in this network namespace.
    pub(super) fn job(
        &self,
        nodes: NodeList,
        socket: PathBuf,
        hash_seed: SeedFile,
        namespace: u64,
    ) -> RunConfig {
        RunConfig {
            interfaces: self.interfaces.clone(),
            ports: self.ports.clone(),
            forward: self.forward,
            cluster: self.cluster.clone(),
            nodes,
            socket,
            rules: self.rules(),
            limits: self.limits(),
            hash_seed,
            namespace,
        }
    }

    /// How much is remembered, and for how long: for `status`.
    const fn limits(&self) -> Limits {
        let options = self.dataplane;
        let dataplane::Options { flows, flows6, service_share, backends, timeouts, .. } = options;
        let [unproven, unproven6] = options.room_limits().unproven;
        Limits {
            flows,
            flows6,
            unproven,
            unproven6,
            service_share,
            max_backends: backends,
            tcp_syn_seconds: timeouts.tcp_syn.as_secs(),
            tcp_seconds: timeouts.tcp.as_secs(),
            tcp_fin_seconds: timeouts.tcp_fin.as_secs(),
            tcp_rst_seconds: timeouts.tcp_rst.as_secs(),
            udp_seconds: timeouts.udp.as_secs(),
            udp_unanswered_seconds: timeouts.udp_unanswered.as_secs(),
            drain_seconds: self.terms.drain.as_secs(),
        }
    }
}
