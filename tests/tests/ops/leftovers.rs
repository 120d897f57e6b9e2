//! What a lab and the samport in it leave behind is found and named, each kind of it; the demo and these tests rely
//! on that. What others have is not taken for ours: `tests/demo.rs`.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use samport::lab::{Footprint, output_of};
use samport_tests::bpf::{Foreign, Hook, open_pin, open_program, pin, programs_on};
use samport_tests::served::{Served, inode};
use samport_tests::traces::tc;
use samport_tests::{Lab, Namespace, eventually, require_root};

/// A lab in which samport has run, and ended while something that `keep` gives was held.
fn ended_while<T>(keep: impl FnOnce(&Served) -> T) -> (Footprint, Lab, T) {
    require_root();
    let builder = Lab::builder().backends(1);
    let mut footprint = Footprint::of(&builder);
    let lab = builder.build().unwrap();
    footprint.look_before(lab.host()).unwrap();
    let served = Served::start(lab, &[]);
    footprint.look(served.lab.host()).unwrap();
    let kept = keep(&served);
    let Served { daemon, lab, .. } = served;
    daemon.stop();
    (footprint, lab, kept)
}

/// The pins of the lab's samport whose names begin like this.
fn pins(served: &Served, begin: &str) -> Vec<PathBuf> {
    let name = served.status().0["name"].as_str().unwrap().to_owned();
    let pins = fs::read_dir(Path::new("/sys/fs/bpf/samport").join(name)).unwrap();
    let mut pins: Vec<_> = pins.map(|pin| pin.unwrap().path()).collect();
    pins.retain(|pin| pin.file_name().unwrap().to_string_lossy().starts_with(begin));
    pins
}

fn hold(served: &Served, begin: &str) -> OwnedFd {
    open_pin(&pins(served, begin)[0]).unwrap()
}

/// Panics unless exactly these are left, each by its beginning and its end, and nothing once `kept` is dropped.
fn assert_left<T>((footprint, lab, kept): (Footprint, Lab, T), expected: &[[&str; 2]]) {
    let is = |line: &str, [begin, end]: &[&str; 2]| line.starts_with(begin) && line.ends_with(end);
    eventually(&format!("{expected:?} is left and nothing else"), || {
        let left = footprint.left_by_samport(lab.host()).unwrap();
        let exactly = left.len() == expected.len()
            && expected.iter().all(|one| left.iter().any(|line| is(line, one)));
        if !exactly {
            eprintln!("left: {left:#?}");
        }
        exactly.then_some(())
    });
    drop(kept);
    footprint.wait_for_samport(lab.host()).unwrap();
    drop(lab);
    footprint.wait_for_lab().unwrap();
}

/// Panics unless all of these are among what is left, and nothing once `kept` is dropped.
fn assert_among<T>((footprint, lab, kept): (Footprint, Lab, T), expected: &[[&str; 2]]) {
    let left = footprint.left_by_samport(lab.host()).unwrap();
    for [begin, end] in expected {
        let is = |line: &&String| line.starts_with(begin) && line.ends_with(end);
        assert!(left.iter().any(|line| is(&line)), "no {begin} … {end} in {left:#?}");
    }
    drop(kept);
    footprint.wait_for_samport(lab.host()).unwrap();
    drop(lab);
    footprint.wait_for_lab().unwrap();
}

#[test]
fn nothing_is_left_of_a_clean_exit() {
    assert_left(ended_while(|_| ()), &[]);
}

#[test]
fn a_map_that_is_left_is_named() {
    assert_left(ended_while(|served| hold(served, "map_BACKENDS")), &[["map ", " map_BACKENDS"]]);
}

#[test]
fn a_program_that_is_left_is_named_and_so_are_its_maps() {
    let ended = ended_while(|served| {
        let ids = programs_on(served.lab.host(), "eth0", Hook::Ingress);
        open_program(ids[0]).unwrap()
    });
    assert_among(ended, &[["program ", " samport_forward"], ["map ", " map_BACKENDS"]]);
}

#[test]
fn a_link_that_is_left_is_named_and_so_is_what_it_has_attached() {
    let ended = ended_while(|served| hold(served, "link_forward"));
    let tcx = ["tcx ingress of eth0: program ", " samport_forward"];
    assert_among(ended, &[["link ", ""], ["program ", " samport_forward"], tcx]);
}

#[test]
fn an_attachment_to_the_control_group_that_is_left_is_named() {
    let ended = ended_while(|served| hold(served, "link_local_connect4"));
    assert_among(ended, &[["link ", " link_local_connect4"], ["program ", ""]]);
}

