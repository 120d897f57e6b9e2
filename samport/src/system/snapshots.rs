//! Snapshots of candidates, as whoever offers them sends them.

use tokio::sync::watch;

use crate::model::{Candidate, Snapshot};

/// Brings candidates into the order every snapshot has.
pub(crate) fn sort(candidates: &mut [Candidate]) {
    let key = |c: &Candidate| (c.listen, c.endpoint);
    candidates.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| key(a).cmp(&key(b))));
}

/// Sends a snapshot, unless it says what the last one said.
pub(crate) fn publish(sender: &watch::Sender<Snapshot>, snapshot: Snapshot) {
    sender.send_if_modified(|current| {
        let differs = *current != snapshot;
        *current = snapshot;
        differs
    });
}
