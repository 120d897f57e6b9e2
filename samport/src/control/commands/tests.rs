use super::*;
use crate::model::groups::Group;
use crate::model::{Candidate, Condition, Egress, ServiceHints, State};

const LONG_ID: &str = "0123456789abcdef0123456789abcdef";

fn seated(name: &str, id: &str, endpoint: &str, port: u16) -> BackendView {
    BackendView {
        backend_ref: BackendRef {
            listen: Listen::tcp(port),
            id: id.into(),
            endpoint: endpoint.parse().unwrap(),
        },
        name: name.into(),
        service: None,
        group: None,
        weight: 1,
        state: State::Active,
        node: None,
        via: None,
        route_back: None,
        index: None,
        drains_until: None,
        is_last: false,
    }
}

/// `web-1` on two ports, `web-2` on one, a file's `plain`.
fn view() -> ControlView {
    let backends = vec![
        seated("web-1", LONG_ID, "10.0.0.1:80", 80),
        seated("web-1", LONG_ID, "10.0.0.1:443", 443),
        seated("web-2", "0123fedcba98765401234567", "10.0.0.2:80", 80),
        seated("plain", "plain", "10.0.0.3:80", 80),
    ];
    let services = [80, 443].map(|port| (Listen::tcp(port), Balance::Random)).into();
    ControlView { services, backends, left_out: 0, node_drained: false }
}

fn candidate(one: &BackendView) -> Candidate {
    Candidate {
        id: one.backend_ref.id.clone(),
        name: one.name.clone(),
        listen: one.backend_ref.listen,
        endpoint: one.backend_ref.endpoint,
        weight: one.weight,
        drain: None,
        condition: Condition::Ready,
        allow: crate::model::allow::Networks::new(),
        hints: ServiceHints::default(),
        place: None,
        egress: Egress::default(),
        started: None,
    }
}

/// Endpoints of those a name means, or why it means none.
fn meant(name: &str) -> Result<Vec<String>, CommandError> {
    let view = view();
    let found = backends_called(name, &view.backends)?;
    Ok(found.iter().map(|one| one.backend_ref.endpoint.to_string()).collect())
}

#[test]
fn a_name_means_its_container_on_all_its_ports() {
    assert_eq!(meant("web-1").unwrap(), ["10.0.0.1:80", "10.0.0.1:443"]);
    assert_eq!(meant("plain").unwrap(), ["10.0.0.3:80"]);
}

#[test]
fn a_node_drains_until_it_is_told_otherwise_and_that_is_written_down() {
    let mut view = view();
    view.backends[3].node = Some([192, 0, 2, 2].into());
    let mut orders = Overrides::default();
    let about = orders.take(&OperatorCommand::DrainNode, &view).unwrap();
    assert_eq!(about.len(), 3, "the other node is not meant");
    assert!(orders.drains_this_node());
    let written = serde_json::to_string(&orders).unwrap();
    assert_eq!(serde_json::from_str::<Overrides>(&written).unwrap(), orders);
    orders.take(&OperatorCommand::UndrainNode, &view).unwrap();
    assert_eq!(orders, Overrides::default());
}

#[test]
fn an_endpoint_or_the_beginning_of_an_id_means_what_it_fits() {
    assert_eq!(meant("10.0.0.1:443").unwrap(), ["10.0.0.1:443"]);
    assert_eq!(meant("01234").unwrap(), ["10.0.0.1:80", "10.0.0.1:443"]);
    assert_eq!(meant(LONG_ID).unwrap().len(), 2);
}

#[test]
fn an_address_means_its_containers_other_addresses_for_that_port_too() {
    let backends = [
        seated("web", LONG_ID, "10.0.0.1:80", 80),
        seated("web", LONG_ID, "[2001:db8::1]:80", 80),
        seated("web", LONG_ID, "10.0.0.1:443", 443),
    ];
    let meant = backends_called("[2001:db8::1]:80", &backends).unwrap();
    assert_eq!(meant, [&backends[0], &backends[1]]);
}

#[test]
fn who_means_nobody_learns_who_is_there() {
    // Of a file's name, only the whole of it counts.
    for name in ["web-3", "", "plai", "10.0.0.9:80"] {
        let Err(CommandError::Unknown(why)) = meant(name) else { panic!("{name:?} is known") };
        assert!(why.contains("web-1, web-2") && why.contains(&format!("{name:?}")), "{why}");
    }
    let Err(CommandError::Unknown(why)) = backends_called("web", &[]) else { panic!("known") };
    assert!(why.contains("there are none"), "{why}");
}

#[test]
fn several_containers_are_not_meant_together() {
    let Err(CommandError::Ambiguous(why)) = meant("0123") else { panic!("it is clear") };
    for one in ["web-1 10.0.0.1:80 on :80", "web-1 10.0.0.1:443 on :443", "web-2 10.0.0.2:80"] {
        assert!(why.contains(one), "{why}");
    }
}

#[test]
fn one_address_of_the_command_line_on_several_ports_is_one() {
    let backends = [80, 443].map(|port| {
        let endpoint = format!("10.0.0.2:{port}");
        seated("10.0.0.2", &endpoint, &endpoint, port)
    });
    assert_eq!(backends_called("10.0.0.2", &backends).unwrap().len(), 2);
    assert_eq!(backends_called("10.0.0.2:80", &backends).unwrap().len(), 1);
}

