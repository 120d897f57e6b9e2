//! `--spread` and the label of that name: whether a service's connections stay on this node. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::ports::Listen;
use crate::model::{Candidate, Condition, Reach, Spread};

/// How a service is spread, by its labels: the first one's word holds, as of all labels about a service.
type Labelled<'a> = BTreeMap<Listen, (Spread, &'a Candidate)>;

/// The candidates with those that stand for nodes as their services are spread, and sentences about services whose
/// containers disagree. `flag` is what holds where labels say nothing. `takes_new` says whether a container of this
/// node takes new connections.
///
/// A service that stays on this node while it can has nodes of weight 0, which keep the connections they have. One
/// that never leaves it has none, but for those that drain.
#[must_use]
pub fn apply(
    mut candidates: Vec<Candidate>,
    flag: Spread,
    mut takes_new: impl FnMut(&Candidate) -> bool,
) -> (Vec<Candidate>, Vec<String>) {
    if !candidates.iter().any(is_node) {
        return (candidates, Vec::new());
    }
    let (labels, complaints) = labelled(&candidates);
    let labels: BTreeMap<Listen, Spread> =
        labels.into_iter().map(|(listen, (spread, _))| (listen, spread)).collect();
    let of = |listen: &Listen| labels.get(listen).copied().unwrap_or(flag);
    let is_first = |one: &&Candidate| !is_node(one) && of(&one.listen) == Spread::LocalFirst;
    let first = candidates.iter().filter(is_first).filter(|one| takes_new(one));
    let served_here: BTreeSet<_> = first.map(family_of_service).collect();
    for candidate in candidates.iter_mut().filter(|one| is_node(one)) {
        match of(&candidate.listen) {
            Spread::LocalFirst if served_here.contains(&family_of_service(candidate)) => {
                candidate.weight = 0;
                // It is not leaving: its connections may stay for as long as they last.
                candidate.drain = Some(Duration::MAX);
            }
            Spread::All | Spread::LocalFirst => {}
            // None is begun, and those from before another word keep their connections.
            Spread::Local => candidate.condition = Condition::Draining,
        }
    }
    (candidates, complaints)
}

const fn is_node(candidate: &Candidate) -> bool {
    matches!(candidate.place, Some(Reach::Node(_)))
}

/// Clients of a family are served by containers of that family.
const fn family_of_service(candidate: &Candidate) -> (Listen, bool) {
    (candidate.listen, candidate.endpoint.is_ipv6())
}

