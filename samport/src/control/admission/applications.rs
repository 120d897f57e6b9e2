//! Whose a port is that labels claim.

use std::collections::BTreeMap;

use crate::model::ports::Listen;
use crate::model::{Application, Candidate, Condition};

/// What becomes of applications that claim one port.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum ServiceConflict {
    /// The first one keeps it.
    #[default]
    Refuse,
    /// They share it.
    Merge,
}

/// The applications on each port, each with the container that it was seen on first.
pub(super) struct Applications {
    conflict: ServiceConflict,
    on: BTreeMap<Listen, Vec<(Application, String)>>,
}

impl Applications {
    pub(super) const fn new(conflict: ServiceConflict) -> Self {
        Self { conflict, on: BTreeMap::new() }
    }

    /// Whether a candidate may serve its port, and a sentence if it may and looks like a mistake. One that leaves keeps
    /// what it has, and keeps no other application out.
    pub(super) fn check(&self, candidate: &Candidate) -> Result<Option<String>, String> {
        let own = &candidate.hints.application;
        let holders = self.on.get(&candidate.listen).map_or(&[][..], Vec::as_slice);
        if leaves(candidate) || holders.iter().any(|(holder, _)| holder.is_one_with(own)) {
            return Ok(None);
        }
        let named = holders.iter().find(|(holder, _)| holder.has_name());
        match (named, own.has_name(), self.conflict) {
            (Some((holder, first)), true, ServiceConflict::Refuse) => Err(format!(
                "{} claims it, and {first} of {} has it; give them one label samport.service=NAME if they are \
                 one service, another port if they are not, or say --service-conflict merge",
                own.described(),
                holder.described()
            )),
            _ => Ok(holders.first().filter(|(holder, _)| holder.says_anything()).map(|(holder, first)| {
                format!(
                    "port {} is shared by {first} ({}) and {} ({}); give them one label samport.service=NAME if \
                     they are one service, or another port if they are not",
                    candidate.listen.brief(),
                    holder.described(),
                    candidate.name,
                    own.described()
                )
            }).filter(|_| own.says_anything())),
        }
    }

    /// Notes who serves a port.
    pub(super) fn add(&mut self, candidate: &Candidate) {
        let own = &candidate.hints.application;
        if leaves(candidate) || !own.says_anything() {
            return;
        }
        let holders = self.on.entry(candidate.listen).or_default();
        if holders.iter().all(|(holder, _)| holder != own) {
            holders.push((own.clone(), candidate.name.clone()));
        }
    }
}

fn leaves(candidate: &Candidate) -> bool {
    candidate.condition == Condition::Draining
}

impl Application {
    /// Whether it says who it is, rather than what.
    const fn has_name(&self) -> bool {
        self.service.is_some() || self.project.is_some()
    }

    const fn says_anything(&self) -> bool {
        self.has_name() || self.image.is_some()
    }

    /// Whether two are the same for all that is known: those without a name by their image.
    fn is_one_with(&self, other: &Self) -> bool {
        let both = |one: &Option<String>, other: &Option<String>| one.is_some() && one == other;
        let by_name = both(&self.service, &other.service) || both(&self.project, &other.project);
        let is_nameless = !self.has_name() && !other.has_name();
        by_name || (is_nameless && both(&self.image, &other.image))
    }

    /// Who it is, for a sentence.
    fn described(&self) -> String {
        match (&self.service, &self.project, &self.image) {
            (Some(service), ..) => format!("service {service:?}"),
            (None, Some(project), _) => format!("project {project:?}"),
            (None, None, Some(image)) => format!("image {image:?}"),
            (None, None, None) => "an application without a name".to_owned(),
        }
    }
}
