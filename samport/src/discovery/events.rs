//! The engine's events, as far as they concern us.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use bollard::models::{EventMessage, EventMessageTypeEnum};

use super::container::ContainerHealth;

/// A container's event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Notice {
    /// The container's id.
    pub(super) id: String,
    /// When the engine saw it happen.
    pub(super) at: Option<SystemTime>,
    pub(super) event: Event,
}

/// What has happened to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Event {
    Started,
    /// It runs no more.
    Died,
    /// It will never run again.
    Removed,
    /// It was sent a signal, which may or may not stop it.
    Signalled(i32),
    Paused(bool),
    /// Docker says how it is; Podman only that there is news.
    HealthChanged(Option<ContainerHealth>),
    LeftNetwork(String),
    /// Something else about it may be different.
    Changed,
}

/// Reads an event; `None` if it is nothing to us.
pub(super) fn read(message: EventMessage) -> Option<Notice> {
    let at = message.time_nano.and_then(|ns| u64::try_from(ns).ok());
    let at = at.map(|ns| SystemTime::UNIX_EPOCH + Duration::from_nanos(ns));
    let actor = message.actor?;
    let mut attributes = actor.attributes.unwrap_or_default();
    let action = message.action?;
    let (id, event) = match message.typ? {
        EventMessageTypeEnum::CONTAINER => (actor.id?, container_event(&action, &attributes)?),
        EventMessageTypeEnum::NETWORK => {
            // Docker's actor is the network, and its attributes name network and container. Podman's is the
            // container; its attributes have that one's name, and the network's in some versions of Podman 5.
            let (id, network) = match attributes.remove("container") {
                Some(container) => (container, attributes.remove("name")),
                None => (actor.id?, attributes.remove("network")),
            };
            match (action.as_str(), network) {
                ("disconnect", Some(network)) => (id, Event::LeftNetwork(network)),
                ("connect" | "disconnect", _) => (id, Event::Changed),
                _ => return None,
            }
        }
        _ => return None,
    };
    Some(Notice { id, at, event })
}

fn container_event(action: &str, attributes: &HashMap<String, String>) -> Option<Event> {
    let (action, detail) = match action.split_once(':') {
        Some((action, detail)) => (action, detail.trim()),
        None => (action, ""),
    };
    Some(match action {
        "start" => Event::Started,
        "die" => Event::Died,
        // Docker's word and Podman's.
        "destroy" | "remove" => Event::Removed,
        "kill" => Event::Signalled(attributes.get("signal").and_then(|text| signal(text))?),
        "pause" => Event::Paused(true),
        "unpause" => Event::Paused(false),
        "health_status" => Event::HealthChanged(health(detail)),
        // Podman tells `stop` before `die`, while it may still run.
        "rename" | "update" | "stop" => Event::Changed,
        _ => return None,
    })
}

/// Reads the engine's word for health; `None` for those that have no check.
pub(super) fn health(text: &str) -> Option<ContainerHealth> {
    match text {
        "starting" => Some(ContainerHealth::Starting),
        "healthy" => Some(ContainerHealth::Healthy),
        "unhealthy" => Some(ContainerHealth::Unhealthy),
        _ => None,
    }
}

