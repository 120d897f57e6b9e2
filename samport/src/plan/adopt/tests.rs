use proptest::prelude::*;

use super::super::tests::{Model, hints};
use super::super::{Desired, plan};
use super::*;

/// The kernel's maps, as far as who takes over reads them.
#[derive(Default)]
struct Kernel {
    found: KernelContents,
    serving: BTreeMap<u32, (BackendKey, BackendId, Attributes)>,
}

impl Kernel {
    fn apply(&mut self, change: &Change) {
        let found = &mut self.found;
        match change {
            Change::SetBackend { key, id, shared, weight, state, answers_on } => {
                let (shared, weight, state) = (*shared, *weight, *state);
                let marks = Attributes { shared, weight, state, answers_on: *answers_on };
                found.generations.resize(64, 0);
                found.generations[id.index as usize] = id.generation;
                self.serving.insert(id.index, (key.clone(), *id, marks));
            }
            Change::RetireBackend { id, .. } => {
                found.generations[id.index as usize] = id.next().generation;
                self.serving.remove(&id.index);
            }
            Change::SetReverseNat { source, reverse_nat } => {
                found.reverse_nat.insert(*source, reverse_nat.clone());
            }
            Change::RemoveReverseNat(source) => drop(found.reverse_nat.remove(source)),
            Change::SetFrontend { addr, listen, to } => {
                found.frontends.insert((*addr, *listen), *to);
            }
            Change::RemoveFrontend { addr, listen } => {
                found.frontends.remove(&(*addr, *listen));
            }
            Change::Attach(role, on) => drop(found.attached.insert((*role, *on))),
            Change::Detach(role, on) => drop(found.attached.remove(&(*role, *on))),
            Change::SetDevice(on, info) => drop(found.devices.insert(*on, *info)),
            Change::RemoveDevice(on) => drop(found.devices.remove(on)),
            Change::SetSource(addr, devices) => drop(found.sources.insert(*addr, *devices)),
            Change::RemoveSource(addr) => drop(found.sources.remove(addr)),
            Change::SetNode { at, index, tunnel } => {
                found.nodes.insert(*at, (*index, *tunnel));
            }
            Change::RemoveNode { at, .. } => drop(found.nodes.remove(at)),
            Change::OpenPort(listen) => drop(found.ports.insert(*listen)),
            Change::ClosePort(listen) => drop(found.ports.remove(listen)),
            Change::Allow { id, net, .. } => drop(found.allowed.insert((*id, *net))),
            Change::Disallow { id, net, .. } => drop(found.allowed.remove(&(*id, *net))),
            Change::WriteTable { .. } | Change::Settle => {}
        }
    }

    /// As the maps are read with this ledger in hand.
    fn read(&self, ledger: &IdManifest) -> KernelContents {
        let mut found = self.found.clone();
        found.generations.resize(64, 0);
        let named: BTreeSet<_> = ledger.backends().collect();
        for (key, id, marks) in self.serving.values() {
            if named.contains(&(key.clone(), *id)) {
                found.backends.insert(key.clone(), (*id, *marks));
            } else {
                found.orphans.push(*id);
            }
        }
        found
    }
}

/// Everything that is in the kernel but for what the slots of tables follow from.
fn but_tables(actual: &Actual) -> impl PartialEq + std::fmt::Debug + use<> {
    let services: Vec<_> = actual.services.iter().map(|(key, one)| (*key, one.id)).collect();
    let of_frontends = |(place, to): (&(IpAddr, Listen), &Frontend)| (*place, to.id, to.scope);
    let frontends: Vec<_> = actual.frontends.iter().map(of_frontends).collect();
    let Actual { backends, reverse_nat, ports, attached, generations, devices, sources, .. } =
        actual.clone();
    (backends, reverse_nat, services, frontends, ports, attached, generations, (devices, sources))
}

fn through_a_file(ledger: &IdManifest) -> IdManifest {
    serde_json::from_str(&serde_json::to_string(ledger).unwrap()).unwrap()
}

fn make(changes: &[Change], actual: &mut Actual, kernel: &mut Kernel, model: &mut Model) {
    for change in changes {
        actual.record(change);
        kernel.apply(change);
        model.apply(change);
        model.check();
    }
}

proptest! {
    /// Killed after any change whatever, the next one knows all that the one before knew, and goes on to
    /// what is wanted without a packet that meets half a change.
    #[test]
    fn whoever_takes_over_goes_on_where_the_other_was_killed(
        hints in hints(),
        at in prop::collection::vec(any::<prop::sample::Index>(), 12),
    ) {
        let (mut actual, mut kernel) = (Actual::with_room_for(63), Kernel::default());
        let mut model = Model::default();
        for (desired, at) in hints.iter().zip(at) {
            let changes = plan(desired, &mut actual).unwrap();
            let ledger = IdManifest::of(&actual, &changes);
            prop_assert!(ledger.covers(&IdManifest::of(&actual, &[])));
            let (made, _) = changes.split_at(at.index(changes.len() + 1));
            make(made, &mut actual, &mut kernel, &mut model);
            let (adopted, orphans) = Actual::adopt(&through_a_file(&ledger), kernel.read(&ledger));
            prop_assert_eq!(orphans, vec![]);
            prop_assert_eq!(but_tables(&adopted), but_tables(&actual));
            let before = adopted.backends.clone();
            actual = adopted;
            let changes = plan(desired, &mut actual).unwrap();
            make(&changes, &mut actual, &mut kernel, &mut model);
            prop_assert_eq!(plan(desired, &mut actual).unwrap(), vec![]);
            for (key, (id, _)) in before.iter().filter(|(key, _)| desired.backends.contains_key(key)) {
                prop_assert_eq!(Some(*id), actual.id_of(key), "flows of {:?} are lost", key);
            }
        }
    }
}

#[test]
fn what_no_ledger_names_is_undone() {
    let id = BackendId { index: 3, generation: 9 };
    let service = ServiceId::new(5).unwrap();
    let net: IpNet = "10.0.0.0/8".parse().unwrap();
    let found = KernelContents {
        orphans: vec![id],
        allowed: [(service, net)].into(),
        generations: vec![0, 0, 0, 9],
        ..KernelContents::default()
    };
    let (mut actual, orphans) = Actual::adopt(&IdManifest::default(), found);
    assert_eq!(orphans, [Orphan::Backend(id), Orphan::Allowed(service, net)]);
    assert_eq!(plan(&Desired::default(), &mut actual).unwrap(), vec![]);
}
