//! Layout 3, of the versions up to commit c9a0d7c, and what becomes of its maps. Nothing else refers to it.

use samport_common::flow::{self, FlowKey, ReplyPath, marks};
use samport_common::layout::{self, DeviceSet, ForwardMode};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Context;
use super::Migration::{self, Converted, Emptied, Kept, New, OfRun};
use super::copy::{Convert, array, array_by_cpu, follow_word, hash};
use crate::plan::Route;

/// Every map, and what becomes of it.
pub(super) const MAPS: [(&str, Migration); 60] = [
    ("PORTS", Kept),
    ("PORT_CACHE", OfRun),
    ("SERVICES4", Kept),
    ("SERVICES6", Kept),
    ("ALLOWED4", Kept),
    ("ALLOWED6", Kept),
    ("TABLE", Kept),
    ("BACKENDS", Converted(array::<Backend>)),
    ("REV_NAT4", Kept),
    ("REV_NAT6", Kept),
    ("FLOWS4", Converted(hash::<FlowKey<[u8; 4]>, Flow>)),
    ("FLOWS6", Converted(hash::<FlowKey<[u8; 16]>, Flow>)),
    // In place of FLOOD4 and FLOOD6, which held what clients of a flood of SYNs had begun and not gone on with.
    ("OVERFLOW4", New),
    ("OVERFLOW6", New),
    ("HELD", New),
    ("FREED", New),
    ("NEARLY_FULL", New),
    // Of a datagram that is on its way in this moment: its sender, if it matters to him, sends it again.
    ("FRAGMENTS4", Emptied),
    ("FRAGMENTS6", Emptied),
    ("SCRATCH_FRAG", OfRun),
    ("SCRATCH_PACKET", OfRun),
    ("SCRATCH_FLOW", OfRun),
    ("ROUTES", New),
    ("FLOW_HINTS", Kept),
    ("SYN_RATE", Kept),
    // Counters of what has left the tables: they begin again.
    ("GC_STATS", Emptied),
    ("CLOCK", OfRun),
    // There are more of them now; the old ones have kept their numbers.
    ("VERDICTS", Converted(array_by_cpu::<u64>)),
    // Counters too.
    ("BACKEND_STATS", Emptied),
    ("PROGRAMS", OfRun),
    ("SCRATCH_WORD", OfRun),
    ("XDP_DEVICES", Kept),
    ("DEVICES", New),
    ("SOURCES4", New),
    ("SOURCES6", New),
    ("NODES", New),
    ("NODE_IDS", New),
    ("SCRATCH_FIB", OfRun),
    // By cookie now. Sockets that were connected before are told who they really talk to.
    ("LOCAL_PEERS", Emptied),
    ("LOCAL_SENDERS", Kept),
    ("LOCAL_CHOICES", Kept),
    ("AFFINITY4", Kept),
    ("AFFINITY6", Kept),
    ("OUTBOUND4", New),
    ("OUTBOUND6", New),
    ("RR_COUNTERS", Kept),
    ("BACKEND_LOAD", Converted(array::<BackendLoad>)),
    ("OPEN_CORRECTION", Kept),
    ("EVIDENCE", New),
    ("SUSPECTS", New),
    ("HASH_SEED", New),
    ("HANDSHAKES", Kept),
    ("EVENTS", OfRun),
    ("TRACE_WATCH", Kept),
    ("TRACES", Kept),
    ("TRACE_LOST", Kept),
    ("TRACE_PACKET", Kept),
    ("TRACE_RECORD", Kept),
    ("TRACERS", Kept),
    ("AYA_LOGS", OfRun),
];

/// The maps that go on being used, or are converted, under another name: the old name and the present one.
pub(super) const RENAMED: [(&str, &str); 10] = [
    ("OWNERS4", "REV_NAT4"),
    ("OWNERS6", "REV_NAT6"),
    ("UNUSUAL", "FLOW_HINTS"),
    ("PRESSURE", "SYN_RATE"),
    ("CURSORS", "RR_COUNTERS"),
    ("COLLECTED", "GC_STATS"),
    ("CONDITIONS", "BACKEND_LOAD"),
    ("LOST", "OPEN_CORRECTION"),
    ("TRACE_KEPT", "TRACE_PACKET"),
    ("TRACE_DRAFT", "TRACE_RECORD"),
];

/// Value of `FLOWS4`, `FLOWS6`, `FLOOD4` and `FLOOD6`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Flow {
    word: u64,
    reply_path: u32,
    seen_tick: u32,
    vip: [u8; 16],
    port: [u8; 2],
    mac: [u8; 6],
    opened: u32,
    failed: u16,
    flags: u16,
}

