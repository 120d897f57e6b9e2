//! Clients on the machine itself. Nothing is done to their packets: when they connect, or send a
//! datagram to somebody, the address is exchanged for a backend's, and the machine's own stack does
//! the rest. What they are told afterwards is what they dialled.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use samport_common::choose::{self, Balance};
use samport_common::family::{V4, V6};
use samport_common::flow::{Endpoint, EndpointKey};
use samport_common::layout::{Backend, Service, Slots};
use samport_common::local::{self, Chosen, Dialled, SocketKey};
use samport_common::verdict::Verdict;
use samport_common::wire::protocol::Protocol;

use crate::choice;
use crate::flows;
use crate::maps::{self, Tables, sockets};
use crate::sockaddr::{Closed, Hook, SockAddr};
use crate::standing;

/// Draws until a backend serves that this machine can reach and that has not failed lately. One that does not serve is in a table for a
/// moment only, while that is being replaced; macvlan children stay in it.
const DRAWS: u32 = 8;
/// Slots that are looked at one after the other if all draws were in vain.
const WALK: u32 = 64;

/// Which system call is on its way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `connect`, of stream and datagram sockets.
    Connect,
    /// `sendmsg` and `sendto` that name an address, of datagram sockets.
    Send,
}

/// Sends a socket to a backend, if it dials a service. `None` if it does not: that is none of our
/// business and counted nowhere.
#[inline(always)]
pub fn dial<H: Hook>(sock: &SockAddr, call: Call) -> Option<Verdict> {
    if !sock.is_of_this_machine() {
        return None;
    }
    let protocol = match u8::try_from(sock.protocol()) {
        Ok(number) => Protocol::from_number(number)?,
        Err(_) => return None,
    };
    let dialled = local::destination(H::addr(sock));
    if local::is_ipv4(&dialled) {
        dial_service::<H, V4>(sock, call, protocol, dialled)
    } else {
        dial_service::<H, V6>(sock, call, protocol, dialled)
    }
}

#[inline(always)]
fn dial_service<H: Hook, P: Tables>(
    sock: &SockAddr,
    call: Call,
    protocol: Protocol,
    dialled: [u8; 16],
) -> Option<Verdict> {
    let port = sock.port();
    let endpoint = Endpoint { addr: P::narrow(&dialled), port };
    let service = P::service(&EndpointKey::new(endpoint, protocol.number()))?;
    let (source, tied) = match call {
        Call::Connect => (H::source(sock), false),
        Call::Send => (H::datagram_source(sock), local::is_link_local(&dialled)),
    };
    if tied || local::stays_here(&source, sock.device()) {
        return Some(Verdict::LocalBoundElsewhere);
    }
    let dialled_key = SocketKey::new(sock.cookie(), dialled, port);
    let recalled = match call {
        Call::Connect => None,
        Call::Send => recall(&dialled_key),
    };
    let (chosen, backend) = match recalled {
        Some(same) => same,
        None => match draw(service, sock.cookie()) {
            Some(new) => {
                sockets::count_flow_in_call(new.0.backend);
                // A connected datagram socket may also name the address once more.
                if protocol == Protocol::Udp {
                    sockets::remember_local_choice(&dialled_key, &new.0);
                }
                new
            }
            None => return Some(Verdict::LocalNoBackend),
        },
    };
    let peer_key = SocketKey { addr: backend.addr, port: backend.port, ..dialled_key };
    let peer = Dialled { addr: dialled, port, pad: [0; 2], chosen };
    let remembered = match call {
        Call::Connect => sockets::remember_local_peer(&peer_key, &peer),
        Call::Send => {
            is_remembered(&peer_key, &peer) || sockets::remember_local_sender(&peer_key, &peer)
        }
    };
    if remembered && call == Call::Connect {
        standing::opens_socket(&chosen);
    }
    H::set(sock, &backend.addr, backend.port);
    Some(if remembered { Verdict::LocalForward } else { Verdict::LocalUnremembered })
}

