use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;

/// Something done to a checkout, and what it is.
type Change = (&'static str, fn(&Path));

/// The checkout these tests are in.
fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    }
}

/// A copy of what matters of the checkout, without prebuilt objects.
fn tree() -> TempDir {
    let tree = TempDir::new().unwrap();
    for path in [
        "Cargo.toml",
        "Cargo.lock",
        "samport-ebpf/Cargo.toml",
        "samport-ebpf/src",
        "samport-common/Cargo.toml",
        "samport-common/src",
    ] {
        copy(&checkout().join(path), &tree.path().join(path));
    }
    tree
}

fn versions() -> Versions {
    Versions {
        rustc: "rustc 1.96.0 (ac68faa20 2026-05-25)".to_owned(),
        rustc_llvm: "22.1.8".to_owned(),
        linker: "bpf-linker 0.13.0".to_owned(),
        linker_llvm: "LLVM version 22.1.8".to_owned(),
    }
}

fn objects() -> Objects {
    OBJECTS
        .into_iter()
        .map(|name| (name.to_owned(), format!("object {name}").into_bytes()))
        .collect()
}

fn append(path: &Path, text: &str) {
    let old = fs::read_to_string(path).unwrap_or_default();
    fs::write(path, old + text).unwrap();
}

/// Replaces what must occur.
fn replace(path: &Path, from: &str, to: &str) {
    let old = fs::read_to_string(path).unwrap();
    assert!(old.contains(from), "{} has no {from:?}", path.display());
    fs::write(path, old.replacen(from, to, 1)).unwrap();
}

#[test]
fn the_prebuilt_objects_are_of_these_sources() {
    let manifest = read_manifest(checkout()).unwrap();
    let manifest =
        manifest.expect("there are no prebuilt kernel programs: run `cargo xtask prebuilt`");
    assert_eq!(
        manifest.key,
        key(checkout()).unwrap(),
        "the kernel programs' sources have changed: run `cargo xtask prebuilt` and commit samport-ebpf/prebuilt"
    );
    read(checkout(), &manifest).unwrap();
}

#[test]
fn whatever_the_objects_are_made_from_changes_the_key() {
    let changes: [Change; 9] = [
        ("a source of the kernel crate", |tree| {
            append(&tree.join("samport-ebpf/src/maps.rs"), "\n");
        }),
        ("a source in a folder", |tree| {
            append(&tree.join("samport-ebpf/src/harness/main.rs"), "\n");
        }),
        ("a source of the core", |tree| append(&tree.join("samport-common/src/flow.rs"), "\n")),
        ("a new source", |tree| append(&tree.join("samport-common/src/new.rs"), "// new\n")),
        ("a source less", |tree| {
            fs::remove_file(tree.join("samport-common/src/wire/tcp.rs")).unwrap();
        }),
        ("a crate's manifest", |tree| {
            append(&tree.join("samport-ebpf/Cargo.toml"), "\n[features]\n");
        }),
        ("a feature of a dependency", |tree| {
            replace(
                &tree.join("Cargo.toml"),
                "features = [\"derive\"] }\n\n",
                "features = [] }\n\n",
            );
        }),
        ("the release profile", |tree| {
            append(&tree.join("Cargo.toml"), "overflow-checks = true\n");
        }),
        ("a dependency of a dependency", |tree| {
            replace(
                &tree.join("Cargo.lock"),
                "name = \"aya-ebpf-bindings\"\nversion = \"0",
                "name = \"aya-ebpf-bindings\"\nversion = \"1",
            );
        }),
    ];
    let before = key(checkout()).unwrap();
    for (name, change) in changes {
        let tree = tree();
        assert_eq!(key(tree.path()).unwrap(), before, "a copy elsewhere has the same key");
        change(tree.path());
        assert_ne!(key(tree.path()).unwrap(), before, "{name}");
    }
}

