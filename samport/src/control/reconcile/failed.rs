//! What could not be done: it is logged once, and what it concerns is left out of what is wanted.

use std::collections::BTreeSet;

use crate::plan::{BackendKey, Change, Desired, Role};
use crate::system::escape;

/// Sentences that are remembered, so that none is logged twice.
const REMEMBERED: usize = 4_096;

/// Says what is wrong, once.
pub(super) fn complain(complained: &mut BTreeSet<String>, about: &str) {
    if complained.contains(about) {
        return;
    }
    if complained.len() >= REMEMBERED {
        complained.clear();
    }
    complained.insert(about.to_owned());
    tracing::warn!("{}", escape::line(about));
}

/// Takes what a program could not be attached for out of what is wanted, if that is not an interface
/// clients come in by, and says what it was.
pub(super) fn leave_out(desired: &mut Desired, failed: &Change) -> Option<String> {
    let left_out = match failed {
        Change::Attach(Role::Reverse | Role::Device, device) => {
            let is_behind = |key: &BackendKey| key.route.answers_on() == Some(*device);
            let behind = desired.backends.extract_if(.., |key, _| is_behind(key));
            let mut left_out: Vec<_> = behind.map(|(_, share)| share.name).collect();
            // Its other links are there all the same.
            for share in desired.backends.values_mut() {
                if share.answers_on.contains(*device) {
                    let others = share.answers_on.iter().filter(|other| other != device);
                    share.answers_on = others.collect();
                    left_out.push(format!("a link of {}", share.name));
                }
            }
            left_out
        }
        Change::Attach(Role::Inside | Role::Egress | Role::Outbound, device) => {
            let bridge = desired.bridges.remove(device).then(|| "a bridge".to_owned());
            let mut left_out: Vec<_> = bridge.into_iter().collect();
            for share in desired.backends.values_mut() {
                let before = share.leaves_by.len();
                share.leaves_by.retain(|parent| parent != device);
                if share.leaves_by.len() < before {
                    left_out.push(format!("a link of {}", share.name));
                }
            }
            left_out
        }
        _ => Vec::new(),
    };
    (!left_out.is_empty()).then(|| left_out.join(", "))
}
