//! Clients on the machine itself. Nothing is done to their packets: when they connect, or send a
//! datagram to somebody, the address is exchanged for a backend's, and the machine's own stack does
//! the rest. What they are told afterwards is what they dialled.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use samport_common::choose::{self, Balance};
use samport_common::family::{Family as _, V4, V6};
use samport_common::flow::{Endpoint, EndpointKey};
use samport_common::layout::{Backend, Service, failure, service};
use samport_common::sock_lb::{self, Chosen, Connected, Dialled, Outcome, SocketKey};
use samport_common::verdict::Verdict;
use samport_common::wire::protocol::Protocol;

use crate::affinity;
use crate::choice;
use crate::flows;
use crate::maps::{self, Tables, sockets};
use crate::outlier;
use crate::sock_ops::{Progress, SockOps};
use crate::sockaddr::{Closed, SockAddr, SockFamily};

/// Selections until a backend serves that this machine can reach and that has not failed lately. One that does not serve is in a table for a
/// moment only, while that is being replaced; macvlan children stay in it.
const ATTEMPTS: u32 = 8;
/// Slots that are looked at one after the other if all attempts have failed.
const WALK: u32 = 64;

/// Which system call is on its way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Syscall {
    /// `connect`, of stream and datagram sockets.
    Connect,
    /// `sendmsg` and `sendto` that name an address, of datagram sockets.
    Sendmsg,
}

/// Sends a socket to a backend, if it dials a service. `None` if it does not: that is none of our
/// business and counted nowhere.
#[inline(always)]
pub fn translate<H: SockFamily>(sock: &SockAddr, syscall: Syscall) -> Option<Verdict> {
    if !sock.is_of_this_machine() {
        return None;
    }
    if !is_ours(sock.protocol()) {
        return None;
    }
    if syscall == Syscall::Connect {
        // Datagram sockets may connect several times, and others after they have failed.
        forget(sock.cookie());
    }
    let dialled = sock_lb::destination(H::addr(sock));
    if sock_lb::is_ipv4(&dialled) {
        translate_service::<H, V4>(sock, syscall, dialled)
    } else {
        translate_service::<H, V6>(sock, syscall, dialled)
    }
}

#[inline(always)]
fn translate_service<H: SockFamily, P: Tables>(
    sock: &SockAddr,
    syscall: Syscall,
    dialled: [u8; 16],
) -> Option<Verdict> {
    let port = sock.port();
    let found = find::<P>(sock, &dialled)?;
    let (source, tied) = match syscall {
        Syscall::Connect => (H::source(sock), false),
        Syscall::Sendmsg => (H::datagram_source(sock), sock_lb::is_link_local(&dialled)),
    };
    if tied || sock_lb::stays_here(&source, sock.device()) {
        return Some(Verdict::LocalBoundElsewhere);
    }
    let dialled_key = SocketKey::new(sock.cookie(), dialled, port);
    let recalled = match syscall {
        Syscall::Connect => None,
        Syscall::Sendmsg => recall(&dialled_key),
    };
    let (chosen, backend) = match recalled {
        Some(same) => same,
        None => match select::<P>(&found, dialled_key.cookie) {
            Some(new) => {
                sockets::count_flow_in_call(new.0.backend);
                // A connected datagram socket may also name the address once more.
                if protocol(sock) == Protocol::Udp {
                    sockets::remember_local_choice(&dialled_key, &new.0);
                }
                new
            }
            None => return Some(Verdict::LocalNoBackend),
        },
    };
    let peer = Dialled { addr: dialled, port, pad: [0; 2], chosen };
    let remembered = match syscall {
        Syscall::Connect => {
            let Backend { addr, port, .. } = *backend;
            let connected = Connected { dialled: peer, addr, port, pad: [0; 2] };
            sockets::remember_local_peer(dialled_key.cookie, &connected)
        }
        Syscall::Sendmsg => {
            let peer_key = SocketKey { addr: backend.addr, port: backend.port, ..dialled_key };
            is_remembered(&peer_key, &peer) || sockets::remember_local_sender(&peer_key, &peer)
        }
    };
    if remembered && syscall == Syscall::Connect {
        outlier::opens_socket(&chosen);
    }
    H::set(sock, &backend.addr, backend.port);
    Some(if remembered { Verdict::LocalForward } else { Verdict::LocalUnremembered })
}

/// Whether a protocol is one that is served.
#[inline(always)]
fn is_ours(number: u32) -> bool {
    Protocol::ALL.iter().any(|protocol| u32::from(protocol.number()) == number)
}

