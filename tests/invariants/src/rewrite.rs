//! Target `rewrite`: the bytes are the new endpoint (16 of an address, 2 of a port), one of choices,
//! and a frame.

use std::fmt::Debug;

use samport_common::family::{Family, V4, V6};
use samport_common::flow::Endpoint;
use samport_common::frame::Frame as _;
use samport_common::packet::{FragmentId, IcmpError, L3, Packet};
use samport_common::rewrite::{self, End};
use samport_common::wire::ethernet;
use samport_common::wire::protocol::Protocol;

use crate::fields::{self, put};
use crate::parse::{Seen, look};
use crate::sum::moved;

/// A rewritten packet is the one that would have been built for the new endpoint, and rewriting it
/// back gives the packet that came; one with a wrong checksum keeps a wrong one, one without stays
/// without.
pub fn check(bytes: &[u8]) {
    let Some((to, bytes)) = bytes.split_first_chunk() else { return };
    let Some((choices, frame)) = bytes.split_first() else { return };
    match frame.read(ethernet::TYPE.start) {
        Some(ethernet::IPV4) => family::<V4>(frame, *choices, to),
        Some(ethernet::IPV6) => family::<V6>(frame, *choices, to),
        _ => {}
    }
}

fn family<P: Family + PartialEq + Debug>(frame: &[u8], choices: u8, to: &[u8; 18]) {
    let [address @ .., p0, p1] = to;
    let to = Endpoint { addr: P::from_mapped(address), port: [*p0, *p1] };
    let end = if choices & 1 == 0 { End::Destination } else { End::Source };
    match look::<P>(frame) {
        Seen::Packet(packet) | Seen::First(packet, _) => {
            let without = choices & 2 != 0 && packet.protocol == Protocol::Udp;
            of_packet::<P>(frame, &packet, end, to, without);
        }
        Seen::Later(id) => of_later::<P>(frame, &id, end, to.addr),
        // A quote is taken to reach to the end of the frame.
        Seen::Error(error) if fields::end::<P>(frame, L3) == frame.len() => {
            of_error::<P>(frame, &error, end, to);
        }
        Seen::Error(_) | Seen::Nothing(_) => {}
    }
}

/// A whole packet or a first fragment, taken as if nothing followed: what follows adds the same to
/// its checksum before and after.
fn of_packet<P: Family + PartialEq + Debug>(
    frame: &[u8],
    packet: &Packet<P::Addr>,
    end: End,
    to: Endpoint<P::Addr>,
    without_checksum: bool,
) {
    let rewritten = |frame: &[u8], packet: &Packet<P::Addr>, to| {
        let mut frame = frame.to_vec();
        let plan = rewrite::plan::<P>(packet, end, to);
        assert_eq!(plan, plan.bounded());
        rewrite::apply(&mut frame, &plan).expect("a parsed packet has room for its rewrite");
        frame
    };
    let checksums =
        |frame: &[u8]| (fields::header::<P>(frame, L3), fields::transport::<P>(frame, packet));
    assert_eq!(checksums(frame), checksums(&rewritten(frame, packet, to)), "{packet:?}: {to:?}");

    let correct = |frame: &mut [u8]| {
        fields::correct_header::<P>(frame, L3);
        if without_checksum {
            put(frame, fields::transport_at(packet), &[0; 2]);
        } else {
            fields::correct_transport::<P>(frame, packet);
        }
    };
    let mut original = frame.to_vec();
    correct(&mut original);
    let there = rewritten(&original, packet, to);
    let mut built = original.clone();
    fields::put_endpoint::<P>(&mut built, packet, end, to);
    correct(&mut built);
    assert_eq!(there, built, "{packet:?}, {end:?}: {to:?}");

    let (back, from) = match end {
        End::Source => (Packet { source: to, ..*packet }, packet.source),
        End::Destination => (Packet { destination: to, ..*packet }, packet.destination),
    };
    assert_eq!(rewritten(&there, &back, from), original, "and back: {packet:?}, {end:?}: {to:?}");
}

fn of_later<P: Family + PartialEq + Debug>(
    frame: &[u8],
    id: &FragmentId<P::Addr>,
    end: End,
    to: P::Addr,
) {
    let rewritten = |frame: &[u8], id: &FragmentId<P::Addr>, to| {
        let mut frame = frame.to_vec();
        let plan = rewrite::plan_later::<P>(id, end, to);
        assert_eq!(plan, plan.bounded());
        rewrite::apply_address(&mut frame, &plan).expect("a fragment has room for an address");
        frame
    };
    let damaged = rewritten(frame, id, to);
    assert_eq!(fields::header::<P>(frame, L3), fields::header::<P>(&damaged, L3), "{id:?}: {to:?}");

    let mut original = frame.to_vec();
    fields::correct_header::<P>(&mut original, L3);
    let there = rewritten(&original, id, to);
    let mut built = original.clone();
    fields::put_address::<P>(&mut built, L3, end, to);
    fields::correct_header::<P>(&mut built, L3);
    assert_eq!(there, built, "{id:?}, {end:?}: {to:?}");

    let (back, from) = match end {
        End::Source => (FragmentId { source: to, ..*id }, id.source),
        End::Destination => (FragmentId { destination: to, ..*id }, id.destination),
    };
    assert_eq!(rewritten(&there, &back, from), original, "and back: {id:?}, {end:?}: {to:?}");
}

