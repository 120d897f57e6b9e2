//! The choice of an archive on sample machines, and that no tracked file names the host of one.

use std::collections::BTreeSet;

use super::*;

/// As a Debian machine has it after `apt-get update`, one of a third party first.
const DEBIAN: &str = "\
    https://packages.test/debian/|bookworm|main|Packages.test|Packages.test\n\
    http://mirror.test/debian/|bookworm|main|Debian|Debian\n\
    http://mirror.test/debian/|bookworm|main|Debian|Debian\n\
    http://mirror.test/debian/|bookworm-backports|main|Debian Backports|Debian Backports\n\
    http://safe.test/debian-security/|bookworm-security|main|Debian|Debian-Security\n";
/// As an image for containers has it, where apt has downloaded nothing yet.
const NEW_DEBIAN: &str = "\
    https://packages.test/linux/debian/|bookworm|stable|$(ORIGIN)|$(LABEL)\n\
    http://mirror.test/debian/|bookworm|main|$(ORIGIN)|$(LABEL)\n\
    http://mirror.test/debian-security/|bookworm-security|main|$(ORIGIN)|$(LABEL)\n";
const UBUNTU: &str = "\
    http://packages.test/some/ppa/ubuntu/|noble|main|LP-PPA-some|Some\n\
    http://mirror.test/ubuntu/|noble|main|Ubuntu|Ubuntu\n\
    http://mirror.test/ubuntu/|noble|universe|Ubuntu|Ubuntu\n\
    http://safe.test/ubuntu/|noble-security|main|Ubuntu|Ubuntu\n";
const SNAPSHOT: &str = "\
    http://mirror.test/archive/debian/20250520T000000Z/|bookworm|main|Debian|Debian\n\
    http://mirror.test/archive/debian-security/20250520T000000Z/|bookworm-security|main\
        |Debian|Debian-Security\n";

fn no_file(_: &str) -> Option<String> {
    None
}

/// The list of a suite on a machine with this output of apt and these variables.
fn list(suite: &str, output: &str, variables: &[(&str, &str)]) -> Result<String> {
    let targets = parse(output, no_file);
    let variable = |name: &str| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let at = |part, of| address(part, of, variable, &targets, || None);
    Ok(render(&entries(suite, at)?, distribution(suite)?, "/k"))
}

fn error(suite: &str, output: &str, variables: &[(&str, &str)]) -> String {
    list(suite, output, variables).unwrap_err().to_string()
}

#[test]
fn debians_archives_are_those_of_this_machines_apt() {
    for (output, security) in [(DEBIAN, "http://safe.test"), (NEW_DEBIAN, "http://mirror.test")] {
        let expected = format!(
            "deb [signed-by=/k] http://mirror.test/debian trixie main\n\
             deb [signed-by=/k] http://mirror.test/debian trixie-updates main\n\
             deb [signed-by=/k] {security}/debian-security trixie-security main\n"
        );
        assert_eq!(list("trixie", output, &[]).unwrap(), expected);
    }
}

#[test]
fn unstable_is_one_line_and_needs_no_security_archive() {
    let main_only = DEBIAN.lines().next_back().map(|last| DEBIAN.replace(last, "")).unwrap();
    let expected = "deb [signed-by=/k] http://mirror.test/debian sid main\n";
    assert_eq!(list("sid", &main_only, &[]).unwrap(), expected);
    assert_eq!(
        error("trixie", &main_only, &[]),
        "this machine's apt has no archive of Debian's security updates; \
         set SAMPORT_DEBIAN_SECURITY_MIRROR, like \
         SAMPORT_DEBIAN_SECURITY_MIRROR=http://MIRROR/debian-security"
    );
}

#[test]
fn ubuntus_archives_are_those_of_this_machines_apt() {
    let main = "deb [signed-by=/k] http://mirror.test/ubuntu jammy main universe\n\
                deb [signed-by=/k] http://mirror.test/ubuntu jammy-updates main universe\n";
    let security = "deb [signed-by=/k] http://safe.test/ubuntu jammy-security main universe\n";
    assert_eq!(list("jammy", UBUNTU, &[]).unwrap(), format!("{main}{security}"));
    // The archive itself has them too.
    let main_only = UBUNTU.replace("noble-security", "noble-backports");
    let security = security.replace("safe", "mirror");
    assert_eq!(list("jammy", &main_only, &[]).unwrap(), format!("{main}{security}"));
}

