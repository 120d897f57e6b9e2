//! When a change of the configuration takes effect while samport runs: one line a key.

/// When it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Effect {
    /// As soon as the file is read; flows stay where they are.
    AtOnce,
    /// When samport is started the next time.
    NextStart,
}

use Effect::{AtOnce, NextStart};

/// Every key. What the instance is known by (its name, its lock, its pins) and what the kernel programs were
/// loaded with cannot change under them.
const EFFECTS: [(&str, Effect); 48] = [
    ("iface", NextStart),
    ("port", NextStart),
    ("backend", AtOnce),
    ("provider", NextStart),
    ("endpoint", NextStart),
    ("file", NextStart),
    ("filter", AtOnce),
    ("allow", AtOnce),
    ("label-ports", AtOnce),
    ("service-conflict", AtOnce),
    ("forward", NextStart),
    ("hook", NextStart),
    ("xdp-mode", NextStart),
    ("drain", AtOnce),
    ("no-local", NextStart),
    ("socket", NextStart),
    ("hash-seed-file", NextStart),
    ("user", NextStart),
    ("sandbox", NextStart),
    ("metrics", AtOnce),
    ("keep", AtOnce),
    ("health", AtOnce),
    ("health-interval", AtOnce),
    ("health-timeout", AtOnce),
    ("health-rise", AtOnce),
    ("health-fall", AtOnce),
    ("balance", AtOnce),
    ("affinity", AtOnce),
    ("connect-failover", AtOnce),
    ("no-backend", AtOnce),
    ("cluster", NextStart),
    ("cluster-file", NextStart),
    ("node", NextStart),
    ("node-address", NextStart),
    ("tunnel-port", NextStart),
    ("spread", AtOnce),
    ("max-nodes", NextStart),
    ("flows", NextStart),
    ("flows6", NextStart),
    ("max-backends", NextStart),
    ("syn-flood", NextStart),
    ("service-share", NextStart),
    ("tcp-syn-timeout", NextStart),
    ("tcp-timeout", NextStart),
    ("tcp-fin-timeout", NextStart),
    ("tcp-rst-timeout", NextStart),
    ("udp-timeout", NextStart),
    ("udp-unanswered-timeout", NextStart),
];

/// When a key's change takes effect; whatever is in no list waits.
pub(super) fn effect(key: &str) -> Effect {
    let known = EFFECTS.iter().find(|(known, _)| *known == key);
    known.map_or(NextStart, |(_, effect)| *effect)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cli::file::keys;
    use crate::cli::resolved::flags;

    #[test]
    fn every_key_has_its_effect_and_its_line_in_the_docs() {
        let flags = flags();
        let mut known: Vec<_> = keys(&flags).map(|(key, _)| key).collect();
        let mut listed: Vec<_> = EFFECTS.iter().map(|(key, _)| *key).collect();
        known.sort_unstable();
        listed.sort_unstable();
        assert_eq!(listed, known);
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/configuration.md");
        let page = fs::read_to_string(page).unwrap();
        for (key, effect) in EFFECTS {
            let when = if effect == AtOnce { "immediately" } else { "next start" };
            let row = |line: &str| line.starts_with('|') && line.contains(&format!("`{key}`"));
            let line = page.lines().find(|line| row(line));
            assert!(line.is_some_and(|line| line.contains(when)), "{key} is {when}: {line:?}");
        }
    }
}
