//! The maps that the loader writes while programs read them: `SERVICES`, `TABLE` and `BACKENDS`.

use loom::sync::RwLock;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use loom::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use samport::plan::{BackendId, Change};
use samport_common::choose;
use samport_common::conntrack::State;
use samport_common::flow::FlowWord;
use samport_common::layout::{BackendState, Slots};
use samport_common::wire::protocol::Protocol;

/// Frontends of the model's services.
pub const FRONTENDS: usize = 2;
const SLOTS: usize = 4;
const BACKENDS: usize = 3;

/// A value of `BACKENDS`, in the order of its bytes: the kernel copies a new value over it, and a program may see any part
/// of that.
#[derive(Default, Debug)]
struct Backend {
    port: AtomicU32,
    generation: AtomicU32,
    state: AtomicU32,
}

/// A value of `SERVICES`, in the order of its bytes.
#[derive(Default, Debug)]
pub struct Element {
    slots: AtomicU64,
    service: AtomicU32,
}

/// The maps. Frontends lead to elements: the kernel writes a new value into an element that is free and then leads the
/// frontend there, and the element before is free for the next frontend at once.
#[derive(Debug)]
pub struct Kernel {
    frontends: [AtomicUsize; FRONTENDS],
    elements: [Element; FRONTENDS + 1],
    table: [AtomicU32; SLOTS],
    backends: [Backend; BACKENDS],
    /// Held by every program that runs: what a grace period waits for.
    running: RwLock<()>,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            frontends: [0, 1].map(AtomicUsize::new),
            elements: Default::default(),
            table: [0; SLOTS].map(AtomicU32::new),
            backends: Default::default(),
            running: RwLock::new(()),
        }
    }
}

impl Kernel {
    /// Runs a program.
    pub fn run<T>(&self, program: impl FnOnce(&Self) -> T) -> T {
        let _running = self.running.read().unwrap();
        program(self)
    }

    /// The value of a frontend.
    pub fn element(&self, frontend: usize) -> &Element {
        &self.elements[self.frontends[frontend].load(Acquire)]
    }

    /// Where the table is that an element names: `choice::slots_of`.
    #[must_use]
    pub fn slots(element: &Element) -> Slots {
        Slots::from_bits(element.slots.load(Acquire))
    }

    /// The id of the service whose value an element is.
    #[must_use]
    pub fn service(element: &Element) -> u32 {
        element.service.load(Acquire)
    }

    /// The backend that a number leads to: `choice::random_backend`.
    pub fn select(&self, slots: Slots, random: u32) -> Option<u32> {
        let slot = choose::slot(random, slots.len)?;
        Some(self.table[slots.index(slot) as usize].load(Acquire))
    }

    /// The word of a flow that begins with this backend, if it serves: `NewFlow::word`.
    pub fn begin(&self, id: u32) -> Option<FlowWord> {
        let generation = self.backends[id as usize].generation.load(Acquire);
        let word = FlowWord::new(id, generation, State::SynSent);
        self.serves(word).then_some(word)
    }

    /// Whether a flow's backend still takes its packets: `forward::serves_in`.
    pub fn serves(&self, word: FlowWord) -> bool {
        let backend = &self.backends[word.backend() as usize];
        let state = backend.state.load(Acquire).to_le_bytes()[0];
        BackendState::from_byte(state).keeps(Protocol::Tcp)
            && backend.generation.load(Acquire) == word.generation()
    }

    /// The port that a flow's packet is sent to, which here stands for all of where a backend is.
    pub fn send(&self, word: FlowWord) -> u32 {
        self.backends[word.backend() as usize].port.load(Acquire)
    }
}

/// The loader's hand on the maps.
#[derive(Debug)]
pub struct Loader<'a> {
    kernel: &'a Kernel,
    /// The element that is free.
    spare: usize,
    /// Whether it waits for grace periods.
    settles: bool,
}

impl<'a> Loader<'a> {
    /// The one loader of these maps; it may leave out the grace periods.
    #[must_use]
    pub const fn new(kernel: &'a Kernel, settles: bool) -> Self {
        Self { kernel, spare: FRONTENDS, settles }
    }

    /// `dataplane::settle`.
    pub fn settle(&self) {
        if self.settles {
            drop(self.kernel.running.write().unwrap());
        }
    }

    /// Writes slots that nobody reads.
    pub fn write_table(&self, base: u32, ids: &[u32]) {
        for (slot, id) in self.kernel.table.iter().skip(base as usize).zip(ids) {
            slot.store(*id, Release);
        }
    }

    /// Leads a frontend of a service to a table.
    pub fn set_frontend(&mut self, frontend: usize, service: u32, slots: Slots) {
        let element = &self.kernel.elements[self.spare];
        element.slots.store(slots.to_bits(), Release);
        element.service.store(service, Release);
        self.spare = self.kernel.frontends[frontend].swap(self.spare, AcqRel);
    }

    fn set_backend(&self, id: BackendId, port: Option<u16>, state: BackendState) {
        let backend = &self.kernel.backends[id.index as usize];
        if let Some(port) = port {
            backend.port.store(port.into(), Release);
        }
        backend.generation.store(id.generation, Release);
        backend.state.store(state as u32, Release);
    }

    /// Makes a change of a plan, as `Dataplane::apply` does.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::SetBackend { key, id, state, .. } => {
                self.set_backend(*id, Some(key.endpoint.port()), *state);
            }
            Change::RetireBackend { id, .. } => {
                self.set_backend(id.next(), None, BackendState::Down);
            }
            Change::WriteTable { region, slots, .. } => self.write_table(region.base, slots),
            Change::SetFrontend { to, .. } => {
                let slots = Slots { base: to.region.base, len: to.region.len, key_fold: 1 };
                (0..FRONTENDS).for_each(|frontend| self.set_frontend(frontend, 0, slots));
            }
            Change::Settle => self.settle(),
            _ => {}
        }
    }
}
