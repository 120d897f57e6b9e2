//! Which backend a client's address got, so that its next connections get it too.

use samport_common::flow::{Affinity, AffinityKey, FlowWord};
use samport_common::layout::{Backend, Life};

use crate::choice::Opening;
use crate::maps::{self, Tables};

/// The backend that the client's address got not too long ago, if it takes new flows.
#[inline(always)]
pub fn recall<P: Tables>(client: P::Addr, opening: &Opening) -> Option<(u32, &'static Backend)> {
    let affinity = P::affinity(&key::<P>(client, opening))?;
    // SAFETY: map memory that may be given to another client while it is read; then this one gets a
    // backend of another service, which the comparison of generations makes unlikely, or a good one.
    let Affinity { backend: id, generation, seen_tick } = unsafe { affinity.read_volatile() };
    if opening.now_tick.saturating_sub(seen_tick) > opening.service.affinity_ticks {
        return None;
    }
    let backend = maps::backend(id)?;
    if matches!(Life::from_byte(backend.life), Life::Serving) && backend.generation == generation {
        Some((id, backend))
    } else {
        None
    }
}

/// Takes note of the backend a new flow of this client has got.
#[inline(always)]
pub fn remember<P: Tables>(client: P::Addr, opening: &Opening, word: FlowWord) {
    let value = Affinity {
        backend: word.backend(),
        generation: word.generation(),
        seen_tick: opening.now_tick,
    };
    P::remember_affinity(&key::<P>(client, opening), &value);
}

#[inline(always)]
fn key<P: Tables>(client: P::Addr, opening: &Opening) -> AffinityKey<P::Addr> {
    AffinityKey { client, service: opening.id.get().to_ne_bytes(), pad: [0; 2] }
}
