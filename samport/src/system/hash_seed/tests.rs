use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::sync::Barrier;
use std::thread;

use tempfile::TempDir;

use super::*;
use crate::system::exit::code_of;

const DIGITS: &str = "00112233445566778899aabbccddeeff\n";

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

fn with_mode(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The error about a named file that is no good.
fn refused(path: &Path) -> String {
    let [opened, looked] = [open(Some(path)).map(|_| ()), look(Some(path)).map(|_| ())];
    let [opened, looked] = [opened, looked].map(|refused| {
        let error = refused.unwrap_err();
        assert_eq!(code_of(&error), Exit::Usage, "{error:#}");
        format!("{error:#}")
    });
    assert_eq!(opened, looked);
    opened
}

#[test]
fn a_seed_is_made_once_at_random_and_for_its_owner_alone() {
    let folder = folder();
    let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
    let made = open(Some(&one)).unwrap();
    assert_eq!((&made.path, mode_of(&one)), (&one, 0o600));
    let text = fs::read_to_string(&one).unwrap();
    assert_eq!((text.len(), text.find('\n')), (33, Some(32)), "32 digits in a line");
    assert_eq!(open(Some(&one)).unwrap(), made);
    assert_ne!(open(Some(&other)).unwrap().seed, made.seed);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing else is left");
}

#[test]
fn a_file_that_is_there_is_taken_as_it_is() {
    let folder = folder();
    let (path, link) = (folder.path().join("seed"), folder.path().join("link"));
    with_mode(&path, DIGITS, 0o400);
    symlink("seed", &link).unwrap();
    let expected: Vec<u8> = (0..16).map(|n| n * 0x11).collect();
    let expected = Seed::from_bytes(expected.try_into().unwrap());
    for text in [DIGITS, DIGITS.trim_end(), &DIGITS.to_uppercase()] {
        with_mode(&path, text, 0o600);
        for path in [&path, &link] {
            assert_eq!(open(Some(path)).unwrap().seed, expected, "{text:?}");
            assert_eq!(look(Some(path)).unwrap(), Look::There(path.clone()));
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}

/// Whoever is first makes it, and all others go by that one.
#[test]
fn who_start_together_have_one_seed() {
    for _ in 0..20 {
        let folder = folder();
        let path = folder.path().join("seed");
        let begin = Barrier::new(8);
        let start = || {
            begin.wait();
            open(Some(&path)).unwrap().seed
        };
        let seeds: Vec<Seed> = thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert_eq!(seeds, vec![open(Some(&path)).unwrap().seed; 8]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }
}

#[test]
fn what_others_may_read_or_write_is_refused() {
    let folder = folder();
    let path = folder.path().join("seed");
    for mode in [0o604, 0o602, 0o640, 0o620, 0o644, 0o666] {
        with_mode(&path, DIGITS, mode);
        let said = refused(&path);
        let way_out = format!("has mode {mode:04o}: others may read or write it; chmod 600 ");
        assert!(said.contains(&way_out) && said.ends_with(path.to_str().unwrap()), "{said}");
    }
    // Who is not root has no file of another's.
    if rustix::process::geteuid().is_root() {
        with_mode(&path, DIGITS, 0o600);
        std::os::unix::fs::chown(&path, Some(1_000), None).unwrap();
        let said = refused(&path);
        assert!(said.contains("belongs to user 1000") && said.contains("chown 0 "), "{said}");
    }
}

/// Nor is a word of it repeated: it may be a secret with a slip of the pen.
#[test]
fn what_is_no_seed_is_refused_without_a_word_of_it() {
    let folder = folder();
    let path = folder.path().join("seed");
    let long = "0123456789abcdef".repeat(1_000);
    for text in [
        "",
        "\n",
        "00112233445566778899aabbccddeef\n",
        "00112233445566778899aabbccddeeff0\n",
        "+0112233445566778899aabbccddeeff\n",
        "00112233445566778899aabbccddeegg\n",
        "00112233445566778899aabbccddeeff\n00112233445566778899aabbccddeeff\n",
        &long,
    ] {
        with_mode(&path, text, 0o600);
        let said = refused(&path);
        let file = format!("file {} holds no seed, which is 32 hexadecimal digits", path.display());
        assert!(said.contains(&file) && said.contains("; copy it again"), "{said}");
        assert!(!said.contains("2233"), "{said}");
    }
    fs::write(&path, [0xff; 32]).unwrap();
    refused(&path);
    let said = refused(folder.path());
    assert!(said.contains("is no file"), "{said}");
    let said = refused(&folder.path().join("no/seed"));
    assert!(said.contains("cannot make") && said.contains("make its folder"), "{said}");
}

#[test]
fn where_it_cannot_be_kept_it_is_until_the_next_reboot() {
    let folder = folder();
    let [usual, until_reboot] = ["var/seed", "run/seed"].map(|path| folder.path().join(path));
    let places = Places { usual: &usual, until_reboot: &until_reboot };
    // A folder cannot be made where a file is.
    fs::write(folder.path().join("var"), "").unwrap();
    let looked = places.look(None).unwrap();
    assert!(!until_reboot.exists(), "who looks changes nothing");
    let Look::UntilReboot(path, why) = looked else { panic!("{looked:?}") };
    assert!(path == until_reboot && why.contains("; make that folder writable"), "{why}");
    let kept = places.open(None).unwrap();
    assert_eq!((&kept.path, mode_of(&until_reboot)), (&until_reboot, 0o600));
    assert_eq!(places.open(None).unwrap(), kept);

    fs::remove_file(folder.path().join("var")).unwrap();
    assert_eq!(places.look(None).unwrap(), Look::New(usual.clone()));
    assert_eq!(places.open(None).unwrap().path, usual);
    assert_eq!(places.look(None).unwrap(), Look::There(usual.clone()));
    with_mode(&usual, "", 0o600);
    assert!(places.open(None).is_err(), "one that is there and no good is no reason for another");
}
