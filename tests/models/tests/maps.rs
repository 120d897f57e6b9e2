//! Programs that choose a backend, or send to one, while the loader changes the maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc as StdArc;

use loom::sync::Arc;
use loom::thread;
use samport::model::ports::Listen;
use samport::model::{HostDevice, State};
use samport::plan::table::{Region, Tables};
use samport::plan::{Actual, BackendKey, Change, Desired, Route, Share, plan};
use samport_common::flow::FlowWord;
use samport_common::layout::{DeviceSet, Scope, Slots, TABLE_SLOTS};
use samport_models::kernel::{Element, FRONTENDS, Kernel, Loader};

/// The one service with one backend, which answers at a port of its own.
fn wish(port: u16) -> Desired {
    let listen = Listen::tcp(80);
    let place = HostDevice { ifindex: port.into(), mac: [1; 6], polls: false };
    let key = BackendKey {
        listen,
        id: format!("web-{port}"),
        endpoint: SocketAddr::from(([172, 17, 0, 2], port)),
        route: Route::Peer(place),
    };
    let share = Share {
        name: "web".into(),
        weight: 1,
        group: None,
        state: State::Active,
        answers_on: DeviceSet::NONE,
        leaves_by: Vec::new(),
        route_back: None,
    };
    Desired {
        frontends: [(listen, [([192, 0, 2, 1].into(), Scope::External)].into())].into(),
        backends: [(key, share)].into(),
        ..Desired::default()
    }
}

/// The changes that lead to each of these backends in turn where there is room for one: those to the first, and those to
/// the others.
fn changes(ports: &[u16]) -> [Vec<Change>; 2] {
    let mut actual = Actual::with_room_for(1);
    let mut reach = |port: &u16| {
        let mut all = Vec::new();
        while let changes = plan(&wish(*port), &mut actual).unwrap()
            && !changes.is_empty()
        {
            for change in &changes {
                actual.record(change);
            }
            all.extend(changes);
        }
        all
    };
    let first = reach(&ports[0]);
    [first, ports[1..].iter().flat_map(reach).collect()]
}

/// The ports of backends by the words of their flows: also of one that a program has opened while its backend was retired.
fn ports(changes: &[Vec<Change>; 2]) -> BTreeMap<(u32, u32), u32> {
    let named = changes.iter().flatten().filter_map(|change| match change {
        Change::SetBackend { key, id, .. } => Some((*id, key)),
        Change::RetireBackend { key, id } => Some((id.next(), key)),
        _ => None,
    });
    named.map(|(id, key)| ((id.index, id.generation), key.endpoint.port().into())).collect()
}

fn id_is_used_again(settles: bool) {
    let changes = StdArc::new(changes(&[1_001, 1_002]));
    let ports = StdArc::new(ports(&changes));
    let ids: BTreeSet<_> = ports.keys().map(|(index, _)| *index).collect();
    assert_eq!((ports.len(), ids.len()), (3, 1), "two backends under one id");
    samport_models::run(move || {
        let kernel = Arc::new(Kernel::default());
        let mut loader = Loader::new(&kernel, settles);
        changes[0].iter().for_each(|change| loader.apply(change));
        let (&(id, generation), _) = ports.first_key_value().unwrap();
        let open = FlowWord::new(id, generation, samport_common::conntrack::State::Established);
        let cpu = {
            let (kernel, ports) = (kernel.clone(), ports.clone());
            thread::spawn(move || {
                let assert_is_named = |kernel: &Kernel, word: FlowWord| {
                    let named = ports.get(&(word.backend(), word.generation()));
                    assert_eq!(Some(&kernel.send(word)), named, "not the backend of {word:?}");
                };
                // A packet of an open flow, and one that begins a flow.
                kernel.run(|kernel| {
                    if kernel.serves(open) {
                        assert_is_named(kernel, open);
                    }
                });
                kernel.run(|kernel| {
                    let slots = Kernel::slots(kernel.element(0));
                    let word = kernel.select(slots, 0).and_then(|id| kernel.begin(id));
                    if let Some(word) = word {
                        assert_is_named(kernel, word);
                    }
                });
            })
        };
        changes[1].iter().for_each(|change| loader.apply(change));
        cpu.join().unwrap();
    });
}

/// An id of `BACKENDS` is another backend's while programs run: none sends a packet to another than its flow names.
#[test]
fn no_packet_goes_to_a_backend_that_its_flow_does_not_name() {
    id_is_used_again(true);
}

#[test]
#[should_panic(expected = "not the backend of")]
fn without_a_grace_period_a_packet_goes_to_the_next_backend_of_an_id() {
    id_is_used_again(false);
}

/// A rule of the tables that a test leaves out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Without {
    Nothing,
    /// A region given back is not written before a grace period has passed.
    GracePeriod,
    /// A program reads once where a table is.
    OneRead,
    /// A table is whole before a frontend leads to it.
    WholeTable,
}

/// Slots in the model's `TABLE`.
const ROOM: u32 = 4;
/// How long the service's tables are, one after the other: the third finds room only where the first was.
const LENGTHS: [u32; 3] = [2, 2, 1];