/// What labels say of each service, and sentences about those whose containers disagree. Those that are leaving have
/// a say only if no other has one: a container is replaced to say something else.
fn labelled(candidates: &[Candidate]) -> (Labelled<'_>, Vec<String>) {
    let (leaving, staying): (Vec<_>, Vec<_>) =
        candidates.iter().partition(|one| one.condition == Condition::Draining);
    let mut labels = Labelled::new();
    let mut complaints = BTreeMap::new();
    for (candidate, stays) in staying
        .into_iter()
        .map(|one| (one, true))
        .chain(leaving.into_iter().map(|one| (one, false)))
    {
        let Some(spread) = candidate.hints.spread else { continue };
        let (holds, first) = *labels.entry(candidate.listen).or_insert((spread, candidate));
        if stays && holds != spread {
            let (holds, other) = (holds.name(), spread.name());
            complaints.entry(candidate.listen).or_insert_with(|| {
                format!(
                    "label samport.spread of port {} is {holds} on container {:?}, but {other} on {:?}; {holds} \
                     holds until they agree",
                    candidate.listen.brief(),
                    first.name,
                    candidate.name
                )
            });
        }
    }
    (labels, complaints.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::test::candidate;

    fn container(name: &str, spread: Option<Spread>) -> Candidate {
        let mut candidate = candidate(name);
        candidate.hints.spread = spread;
        candidate
    }

    /// Both candidates of a node with an IPv4 address.
    fn node() -> [Candidate; 2] {
        let of = |address: &str| Candidate {
            endpoint: address.parse().unwrap(),
            weight: 3,
            place: Some(Reach::Node(([192, 0, 2, 2], 6_080).into())),
            ..candidate("n2")
        };
        [of("192.0.2.2:80"), of("[::ffff:192.0.2.2]:80")]
    }

    /// The weights of the node's candidates, IPv4 first; `None` for one that drains.
    fn weights(containers: &[Candidate], flag: Spread) -> ([Option<u32>; 2], Vec<String>) {
        let all = [containers, &node()].concat();
        let (applied, complaints) = apply(all.clone(), flag, |one| one.weight > 0);
        assert_eq!(
            applied[..containers.len()],
            all[..containers.len()],
            "containers stay as they are"
        );
        let weight = |one: &Candidate| (one.condition == Condition::Ready).then_some(one.weight);
        let nodes: Vec<_> = applied[containers.len()..].iter().map(weight).collect();
        (nodes.try_into().unwrap(), complaints)
    }

    #[test]
    fn a_service_leaves_this_node_as_it_is_spread() {
        let ready = container("a", None);
        let off = Candidate { weight: 0, ..container("b", None) };
        for (flag, containers, expected) in [
            (Spread::All, vec![ready.clone()], [Some(3), Some(3)]),
            (Spread::LocalFirst, vec![ready.clone()], [Some(0), Some(3)]),
            (Spread::LocalFirst, vec![off.clone()], [Some(3), Some(3)]),
            (Spread::LocalFirst, vec![off.clone(), ready.clone()], [Some(0), Some(3)]),
            (Spread::LocalFirst, vec![], [Some(3), Some(3)]),
            (Spread::Local, vec![ready], [None, None]),
            (Spread::Local, vec![off], [None, None]),
            (Spread::Local, vec![], [None, None]),
        ] {
            assert_eq!(weights(&containers, flag).0, expected, "{flag:?} {containers:?}");
        }
    }

    #[test]
    fn another_port_is_another_service() {
        let mut other = container("a", Some(Spread::Local));
        other.listen.port += 1;
        assert_eq!(weights(&[other], Spread::LocalFirst).0, [Some(3), Some(3)]);
    }

    #[test]
    fn a_label_beats_the_flag() {
        for (label, expected) in [
            (Spread::All, [Some(3), Some(3)]),
            (Spread::LocalFirst, [Some(0), Some(3)]),
            (Spread::Local, [None, None]),
        ] {
            for flag in Spread::ALL {
                let containers = [container("a", None), container("b", Some(label))];
                assert_eq!(weights(&containers, flag), (expected, vec![]));
            }
        }
    }

    #[test]
    fn containers_that_disagree_are_named_and_the_first_ones_word_holds() {
        let containers = [
            container("a", Some(Spread::Local)),
            container("b", Some(Spread::All)),
            container("c", Some(Spread::LocalFirst)),
        ];
        let (weights, complaints) = weights(&containers, Spread::All);
        assert_eq!(weights, [None, None]);
        let [complaint] = &complaints[..] else { panic!("{complaints:?}") };
        for word in ["samport.spread of port 80", "\"a\"", "\"b\"", "local holds"] {
            assert!(complaint.contains(word), "{complaint}");
        }
    }

    #[test]
    fn who_is_leaving_has_no_say_beside_others() {
        let leaving =
            Candidate { condition: Condition::Draining, ..container("a", Some(Spread::Local)) };
        let with = |other| weights(&[leaving.clone(), container("b", other)], Spread::All);
        assert_eq!(with(Some(Spread::All)), ([Some(3), Some(3)], vec![]));
        assert_eq!(with(None), ([None, None], vec![]));
    }

    /// A long connection through a node is not cut because a container has started here.
    #[test]
    fn nodes_that_are_not_first_keep_their_connections() {
        let all = [vec![container("a", None)], node().to_vec()].concat();
        let (applied, _) = apply(all, Spread::LocalFirst, |_| true);
        assert_eq!(
            applied.iter().map(|one| one.drain).collect::<Vec<_>>(),
            [None, Some(Duration::MAX), None]
        );
    }
}
