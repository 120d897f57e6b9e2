//! Tables for choice by hash: who is there decides where a client goes, not who came when, and where one
//! goes away only its clients move. After "Maglev: A Fast and Reliable Software Network Load Balancer"
//! (Eisenbud and others, NSDI 2016), section 3.4, with weights.

use std::net::SocketAddr;

use samport_common::choose::words;
use samport_common::seed::{Rest, Seed};

use super::Member;
use super::turns::turns;
use crate::model::encode::wide;

/// What a table's length may be: primes, so that every step leads through all slots. Few, because when the
/// length changes all clients move. The first four are for want of room.
const LENGTHS: [u32; 6] = [251, 1_021, 4_093, 16_381, USUAL, LONGEST];
/// 1 % or better up to 655 backends: 512 KiB.
const USUAL: u32 = 65_537;
/// 1 % or better up to 1,310 backends, the limit of what is built: 1 MiB.
const LONGEST: u32 = 131_071;
/// With as many slots for each backend none has more than 1 % above its share (section 5.3 there).
const SLOTS_EACH: usize = 100;

/// Backend ids start at 1.
const FREE: u32 = 0;

/// How long a table for this many backends is, if it may have at most `room` slots.
#[must_use]
pub fn length(backends: usize, room: u32) -> u32 {
    let fits = |length: &u32| *length as usize >= backends.saturating_mul(SLOTS_EACH);
    let wanted = [USUAL, LONGEST].into_iter().find(fits).unwrap_or(LONGEST);
    let possible = LENGTHS.into_iter().rev().find(|length| *length <= room).unwrap_or(LENGTHS[0]);
    wanted.min(possible)
}

/// The slots of a table of this length, which cannot be told without the seed. The order of the members does not
/// matter, nor do their ids.
#[must_use]
pub fn slots(members: &[Member], length: u32, seed: Seed) -> Vec<u32> {
    let mut members = members.to_vec();
    members.sort_unstable_by_key(|member| (member.endpoint, member.id));
    let weights: Vec<u32> = members.iter().map(|member| member.weight).collect();
    let powers = powers(length);
    let mut walks: Vec<_> =
        members.iter().map(|one| Walk::of(one.endpoint, &powers, seed)).collect();
    let order = turns(&weights, length);
    let mut slots = vec![FREE; order.len()];
    for turn in order {
        let walk = &mut walks[turn as usize];
        let mut at = walk.step();
        while slots[at] != FREE {
            at = walk.step();
        }
        slots[at] = members[turn as usize].id;
    }
    slots
}

/// Prime to `length - 1` for all of [`LENGTHS`], so that raising to this power permutes the numbers below each.
const EXPONENT: u32 = 19;

/// `x^EXPONENT` modulo `length` for every x below it.
fn powers(length: u32) -> Vec<u32> {
    let modulus = u64::from(length);
    let power = |x: u64| (0..EXPONENT).fold(1, |product, _| product * x % modulus);
    (0..modulus).map(|x| rest(power(x), length)).collect()
}

/// A backend's own way through all slots, of which it takes the first free one when its turn comes. It
/// follows from where the backend answers and from the seed alone: these are the same after a restart and for all
/// samports that share a seed, which ids are not, and no two backends of a service have it in common.
///
/// The k-th slot is `factor * (start + k)^EXPONENT + shift` modulo the length. The steps of one constant stride
/// that the paper takes are not enough: of two backends whose strides have a small ratio, one takes many
/// slots from the other when a third one goes (14 % of all slots beyond its share were seen, with these at most 1.5 %).
struct Walk<'a> {
    powers: &'a [u32],
    /// Where in the powers the next slot is.
    next: usize,
    factor: u64,
    shift: u64,
}

impl<'a> Walk<'a> {
    fn of(endpoint: SocketAddr, powers: &'a [u32], seed: Seed) -> Self {
        let length = powers.len() as u64;
        let (addr, port) = (words(&wide(endpoint.ip())), endpoint.port().to_be_bytes());
        // A byte longer than a client's message: no client has the hash of a backend.
        let number = |which: u8| seed.hash(addr, Rest::of_three(port, which));
        let next = usize::try_from(number(0) % length).unwrap_or_default();
        Self { powers, next, factor: number(1) % (length - 1) + 1, shift: number(2) % length }
    }

    /// The next slot.
    fn step(&mut self) -> usize {
        let power = u64::from(self.powers[self.next]);
        self.next = if self.next + 1 < self.powers.len() { self.next + 1 } else { 0 };
        let slot = (self.factor * power + self.shift) % self.powers.len() as u64;
        usize::try_from(slot).unwrap_or_default()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "what is left is below `of`")]
fn rest(number: u64, of: u32) -> u32 {
    (number % u64::from(of)) as u32
}

#[cfg(test)]
mod tests;