/// What stands in a slot of a table.
fn id_of(version: usize, slot: u32) -> u32 {
    let version = u32::try_from(version).unwrap();
    10 * (version + 1) + slot
}

/// Where the tables of all versions lie: no two in the same place.
fn regions() -> Vec<Region> {
    let mut tables = Tables::default();
    tables.take(Region { base: ROOM, len: TABLE_SLOTS - ROOM });
    let mut regions: Vec<Region> = Vec::new();
    for len in LENGTHS {
        let placed = tables.place(len);
        assert_eq!(placed.settles, regions.len() == 2);
        regions.push(placed.region.unwrap());
        if let [.., before, _] = regions[..] {
            tables.give_back(before);
        }
    }
    regions
}

fn slots_of(region: Region) -> Slots {
    Slots { base: region.base, len: region.len, key_fold: 1 }
}

/// A program's choice: the table it has read of, and the ids it has found in its first and its last slot.
fn choose(kernel: &Kernel, element: &Element, without: Without) -> (Slots, [u32; 2]) {
    let slots = Kernel::slots(element);
    let read = match without {
        Without::OneRead => Slots { base: Kernel::slots(element).base, ..slots },
        _ => slots,
    };
    (slots, [0, u32::MAX].map(|random| kernel.select(read, random).unwrap()))
}

fn tables_change(without: Without) {
    let regions = StdArc::new(regions());
    samport_models::run(move || {
        let kernel = Arc::new(Kernel::default());
        let mut loader = Loader::new(&kernel, without != Without::GracePeriod);
        let mut write = |version: usize| {
            let region = regions[version];
            let ids: Vec<u32> = (0..region.len).map(|slot| id_of(version, slot)).collect();
            if version == 2 {
                loader.settle();
            }
            if without != Without::WholeTable {
                loader.write_table(region.base, &ids);
            }
            (0..FRONTENDS).for_each(|front| loader.set_frontend(front, 0, slots_of(region)));
            if without == Without::WholeTable {
                loader.write_table(region.base, &ids);
            }
        };
        write(0);
        let cpu = {
            let (kernel, regions) = (kernel.clone(), regions.clone());
            thread::spawn(move || {
                let (slots, ids) = kernel.run(|kernel| choose(kernel, kernel.element(0), without));
                let version = regions.iter().position(|region| slots_of(*region) == slots);
                let whole = |version| [0, slots.len - 1].map(|slot| id_of(version, slot));
                assert_eq!(Some(ids), version.map(whole), "half a table");
            })
        };
        write(1);
        write(2);
        cpu.join().unwrap();
    });
}

/// Every choice is made in one table, the old one or the new one, which nobody writes meanwhile.
#[test]
fn every_choice_is_made_in_one_whole_table() {
    tables_change(Without::Nothing);
}

#[test]
#[should_panic(expected = "half a table")]
fn without_a_grace_period_a_table_is_written_while_a_program_reads_it() {
    tables_change(Without::GracePeriod);
}

/// The kernel uses the element of one frontend for the next at once: a program may see both values.
#[test]
#[should_panic(expected = "half a table")]
fn with_two_reads_a_program_chooses_beyond_a_tables_end() {
    tables_change(Without::OneRead);
}

#[test]
#[should_panic(expected = "half a table")]
fn with_a_frontend_before_its_table_a_program_reads_what_is_not_written() {
    tables_change(Without::WholeTable);
}

/// Two services with one frontend each, whose values are written again while a program chooses by the first one's. The
/// program compares the key that the value is of, or the service that it has read before it chose.
fn values_are_exchanged(compares_key: bool) {
    samport_models::run(move || {
        let kernel = Arc::new(Kernel::default());
        let mut loader = Loader::new(&kernel, true);
        // The table of each service is one slot, with one backend.
        loader.write_table(0, &[0, 1]);
        let slots = [0, 1].map(|base| Slots { base, len: 1, key_fold: 80 + u16::from(base == 1) });
        let mut write = || {
            loader.set_frontend(0, 0, slots[0]);
            loader.set_frontend(1, 1, slots[1]);
        };
        write();
        let cpu = {
            let kernel = kernel.clone();
            thread::spawn(move || {
                kernel.run(|kernel| {
                    let element = kernel.element(0);
                    let service = Kernel::service(element);
                    let id = kernel.select(Kernel::slots(element), 0);
                    let is_same = if compares_key {
                        Kernel::slots(element).is_of(80)
                    } else {
                        Kernel::service(element) == service
                    };
                    if is_same {
                        assert_eq!((id, service), (Some(0), 0), "the other service's");
                    }
                });
            })
        };
        // The value before of each is the memory of the next one's.
        write();
        cpu.join().unwrap();
    });
}

/// Whoever has read another frontend's value, or parts of it, does not choose by it.
#[test]
fn a_choice_is_made_by_the_value_of_its_own_frontend() {
    values_are_exchanged(true);
}

#[test]
#[should_panic(expected = "the other service's")]
fn by_the_service_alone_a_value_that_was_complete_before_is_taken() {
    values_are_exchanged(false);
}