#[test]
fn a_drain_is_the_containers_and_ends_with_its_id() {
    let (mut orders, view) = (Overrides::default(), view());
    let backend_refs = orders.take(&OperatorCommand::Drain("web-1".into()), &view).unwrap();
    assert_eq!(backend_refs.len(), 2);
    let [first, second, other, _] = &view.backends[..] else { panic!("another view") };
    assert!(orders.drains(&candidate(first)) && orders.drains(&candidate(second)));
    assert!(!orders.drains(&candidate(other)));
    // Started again it has the same id and maybe another address.
    let again = Candidate { endpoint: "10.0.0.9:80".parse().unwrap(), ..candidate(first) };
    assert!(orders.drains(&again));
    assert!(!orders.drains(&Candidate { id: "another".into(), ..candidate(first) }));
    orders.take(&OperatorCommand::Undrain("10.0.0.1:443".into()), &view).unwrap();
    assert!(orders.drains(&candidate(first)) && !orders.drains(&candidate(second)));
}

#[test]
fn a_weight_is_the_names_whoever_has_it() {
    let (mut orders, view) = (Overrides::default(), view());
    orders.take(&OperatorCommand::Weight("web-2".into(), 7), &view).unwrap();
    let other = candidate(&view.backends[2]);
    assert_eq!(orders.weight_of(&other), 7);
    assert_eq!(orders.weight_of(&Candidate { id: "another".into(), ..other.clone() }), 7);
    assert_eq!(orders.weight_of(&candidate(&view.backends[0])), 1);
    orders.take(&OperatorCommand::Weight("web-2".into(), 0), &view).unwrap();
    assert_eq!(orders.weight_of(&other), 0);
}

#[test]
fn a_service_chooses_as_ordered() {
    let (mut orders, view) = (Overrides::default(), view());
    for name in ["80", "80/tcp"] {
        let order = OperatorCommand::Balance(name.into(), Balance::Maglev);
        assert_eq!(orders.take(&order, &view).unwrap().len(), 3);
        assert_eq!(orders.balance().collect::<Vec<_>>(), [(Listen::tcp(80), Balance::Maglev)]);
    }
    let order = OperatorCommand::Balance("53/udp".into(), Balance::Maglev);
    let Err(CommandError::Unknown(why)) = orders.take(&order, &view) else { panic!("known") };
    assert!(why.contains("53/udp") && why.contains("80, 443"), "{why}");
}

#[test]
fn what_is_refused_changes_nothing() {
    let mut orders = Overrides::default();
    for order in [
        OperatorCommand::Drain("web-3".into()),
        OperatorCommand::Undrain("0123".into()),
        OperatorCommand::Weight("web-3".into(), 4),
        OperatorCommand::Balance("81".into(), Balance::Maglev),
    ] {
        assert!(orders.take(&order, &view()).is_err(), "{order:?}");
    }
    assert_eq!(orders, Overrides::default());
}

#[test]
fn orders_about_the_long_gone_make_room() {
    let (mut orders, view) = (Overrides::default(), view());
    orders.take(&OperatorCommand::Drain("web-1".into()), &view).unwrap();
    orders.take(&OperatorCommand::Weight("web-1".into(), 2), &view).unwrap();
    let gone = (0..KEPT).map(|number| (format!("gone-{number}"), Listen::tcp(80)));
    orders.drained.extend(gone.clone());
    orders.weights.extend(gone.map(|key| (key, 3)));
    orders.take(&OperatorCommand::Drain("web-2".into()), &view).unwrap();
    assert_eq!((orders.drained.len(), orders.weights.len()), (3, 2));
}

#[test]
fn a_weight_may_be_a_groups_unless_a_backend_has_its_name() {
    let mut view = view();
    for (one, group) in view.backends.iter_mut().zip(["canary", "canary", "plain", "plain"]) {
        one.group = Some(Group { name: group.into(), weight: 100 });
    }
    let mut orders = Overrides::default();
    let about = orders.take(&OperatorCommand::Weight("canary".into(), 5), &view).unwrap();
    assert_eq!(about.len(), 2);
    assert_eq!(*orders.group_weights(), [("canary".to_owned(), 5)].into());
    let about = orders.take(&OperatorCommand::Weight("plain".into(), 7), &view).unwrap();
    assert_eq!(about.len(), 1);
    assert_eq!(orders.group_weights().len(), 1);
    assert_eq!(orders.weight_of(&candidate(&view.backends[3])), 7);
    assert_eq!(orders.weight_of(&candidate(&view.backends[0])), 1);
}

#[test]
fn a_service_is_found_by_its_port_or_by_what_its_containers_call_it() {
    let mut view = view();
    for (one, name) in view.backends.iter_mut().zip(["shop", "both", "both", "80"]) {
        one.service = Some(name.into());
    }
    assert_eq!(service_called("443", &view), Ok(Listen::tcp(443)));
    assert_eq!(service_called("shop", &view), Ok(Listen::tcp(80)));
    assert_eq!(service_called("80", &view), Ok(Listen::tcp(80)));
    let Err(CommandError::Ambiguous(why)) = service_called("both", &view) else { panic!("one") };
    assert!(why.contains("443, 80") || why.contains("80, 443"), "{why}");
    let Err(CommandError::Unknown(why)) = service_called("shed", &view) else { panic!("known") };
    assert!(why.contains("\"shed\"; there are 80, 443"), "{why}");
}
