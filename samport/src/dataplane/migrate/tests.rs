use std::collections::BTreeSet;
use std::fmt::Write as _;

use samport_common::layout::LAYOUT_VERSION;

use super::*;

/// The maps of layout 3, as the object of commit c9a0d7c defines them.
const LAYOUT_3: &str = include_str!("layout3/maps.txt");
/// The maps of layout 4, as the object of commit 897d8c1 defines them.
const LAYOUT_4: &str = include_str!("layout4/maps.txt");
/// The maps of layout 5, as the object of commit 2b61d2c defines them.
const LAYOUT_5: &str = include_str!("layout5/maps.txt");

/// The maps of the prebuilt object, one on a line: name, type, bytes of the key and of the value, entries, flags.
fn present() -> String {
    let object = concat!(env!("CARGO_MANIFEST_DIR"), "/../samport-ebpf/prebuilt/samport-ebpf");
    let object = std::fs::read(object).expect("read the prebuilt object");
    let object = aya_obj::Object::parse(&object).expect("a kernel object");
    let maps: BTreeMap<_, _> =
        object.maps.iter().filter(|(name, _)| !name.starts_with('.')).collect();
    let mut text = String::new();
    for (name, map) in maps {
        let Shape { kind, key, value, entries, flags } = Shape::wanted(map, None);
        writeln!(text, "{name} {kind} {key} {value} {entries} {flags}").unwrap();
    }
    text
}

fn by_name(maps: &str) -> BTreeMap<&str, &str> {
    maps.lines().filter_map(|line| line.split_once(' ')).collect()
}

/// What CONTRIBUTING.md has to say of a change of the maps.
#[test]
fn the_maps_are_those_that_are_written_down() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/dataplane/migrate/maps.txt");
    let present = format!("layout {LAYOUT_VERSION}\n{}", present());
    if std::env::var_os("SAMPORT_WRITE_REFERENCE").is_some() {
        std::fs::write(file, &present).unwrap();
    }
    let written = std::fs::read_to_string(file).unwrap();
    assert_eq!(
        written, present,
        "the maps have changed: CONTRIBUTING.md, \"A change of the maps\", says what to do"
    );
}

#[test]
fn every_map_is_in_the_list_of_every_older_layout() {
    let maps: BTreeSet<_> = load::MAPS.into_iter().collect();
    assert_eq!(maps, by_name(&present()).into_keys().collect());
    for (version, list, renamed) in OLDER {
        let listed: BTreeSet<_> = list.iter().map(|(name, _)| *name).collect();
        assert_eq!(listed, maps, "layout {version}");
        assert_eq!(listed.len(), list.len(), "layout {version} has a map twice");
        let unknown: Vec<_> = renamed.iter().filter(|(_, name)| !maps.contains(name)).collect();
        assert!(unknown.is_empty(), "layout {version}: {unknown:?}");
        for name in load::OF_A_RUN {
            let of_run = Layout::of(version).unwrap().migration(name);
            assert!(matches!(of_run, Migration::OfRun), "{name} in layout {version}");
        }
    }
}

#[test]
fn what_becomes_of_a_map_fits_what_has_changed_of_it() {
    let present = present();
    let new = by_name(&present);
    for ((version, list, renamed), maps) in OLDER.into_iter().zip([LAYOUT_3, LAYOUT_4, LAYOUT_5]) {
        let old = by_name(maps);
        for (before, name) in renamed {
            assert!(old.contains_key(before) && !old.contains_key(name), "{before} was {name}");
            assert!(new.contains_key(name) && !new.contains_key(before), "{before} is {name}");
        }
        for (name, _) in list {
            let renamed = renamed.iter().find(|(_, new)| new == name);
            let before = renamed.map_or(*name, |(before, _)| *before);
            let (old, new) = (old.get(before), new.get(name));
            match Layout::of(version).unwrap().migration(name) {
                Migration::Kept => {
                    assert_eq!(old, new, "{name} of layout {version} is another map now");
                }
                Migration::New => assert_eq!(old, None, "{name} is not new in layout {version}"),
                // Emptied in every layout: each run has its own seed.
                Migration::Emptied if *name == seed::MAP => {}
                Migration::Converted(_) | Migration::Emptied => {
                    assert!(old.is_some(), "{name} is new in layout {version}");
                    assert_ne!(old, new, "{name} is the same in layout {version}: it can be kept");
                }
                Migration::OfRun => {}
            }
        }
    }
}

#[test]
fn layouts_without_a_conversion_are_unknown() {
    for (version, expected) in
        [(2, false), (3, true), (4, true), (5, true), (LAYOUT_VERSION, true), (99, false)]
    {
        assert_eq!(Layout::of(version).is_some(), expected, "{version}");
        assert_eq!(layouts().contains(&version), expected, "{version}");
    }
}
