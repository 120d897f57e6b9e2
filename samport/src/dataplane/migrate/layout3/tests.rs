use samport_common::conntrack::State;
use samport_common::flow::FlowWord;
use zerocopy::IntoBytes as _;

use super::*;
use crate::model::HostDevice;
use crate::system::instance::Record;

/// An entry of `FLOWS4` as a samport of layout 3 had it in the kernel: the bytes of key and value.
const KEY: [u8; 8] = [192, 0, 2, 9, 0x9c, 0x40, 1, 0];
const FLOW: [u8; 48] = [
    3, 7, 0, 0, 4, 0, 0, 0, // established, generation 7, backend 4
    2, 0, 0, 0, // out of device 2
    0x44, 0x33, 0x22, 0x11, // seen
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1, // what the client dialled
    0, 80, // and its port
    2, 0, 0, 0, 0, 9, // its MAC
    0x88, 0x77, 0x66, 0x55, // opened
    6, 0, // the backend that failed before
    1, 0, // failover
];

fn context() -> Context {
    let place = HostDevice { ifindex: 9, mac: [1; 6], polls: false };
    let neighbour = Route::Neighbour { ifindex: 5, answers_on: 12 };
    Context {
        routes: [(1, Route::Peer(place)), (2, neighbour), (3, Route::Stack)].into(),
        interfaces: [2].into(),
    }
}

fn read<T: FromBytes>(bytes: &[u8]) -> T {
    T::read_from_bytes(bytes).expect("as many bytes")
}

#[test]
fn a_flow_keeps_all_it_had_and_waits_for_no_number() {
    let key: FlowKey<[u8; 4]> = read(&KEY);
    let new = read::<Flow>(&FLOW).convert(&key, &context());
    let expected: Vec<u8> = FLOW.iter().copied().chain([0; 8]).collect();
    assert_eq!(new.as_bytes(), expected);
    let word = FlowWord::from_bits(new.word);
    assert_eq!((word.state(), word.generation(), word.backend()), (State::Established, 7, 4));
}

#[test]
fn the_side_of_a_client_follows_from_its_device() {
    let old: Flow = read(&FLOW);
    let internal = |reply_path: ReplyPath| {
        let new = Flow { reply_path: reply_path.to_bits(), ..old }.convert(&(), &context());
        assert_eq!(new.flags & marks::FAILOVER, marks::FAILOVER);
        assert_eq!(new.flags & marks::UNPROVEN, 0);
        new.flags & marks::INTERNAL != 0
    };
    assert!(!internal(ReplyPath::out_of(2)));
    assert!(internal(ReplyPath::out_of(3)));
    assert!(internal(ReplyPath::into_container(2)));
}

#[test]
fn a_flow_that_moved_on_meanwhile_follows_unless_ours_has_moved_on_too() {
    let word = |state| FlowWord::new(4, 7, state).to_bits();
    let of = |state| Flow { word: word(state), ..read(&FLOW) };
    let follow = |before, now, current| {
        let current = of(current).convert(&(), &context());
        of(now).follow(&of(before), &current, &(), &context()).map(|new| new.word)
    };
    assert_eq!(
        follow(State::SynSent, State::Established, State::SynSent),
        Some(word(State::Established))
    );
    assert_eq!(follow(State::SynSent, State::Established, State::Finished), None);
    assert_eq!(follow(State::Established, State::Established, State::Finished), None);
}

fn backend(forward_mode: ForwardMode, state: layout::BackendState) -> Backend {
    Backend {
        addr: [3; 16],
        port: [0x23, 0x82],
        mac: [4; 6],
        ifindex: 9,
        generation: 7,
        weight: 2,
        state: state as u8,
        forward_mode: forward_mode as u8,
        shared: 1,
        takes_frames: 1,
    }
}

#[test]
fn a_backend_keeps_all_it_had_and_its_replies_come_in_as_before() {
    let set = |devices: &[u32]| devices.iter().copied().collect::<DeviceSet>();
    let anywhere = DeviceSet { ifindex: [0, DeviceSet::HOST, 0, 0, 0, 0, 0, 0] };
    for (index, forward_mode, expected) in [
        (1, ForwardMode::Peer, set(&[9])),
        (2, ForwardMode::Neighbour, set(&[12])),
        (3, ForwardMode::Stack, anywhere),
        (4, ForwardMode::Child, set(&[DeviceSet::HOST])),
        // Not in the record.
        (5, ForwardMode::Peer, set(&[9])),
        (6, ForwardMode::Neighbour, anywhere),
    ] {
        let old = backend(forward_mode, layout::BackendState::Serving);
        let new = old.convert(&index, &context());
        assert_eq!(new.answers_on, expected, "{index} by {forward_mode:?}");
        assert_eq!(new.as_bytes()[..40], *old.as_bytes(), "{index} by {forward_mode:?}");
    }
    let gone = backend(ForwardMode::Peer, layout::BackendState::Down);
    assert_eq!(gone.convert(&1, &context()).answers_on, DeviceSet::NONE);
    assert!(
        !gone.is_in_use() && backend(ForwardMode::Peer, layout::BackendState::Draining).is_in_use()
    );
}

#[test]
fn the_count_of_open_flows_stays_the_same_whatever_happens_meanwhile() {
    let condition = |open: i64| BackendLoad { open: open.cast_unsigned(), suspicion: [5, 2] };
    let open = |of: layout::BackendLoad| of.opened.wrapping_sub(of.ended).cast_signed();
    for (before, now) in [(3, 3), (3, 8), (8, 3), (-1, 2), (2, -1)] {
        let mut new = condition(before).convert(&1, &Context::default());
        assert_eq!(open(new), before);
        // Ours have counted two that opened and one that ended.
        (new.opened, new.ended) = (new.opened + 2, new.ended + 1);
        let after = condition(now).follow(&condition(before), &new, &1, &Context::default());
        assert_eq!(after.map(open), Some(now + 1), "{before} to {now}");
    }
}

/// As commit c9a0d7c wrote it, for a backend by the neighbour table and filters at tc.
#[test]
fn a_record_of_this_layout_says_what_the_conversions_ask() {
    let record: Record = serde_json::from_str(include_str!("record.json")).expect("a record");
    assert_eq!(record.layout, 3);
    assert_eq!(record.interfaces, ["v0"]);
    assert_eq!(record.filters.len(), 2);
    let context = Context::of(&record);
    let [(1, Route::Neighbour { ifindex, answers_on })] =
        context.routes.iter().map(|(index, route)| (*index, *route)).collect::<Vec<_>>()[..]
    else {
        panic!("{context:?}")
    };
    assert_eq!(ifindex, answers_on);
}