/// The protocol of a socket that has one of ours. It is read again where it is asked for: what is done for both is done
/// once to the verifier that way.
#[inline(always)]
fn protocol(sock: &SockAddr) -> Protocol {
    if sock.protocol() == u32::from(Protocol::Udp.number()) { Protocol::Udp } else { Protocol::Tcp }
}

/// A value of `SERVICES`, with what tells whether it is still the one that was found.
struct Found {
    service: &'static Service,
    key_fold: u16,
}

/// The service that a socket dials.
#[inline(always)]
fn find<P: Tables>(sock: &SockAddr, dialled: &[u8; 16]) -> Option<Found> {
    let port = sock.port();
    let at = |addr: &[u8; 16]| {
        let endpoint = Endpoint { addr: P::from_mapped(addr), port };
        let key = EndpointKey::new(endpoint, protocol(sock).number());
        P::service(&key).map(|service| Found { service, key_fold: key.fold() })
    };
    let own = at(dialled);
    if own.is_some() {
        return own;
    }
    let other = at(&sock_lb::stand_in(dialled)?)?;
    if sock.is_listened_on(protocol(sock), V4::from_mapped(dialled), port) {
        None
    } else {
        Some(other)
    }
}

/// The backend this socket's datagrams to this address go to, while it serves.
#[inline(always)]
fn recall(key: &SocketKey) -> Option<(Chosen, &'static Backend)> {
    let chosen = sockets::local_choice(key)?;
    let backend = maps::backend(chosen.backend)?;
    if sock_lb::keeps(backend, &chosen) { Some((chosen, backend)) } else { None }
}

/// A backend for a new connection of this socket.
#[inline(always)]
fn select<P: Tables>(found: &Found, cookie: u64) -> Option<(Chosen, &'static Backend)> {
    let service = found.service;
    let id = samport_choose_local(service, cookie, u32::from(P::HEADER_LEN == V6::HEADER_LEN));
    if id == 0 || !choice::is_still_of(service, found.key_fold) {
        return None;
    }
    let backend = maps::backend(id)?;
    if service.affinity_ticks != 0 {
        let chosen = (id, backend.generation);
        affinity::remember::<P>(client::<P>(), service, chosen, flows::now_tick());
    }
    Some((Chosen { backend: id, generation: backend.generation }, backend))
}

/// The id of a backend for a new connection of the socket with this cookie, or 0; `is_ipv6` is 0 or 1.
///
/// Exported, so that the verifier walks its loops by themselves, once for each program, and not once for each way a socket
/// gets here. Its argument is a pointer to a type whose size BTF tells, which may be null (Linux 5.13; docs/internals/verifier.md).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn samport_choose_local(service: *const Service, cookie: u64, is_ipv6: u32) -> u32 {
    // SAFETY: our callers have a reference.
    let Some(service) = (unsafe { service.as_ref() }) else { return 0 };
    let mut id = match (service.affinity_ticks, is_ipv6) {
        (0, _) => 0,
        (_, 0) => recall_id::<V4>(service),
        _ => recall_id::<V6>(service),
    };
    if id == 0 {
        id = select_id(service, cookie);
    }
    if id == 0 || service.flags & service::FAILOVER == 0 {
        return id;
    }
    instead_of(service, id)
}

/// The backend that the machine's connections to a service have got before, or 0: it is one client.
#[inline(never)]
fn recall_id<P: Tables>(service: &Service) -> u32 {
    let now_tick = flows::now_tick();
    match affinity::recall::<P>(client::<P>(), service, now_tick) {
        Some((id, backend)) if sock_lb::takes(backend) && !outlier::is_suspect(id, now_tick) => id,
        _ => 0,
    }
}

/// The address that stands for all the machine has.
#[inline(always)]
fn client<P: Tables>() -> P::Addr {
    P::from_mapped(&sock_lb::CLIENT_ADDR)
}

/// One that the service's way to choose leads to, or 0.
#[inline(never)]
fn select_id(service: &Service, cookie: u64) -> u32 {
    let now_tick = flows::now_tick();
    let hash = hash_of_socket(service, cookie);
    for attempt in 0..ATTEMPTS {
        if let Ok((id, backend)) = choice::pick(service, hash, attempt)
            && sock_lb::takes(backend)
            && !outlier::is_suspect(id, now_tick)
        {
            return id;
        }
    }
    // SAFETY: no arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    let slots = choice::slots_of(service);
    let Some(first) = choose::slot(random, slots.len) else { return 0 };
    // One that has failed lately is better than none.
    let mut suspect = 0;
    for step in 0..WALK {
        // By division: after a comparison the verifier would follow both ways, at each step.
        if let Some(slot) = (first + step).checked_rem(slots.len)
            && let Ok((id, backend)) = choice::in_table(slots, slot)
            && sock_lb::takes(backend)
        {
            if !outlier::is_suspect(id, now_tick) {
                return id;
            }
            suspect = id;
        }
    }
    suspect
}

