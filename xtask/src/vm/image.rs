//! What the machine boots into: an initial RAM disk with the tests, samport, a few tools, the shared
//! libraries of all of them, and the kernel's modules.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use walkdir::WalkDir;

use super::modules::{self, Modules};
use crate::apt::created;
use crate::sh;

/// The machine's first process.
const INIT: &str = include_str!("init.sh");
/// What the tests and samport start, from this system. Their tests come with busybox.
const TOOLS: [&str; 6] = ["ip", "tc", "ethtool", "bpftool", "iptables", "ip6tables"];
/// What iptables loads.
const PLUGINS: &str = "/usr/lib/x86_64-linux-gnu/xtables";

/// Makes the image in a folder: `root` with everything in it, and the file that is returned. The
/// programs run as the lines of `script` say.
pub fn make(folder: &Path, kernel: &Path, programs: &[PathBuf], script: &str) -> Result<PathBuf> {
    let root = folder.join("root");
    let _ = fs::remove_dir_all(&root);
    for part in ["bin", "usr/bin", "modules", "proc", "sys", "dev", "tmp", "run", "root"] {
        created(&root.join(part))?;
    }
    copy(&tool("busybox")?, &root.join("bin/busybox"))?;
    for name in TOOLS {
        // By its own name: which one they are is what programs like iptables are called.
        copy(&tool(name)?, &root.join("usr/bin").join(name))?;
    }
    for program in programs {
        let to = root.join("usr/bin").join(name_of_program(program));
        // Debug information is most of it, and loading it takes the machine's time.
        sh::run(Command::new("strip").arg("--strip-debug").arg("-o").arg(to).arg(program))?;
    }
    copy_plugins(&root)?;
    copy_libraries(&root)?;
    let order = Modules::below(kernel).copy(&modules::WANTED, &root.join("modules"))?;
    let order = order.join("\n") + "\n";
    write(&root.join("modules/order"), &order)?;
    write(&root.join("script"), script)?;
    let init = root.join("init");
    write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).context("make init a program")?;
    pack(&root, &folder.join("image.cpio"))
}

/// The name a test has without what cargo puts behind it: `netns-07c5afe1` is `netns`.
pub fn name_of_program(program: &Path) -> String {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    name.rsplit_once('-').map_or(&*name, |(name, _)| name).to_owned()
}

fn tool(name: &str) -> Result<PathBuf> {
    let file =
        sh::find(name).with_context(|| format!("there is no {name}: `cargo xtask setup`"))?;
    file.canonicalize().with_context(|| format!("follow {}", file.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        created(folder)?;
    }
    fs::copy(from, to).with_context(|| format!("copy {}", from.display())).map(drop)
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

/// A file of this system, at the same place below the root.
fn copy_in_place(root: &Path, file: &Path) -> Result<()> {
    copy(file, &root.join(file.strip_prefix("/").unwrap_or(file)))
}

fn copy_plugins(root: &Path) -> Result<()> {
    for entry in WalkDir::new(PLUGINS) {
        let entry = entry.context("list the plug-ins of iptables")?;
        if entry.path().is_file() {
            copy_in_place(root, entry.path())?;
        }
    }
    Ok(())
}

fn copy_libraries(root: &Path) -> Result<()> {
    let mut libraries = BTreeSet::new();
    for entry in fs::read_dir(root.join("usr/bin")).context("list the programs")?.flatten() {
        let output = sh::probe(Command::new("ldd").arg(entry.path()));
        libraries.extend(paths(&output.unwrap_or_default()).map(PathBuf::from));
    }
    libraries.iter().try_for_each(|library| copy_in_place(root, library))
}

/// The files that `ldd` names.
fn paths(output: &str) -> impl Iterator<Item = &str> {
    output.split_whitespace().filter(|word| word.starts_with('/'))
}

fn pack(root: &Path, image: &Path) -> Result<PathBuf> {
    let file = File::create(image).with_context(|| format!("make {}", image.display()))?;
    let mut command = Command::new("sh");
    command.args(["-c", "find . | busybox cpio -o -H newc"]).current_dir(root).stdout(file);
    sh::run(&mut command)?;
    Ok(image.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_loses_what_cargo_calls_it_by() {
        assert_eq!(name_of_program(Path::new("/t/deps/prog_run-0123abcd")), "prog_run");
        assert_eq!(name_of_program(Path::new("/t/debug/samport")), "samport");
    }

    #[test]
    fn libraries_are_read_from_ldd() {
        let output = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                      \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert!(paths(output).eq(expected));
        assert!(paths("\tnot a dynamic executable\n").eq([""; 0]));
    }
}