#[test]
fn nothing_else_changes_the_key() {
    let changes: [Change; 6] = [
        ("a file of another crate", |tree| {
            fs::create_dir_all(tree.join("samport/src")).unwrap();
            append(&tree.join("samport/src/lib.rs"), "// new\n");
        }),
        ("a test of the core", |tree| {
            append(&tree.join("samport-common/src/packet/tests.rs"), "\n");
        }),
        ("an editor's file", |tree| append(&tree.join("samport-ebpf/src/main.rs~"), "\n")),
        ("a dependency of the loader", |tree| {
            replace(&tree.join("Cargo.toml"), "\ntokio = {", "\nmore = \"1\"\ntokio = {");
            replace(
                &tree.join("Cargo.lock"),
                "name = \"tokio\"\nversion = \"1",
                "name = \"tokio\"\nversion = \"2",
            );
        }),
        ("a dependency of the core's tests", |tree| {
            replace(
                &tree.join("Cargo.lock"),
                "name = \"proptest\"\nversion = \"1",
                "name = \"proptest\"\nversion = \"2",
            );
        }),
        ("the development profile", |tree| {
            replace(
                &tree.join("Cargo.toml"),
                "\n[profile.dev]\n",
                "\n[profile.dev]\nincremental = false\n",
            );
        }),
    ];
    let before = key(checkout()).unwrap();
    for (name, change) in changes {
        let tree = tree();
        change(tree.path());
        assert_eq!(key(tree.path()).unwrap(), before, "{name}");
    }
}

#[test]
fn the_key_covers_the_crates_that_the_objects_are_made_of() {
    let inputs = inputs(checkout()).unwrap();
    let locked = String::from_utf8(inputs["Cargo.lock"].clone()).unwrap();
    for name in
        ["aya-ebpf", "aya-ebpf-bindings", "aya-ebpf-macros", "aya-log-ebpf", "syn", "zerocopy"]
    {
        assert!(locked.contains(&format!("name = \"{name}\"\n")), "{name}");
    }
    for name in ["proptest", "tokio", "serde_json", "aya-build"] {
        assert!(!locked.contains(&format!("name = \"{name}\"\n")), "{name}");
    }
    let workspace = String::from_utf8(inputs["Cargo.toml"].clone()).unwrap();
    for line in
        ["workspace: resolver", "workspace.package: version", "workspace.dependencies: zerocopy"]
    {
        assert!(workspace.contains(line), "{line}: {workspace}");
    }
}

#[test]
fn objects_of_these_sources_are_taken_and_others_compiled() {
    let tree = tree();
    let root = tree.path();
    let none = source(root, Wanted::Either).unwrap();
    assert_eq!(none, Source::Compile("there are no prebuilt kernel programs".to_owned()));
    write(root, &objects(), versions()).unwrap();
    assert_eq!(source(root, Wanted::Either).unwrap(), Source::Prebuilt(objects()));
    assert_eq!(source(root, Wanted::Prebuilt).unwrap(), Source::Prebuilt(objects()));
    assert!(matches!(source(root, Wanted::Build).unwrap(), Source::Compile(_)));

    append(&root.join("samport-ebpf/src/maps.rs"), "\n");
    assert!(matches!(source(root, Wanted::Either).unwrap(), Source::Compile(_)));
    let error = source(root, Wanted::Prebuilt).unwrap_err().to_string();
    assert!(error.contains("of other sources; `cargo xtask prebuilt`"), "{error}");
}

#[test]
fn a_damaged_object_is_refused_by_name() {
    for name in OBJECTS {
        let tree = tree();
        write(tree.path(), &objects(), versions()).unwrap();
        append(&folder(tree.path()).join(name), "x");
        for wanted in [Wanted::Either, Wanted::Prebuilt] {
            let error = format!("{:#}", source(tree.path(), wanted).unwrap_err());
            assert!(
                error.contains("damaged") && error.contains(&format!("prebuilt/{name}")),
                "{error}"
            );
            assert!(error.contains("git checkout samport-ebpf/prebuilt"), "{error}");
        }
        fs::remove_file(folder(tree.path()).join(name)).unwrap();
        assert!(source(tree.path(), Wanted::Either).is_err());
        // Who wants to compile need not mend what is not used.
        assert!(matches!(source(tree.path(), Wanted::Build).unwrap(), Source::Compile(_)));
    }
}