impl<K> Convert<K> for Flow {
    type New = flow::Flow;
    const MAY_BE_LOST: bool = true;

    fn convert(&self, _: &K, context: &Context) -> flow::Flow {
        let Self { word, reply_path, seen_tick, vip, port, mac, opened, failed, flags } = *self;
        let path_to = ReplyPath::from_bits(reply_path);
        let is_outside = !path_to.is_container() && context.interfaces.contains(&path_to.ifindex());
        let side = if is_outside { 0 } else { marks::INTERNAL };
        flow::Flow {
            word,
            reply_path,
            seen_tick,
            vip,
            port,
            mac,
            opened,
            failed,
            flags: flags & marks::FAILOVER | side,
            // Not known: every segment counts until both sides have been seen.
            acknowledged: 0,
            awaited: 0,
        }
    }

    fn follow(
        &self,
        before: &Self,
        current: &flow::Flow,
        key: &K,
        context: &Context,
    ) -> Option<flow::Flow> {
        follow_word(before.word, self.word, current.word).then(|| self.convert(key, context))
    }
}

/// Value of `BACKENDS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Backend {
    addr: [u8; 16],
    port: [u8; 2],
    mac: [u8; 6],
    ifindex: u32,
    generation: u32,
    weight: u32,
    state: u8,
    forward_mode: u8,
    shared: u8,
    takes_frames: u8,
}

impl Convert<u32> for Backend {
    type New = layout::Backend;

    fn convert(&self, index: &u32, context: &Context) -> layout::Backend {
        let Self { addr, port, mac, ifindex, generation, .. } = *self;
        let Self { weight, state, forward_mode, shared, takes_frames, .. } = *self;
        let answers_on = if layout::BackendState::from_byte(state).serves() {
            answers_on(
                ForwardMode::from_byte(forward_mode),
                ifindex,
                context.routes.get(index).copied(),
            )
        } else {
            DeviceSet::NONE
        };
        layout::Backend {
            addr,
            port,
            mac,
            ifindex,
            generation,
            weight,
            state,
            forward_mode,
            shared,
            takes_frames,
            answers_on,
        }
    }

    fn is_in_use(&self) -> bool {
        layout::BackendState::from_byte(self.state).serves()
    }
}

/// The devices that replies of a backend come in by, until the first plan says so.
fn answers_on(forward_mode: ForwardMode, ifindex: u32, route: Option<Route>) -> DeviceSet {
    match (forward_mode, route) {
        (_, Some(Route::Neighbour { answers_on, .. })) => DeviceSet::from_iter([answers_on]),
        (ForwardMode::Peer, _) => DeviceSet::from_iter([ifindex]),
        (ForwardMode::Child, _) => DeviceSet::from_iter([DeviceSet::HOST]),
        // Not known without asking for routes. 0 as the first one lets replies of other machines come in by
        // any device, as they did; those of a server on the host itself come from there.
        (ForwardMode::Neighbour | ForwardMode::Stack | ForwardMode::Node, _) => {
            DeviceSet { ifindex: [0, DeviceSet::HOST, 0, 0, 0, 0, 0, 0] }
        }
    }
}

/// Value of `CONDITIONS`, which is `BACKEND_LOAD` now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct BackendLoad {
    /// Flows opened less flows seen to end; below zero for a moment.
    open: u64,
    /// Who was avoided for how long, by the word of one client.
    suspicion: [u32; 2],
}

impl Convert<u32> for BackendLoad {
    type New = layout::BackendLoad;

    fn convert(&self, _: &u32, _: &Context) -> layout::BackendLoad {
        let (opened, ended) = parts(self.open.cast_signed());
        layout::BackendLoad { opened, ended, pad: 0 }
    }

    fn follow(
        &self,
        before: &Self,
        current: &layout::BackendLoad,
        _: &u32,
        _: &Context,
    ) -> Option<layout::BackendLoad> {
        let (opened, ended) = parts(self.open.wrapping_sub(before.open).cast_signed());
        Some(layout::BackendLoad {
            opened: current.opened.wrapping_add(opened),
            ended: current.ended.wrapping_add(ended),
            pad: 0,
        })
    }
}

/// A count of open flows, or a change of it, as flows that opened and flows that ended.
const fn parts(open: i64) -> (u64, u64) {
    if open < 0 { (0, open.unsigned_abs()) } else { (open.unsigned_abs(), 0) }
}

const _: () = assert!(size_of::<Flow>() == 48);
const _: () = assert!(size_of::<Backend>() == 40);
const _: () = assert!(size_of::<BackendLoad>() == 16);

#[cfg(test)]
mod tests;
