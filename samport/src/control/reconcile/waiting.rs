//! Whoever waits for other rules to be in force.

use tokio::sync::oneshot;

/// Whoever has changed rules and terms, until both are in force.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) generation: u64,
    pub(super) done: oneshot::Sender<()>,
}

impl Waiting {
    /// Tells them after a pass over a snapshot of this generation, unless its terms are older. A pass that
    /// has failed ends the waiting.
    pub(super) fn after(self, is_ok: bool, generation: u64) -> Option<Self> {
        if is_ok && generation < self.generation {
            return Some(self);
        }
        if is_ok {
            // Who has gone away meanwhile does not want to know.
            let _ = self.done.send(());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_done_when_backends_are_there_on_its_terms_too() {
        let wait = || {
            let (done, is_done) = oneshot::channel();
            (Waiting { generation: 2, done }, is_done)
        };
        // The rules are there, the providers' part is not.
        let (waiting, mut is_done) = wait();
        let waiting = waiting.after(true, 1).unwrap();
        assert_eq!(is_done.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        assert!(waiting.after(true, 2).is_none());
        assert_eq!(is_done.try_recv(), Ok(()));
        // The kernel has refused it.
        for generation in [1, 2] {
            let (waiting, mut is_done) = wait();
            assert!(waiting.after(false, generation).is_none());
            assert_eq!(is_done.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        }
    }
}