/// The backend this socket's datagrams to this address go to, while it serves.
#[inline(always)]
fn recall(key: &SocketKey) -> Option<(Chosen, &'static Backend)> {
    let chosen = sockets::local_choice(key)?;
    let backend = maps::backend(chosen.backend)?;
    if local::keeps(backend, &chosen) { Some((chosen, backend)) } else { None }
}

/// A backend for a new connection of this socket.
#[inline(always)]
fn draw(service: &'static Service, cookie: u64) -> Option<(Chosen, &'static Backend)> {
    // Through a number: see `choice::pick`.
    let id = draw_id(service, cookie);
    if id == 0 {
        return None;
    }
    let backend = maps::backend(id)?;
    Some((Chosen { backend: id, generation: backend.generation }, backend))
}

/// Its id, or 0.
#[inline(never)]
fn draw_id(service: &'static Service, cookie: u64) -> u32 {
    let now_tick = flows::now_tick();
    // To a service that goes by addresses the machine is one client.
    let hash = match Balance::from_byte(service.balance) {
        Balance::Maglev => choose::hash_of(cookie),
        _ => 0,
    };
    for attempt in 0..DRAWS {
        if let Ok((id, backend)) = choice::pick(service, hash, attempt)
            && local::takes(backend)
            && !standing::is_suspect(id, now_tick)
        {
            return id;
        }
    }
    // SAFETY: no arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    let slots = Slots::from_bits(service.slots);
    let Some(first) = choose::slot(random, slots.len) else { return 0 };
    // One that has failed lately is better than none.
    let mut suspect = 0;
    for step in 0..WALK {
        // By division: after a comparison the verifier would follow both ways, at each step.
        if let Some(slot) = (first + step).checked_rem(slots.len)
            && let Ok((id, backend)) = choice::at(service, slot)
            && local::takes(backend)
        {
            if !standing::is_suspect(id, now_tick) {
                return id;
            }
            suspect = id;
        }
    }
    suspect
}

/// Whether what is to be remembered is remembered already: of each datagram but the first. Asking
/// also keeps the entry young.
#[inline(always)]
fn is_remembered(key: &SocketKey, peer: &Dialled) -> bool {
    sockets::local_sender(key).is_some_and(|known| {
        known.addr == peer.addr && known.port == peer.port && known.chosen == peer.chosen
    })
}

/// What the kernel is about to name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// The other end of a connection.
    Peer,
    /// The sender of a datagram.
    Sender,
}

/// Names what a socket dialled where the kernel names its backend. `None` for every other socket and
/// every other sender.
#[inline(always)]
pub fn restore<H: Hook>(sock: &SockAddr, named: Named) -> Option<Verdict> {
    if !sock.is_of_this_machine() {
        return None;
    }
    let key = SocketKey::new(sock.cookie(), H::addr(sock), sock.port());
    let dialled = match named {
        Named::Peer => sockets::local_peer(&key)?,
        Named::Sender => match sockets::local_sender(&key) {
            Some(dialled) => dialled,
            // The sender is the other end.
            None if sock.is_connected() => sockets::local_peer(&key)?,
            None => return None,
        },
    };
    H::set(sock, &dialled.addr, dialled.port);
    Some(Verdict::LocalRestored)
}

/// Forgets a connected socket that is closed.
#[inline(always)]
pub fn forget(closed: &Closed) {
    if !closed.is_of_this_machine() {
        return;
    }
    let port = closed.peer_port();
    if port == [0, 0] {
        return;
    }
    let key = SocketKey::new(closed.cookie(), closed.peer_addr(), port);
    if let Some(dialled) = sockets::local_peer(&key) {
        standing::closes_socket(&dialled.chosen);
        // Of datagram sockets only, but harmless for others.
        sockets::forget_local_choice(&SocketKey { addr: dialled.addr, port: dialled.port, ..key });
        sockets::forget_local_peer(&key);
    }
}
