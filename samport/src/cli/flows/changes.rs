//! What has opened and closed between two looks. Pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use samport_common::wire::protocol::Protocol;

use super::Named;

/// What tells a flow from all others of the moment: its ends, and where it goes.
pub(super) type Key = (Protocol, SocketAddr, SocketAddr, Option<SocketAddr>);

/// What has happened to a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FlowChange<'a> {
    Opened(&'a Named),
    Closed(&'a Named),
}

/// Flows by what tells them apart.
pub(super) fn by_key(flows: Vec<Named>) -> BTreeMap<Key, Named> {
    let key = |one: &Named| {
        let flow = &one.flow;
        (flow.protocol, flow.client, flow.dialled, flow.endpoint)
    };
    flows.into_iter().map(|one| (key(&one), one)).collect()
}

/// Those that are gone, then those that have come.
pub(super) fn between<'a>(
    before: &'a BTreeMap<Key, Named>,
    now: &'a BTreeMap<Key, Named>,
) -> impl Iterator<Item = FlowChange<'a>> {
    let gone = before.iter().filter(|(key, _)| !now.contains_key(key));
    let come = now.iter().filter(|(key, _)| !before.contains_key(key));
    gone.map(|(_, one)| FlowChange::Closed(one)).chain(come.map(|(_, one)| FlowChange::Opened(one)))
}

#[cfg(test)]
mod tests {
    use super::super::show::tests::named;
    use super::*;

    #[test]
    fn what_stays_is_not_told_of_and_what_goes_elsewhere_is_another() {
        let stays = named("192.0.2.1:1000", "10.0.0.1:80");
        let (mut goes, mut moves) =
            (named("192.0.2.1:1001", "10.0.0.1:80"), named("192.0.2.1:1002", "10.0.0.1:80"));
        goes.backend = Some("web-1".into());
        let before = by_key(vec![stays.clone(), goes.clone(), moves.clone()]);
        let was = moves.clone();
        moves.flow.endpoint = Some("10.0.0.2:80".parse().unwrap());
        let now = by_key(vec![stays, moves.clone()]);
        let told: Vec<_> = between(&before, &now).collect();
        assert_eq!(
            told,
            [FlowChange::Closed(&goes), FlowChange::Closed(&was), FlowChange::Opened(&moves)]
        );
        assert_eq!(between(&now, &now).count(), 0);
    }
}
