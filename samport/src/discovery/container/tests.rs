use std::time::Duration;

use super::*;
use crate::model::check::Rhythm;

/// A running container `web-1` with one network, changed by `change`.
fn web(labels: &[(&str, &str)], change: impl FnOnce(&mut ContainerView)) -> ContainerView {
    let mut view = ContainerView {
        id: "0123456789abcdef".into(),
        name: "web-1".into(),
        pid: Some(42),
        running: true,
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        image: "web:1".into(),
        network_mode: "bridge".into(),
        networks: [("bridge".to_owned(), v4(2))].into(),
        ..ContainerView::default()
    };
    change(&mut view);
    view
}

fn v4(last: u8) -> Attachment {
    let ipv4 = Some(Ipv4Addr::new(172, 17, 0, last));
    Attachment { ipv4, ipv6: None, mac: Some([2, 0, 0, 0, 0, last]) }
}

fn policy(ports: &[&str], filters: &[&str], health: &str) -> Policy {
    Policy {
        ports: ports.iter().map(|p| p.parse().unwrap()).collect(),
        filters: Filters::new(filters.iter().map(|f| f.parse().unwrap()).collect()),
        health: Config { source: health.parse().unwrap(), ..Config::default() },
        label_ports: PortRanges::default(),
    }
}

fn run(view: &ContainerView, ports: &[&str], filters: &[&str]) -> Result<Offer, Rejection> {
    offer(view, &policy(ports, filters, "docker"), None)
}

