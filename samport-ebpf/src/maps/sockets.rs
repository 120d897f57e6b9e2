//! The maps about sockets of this machine, for programs that run in system calls.

use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use samport_common::layout::failure;
use samport_common::sock_lb::{
    Chosen, Connected, Dialled, MAX_LOCAL_CHOICES, MAX_LOCAL_PEERS, MAX_LOCAL_SENDERS, SocketKey,
};
use samport_common::verdict::Verdict;

use super::{BACKEND_STATS, VERDICTS};
use crate::atomic;

/// What sockets of this machine dialled that are connected to a backend, by their cookies: each counts as
/// open. The end of the connection removes it, at the latest the close of the socket: a connection that is kept
/// for long must not be the one to make room.
#[map]
static LOCAL_PEERS: LruHashMap<u64, Connected> = LruHashMap::with_max_entries(MAX_LOCAL_PEERS, 0);

/// What datagram sockets of this machine dialled by naming it in a datagram, by the backend they got.
#[map]
static LOCAL_SENDERS: LruHashMap<SocketKey, Dialled> =
    LruHashMap::with_max_entries(MAX_LOCAL_SENDERS, 0);

/// Which backend datagram sockets of this machine got, by what they dialled.
#[map]
static LOCAL_CHOICES: LruHashMap<SocketKey, Chosen> =
    LruHashMap::with_max_entries(MAX_LOCAL_CHOICES, 0);

/// Counts a verdict of a program that runs in a system call, where others may interrupt it.
#[inline(always)]
pub fn count_in_call(verdict: Verdict) {
    if let Some(counter) = VERDICTS.get_ptr_mut(verdict as u32) {
        // SAFETY: the map's values are aligned 64-bit counters.
        unsafe { atomic::add(counter, 1) };
    }
}

/// Counts a flow that a system call opens.
#[inline(always)]
pub fn count_flow_in_call(backend: u32) {
    if let Some(stats) = BACKEND_STATS.get_ptr_mut(backend) {
        // SAFETY: the map's values are aligned 64-bit counters.
        unsafe { atomic::add(&raw mut (*stats).flows, 1) };
    }
}

/// Counts a connection of a socket that its backend has refused, or not answered.
#[inline(always)]
pub fn count_failure_in_call(backend: u32, what: u32) {
    if let Some(stats) = BACKEND_STATS.get_ptr_mut(backend) {
        // SAFETY: as in `count_flow_in_call`.
        unsafe {
            let counter = if what == failure::SILENT {
                &raw mut (*stats).silent
            } else {
                &raw mut (*stats).refused
            };
            atomic::add(counter, 1);
        }
    }
}

/// What is known of a socket that is connected to a backend.
#[inline(always)]
pub fn local_peer(cookie: u64) -> Option<&'static Connected> {
    // SAFETY: the element may be given to another socket while it is read; then a client is told a
    // wrong address once, or a connection is taken off another backend until the loader counts again.
    unsafe { LOCAL_PEERS.get(cookie) }
}

/// Remembers a socket that connects to a backend. Whether that worked.
#[inline(always)]
pub fn remember_local_peer(cookie: u64, connected: &Connected) -> bool {
    LOCAL_PEERS.insert(cookie, connected, 0).is_ok()
}

/// Forgets a socket. Whether it was remembered: of several that find it over at once, one is told so.
#[inline(always)]
pub fn forget_local_peer(cookie: u64) -> bool {
    LOCAL_PEERS.remove(cookie).is_ok()
}

/// What a datagram socket dialled when it sent something to a backend.
#[inline(always)]
pub fn local_sender(key: &SocketKey) -> Option<&'static Dialled> {
    // SAFETY: as in `local_peer`.
    unsafe { LOCAL_SENDERS.get(key) }
}

/// Remembers what a datagram socket dialled. Whether that worked.
#[inline(always)]
pub fn remember_local_sender(key: &SocketKey, dialled: &Dialled) -> bool {
    LOCAL_SENDERS.insert(key, dialled, 0).is_ok()
}

/// The backend a datagram socket got for what it dialled.
#[inline(always)]
pub fn local_choice(key: &SocketKey) -> Option<Chosen> {
    // SAFETY: as in `local_peer`; what is read is checked against the backend.
    unsafe { LOCAL_CHOICES.get(key) }.copied()
}

/// Remembers a datagram socket's backend. One that is not remembered is chosen again.
#[inline(always)]
pub fn remember_local_choice(key: &SocketKey, chosen: &Chosen) {
    let _ = LOCAL_CHOICES.insert(key, chosen, 0);
}

/// Forgets the choice for a socket that is closed.
#[inline(always)]
pub fn forget_local_choice(key: &SocketKey) {
    let _ = LOCAL_CHOICES.remove(key);
}