/// Reads a signal, given as `15`, `TERM`, `SIGTERM` or `SIGRTMIN+3`.
pub(super) fn signal(text: &str) -> Option<i32> {
    /// The first real-time signal as glibc's and Go's programs count; the kernel's 32 and 33 are
    /// taken by glibc.
    const RTMIN: i32 = 34;
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(text);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return if offset.is_empty() {
            Some(RTMIN)
        } else {
            Some(RTMIN + offset.parse::<i32>().ok()?)
        };
    }
    Some(match name {
        "HUP" => libc::SIGHUP,
        "INT" => libc::SIGINT,
        "QUIT" => libc::SIGQUIT,
        "ABRT" => libc::SIGABRT,
        "KILL" => libc::SIGKILL,
        "USR1" => libc::SIGUSR1,
        "USR2" => libc::SIGUSR2,
        "ALRM" => libc::SIGALRM,
        "TERM" => libc::SIGTERM,
        "WINCH" => libc::SIGWINCH,
        "PWR" => libc::SIGPWR,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::EventActor;

    fn message(
        typ: EventMessageTypeEnum,
        action: &str,
        attributes: &[(&str, &str)],
    ) -> EventMessage {
        let attributes =
            attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        EventMessage {
            typ: Some(typ),
            action: Some(action.into()),
            actor: Some(EventActor { id: Some("c1".into()), attributes: Some(attributes) }),
            time_nano: Some(1_500_000_000),
            ..EventMessage::default()
        }
    }

    #[test]
    fn container_events_are_read() {
        use Event::{Changed, Died, HealthChanged, Paused, Removed, Signalled, Started};
        for (action, attributes, expected) in [
            ("start", &[][..], Some(Started)),
            ("die", &[], Some(Died)),
            ("destroy", &[], Some(Removed)),
            ("remove", &[], Some(Removed)),
            ("kill", &[("signal", "15")], Some(Signalled(15))),
            ("kill", &[("signal", "SIGKILL")], Some(Signalled(9))),
            ("kill", &[], None),
            ("pause", &[], Some(Paused(true))),
            ("unpause", &[], Some(Paused(false))),
            ("health_status: healthy", &[], Some(HealthChanged(Some(ContainerHealth::Healthy)))),
            (
                "health_status: unhealthy",
                &[],
                Some(HealthChanged(Some(ContainerHealth::Unhealthy))),
            ),
            ("health_status", &[], Some(HealthChanged(None))),
            ("rename", &[("name", "b")], Some(Changed)),
            ("update", &[], Some(Changed)),
            ("stop", &[], Some(Changed)),
            ("exec_create: /bin/true", &[], None),
            ("create", &[], None),
            ("oom", &[], None),
        ] {
            let notice = read(message(EventMessageTypeEnum::CONTAINER, action, attributes));
            let at = Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1500));
            let expected = expected.map(|event| Notice { id: "c1".into(), at, event });
            assert_eq!(notice, expected, "{action}");
        }
    }

    #[test]
    fn network_events_belong_to_their_container() {
        let read = |action, attributes: &[_]| {
            read(message(EventMessageTypeEnum::NETWORK, action, attributes))
                .map(|n| (n.id, n.event))
        };
        let named = [("container", "c2"), ("name", "front")];
        assert_eq!(read("connect", &named), Some(("c2".into(), Event::Changed)));
        let left = Event::LeftNetwork("front".into());
        assert_eq!(read("disconnect", &named), Some(("c2".into(), left)));
        assert_eq!(read("create", &named), None);
    }

    /// As Podman 4.3 and 5.0 (without the network's name) and newer ones send them.
    #[test]
    fn podmans_network_events_belong_to_their_container_too() {
        let read = |action, attributes: &[_]| {
            read(message(EventMessageTypeEnum::NETWORK, action, attributes))
                .map(|n| (n.id, n.event))
        };
        let older = [("image", ""), ("name", "web"), ("podId", "")];
        for action in ["connect", "disconnect"] {
            assert_eq!(read(action, &older), Some(("c1".into(), Event::Changed)), "{action}");
        }
        let newer = [("image", ""), ("name", "web"), ("network", "front"), ("podId", "")];
        assert_eq!(read("connect", &newer), Some(("c1".into(), Event::Changed)));
        let left = Event::LeftNetwork("front".into());
        assert_eq!(read("disconnect", &newer), Some(("c1".into(), left)));
        // Of a network itself.
        for action in ["create", "remove"] {
            assert_eq!(read(action, &newer), None);
        }
    }

    #[test]
    fn other_and_empty_events_are_nothing() {
        assert_eq!(read(message(EventMessageTypeEnum::IMAGE, "start", &[])), None);
        assert_eq!(read(EventMessage::default()), None);
    }

    #[test]
    fn signals_are_read() {
        for (text, expected) in [
            ("15", Some(15)),
            ("SIGTERM", Some(15)),
            ("QUIT", Some(3)),
            ("SIGWINCH", Some(28)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMIN", Some(34)),
            ("SIGRTMIN+x", None),
            ("SIGNONE", None),
            ("", None),
        ] {
            assert_eq!(signal(text), expected, "{text}");
        }
    }
}