#[test]
fn pins_and_records_that_are_left_are_named() {
    let (footprint, lab, map) = ended_while(|served| hold(served, "map_BACKENDS"));
    let name = format!("left:1@{}", inode(lab.host()));
    let folder = Path::new("/sys/fs/bpf/samport").join(&name);
    let record = Path::new("/run/samport").join(format!("{name}.json"));
    let pin_file = folder.join("map_left");
    // Another test's `clean` may take them away at any moment: nobody works for that name.
    eventually("all of them are named", || {
        fs::create_dir_all(&folder).ok()?;
        let _ = fs::remove_file(&pin_file);
        pin(&map, &pin_file).ok()?;
        fs::write(&record, "").ok()?;
        let left = footprint.left_by_samport(lab.host()).unwrap();
        fs::remove_file(&pin_file).ok()?;
        fs::remove_dir(&folder).ok()?;
        fs::remove_file(&record).ok()?;
        let is_named = |path: &Path| left.contains(&path.display().to_string());
        [&pin_file, &folder, &record].into_iter().all(|path| is_named(path)).then_some(())
    });
    assert_left((footprint, lab, map), &[["map ", " map_BACKENDS"]]);
}

#[test]
fn a_qdisc_and_a_filter_that_are_left_are_named() {
    let (footprint, lab, ()) = ended_while(|_| ());
    tc(lab.host(), &["qdisc", "add", "dev", "eth0", "clsact"]);
    let filter = ["filter", "add", "dev", "eth0", "egress", "bpf", "bytecode", "1,6 0 0 0,"];
    tc(lab.host(), &[&filter[..], &["flowid", "1:1"]].concat());
    let left = footprint.left_by_samport(lab.host()).unwrap();
    for begin in ["qdisc clsact", "tc egress of eth0: filter"] {
        assert!(left.iter().any(|line| line.starts_with(begin)), "no {begin} in {left:#?}");
    }
}

/// A program that is loaded after the last look keeps a map that was seen.
#[test]
fn what_was_never_seen_is_named_by_what_it_keeps() {
    let (footprint, lab, foreign) = ended_while(|served| {
        let map = hold(served, "map_BACKENDS");
        Foreign::attach_using(served.lab.host(), "eth0", &map)
    });
    let error = footprint.wait_for_samport(lab.host()).unwrap_err().to_string();
    for words in [" map_BACKENDS\n", "kept by program ", " foreign\n", "kept by link ", "tcx"] {
        assert!(error.contains(words), "no {words:?} in: {error}");
    }
    drop(foreign);
    footprint.wait_for_samport(lab.host()).unwrap();
}

#[test]
fn namespaces_and_devices_that_are_left_are_named() {
    require_root();
    let builder = Lab::builder().backends(1);
    let (footprint, prefix) = (Footprint::of(&builder), builder.prefix().to_owned());
    let lab = builder.build().unwrap();
    for namespace in [lab.host(), lab.client(), lab.backends()[0].namespace()] {
        assert_belongs(namespace, &prefix);
    }
    drop(lab);
    footprint.wait_for_lab().unwrap();

    let (namespace, device) = (format!("{prefix}left"), format!("left{}", std::process::id()));
    let ip = |args: &str| output_of(Command::new("ip").args(args.split(' '))).unwrap();
    ip(&format!("netns add {namespace}"));
    ip(&format!("link add name {device} type veth peer name {device}p"));
    ip(&format!("link set {device} alias {prefix}left"));
    let left = footprint.left_by_lab();
    ip(&format!("link del {device}"));
    ip(&format!("netns del {namespace}"));
    let expected = [format!("namespace {namespace}"), format!("device {device} ({prefix}left)")];
    assert_eq!(left.unwrap(), expected);
    footprint.wait_for_lab().unwrap();
}

/// Its name and all its devices bear the lab's prefix.
fn assert_belongs(namespace: &Namespace, prefix: &str) {
    assert!(namespace.name().starts_with(prefix), "{}", namespace.name());
    let devices = namespace.ip(&["-j", "link", "show"]).unwrap();
    let devices: serde_json::Value = serde_json::from_str(&devices).unwrap();
    for device in devices.as_array().unwrap().iter().filter(|device| device["ifname"] != "lo") {
        let alias = device["ifalias"].as_str().unwrap_or_default();
        assert!(alias.starts_with(prefix), "{device:#}");
    }
}