#[test]
fn a_damaged_manifest_is_refused_with_what_is_wrong() {
    let tree = tree();
    let manifest = write(tree.path(), &objects(), versions()).unwrap();
    let path = manifest_path(tree.path());
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.parse::<Manifest>().unwrap(), manifest);
    for (from, to, expected) in [
        ("key = ", "<<<<<<< ", "no line \"key = …\""),
        ("key = ", "key = x", "invalid key"),
        ("sha256 samport-ebpf", "sha256 other", "no line \"sha256 samport-ebpf = …\""),
        ("rustc = ", "gcc = ", "no line \"rustc = …\""),
    ] {
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let error = format!("{:#}", source(tree.path(), Wanted::Either).unwrap_err());
        assert!(error.contains("prebuilt/manifest") && error.contains(expected), "{error}");
    }
}

#[test]
fn the_variable_takes_two_values() {
    assert_eq!(Wanted::parse(None).unwrap(), Wanted::Either);
    assert_eq!(Wanted::parse(Some("build")).unwrap(), Wanted::Build);
    assert_eq!(Wanted::parse(Some("prebuilt")).unwrap(), Wanted::Prebuilt);
    let error = Wanted::parse(Some("no")).unwrap_err().to_string();
    assert_eq!(error, "invalid SAMPORT_BPF \"no\": expected prebuilt or build");
}

#[test]
fn versions_that_differ_are_named_with_both() {
    let other = Versions { rustc: "rustc 1.97.0".to_owned(), ..versions() };
    let differences = versions().differences(&other);
    assert_eq!(differences, ["rustc: \"rustc 1.96.0 (ac68faa20 2026-05-25)\", \"rustc 1.97.0\""]);
    assert!(versions().differences(&versions()).is_empty());
}

#[test]
fn the_prebuilt_objects_have_btf_with_lines_and_no_dwarf_or_paths() {
    let manifest = read_manifest(checkout()).unwrap().unwrap();
    for (name, object) in read(checkout(), &manifest).unwrap() {
        let sections = elf::sections(&object).unwrap();
        assert!(sections.contains_key(".BTF") && sections.contains_key(".BTF.ext"), "{name}");
        assert!(!sections.keys().any(|section| section.starts_with(".debug")), "{name}");
        let btf = String::from_utf8_lossy(&sections[".BTF"]).into_owned();
        // A line of the source, for the verifier's log.
        assert!(btf.contains("\0    "), "{name}: BTF has no lines of the sources");
        for path in ["/root/", "/home/", "/work/", "/usr/", ".cargo"] {
            assert!(
                !btf.contains(path),
                "{name}: BTF has a path of the machine it was built on: {path}"
            );
        }
    }
}

#[test]
fn an_object_without_dwarf_has_the_same_functions() {
    // Stripping what is stripped changes nothing but the place of what it reads.
    let manifest = read_manifest(checkout()).unwrap().unwrap();
    for (name, object) in read(checkout(), &manifest).unwrap() {
        let again = elf::strip(&object).unwrap();
        assert_eq!(elf::functions(&again).unwrap(), elf::functions(&object).unwrap(), "{name}");
        assert_eq!(elf::sections(&again).unwrap(), elf::sections(&object).unwrap(), "{name}");
        assert!(elf::functions(&object).unwrap().len() > 3, "{name}");
    }
}

#[test]
fn what_is_no_object_is_an_error() {
    assert!(elf::strip(b"").is_err());
    assert!(elf::strip(b"\x7fELF\x02\x01").is_err());
    assert!(elf::strip(&[b"\x7fELF\x02\x01".as_slice(), &[0xff; 100]].concat()).is_err());
}
