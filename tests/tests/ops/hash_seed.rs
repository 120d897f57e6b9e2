//! The file of the hash seed: where it is, and who says so without saying it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use samport_tests::TIMEOUT;
use samport_tests::daemon::{Daemon, HASH_SEED_FILE, samport, samport_binary};
use samport_tests::served::{Served, Status, text};
use samport_tests::traces::{assert_traces, traces};

use crate::{ended, lab};

const USUAL: &str = "/var/lib/samport/hash-seed";
const UNTIL_REBOOT: &str = "/run/samport/hash-seed";
const NOT_KEPT: &str = "is lost at the next reboot";

/// A samport that is told of no file, where a shell has changed the mounts of itself alone.
fn with_mounts(lab: &samport_tests::Lab, mounts: &str) -> Daemon {
    let script = format!("{mounts} && exec \"$@\"");
    let binary = samport_binary();
    let words = ["env", "-u", HASH_SEED_FILE, "unshare", "-m", "sh", "-c", &script, "sh"];
    let run = ["run", "-i", "eth0", "-p", "80", "--backend", "172.30.0.10", "--no-local"];
    let words = [&words[..], &[binary.to_str().unwrap()], &run].concat();
    Daemon::start_command(lab.host(), &words, &[])
}

/// A file as a process sees it.
fn seen_by(daemon: &Daemon, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{path}", daemon.pid()))
}

#[test]
fn without_a_word_it_is_kept_in_var_lib_for_its_owner_alone() {
    let lab = lab(1);
    let _servers = lab.serve(80).unwrap();
    let daemon = with_mounts(&lab, "mount -t tmpfs none /var/lib");
    let file = seen_by(&daemon, USUAL);
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    let seed = fs::read_to_string(&file).unwrap();
    assert_eq!(seed.trim_end().len(), 32);
    let [status] = &Status::all_in(lab.host())[..] else { panic!("one instance is there") };
    assert_eq!(status.0["hash_seed_file"], USUAL);
    let record = format!("/run/samport/{}.json", text(&status.0, "name"));
    assert!(!fs::read_to_string(record).unwrap().contains(seed.trim_end()));
    assert!(daemon.lines().iter().all(|line| !line.text.contains("seed")), "{:?}", daemon.lines());
    daemon.stop();
}

#[test]
fn where_that_is_read_only_it_is_in_run_and_a_line_says_so() {
    let lab = lab(1);
    let _servers = lab.serve(80).unwrap();
    // All of /run: a folder of it that others may remove is no good place to mount something. And pins that nobody sees
    // whose /run does not say that they are in use: `samport clean` of another test would remove them.
    let mounts = "mount -t tmpfs -o ro none /var/lib && mount -t tmpfs none /run && mount -t bpf none /sys/fs/bpf";
    let daemon = with_mounts(&lab, mounts);
    let line = daemon.wait_for_line(NOT_KEPT, TIMEOUT).text;
    for part in [USUAL, "Read-only file system", "--hash-seed-file"] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    assert_eq!(fs::metadata(seen_by(&daemon, UNTIL_REBOOT)).unwrap().mode() & 0o777, 0o600);
    assert!(!seen_by(&daemon, USUAL).exists());
    daemon.stop();
}

/// What names the file names what is in it nowhere.
#[test]
fn check_and_status_name_the_file_and_not_the_seed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, digits) = (folder.path().join("seed"), "00112233445566778899aabbccddeeff");
    let named = path.to_str().unwrap();
    let check = ["check", "-i", "eth0", "--provider", "static", "--hash-seed-file", named];
    let lab = lab(1);
    let checked = || {
        let output = samport(lab.host(), &check);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = checked();
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains(&format!("ok    hash seed: {named}, which `samport run` will")),
        "{said}"
    );
    assert!(!path.exists(), "who looks makes nothing");

    write_for_everybody(&path, digits);
    let (code, said) = checked();
    assert_eq!(code, Some(2), "{said}");
    let failed =
        format!("FAIL  the hash seed file {named} has mode 0644: others may read or write");
    assert!(said.contains(&failed) && said.contains(&format!("→ chmod 600 {named}")), "{said}");
    let run = ["run", "-i", "eth0", "-p", "80", "--backend", "172.30.0.10"];
    let run = [&run[..], &["--hash-seed-file", named]].concat();
    let before = traces(lab.host());
    ended(lab.host(), &run).assert(2, &[named, "has mode 0644", "; chmod 600 "]);
    assert_traces(lab.host(), &before);

    set_mode(&path, 0o600);
    let served = Served::start(lab, &["--hash-seed-file", named]);
    let shown = served.order(&["status", "-o", "wide"]);
    assert!(shown.contains(&format!("hash seed: {named}\n")), "{shown}");
    let args: [&[&str]; 5] = [
        &["status", "-o", "json"],
        &["status", "-o", "wide"],
        &check,
        &["config", "show", "-i", "eth0", "--hash-seed-file", named],
        &["explain", "192.0.2.2:1", "192.0.2.1:80"],
    ];
    let said: String = args.iter().map(|args| served.order(args)).collect();
    let lines = served.daemon.lines();
    let logged: Vec<_> = lines.iter().map(|line| &*line.text).collect();
    assert!(!said.contains(digits) && !logged.concat().contains(digits), "{said} {logged:?}");
}

/// The seed is like a host key: who cleans up after one samport does not change how the next one chooses.
#[test]
fn clean_leaves_the_seed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("seed");
    let mut served = Served::start(lab(1), &["--hash-seed-file", path.to_str().unwrap()]);
    let seed = fs::read_to_string(&path).unwrap();
    served.daemon.kill9();
    samport_tests::daemon::clean(served.lab.host(), &[]);
    assert_eq!(fs::read_to_string(&path).unwrap(), seed);
}

fn write_for_everybody(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    set_mode(path, 0o644);
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