#[test]
fn another_distributions_archive_is_a_variables_or_named_as_missing() {
    let expected = "deb [signed-by=/k] http://u.test/ubuntu noble main universe\n\
                    deb [signed-by=/k] http://u.test/ubuntu noble-updates main universe\n\
                    deb [signed-by=/k] http://u.test/ubuntu noble-security main universe\n";
    let set = [("SAMPORT_UBUNTU_MIRROR", "http://u.test/ubuntu/")];
    assert_eq!(list("noble", DEBIAN, &set).unwrap(), expected);
    assert_eq!(
        error("noble", DEBIAN, &[]),
        "this machine's apt has no archive of Ubuntu's packages; \
         set SAMPORT_UBUNTU_MIRROR, like SAMPORT_UBUNTU_MIRROR=http://MIRROR/ubuntu"
    );
    assert!(error("sid", UBUNTU, &[]).contains("set SAMPORT_DEBIAN_MIRROR, like"));
    // A machine without apt.
    assert!(error("sid", "", &[]).contains("set SAMPORT_DEBIAN_MIRROR, like"));
}

#[test]
fn what_debootstrap_has_built_in_comes_last_and_is_no_security_archive() {
    let at = |part, of, output: &str| {
        let built_in = || Some("http://built-in.test/x/".to_owned());
        address(part, of, |_| None, &parse(output, no_file), built_in)
    };
    for part in [Part::Main, Part::Security] {
        let found = at(part, Distribution::Ubuntu, DEBIAN).unwrap();
        assert_eq!(found, "http://built-in.test/x", "{part:?}");
    }
    let found = at(Part::Main, Distribution::Ubuntu, UBUNTU).unwrap();
    assert_eq!(found, "http://mirror.test/ubuntu");
    assert!(at(Part::Security, Distribution::Debian, UBUNTU).is_err());
}

#[test]
fn a_variable_wins_over_this_machines_apt() {
    let set = [
        ("SAMPORT_DEBIAN_MIRROR", "http://own.test/debian"),
        ("SAMPORT_DEBIAN_SECURITY_MIRROR", "http://own.test/safe"),
    ];
    let expected = "deb [signed-by=/k] http://own.test/debian bookworm main\n\
                    deb [signed-by=/k] http://own.test/debian bookworm-updates main\n\
                    deb [signed-by=/k] http://own.test/safe bookworm-security main\n";
    assert_eq!(list("bookworm", DEBIAN, &set).unwrap(), expected);
    let wrong = [("SAMPORT_DEBIAN_MIRROR", "own.test")];
    assert_eq!(
        error("bookworm", DEBIAN, &wrong),
        "invalid SAMPORT_DEBIAN_MIRROR \"own.test\": expected an address like \
         http://MIRROR/debian"
    );
}

#[test]
fn a_snapshots_lists_may_be_old() {
    let expected = "deb [signed-by=/k check-valid-until=no] \
                    http://mirror.test/archive/debian/20250520T000000Z bookworm main\n";
    assert!(list("bookworm", SNAPSHOT, &[]).unwrap().starts_with(expected));
}

#[test]
fn an_unknown_suite_is_refused_with_those_that_are_known() {
    assert_eq!(
        error("buster", DEBIAN, &[]),
        "unknown suite \"buster\": expected bullseye, bookworm, trixie, sid, jammy, noble"
    );
}

#[test]
fn a_file_of_mirrors_stands_for_the_first_and_a_disk_for_nothing() {
    let mirrors = |file: &str| {
        (file == "/etc/apt/mirrors/debian.list").then(|| {
            "# ours\n\nhttps://first.test/debian/ priority:1\nhttps://b.test/debian\n".to_owned()
        })
    };
    for address in
        ["mirror+file:/etc/apt/mirrors/debian.list/", "mirror+file:///etc/apt/mirrors/debian.list"]
    {
        assert_eq!(usable(address, mirrors).as_deref(), Some("https://first.test/debian"));
    }
    assert_eq!(usable("mirror+file:/none", mirrors), None);
    assert_eq!(usable("cdrom://Debian 12/", mirrors), None);
}

#[test]
fn an_origin_that_is_known_counts_before_what_is_not() {
    let all = format!("{NEW_DEBIAN}http://new.test/debian/|sid|main|$(ORIGIN)|$(LABEL)\n");
    let known = "http://mirror.test/debian/|bookworm|main|Somebody|Debian\n";
    let merged = merge(parse(known, no_file), parse(&all, no_file));
    let found = find(Part::Main, Distribution::Debian, &merged);
    assert_eq!(found, Some("http://new.test/debian"), "{merged:?}");
}

