//! How each port chooses among its backends: `--balance`, `--affinity` and the labels of the same names.
//! Pure.

use std::collections::BTreeMap;
use std::fmt::Display;

use samport_common::choose::Balance;

use crate::model::ports::Listen;
use crate::model::{Candidate, Condition};
use crate::plan::Policy;

/// Reads the name of a choice.
pub fn balance(text: &str) -> Result<Balance, String> {
    let known = Balance::ALL.into_iter().find(|balance| balance.name() == text);
    known.ok_or_else(|| {
        let names = Balance::ALL.map(Balance::name).join(", ");
        format!("invalid balance mode {text:?}: expected one of {names}")
    })
}

/// Reads for how long clients stay with their backend, in seconds: `30m`, `2h5m`, or a number of seconds.
pub fn affinity(text: &str) -> Result<u32, String> {
    let time = crate::model::duration::read(text)?;
    if time.subsec_nanos() != 0 {
        return Err(format!("invalid time {text:?}: expected whole seconds; 0 turns it off"));
    }
    Ok(u32::try_from(time.as_secs()).unwrap_or(u32::MAX))
}

/// How each of the ports chooses: as the labels of its containers say, or else as the flags do. Sentences
/// about those whose containers disagree: the first one's word holds, which does not change with every
/// container that is replaced.
#[must_use]
pub fn policies<'a>(
    ports: impl Iterator<Item = &'a Listen>,
    flags: Policy,
    candidates: &[Candidate],
) -> (BTreeMap<Listen, Policy>, Vec<String>) {
    let mut complaints = Vec::new();
    let of_port = |listen: &Listen| {
        let at_port: Vec<_> = candidates.iter().filter(|one| one.listen == *listen).collect();
        let balance = agreed(&at_port, "balance", |one| one.hints.balance.map(Name));
        let affinity = agreed(&at_port, "affinity", |one| one.hints.affinity.map(Seconds));
        complaints.extend([balance.1, affinity.1].into_iter().flatten());
        let balance = balance.0.map_or(flags.balance, |Name(balance)| balance);
        let affinity = affinity.0.map_or(flags.affinity, |Seconds(affinity)| affinity);
        (*listen, Policy { balance, affinity, ..flags })
    };
    (ports.map(of_port).collect(), complaints)
}

/// What the containers of a port say, and a sentence if they disagree. Those that are leaving have a say
/// only if no other has one: a container is replaced to say something else.
fn agreed<T: Copy + PartialEq + Display>(
    candidates: &[&Candidate],
    label: &str,
    word: impl Fn(&Candidate) -> Option<T>,
) -> (Option<T>, Option<String>) {
    let said = |leaving: bool| {
        let of = candidates.iter().filter(move |one| leaves(one) == leaving);
        of.filter_map(|one| Some((one, word(one)?)))
    };
    let Some((first, holds)) = said(false).next().or_else(|| said(true).next()) else {
        return (None, None);
    };
    let complaint = said(false).find(|(_, other)| *other != holds).map(|(second, other)| {
        format!(
            "label samport.{label} of port {} is {holds} on container {:?}, but {other} on {:?}; {holds} \
             holds until they agree",
            first.listen.brief(),
            first.name,
            second.name
        )
    });
    (Some(holds), complaint)
}

fn leaves(candidate: &Candidate) -> bool {
    candidate.condition == Condition::Draining
}

#[derive(Clone, Copy, PartialEq)]
struct Name(Balance);

impl Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.name())
    }
}

#[derive(Clone, Copy, PartialEq)]
struct Seconds(u32);

impl Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}s", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: Policy =
        Policy { balance: Balance::LeastConn, affinity: 7, drop: true, failover: false };

    fn candidate(name: &str, balance: Option<Balance>, affinity: Option<u32>) -> Candidate {
        let mut candidate = crate::model::test::candidate(name);
        candidate.hints.balance = balance;
        candidate.hints.affinity = affinity;
        candidate
    }

    fn of(candidates: &[Candidate]) -> (Policy, Vec<String>) {
        let listen = crate::model::test::candidate("any").listen;
        let (policies, complaints) = policies([listen].iter(), FLAGS, candidates);
        assert_eq!(policies.len(), 1);
        (policies[&listen], complaints)
    }

    #[test]
    fn choices_are_read_by_name() {
        for one in Balance::ALL {
            assert_eq!(balance(one.name()), Ok(one));
        }
        let error = balance("roundrobin").unwrap_err();
        assert!(error.contains("\"roundrobin\"") && error.contains("round-robin"), "{error}");
    }

    #[test]
    fn affinities_are_whole_seconds() {
        for (text, seconds) in [("0", 0), ("90", 90), ("30m", 1_800), ("30d", 2_592_000)] {
            assert_eq!(affinity(text), Ok(seconds));
        }
        for (text, way_out) in
            [("500ms", "0 turns it off"), ("soon", "30s or 2h5m"), ("31d", "30d at most")]
        {
            let error = affinity(text).unwrap_err();
            assert!(error.contains(&format!("{text:?}")) && error.contains(way_out), "{error}");
        }
    }

    #[test]
    fn each_label_beats_its_own_flag_alone() {
        assert_eq!(of(&[candidate("a", None, None)]), (FLAGS, vec![]));
        let (policy, complaints) = of(&[
            candidate("a", None, None),
            candidate("b", Some(Balance::Maglev), None),
            candidate("c", Some(Balance::Maglev), None),
        ]);
        assert_eq!(policy, Policy { balance: Balance::Maglev, ..FLAGS });
        assert_eq!(complaints, Vec::<String>::new());
        let (policy, _) = of(&[candidate("a", None, Some(0))]);
        assert_eq!(policy, Policy { affinity: 0, ..FLAGS });
    }

    #[test]
    fn labels_of_another_port_say_nothing() {
        let mut other = candidate("a", Some(Balance::Maglev), None);
        other.listen.port += 1;
        assert_eq!(of(&[other]).0, FLAGS);
    }

    #[test]
    fn containers_that_disagree_are_named_and_the_first_ones_word_holds() {
        let (policy, complaints) = of(&[
            candidate("a", Some(Balance::RoundRobin), Some(60)),
            candidate("b", Some(Balance::Random), Some(60)),
            candidate("c", None, Some(30)),
        ]);
        assert_eq!(policy, Policy { balance: Balance::RoundRobin, affinity: 60, ..FLAGS });
        let [balance, affinity] = &complaints[..] else { panic!("{complaints:?}") };
        for word in ["samport.balance", "\"a\"", "\"b\"", "round-robin holds"] {
            assert!(balance.contains(word), "{balance}");
        }
        for word in ["samport.affinity", "\"a\"", "\"c\"", "60s holds"] {
            assert!(affinity.contains(word), "{affinity}");
        }
    }

    #[test]
    fn who_is_leaving_has_no_say_beside_others() {
        let mut leaving = candidate("a", Some(Balance::RoundRobin), None);
        leaving.condition = Condition::Draining;
        let (policy, complaints) =
            of(&[leaving.clone(), candidate("b", Some(Balance::Maglev), None)]);
        assert_eq!((policy.balance, complaints), (Balance::Maglev, vec![]));
        let (policy, complaints) = of(&[leaving, candidate("b", None, None)]);
        assert_eq!((policy.balance, complaints), (Balance::RoundRobin, vec![]));
    }
}