/// What is offered, as `listen>endpoint`.
fn served(offer: &Offer) -> String {
    let one = |c: &Candidate| format!("{}>{}", c.listen.brief(), c.endpoint);
    offer.candidates.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
fn labels_or_filters_select() {
    let all: &[&str] = &["name=web-*"];
    for (labels, filters, expected) in [
        (&[][..], &[][..], false),
        (&[("other", "x")], &[], false),
        (&[("samport.enable", "true")], &[], true),
        (&[("samport.weight", "2")], &[], true),
        (&[("samport.enable", "false"), ("samport.port", "80")], &[], false),
        (&[("samport.enable", "false"), ("samport.port", "nonsense")], &[], false),
        (&[], all, true),
        (&[("samport.enable", "false")], all, false),
        (&[("samport.enable", "true")], &["name=other"], false),
    ] {
        let offer = run(&web(labels, |_| ()), &["80"], filters).unwrap();
        assert_eq!(!offer.candidates.is_empty(), expected, "{labels:?} {filters:?}");
    }
}

#[test]
fn one_that_does_not_run_offers_nothing_and_is_not_complained_about() {
    let view = web(&[("samport.port", "nonsense")], |view| view.running = false);
    assert_eq!(run(&view, &["80"], &[]), Ok(Offer::default()));
}

#[test]
fn ports_come_from_flags_and_labels() {
    const ENABLE: (&str, &str) = ("samport.enable", "true");
    for (flags, labels, exposed, expected) in [
        (&["80"][..], &[ENABLE][..], &[][..], "80>172.17.0.2:80"),
        (&["80"], &[ENABLE], &["8080"], "80>172.17.0.2:8080"),
        (&["80"], &[ENABLE], &["8080", "8443"], "80>172.17.0.2:80"),
        (&["80"], &[ENABLE], &["8080", "5353/udp"], "80>172.17.0.2:8080"),
        (&["53/udp"], &[ENABLE], &["8080", "5353/udp"], "53/udp>172.17.0.2:5353"),
        (&["53/udp"], &[ENABLE], &["8080"], "53/udp>172.17.0.2:53"),
        (&["80", "443:8443"], &[ENABLE], &[], "80>172.17.0.2:80 443>172.17.0.2:8443"),
        (&["80:9090"], &[("samport.target", "7070")], &["8080"], "80>172.17.0.2:9090"),
        (&["80"], &[("samport.target", "7070")], &["8080"], "80>172.17.0.2:7070"),
        (&["80"], &[("samport.ports", "80:6060")], &["8080"], "80>172.17.0.2:6060"),
        (
            &["80"],
            &[("samport.ports", "80:6060"), ("samport.target", "7070")],
            &[],
            "80>172.17.0.2:7070",
        ),
        (&["80:9090"], &[("samport.ports", "80:6060")], &[], "80>172.17.0.2:9090"),
        (&["80", "443"], &[("samport.port", "443")], &[], "443>172.17.0.2:443"),
        (&[], &[("samport.port", "80")], &[], "80>172.17.0.2:80"),
        (&[], &[("samport.port", "80")], &["8080"], "80>172.17.0.2:8080"),
        (&[], &[("samport.ports", "80:1,81:2/tcp")], &[], "80>172.17.0.2:1 81>172.17.0.2:2"),
        (
            &[],
            &[("samport.ports", "53,53:5353/udp")],
            &[],
            "53>172.17.0.2:53 53/udp>172.17.0.2:5353",
        ),
        (&["53", "53/udp"], &[("samport.port", "53/udp")], &[], "53/udp>172.17.0.2:53"),
        (&["80"], &[("samport.ports", "53/udp")], &[], ""),
    ] {
        let view = web(labels, |view| {
            view.exposed = exposed.iter().map(|port| port.parse().unwrap()).collect();
        });
        let offer = run(&view, flags, &[]).unwrap();
        assert_eq!(served(&offer), expected, "{flags:?} {labels:?} {exposed:?}");
    }
}

#[test]
fn every_address_and_port_makes_a_candidate() {
    let view = web(&[("samport.weight", "3")], |view| {
        view.networks.get_mut("bridge").unwrap().ipv6 = Some("2001:db8::2".parse().unwrap());
    });
    let offer = run(&view, &["80", "81:8081"], &[]).unwrap();
    assert_eq!(
        served(&offer),
        "80>172.17.0.2:80 80>[2001:db8::2]:80 81>172.17.0.2:8081 81>[2001:db8::2]:8081"
    );
    assert!(offer.candidates.iter().all(|c| c.name == "web-1" && c.weight == 3));
    assert_eq!(offer.network, view.networks["bridge"]);
}

#[test]
fn a_label_port_that_no_flag_opens_is_told_and_left_out() {
    let view = web(&[("samport.ports", "80,443,53/udp")], |_| ());
    let offer = run(&view, &["80"], &[]).unwrap();
    assert_eq!(served(&offer), "80>172.17.0.2:80");
    let warnings = offer.warnings.join("\n");
    assert!(warnings.contains("port 443") && warnings.contains("-p 443"), "{warnings}");
    assert!(warnings.contains("port 53/udp") && warnings.contains("-p 53/udp"), "{warnings}");
    assert!(offer.warnings.iter().all(|w| w.contains("\"web-1\"")), "{warnings}");
}

#[test]
fn health_and_state_make_the_condition() {
    use Condition::{Draining, Ready, Starting, Unchecked, Unhealthy};
    use ContainerHealth::Healthy;
    let checked = |source: &str| match source.parse() {
        Ok(CheckOrigin::Http(page)) => Config::default().checked(Method::Http(page)),
        _ => Config::default().checked(Method::Tcp),
    };
    let (tcp, page) = (|| checked("tcp"), || checked("http:8080/up"));
    for (default, label, health, over_tcp, over_udp) in [
        ("docker", "", None, tcp(), Ready),
        ("docker", "", Some(ContainerHealth::Starting), Starting, Starting),
        ("docker", "", Some(Healthy), Ready, Ready),
        ("docker", "", Some(ContainerHealth::Unhealthy), Unhealthy, Unhealthy),
        ("docker", "tcp", Some(ContainerHealth::Unhealthy), tcp(), Unhealthy),
        ("docker", "none", Some(ContainerHealth::Starting), Unchecked, Unchecked),
        ("docker", "none", None, Unchecked, Unchecked),
        ("docker", "http:8080/up", None, page(), page()),
        ("docker", "http:8080/up", Some(ContainerHealth::Unhealthy), page(), page()),
        ("tcp", "", None, tcp(), Ready),
        ("tcp", "", Some(ContainerHealth::Starting), tcp(), Starting),
        ("tcp", "docker", Some(Healthy), Ready, Ready),
        ("http:8080/up", "", Some(Healthy), page(), page()),
        ("http:8080/up", "tcp", None, tcp(), Ready),
        ("none", "", None, Unchecked, Unchecked),
        ("none", "", Some(ContainerHealth::Unhealthy), Unchecked, Unchecked),
        ("none", "tcp", None, tcp(), Ready),
    ] {
        let mut labels = vec![("samport.enable", "true")];
        if !label.is_empty() {
            labels.push(("samport.health", label));
        }
        let condition = |port, change: fn(&mut ContainerView)| {
            let mut view = web(&labels, change);
            view.health = health;
            let offer = offer(&view, &policy(&[port], &[], default), None).unwrap();
            offer.candidates[0].condition.clone()
        };
        assert_eq!(condition("80", |_| ()), over_tcp, "{default:?} {label:?} {health:?}");
        assert_eq!(condition("80/udp", |_| ()), over_udp, "{default:?} {label:?} {health:?}");
        for port in ["80", "80/udp"] {
            assert_eq!(condition(port, |view| view.paused = true), Draining);
            assert_eq!(condition(port, |view| view.stopping = true), Draining);
        }
    }
}

#[test]
fn labels_beat_the_rhythm_of_the_run_one_by_one() {
    let labels = [("samport.health.interval", "1m"), ("samport.health.rise", "7")];
    let offer = run(&web(&labels, |_| ()), &["80"], &[]).unwrap();
    let Condition::Checked(check) = &offer.candidates[0].condition else { panic!("{offer:?}") };
    let expected = Rhythm { interval: Duration::from_mins(1), rise: 7, ..Rhythm::default() };
    assert_eq!(check.rhythm, expected);
}

#[test]
fn the_network_is_clear_or_asked_for() {
    let two = |labels: &[(&str, &str)]| {
        web(labels, |view| {
            view.networks = [("back".to_owned(), v4(3)), ("front".to_owned(), v4(4))].into();
        })
    };
    let on = |labels: &[(&str, &str)], filters: &[&str]| {
        run(&two(labels), &["80"], filters).map(|offer| served(&offer))
    };
    let enable = [("samport.enable", "true")];
    let error = on(&enable, &[]).unwrap_err().to_string();
    for word in ["\"web-1\"", "samport.network", "back, front"] {
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(on(&[("samport.network", "front")], &[]).unwrap(), "80>172.17.0.4:80");
    assert_eq!(on(&enable, &["network=back"]).unwrap(), "80>172.17.0.3:80");
    assert_eq!(on(&[("samport.network", "front")], &["network=back"]).unwrap(), "80>172.17.0.4:80");
    assert!(on(&enable, &["network=back", "network=front"]).is_err());
    let error = on(&[("samport.network", "side")], &[]).unwrap_err().to_string();
    assert!(error.contains("samport.network=\"side\"") && error.contains("back, front"), "{error}");
}

/// Case 87: `network: none` and rootless Podman among them.
#[test]
fn what_cannot_be_served_is_said_with_a_way_out() {
    type Change = fn(&mut ContainerView);
    let mode: fn(&mut ContainerView, &str) = |view, mode| {
        view.network_mode = mode.into();
        view.networks = [(mode.to_owned(), Attachment::default())].into();
    };
    let cases: [(&str, &str, Change, bool, &[&str]); 10] = [
        ("samport.enable", "true", |v| v.network_mode = "none".into(), false, &["--network none"]),
        (
            "samport.enable",
            "true",
            |v| v.network_mode = "host".into(),
            false,
            &["--network host", "port 80 is for samport", "samport.target=PORT"],
        ),
        (
            "samport.enable",
            "true",
            |v| v.network_mode = "container:0123456789abcdef0123".into(),
            false,
            &["container 0123456789ab;", "that one"],
        ),
        ("samport.enable", "true", |v| v.network_mode = "slirp4netns".into(), false, &["rootless"]),
        ("samport.enable", "true", |v| v.network_mode = "pasta".into(), false, &["rootless"]),
        ("samport.enable", "true", |v| v.networks.clear(), true, &["network connect"]),
        (
            "samport.enable",
            "true",
            |v| v.networks = [("front".to_owned(), Attachment::default())].into(),
            true,
            &["no address in network \"front\""],
        ),
        ("samport.weight", "x", |_| (), false, &["samport.weight=\"x\"", "weight of 0-65535"]),
        ("samport.health", "docker", |_| (), false, &["HEALTHCHECK", "samport.health=tcp"]),
        ("samport.port", "no", |_| (), false, &["samport.port=\"no\"", "expected 1-65535"]),
    ];
    for (key, value, change, passing, words) in cases {
        let rejection = run(&web(&[(key, value)], change), &["80"], &[]).unwrap_err();
        assert_eq!(rejection.passing, passing, "{rejection}");
        let text = rejection.to_string();
        assert!(text.starts_with("container \"web-1\" is not served: "), "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
    assert!(run(&web(&[], |view| mode(view, "none")), &["80"], &["name=*"]).is_err());
}

#[test]
fn on_the_hosts_network_the_address_is_left_open() {
    let view = web(&[("samport.port", "80:9090")], |view| {
        view.network_mode = "host".into();
        view.networks = [("host".to_owned(), Attachment::default())].into();
    });
    assert_eq!(served(&run(&view, &["80"], &[]).unwrap()), "80>0.0.0.0:9090 80>[::]:9090");
    // Of two ports, one may be fit.
    let offer = run(&view, &["80", "9090"], &["name=*"]);
    assert!(offer.unwrap_err().to_string().contains("port 9090 is for samport"));
    let view = web(&[("samport.ports", "80:9090,81")], |view| view.network_mode = "host".into());
    let offer = run(&view, &[], &[]).unwrap();
    assert_eq!(served(&offer), "80>0.0.0.0:9090 80>[::]:9090");
    assert!(offer.warnings[0].contains("port 81 is for samport"), "{:?}", offer.warnings);
}

#[test]
fn without_any_port_the_way_out_names_both() {
    for (labels, filters) in [(&[("samport.enable", "true")][..], &[][..]), (&[], &["name=*"])] {
        let error = run(&web(labels, |_| ()), &[], filters).unwrap_err().to_string();
        assert!(error.contains("-p PORT") && error.contains("samport.port=PORT"), "{error}");
    }
}

#[test]
fn labels_claim_the_ports_that_the_operator_lets_them() {
    let with = |ports: &str, flags: &[&str]| {
        let ranges = ["80", "8000-8999"].map(|text| text.parse().unwrap()).into();
        let policy =
            Policy { label_ports: PortRanges::new(ranges), ..policy(flags, &[], "docker") };
        offer(&web(&[("samport.ports", ports)], |_| {}), &policy, None)
    };
    assert_eq!(
        served(&with("80,8500:9090", &[]).unwrap()),
        "80>172.17.0.2:80 8500>172.17.0.2:9090"
    );
    let some = with("22,80", &[]).unwrap();
    assert_eq!(served(&some), "80>172.17.0.2:80");
    assert!(some.warnings[0].contains("claim port 22, and --label-ports"), "{:?}", some.warnings);
    let none = with("22,9000/udp", &[]).unwrap_err().to_string();
    for word in ["\"web-1\" is not served", "22, 9000/udp", "80,8000-8999"] {
        assert!(none.contains(word), "{none}");
    }
    // What -p opens is open.
    assert_eq!(served(&with("22", &["22"]).unwrap()), "22>172.17.0.2:22");
}

#[test]
fn a_container_belongs_to_its_service_its_project_and_its_image() {
    let project = ("com.docker.compose.project", "shop");
    let of = |labels: &[(&str, &str)], image: &str, flags: &[&str]| {
        let view = web(labels, |view| view.image = image.to_owned());
        let offer = run(&view, flags, &[]).unwrap();
        let Application { service, project, image } = offer.candidates[0].hints.application.clone();
        [service, project, image].map(Option::unwrap_or_default).join("|")
    };
    let own = ("samport.port", "80");
    assert_eq!(
        of(&[own, project, ("samport.service", "web")], "reg:5000/a/web:2", &[]),
        "web|shop|reg:5000/a/web"
    );
    assert_eq!(of(&[own], "web:1@sha256:00", &["80"]), "||web");
    for id in ["sha256:0123456789ab", "0123456789abcdef"] {
        assert_eq!(of(&[own], id, &[]), "||");
    }
    // A port of -p that it does not claim is the operator's.
    assert_eq!(of(&[project, ("samport.weight", "1")], "web", &["80"]), "||");
}