fn of_error<P: Family + PartialEq + Debug>(
    frame: &[u8],
    error: &IcmpError<P::Addr>,
    end: End,
    to: Endpoint<P::Addr>,
) {
    let rewritten = |frame: &[u8], error: &IcmpError<P::Addr>, to| {
        let mut frame = frame.to_vec();
        let plan = rewrite::plan_error::<P>(error, end, to);
        rewrite::apply_error(&mut frame, &plan).expect("a parsed error has room for its rewrite");
        frame
    };
    let quoted = &error.quoted;
    let checksums = |frame: &[u8]| {
        let headers = [L3, quoted.l3].map(|l3| fields::header::<P>(frame, l3));
        (headers, fields::message::<P>(frame, error.icmp))
    };
    assert_eq!(checksums(frame), checksums(&rewritten(frame, error, to)), "{error:?}: {to:?}");

    let mut original = frame.to_vec();
    let all_ones = quoted_checksum::<P>(frame, quoted) == Some([0xff; 2]);
    if quoted.protocol == Protocol::Tcp && all_ones {
        // The form of zero that nobody sends and nothing gives back.
        put(&mut original, fields::transport_at(quoted), &[0; 2]);
    }
    correct_error::<P>(&mut original, error);
    let there = rewritten(&original, error, to);
    assert_eq!(there, error_built::<P>(&original, error, end, to), "{error:?}, {end:?}: {to:?}");

    let (back, from, outer) = match end {
        End::Source => {
            let quoted = Packet { destination: to, ..*quoted };
            (
                IcmpError { reporter: to.addr, quoted, ..*error },
                error.quoted.destination,
                error.reporter,
            )
        }
        End::Destination => {
            let quoted = Packet { source: to, ..*quoted };
            (IcmpError { told: to.addr, quoted, ..*error }, error.quoted.source, error.told)
        }
    };
    // A router on the way reports under its own address, which is gone for good.
    if from.addr == outer {
        assert_eq!(
            rewritten(&there, &back, from),
            original,
            "and back: {error:?}, {end:?}: {to:?}"
        );
    }
}

/// The error that would have been sent about a packet to or from the new endpoint.
fn error_built<P: Family>(
    frame: &[u8],
    error: &IcmpError<P::Addr>,
    end: End,
    to: Endpoint<P::Addr>,
) -> Vec<u8> {
    let quoted = &error.quoted;
    let (other, from) = match end {
        End::Source => (End::Destination, quoted.destination),
        End::Destination => (End::Source, quoted.source),
    };
    let mut built = frame.to_vec();
    fields::put_address::<P>(&mut built, L3, end, to.addr);
    fields::put_endpoint::<P>(&mut built, quoted, other, to);
    match quoted_checksum::<P>(frame, quoted) {
        None => {}
        Some([0, 0]) if quoted.protocol == Protocol::Udp => {}
        Some(field) => {
            let moved = moved(field, &bytes::<P>(from), &bytes::<P>(to));
            let field = fields::form(quoted.protocol, moved);
            put(&mut built, fields::transport_at(quoted), &field);
        }
    }
    correct_error::<P>(&mut built, error);
    built
}

/// Everything but the quoted packet's transport checksum, of whose payload there is only a part.
fn correct_error<P: Family>(frame: &mut [u8], error: &IcmpError<P::Addr>) {
    fields::correct_header::<P>(frame, error.quoted.l3);
    fields::correct_message::<P>(frame, error.icmp);
    fields::correct_header::<P>(frame, L3);
}

/// The transport checksum of the quoted packet, if the quote reaches that far.
fn quoted_checksum<P: Family>(frame: &[u8], quoted: &Packet<P::Addr>) -> Option<[u8; 2]> {
    let at = fields::transport_at(quoted);
    frame[..fields::end::<P>(frame, L3)].get(at..)?.first_chunk().copied()
}

fn bytes<P: Family>(of: Endpoint<P::Addr>) -> Vec<u8> {
    let wide = P::to_mapped(of.addr);
    [fields::bytes::<P>(&wide), &of.port].concat()
}
