//! From the engine's inspect answer to [`ContainerView`].

use std::collections::BTreeSet;

use bollard::models::{ContainerInspectResponse, EndpointSettings, PortBinding, PortMap};

use super::container::{Attachment, ContainerView};
use super::events::health;
use super::published::Published;
use crate::model::ports::Listen;
use crate::system::escape;

/// Takes what we need. What is missing or makes no sense is left empty: the rules that need it
/// say so to the user.
pub(super) fn view(answer: ContainerInspectResponse) -> ContainerView {
    let state = answer.state.unwrap_or_default();
    let config = answer.config.unwrap_or_default();
    let settings = answer.network_settings.unwrap_or_default();
    let pid = state.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
    let status = state.health.and_then(|health| health.status);
    ContainerView {
        id: answer.id.unwrap_or_default(),
        name: escape::line(answer.name.unwrap_or_default().trim_start_matches('/')).into_owned(),
        pid,
        // While the engine waits to start it again, it is both running and restarting.
        running: state.running == Some(true) && state.restarting != Some(true),
        paused: state.paused == Some(true),
        stopping: false,
        health: status.and_then(|status| health(status.as_ref())),
        labels: config.labels.unwrap_or_default().into_iter().collect(),
        image: escape::line(&config.image.unwrap_or_default()).into_owned(),
        exposed: exposed(&config.exposed_ports.unwrap_or_default()),
        network_mode: answer.host_config.and_then(|host| host.network_mode).unwrap_or_default(),
        published: published(&settings.ports.unwrap_or_default()),
        networks: settings
            .networks
            .unwrap_or_default()
            .into_iter()
            .map(|(name, settings)| (name, attachment(&settings)))
            .collect(),
        stop_signal: config.stop_signal,
        started_at: state.started_at,
    }
}

/// The ports of `8080/tcp` and `53/udp`; protocols that cannot be balanced are left out.
fn exposed(ports: &[String]) -> BTreeSet<Listen> {
    ports.iter().filter_map(|text| text.parse().ok()).collect()
}

/// The ports of `"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]`.
fn published(ports: &PortMap) -> BTreeSet<Published> {
    let bound = |(own, bindings): (&String, &Option<Vec<PortBinding>>)| -> Vec<Published> {
        bindings.iter().flatten().filter_map(|binding| Published::bound(own, binding)).collect()
    };
    ports.iter().flat_map(bound).collect()
}

fn attachment(settings: &EndpointSettings) -> Attachment {
    let mac = settings.mac_address.as_deref().and_then(mac);
    Attachment {
        ipv4: settings.ip_address.as_ref().and_then(|text| text.parse().ok()),
        ipv6: settings.global_ipv6_address.as_ref().and_then(|text| text.parse().ok()),
        mac,
    }
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::container::ContainerHealth;

    fn read(json: serde_json::Value) -> ContainerView {
        view(serde_json::from_value(json).unwrap())
    }

    #[test]
    fn an_answer_is_read() {
        let view = read(serde_json::json!({
            "Id": "c1", "Name": "/web-1",
            "State": {"Running": true, "Paused": false, "Restarting": false, "Pid": 42,
                      "StartedAt": "2026-01-01T00:00:00.5Z", "Health": {"Status": "starting"}},
            "HostConfig": {"NetworkMode": "default"},
            "Config": {"Image": "web:1", "Labels": {"samport.port": "80"}, "StopSignal": "SIGQUIT",
                       "ExposedPorts": {"8080/tcp": {}, "53/udp": {}, "9/sctp": {}}},
            "NetworkSettings": {
                "Ports": {"53/udp": null, "8080/tcp": [{"HostIp": "0.0.0.0", "HostPort": "80"}]},
                "Networks": {"bridge": {
                "IPAddress": "172.17.0.2", "GlobalIPv6Address": "", "MacAddress": "02:42:ac:11:00:02"}}}
        }));
        let network = Attachment {
            ipv4: Some([172, 17, 0, 2].into()),
            ipv6: None,
            mac: Some([2, 0x42, 0xac, 0x11, 0, 2]),
        };
        let binding = PortBinding { host_ip: Some("0.0.0.0".into()), host_port: Some("80".into()) };
        let expected = ContainerView {
            id: "c1".into(),
            name: "web-1".into(),
            pid: Some(42),
            running: true,
            health: Some(ContainerHealth::Starting),
            labels: [("samport.port".to_owned(), "80".to_owned())].into(),
            image: "web:1".into(),
            exposed: [Listen::udp(53), Listen::tcp(8080)].into(),
            published: Published::bound("8080/tcp", &binding).into_iter().collect(),
            network_mode: "default".into(),
            networks: [("bridge".to_owned(), network)].into(),
            stop_signal: Some("SIGQUIT".into()),
            started_at: Some("2026-01-01T00:00:00.5Z".into()),
            ..ContainerView::default()
        };
        assert_eq!(view, expected);
    }

    #[test]
    fn one_that_waits_for_its_restart_does_not_run() {
        assert!(!read(serde_json::json!({"State": {"Running": true, "Restarting": true}})).running);
        assert!(read(serde_json::json!({"State": {"Running": true}})).running);
        assert!(!read(serde_json::json!({})).running);
    }

    #[test]
    fn no_health_check_is_none() {
        for status in ["none", ""] {
            let state = serde_json::json!({"State": {"Health": {"Status": status}}});
            assert_eq!(read(state).health, None, "{status:?}");
        }
    }

    #[test]
    fn macs_are_read() {
        assert_eq!(mac("02:42:ac:11:00:02"), Some([2, 0x42, 0xac, 0x11, 0, 2]));
        for text in ["", "02:42", "02:42:ac:11:00:02:03", "02:42:ac:11:00:zz"] {
            assert_eq!(mac(text), None, "{text}");
        }
    }
}
