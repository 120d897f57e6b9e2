use super::*;

fn on(addr: &str, port: u16) -> Listen {
    Listen::tcp(port).at(addr.parse().unwrap())
}

#[test]
fn ports_are_read_and_written() {
    let v6 = |port| on("2001:db8::7", port);
    for (text, listen, target, shown) in [
        ("80", Listen::tcp(80), None, "80"),
        ("80:9090", Listen::tcp(80), Some(9090), "80:9090"),
        ("80:9090/tcp", Listen::tcp(80), Some(9090), "80:9090"),
        ("53/udp", Listen::udp(53), None, "53/udp"),
        ("53:5353/udp", Listen::udp(53), Some(5353), "53:5353/udp"),
        ("198.51.100.7:80", on("198.51.100.7", 80), None, "198.51.100.7:80"),
        ("198.51.100.7:80:8080/tcp", on("198.51.100.7", 80), Some(8080), "198.51.100.7:80:8080"),
        ("[2001:db8::7]:80", v6(80), None, "[2001:db8::7]:80"),
        ("[2001:db8:0::7]:80:8080", v6(80), Some(8080), "[2001:db8::7]:80:8080"),
        ("[::ffff:192.0.2.1]:80", on("192.0.2.1", 80), None, "192.0.2.1:80"),
    ] {
        let spec: PortSpec = text.parse().unwrap();
        assert_eq!(spec, PortSpec { listen, target });
        assert_eq!(spec.to_string(), shown);
        assert_eq!(shown.parse::<PortSpec>().unwrap(), spec);
    }
}

#[test]
fn a_service_is_a_port_under_a_protocol_at_an_address_or_at_all() {
    let dns = Listen::udp(53).at([127, 0, 0, 1].into());
    for (text, listen, full, brief, place) in [
        ("80", Listen::tcp(80), "80/tcp", "80", ":80"),
        ("80/tcp", Listen::tcp(80), "80/tcp", "80", ":80"),
        ("53/udp", Listen::udp(53), "53/udp", "53/udp", ":53/udp"),
        ("127.0.0.1:53/udp", dns, "127.0.0.1:53/udp", "127.0.0.1:53/udp", "127.0.0.1:53/udp"),
        ("[::1]:80", on("::1", 80), "[::1]:80/tcp", "[::1]:80", "[::1]:80"),
    ] {
        assert_eq!(text.parse::<Listen>().unwrap(), listen);
        assert_eq!(full.parse::<Listen>().unwrap(), listen);
        assert_eq!((listen.to_string().as_str(), listen.brief().as_str()), (full, brief));
        assert_eq!(listen.place(), place);
    }
    assert_ne!(Listen::tcp(53), Listen::udp(53));
}

#[test]
fn ports_overlap_on_a_common_address_only() {
    let [seven, eight] = [on("198.51.100.7", 80), on("198.51.100.8", 80)];
    for (one, other, overlap) in [
        (Listen::tcp(80), Listen::tcp(80), true),
        (Listen::tcp(80), seven, true),
        (seven, seven, true),
        (seven, eight, false),
        (Listen::tcp(81), seven, false),
        (Listen::udp(80), seven, false),
    ] {
        assert_eq!((one.overlaps(other), other.overlaps(one)), (overlap, overlap));
    }
}

#[test]
fn what_is_no_port_is_refused_by_name() {
    for text in ["0", "65536", "80:x", "80:0", "", ":80", "80:", "80:81:82", "80/sctp", "80/"] {
        let error = format!("{:#}", text.parse::<PortSpec>().unwrap_err());
        assert!(error.contains(&format!("{text:?}")), "{error}");
    }
}

#[test]
fn what_is_no_address_is_refused_with_the_right_form() {
    for text in [
        "1.2.3:80",
        "256.0.0.1:80",
        "host:80:81",
        "[::1:80",
        "[::1]80",
        "[1.2.3.4]:80",
        "[]:80",
        "::1:80",
        "2001:db8:0:0:0:0:0:7:80",
        "::1",
    ] {
        for error in [text.parse::<PortSpec>().unwrap_err(), text.parse::<Listen>().unwrap_err()] {
            let error = format!("{error:#}");
            assert!(error.contains(&format!("{text:?}")), "{error}");
            assert!(
                error.contains("198.51.100.7:80") && error.contains("[2001:db8::7]:80"),
                "{error}"
            );
        }
    }
    for text in ["1.2.3.4:", "[::1]:", "1.2.3.4:0", "1.2.3.4:80:", "1.2.3.4::80", "1.2.3.4:80/sctp"]
    {
        let error = format!("{:#}", text.parse::<PortSpec>().unwrap_err());
        assert!(error.contains(&format!("{text:?}")), "{error}");
    }
    for (text, way_out) in [("0.0.0.0:80:81", "use 80:81"), ("[::]:80", "use 80")] {
        let error = text.parse::<PortSpec>().unwrap_err().to_string();
        assert!(error.contains(text) && error.contains(way_out), "{error}");
    }
}

#[test]
fn records_hold_port_and_protocol_and_a_number_is_tcp() {
    let read = serde_json::from_str::<Vec<Listen>>;
    let all = vec![Listen::tcp(80), Listen::udp(53), on("198.51.100.7", 80), on("::1", 80)];
    assert_eq!(
        serde_json::to_string(&all).unwrap(),
        r#"["80/tcp","53/udp","198.51.100.7:80/tcp","[::1]:80/tcp"]"#
    );
    assert_eq!(read(r#"[80,"53/udp","198.51.100.7:80","[::1]:80/tcp"]"#).unwrap(), all);
    for (text, word) in [("[0]", "1 to 65535"), ("[-1]", "1 to 65535"), ("[\"x\"]", "\"x\"")] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}
