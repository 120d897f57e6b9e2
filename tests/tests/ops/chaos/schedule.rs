//! Which faults come when: pure, and the same for the same seed.

use std::collections::BTreeSet;
use std::time::Duration;

use samport_tests::fake_engine::Behavior;

/// Nothing happens before the load has begun.
const FIRST: Duration = Duration::from_secs(1);
/// Faults end before this much of the time is left, as far as they end by themselves.
const LAST: Duration = Duration::from_secs(1);
/// Between the begins of two faults, in milliseconds.
const APART: std::ops::Range<u64> = 150..1_300;
/// How long a fault lasts, in milliseconds.
const LASTS: std::ops::Range<u64> = 100..3_000;

/// Something that goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// samport gets SIGKILL, and is started again at the end.
    Kill,
    /// samport gets SIGSTOP, and SIGCONT at the end.
    Freeze,
    /// The engine ends its events and answers badly.
    Engine(Behavior),
    /// The interface clients come in by goes down.
    Front,
    /// A backend's veth goes down.
    Veth(usize),
    /// Routes come and go by the thousand.
    Routes,
    /// The interface has another address.
    Address,
    /// Somebody takes a program off its hook, or a qdisc with several. A number says which.
    TakenOff(usize),
    /// The configuration file is another one.
    Config(Config),
    /// Nothing can be written below `/run`.
    DiskFull,
    /// A container stops, and starts again.
    Container(usize),
}

/// What the configuration file is replaced by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Config {
    /// Other ways to choose, other times, a list of all networks.
    Other(u8),
    /// No TOML.
    Broken,
}

/// What only one fault at a time may use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Resource {
    Process,
    Engine,
    Front,
    Backends,
    Routes,
    Address,
    Hooks,
    Config,
    Disk,
}

impl Fault {
    const fn resource(self) -> Resource {
        match self {
            Self::Kill | Self::Freeze => Resource::Process,
            Self::Engine(_) => Resource::Engine,
            Self::Front => Resource::Front,
            Self::Veth(_) | Self::Container(_) => Resource::Backends,
            Self::Routes => Resource::Routes,
            Self::Address => Resource::Address,
            Self::TakenOff(_) => Resource::Hooks,
            Self::Config(_) => Resource::Config,
            Self::DiskFull => Resource::Disk,
        }
    }

    /// One of each kind, in any order.
    fn deck(random: &mut fastrand::Rng, backends: usize) -> Vec<Self> {
        let config =
            if random.u8(..3) == 0 { Config::Broken } else { Config::Other(random.u8(..)) };
        let behavior = Behavior::BAD[random.usize(..Behavior::BAD.len())];
        let mut deck = vec![
            Self::Kill,
            Self::Freeze,
            Self::Engine(behavior),
            Self::Front,
            Self::Veth(random.usize(..backends)),
            Self::Routes,
            Self::Address,
            Self::TakenOff(random.usize(..1_000)),
            Self::Config(config),
            Self::DiskFull,
            Self::Container(random.usize(..backends)),
        ];
        random.shuffle(&mut deck);
        deck
    }
}

/// A fault, and when it begins and ends, counted from the start of the load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Planned {
    pub fault: Fault,
    pub begin: Duration,
    pub end: Duration,
}

/// A begin or an end, of the fault of this number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Step {
    pub at: Duration,
    pub is_end: bool,
    pub number: usize,
}

/// The faults of a run. Two that would be in each other's way do not overlap; each kind comes once before any comes
/// twice.
pub fn schedule(seed: u64, length: Duration, backends: usize) -> Vec<Planned> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut planned: Vec<Planned> = Vec::new();
    let mut deck = Vec::new();
    let mut now = FIRST;
    while now + LAST < length {
        if deck.is_empty() {
            deck = Fault::deck(&mut random, backends);
        }
        let busy: BTreeSet<Resource> =
            planned.iter().filter(|one| one.end > now).map(|one| one.fault.resource()).collect();
        if let Some(free) = deck.iter().position(|fault| !busy.contains(&fault.resource())) {
            let fault = deck.remove(free);
            let end = now + Duration::from_millis(random.u64(LASTS));
            planned.push(Planned { fault, begin: now, end: end.min(length) });
        }
        now += Duration::from_millis(random.u64(APART));
    }
    planned
}

/// What is to be done for them, in its order.
pub fn steps(planned: &[Planned]) -> Vec<Step> {
    let mut steps: Vec<Step> = (0..)
        .zip(planned)
        .flat_map(|(number, one)| {
            [(one.begin, false), (one.end, true)].map(|(at, is_end)| Step { at, is_end, number })
        })
        .collect();
    steps.sort();
    steps
}

#[test]
fn a_seed_gives_one_schedule_in_which_nothing_is_in_the_way_of_another() {
    let length = Duration::from_mins(10);
    let all = schedule(7, length, 3);
    assert_eq!(all, schedule(7, length, 3));
    assert_ne!(all, schedule(8, length, 3));
    for (at, one) in all.iter().enumerate() {
        assert!(one.begin < one.end && one.end <= length, "{one:?}");
        let same = all[..at].iter().filter(|other| other.fault.resource() == one.fault.resource());
        same.for_each(|other| assert!(other.end <= one.begin, "{other:?} and {one:?}"));
    }
    // All kinds, also in a short run.
    let kinds: BTreeSet<_> = schedule(7, Duration::from_secs(30), 3)
        .iter()
        .map(|one| std::mem::discriminant(&one.fault))
        .map(|kind| format!("{kind:?}"))
        .collect();
    assert_eq!(kinds.len(), 11, "{kinds:?}");
    let steps = steps(&all);
    assert_eq!(steps.len(), 2 * all.len());
    assert!(steps.is_sorted_by_key(|step| step.at));
}