/// The backend for a connection that this one would fail, or the same if there is no other.
#[inline(never)]
fn instead_of(service: &Service, id: u32) -> u32 {
    let now_tick = flows::now_tick();
    if !outlier::has_failed(id, sock_lb::CLIENT, now_tick) {
        return id;
    }
    match choice::other(service.slots, id, sock_lb::CLIENT, now_tick, |_, one| sock_lb::takes(one))
    {
        0 => id,
        other => other,
    }
}

/// What a socket's choices go by. To a service that goes by addresses the machine is one client: it gets the first
/// slot, of a table that follows from the seed.
#[inline(never)]
fn hash_of_socket(service: &Service, cookie: u64) -> u32 {
    match Balance::from_byte(service.balance) {
        Balance::Maglev => choose::hash_of(&maps::hash_seed(), cookie),
        _ => 0,
    }
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
pub enum Restored {
    /// The other end of a connection.
    Peer,
    /// The sender of a datagram.
    Sender,
}

/// Names what a socket dialled where the kernel names its backend. `None` for every other socket and
/// every other sender.
#[inline(always)]
pub fn restore<H: SockFamily>(sock: &SockAddr, which: Restored) -> Option<Verdict> {
    if !sock.is_of_this_machine() {
        return None;
    }
    let key = SocketKey::new(sock.cookie(), H::addr(sock), sock.port());
    let dialled = match which {
        Restored::Peer => peer(&key)?,
        Restored::Sender => match sockets::local_sender(&key) {
            Some(dialled) => dialled,
            // The sender is the other end.
            None if sock.is_connected() => peer(&key)?,
            None => return None,
        },
    };
    H::set(sock, &dialled.addr, dialled.port);
    Some(Verdict::LocalRestored)
}

/// What a socket dialled whose other end the kernel names.
#[inline(always)]
fn peer(key: &SocketKey) -> Option<&'static Dialled> {
    let connected = sockets::local_peer(key.cookie)?;
    if connected.is_with(&key.addr, key.port) { Some(&connected.dialled) } else { None }
}

/// Forgets a socket that is closed.
#[inline(always)]
pub fn close(closed: &Closed) {
    if closed.is_of_this_machine() {
        forget(closed.cookie());
    }
}

/// Forgets a socket's connection, which does not count as open any more. A subprogram: the verifier follows what comes
/// after it once.
#[inline(never)]
fn forget(cookie: u64) {
    let Some(connected) = sockets::local_peer(cookie) else { return };
    let Dialled { addr, port, chosen, .. } = connected.dialled;
    // Its state and its close may come at once, on two CPUs.
    if sockets::forget_local_peer(cookie) {
        outlier::closes_socket(&chosen);
        // Of datagram sockets only, but harmless for others.
        sockets::forget_local_choice(&SocketKey::new(cookie, addr, port));
    }
}

/// Follows a TCP socket of this machine that was sent to a backend: of a connection that fails the socket may stay
/// open for long.
#[inline(always)]
pub fn track(sock: &SockOps) {
    match sock.progress() {
        Progress::Connects => {
            if sockets::local_peer(sock.cookie()).is_some() {
                sock.watch();
            }
        }
        Progress::Changes { from, to } => {
            let outcome = Outcome::of(from, to, sock.retransmissions());
            if let (Outcome::Accepted | Outcome::Refused, Some(connected)) =
                (outcome, sockets::local_peer(sock.cookie()))
            {
                let Dialled { chosen, .. } = connected.dialled;
                match outcome {
                    Outcome::Accepted => outlier::accepts_socket(&chosen),
                    _ => outlier::fails_socket(&chosen, failure::REFUSED, true),
                }
            }
            if outcome.is_over() {
                forget(sock.cookie());
            }
        }
        Progress::Unanswered { before } => {
            if let Some(connected) = sockets::local_peer(sock.cookie()) {
                let Dialled { chosen, .. } = connected.dialled;
                outlier::fails_socket(&chosen, failure::SILENT, before == 0);
            }
        }
        Progress::Other => {}
    }
}
