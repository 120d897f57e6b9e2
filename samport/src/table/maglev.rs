//! Tables for choice by hash: who is there decides where a client goes, not who came when, and where one
//! goes away only its clients move. After "Maglev: A Fast and Reliable Software Network Load Balancer"
//! (Eisenbud and others, NSDI 2016), section 3.4, with weights.

use std::net::{IpAddr, SocketAddr};

use xxhash_rust::xxh3::xxh3_128;

use super::Member;
use super::turns::turns;

/// What a table's length may be: primes, so that every step leads through all slots. Few, because when the
/// length changes all clients move. The first four are for want of room.
const LENGTHS: [u32; 6] = [251, 1_021, 4_093, 16_381, USUAL, LONGEST];
/// 1 % or better up to 655 backends: 512 KiB. A quarter of it would do for 163, but then a backend whose way
/// has a short stride takes others' slots with it when it goes: 2.9 % more than its share was seen.
const USUAL: u32 = 65_537;
/// 1 % or better up to 1,310 backends, the limit of what is built: 1 MiB.
const LONGEST: u32 = 131_071;
/// With as many slots for each backend none has more than 1 % above its share (section 5.3 there).
const SLOTS_EACH: usize = 100;

/// Backend ids start at 1.
const FREE: u32 = 0;

/// How long a table for so many backends is, if it may have at most `room` slots.
#[must_use]
pub fn length(backends: usize, room: u32) -> u32 {
    let fits = |length: &u32| *length as usize >= backends.saturating_mul(SLOTS_EACH);
    let wanted = [USUAL, LONGEST].into_iter().find(fits).unwrap_or(LONGEST);
    let possible = LENGTHS.into_iter().rev().find(|length| *length <= room).unwrap_or(LENGTHS[0]);
    wanted.min(possible)
}

/// The slots of a table of this length. The order of the members does not matter, nor do their ids.
#[must_use]
pub fn slots(members: &[Member], length: u32) -> Vec<u32> {
    let mut members = members.to_vec();
    members.sort_unstable_by_key(|member| (member.endpoint, member.id));
    let weights: Vec<u32> = members.iter().map(|member| member.weight).collect();
    let mut walks: Vec<_> = members.iter().map(|one| Walk::of(one.endpoint, length)).collect();
    let order = turns(&weights, length);
    let mut slots = vec![FREE; order.len()];
    for turn in order {
        let walk = &mut walks[turn as usize];
        while slots[walk.at as usize] != FREE {
            walk.step();
        }
        slots[walk.at as usize] = members[turn as usize].id;
    }
    slots
}

/// A backend's own way through all slots, of which it takes the first free one when its turn comes. It
/// follows from where the backend answers alone: that is the same for all samports and after a restart,
/// which ids are not, and no two backends of a service have it in common.
struct Walk {
    at: u32,
    stride: u32,
    length: u32,
}

impl Walk {
    fn of(endpoint: SocketAddr, length: u32) -> Self {
        let hash = xxh3_128(&bytes(endpoint));
        let (high, low) = (hash >> 64, hash & u128::from(u64::MAX));
        Self { at: rest(low, length), stride: rest(high, length - 1) + 1, length }
    }

    fn step(&mut self) {
        self.at += self.stride;
        if self.at >= self.length {
            self.at -= self.length;
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "what is left is below `of`")]
fn rest(number: u128, of: u32) -> u32 {
    (number % u128::from(of)) as u32
}

fn bytes(endpoint: SocketAddr) -> Vec<u8> {
    let port = endpoint.port().to_be_bytes();
    match endpoint.ip() {
        IpAddr::V4(ip) => [&ip.octets()[..], &port].concat(),
        IpAddr::V6(ip) => [&ip.octets()[..], &port].concat(),
    }
}

#[cfg(test)]
mod tests;