#[test]
fn debootstraps_own_mirror_is_what_its_script_says_for_this_processor() {
    let script = std::env::temp_dir().join(format!("samport-script-{}", std::process::id()));
    let text = "case $ARCH in\n  amd64|i386)\n    case $SUITE in\n      gutsy) default_mirror \
                http://old.test/ubuntu ;;\n      *) default_mirror http://x86.test/ubuntu ;;\n    \
                esac ;;\n  *) default_mirror http://ports.test/ubuntu-ports ;;\nesac\n\
                mirror_style release\nvariants - minbase\n\
                if doing_variant fakechroot; then test \"$FAKECHROOT\" = true || error 1 NO no; fi\n\
                first_stage_install () { extract $required; }\n";
    fs::write(&script, text).unwrap();
    let found = default_mirror(&script, "noble");
    fs::remove_file(&script).unwrap();
    let expected = if cfg!(target_arch = "x86_64") {
        "http://x86.test/ubuntu"
    } else {
        "http://ports.test/ubuntu-ports"
    };
    assert_eq!(found.as_deref(), Some(expected));
}

/// What begins the names of the hosts that have a distribution's packages.
const ARCHIVE_HOSTS: [&str; 8] =
    ["deb", "archive", "security", "ports", "snapshot", "ftp", "mirrors", "cdn-fastly"];

/// The host names in a text, or what looks like them: words with a dot.
fn host_names(text: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    text.split(move |c| !is_part(c)).filter(|word| word.trim_matches('.').contains('.'))
}

fn is_archive_host(name: &str) -> bool {
    let labels: Vec<&str> = name.split('.').collect();
    let is_distribution = |label: &&str| matches!(*label, "debian" | "ubuntu");
    let Some(at) = labels.iter().position(is_distribution) else { return false };
    // What ends with the distribution's name is a file: a host is below a top-level domain.
    at + 1 < labels.len() && labels[..at].iter().any(|label| ARCHIVE_HOSTS.contains(label))
}

/// The hosts of a machine's archives; an address or a name without a dot is of no
/// machine in particular.
fn hosts(targets: &[Target]) -> BTreeSet<&str> {
    let ours = targets.iter().filter(|target| {
        [Distribution::Debian, Distribution::Ubuntu].iter().any(|of| is_of(target, *of))
    });
    let host = |target: &'_ Target| -> Option<(usize, usize)> {
        let begin = target.address.find("://")? + 3;
        let rest = &target.address[begin..];
        let end = begin + rest.find(['/', ':']).unwrap_or(rest.len());
        Some((begin, end))
    };
    let names = ours.filter_map(|t| host(t).map(|(begin, end)| &t.address[begin..end]));
    names.filter(|n| n.contains('.') && n.contains(|c: char| c.is_ascii_alphabetic())).collect()
}

#[test]
fn a_host_of_an_archive_is_told_from_other_names() {
    for (first, last) in
        [("deb", "debian.org"), ("us.archive", "ubuntu.com"), ("ftp.de", "debian.org")]
    {
        assert!(is_archive_host(&format!("{first}.{last}")), "{first}");
    }
    for other in ["bugs.debian.org", "samport.deb", "debian.sources", "archive.debian", "a.b"] {
        assert!(!is_archive_host(other), "{other}");
    }
    let text = "see http://a.test:80/x, b-c.test and d.";
    assert!(host_names(text).eq(["a.test", "b-c.test"]));
    let targets = parse(&format!("{DEBIAN}http://10.0.0.1/debian|sid|main|Debian|Debian"), no_file);
    assert!(hosts(&targets).into_iter().eq(["mirror.test", "safe.test"]));
}

#[test]
fn no_tracked_file_names_the_host_of_an_archive() {
    let mut git = Command::new("git");
    let files = sh::probe(git.current_dir(sh::root()).args(["ls-files", "-z"])).unwrap();
    let targets = targets();
    let own = hosts(&targets);
    let mut found = Vec::new();
    for file in files.split_terminator('\0').filter(|file| *file != "Cargo.lock") {
        // A file that is tracked may be gone from the checkout.
        let Ok(bytes) = fs::read(sh::root().join(file)) else { continue };
        let text = String::from_utf8_lossy(&bytes);
        let names = host_names(&text);
        let bad = names.filter(|name| is_archive_host(name) || own.contains(name));
        found.extend(bad.map(|name| format!("{file}: {name}")));
    }
    assert!(found.is_empty(), "addresses of archives come from elsewhere:\n{}", found.join("\n"));
}
