//! Which backend a client's address got, so that its next connections get it too.

use samport_common::flow::{Affinity, AffinityKey};
use samport_common::layout::{Backend, BackendState, Service};

use crate::maps::{self, Tables};

/// The backend that the client's address got not too long ago, if it takes new flows.
#[inline(always)]
pub fn recall<P: Tables>(
    client: P::Addr,
    service: &Service,
    now_tick: u32,
) -> Option<(u32, &'static Backend)> {
    let affinity = P::affinity(&key::<P>(client, service))?;
    // SAFETY: map memory that may be given to another client while it is read; then this one gets a
    // backend of another service, which the comparison of generations makes unlikely, or a good one.
    let Affinity { backend: id, generation, seen_tick } = unsafe { affinity.read_volatile() };
    if now_tick.saturating_sub(seen_tick) > service.affinity_ticks {
        return None;
    }
    let backend = maps::backend(id)?;
    if matches!(BackendState::from_byte(backend.state), BackendState::Serving)
        && backend.generation == generation
    {
        Some((id, backend))
    } else {
        None
    }
}

/// Takes note of the backend a new flow of this client has got.
#[inline(always)]
pub fn remember<P: Tables>(
    client: P::Addr,
    service: &Service,
    (backend, generation): (u32, u32),
    now_tick: u32,
) {
    let value = Affinity { backend, generation, seen_tick: now_tick };
    P::remember_affinity(&key::<P>(client, service), &value);
}

#[inline(always)]
fn key<P: Tables>(client: P::Addr, service: &Service) -> AffinityKey<P::Addr> {
    AffinityKey { client, service: service.id.to_ne_bytes(), pad: [0; 2] }
}
