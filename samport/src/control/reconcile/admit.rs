//! Who of the offered backends is let in, and who was left out.

use std::collections::BTreeSet;

use super::{Reconciler, complain};
use crate::control::admission::{self, Admission};
use crate::control::handle::BackendRef;
use crate::model::Snapshot;
use crate::model::ports::Listen;
use crate::net::frontends;
use crate::net::netlink::Devices;
use crate::system::escape;

/// How many of those who are left out `status` shows.
const SHOWN: usize = 100;

impl Reconciler {
    /// The snapshot without those there is no room for, or whose port is another application's; each is named when
    /// that begins.
    pub(super) fn admit(&mut self, snapshot: &Snapshot, devices: &Devices) -> Snapshot {
        let ports: BTreeSet<Listen> = self.config.ports.iter().map(|port| port.listen).collect();
        let served: BTreeSet<BackendRef> =
            self.actual.backends().map(|(key, _)| BackendRef::from(key)).collect();
        let terms = admission::AdmissionRules {
            ports: &ports,
            allow: &self.config.rules.allow,
            max_backends: self.config.limits.max_backends,
            addresses: frontends::outer_addresses(devices, &self.config.interfaces),
            conflict: self.config.rules.service_conflict,
            restricted: &self.restricted,
        };
        let is_served = |candidate: &_| served.contains(&BackendRef::from(candidate));
        let Admission { candidates, left_out, notes, restricted } =
            admission::admit(&snapshot.candidates, is_served, terms);
        for note in notes {
            complain(&mut self.complained, &note);
        }
        self.restricted = restricted;
        self.tell_left_out(0, left_out);
        Snapshot { candidates, ..*snapshot }
    }

    /// Sentences about those who are left out now.
    pub(super) fn who_is_left_out(&self) -> Vec<String> {
        let all = self.left_out.iter().flatten().take(SHOWN);
        all.map(|sentence| escape::line(sentence).into_owned()).collect()
    }

    /// Names who is left out at a stage, once while that lasts.
    pub(super) fn tell_left_out(&mut self, stage: usize, left_out: BTreeSet<String>) {
        for sentence in left_out.difference(&self.left_out[stage]) {
            tracing::warn!("{}", escape::line(sentence));
        }
        self.left_out[stage] = left_out;
    }
}
