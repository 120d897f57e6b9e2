//! What a pristine machine has beside its root file system: the network of this one, Rust as rustup's
//! installer leaves it, and the checkout.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use walkdir::WalkDir;

use super::child::Signals;
use super::layout::{Layout, USER, USER_ID};
use super::rootfs::Recipe;
use crate::sh;

/// The names that rustup's installer gives it.
const PROXIES: [&str; 7] =
    ["cargo", "cargo-clippy", "cargo-fmt", "clippy-driver", "rustc", "rustdoc", "rustfmt"];
/// Where an administrator puts certificates; `update-ca-certificates` takes them from there.
const CERTIFICATES: &str = "usr/local/share/ca-certificates";
/// What a target folder says about the last run that used it.
const TARGET_COMMIT: &str = ".pristine-commit";

/// Rust on this machine.
pub struct Rust {
    pub toolchain: PathBuf,
    rustup: PathBuf,
}

impl Rust {
    pub fn find() -> Result<Self> {
        let sysroot = sh::probe(Command::new("rustc").args(["--print", "sysroot"]));
        let toolchain = PathBuf::from(sysroot.context("`rustc --print sysroot` failed")?.trim());
        let is_rustups = toolchain.parent().is_some_and(|parent| parent.ends_with("toolchains"));
        ensure!(
            is_rustups,
            "rustc's toolchain is {}: a pristine machine takes over one of rustup's",
            toolchain.display()
        );
        let rustup = sh::find("rustup").context("there is no rustup")?;
        Ok(Self { toolchain, rustup })
    }

    /// What rustup's installer leaves: no program that cargo has installed since.
    pub fn install(&self, root: &Path, layout: &Layout) -> Result<()> {
        let bin = below(root, &layout.cargo_home).join("bin");
        made(&bin)?;
        let rustup = self.rustup.canonicalize().context("follow rustup")?;
        fs::copy(&rustup, bin.join("rustup")).context("copy rustup")?;
        for name in PROXIES {
            symlink("rustup", bin.join(name)).with_context(|| format!("make {name}"))?;
        }
        made(&below(root, &layout.toolchain(&self.toolchain)))?;
        let name = self.toolchain.file_name().unwrap_or_default().display();
        let settings =
            format!("version = \"12\"\ndefault_toolchain = \"{name}\"\nprofile = \"default\"\n");
        write(&below(root, &layout.rustup_home).join("settings.toml"), &settings)?;
        // Which registry there is.
        let cargo_home = self.rustup.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
        for name in ["config.toml", "config"] {
            let config = cargo_home.join(name);
            if config.is_file() {
                let to = below(root, &layout.cargo_home).join(name);
                fs::copy(&config, to).with_context(|| format!("copy {}", config.display()))?;
            }
        }
        Ok(())
    }
}

/// A path in the machine, as it is seen from this one.
pub fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn made(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

/// Names, certificates and package sources: what this machine's network asks for.
pub fn network(root: &Path, recipe: &Recipe, signals: &mut Signals) -> Result<()> {
    let resolv = root.join("etc/resolv.conf");
    let _ = fs::remove_file(&resolv);
    if Path::new("/etc/resolv.conf").exists() {
        fs::copy("/etc/resolv.conf", &resolv).context("copy resolv.conf")?;
    }
    write(&root.join("etc/hosts"), "127.0.0.1 localhost pristine\n::1 localhost\n")?;
    write(&root.join("etc/hostname"), "pristine\n")?;

    let apt = root.join("etc/apt");
    // What mmdebstrap was told names this machine's paths.
    let parts = apt.join("sources.list.d");
    let _ = fs::remove_dir_all(&parts);
    made(&parts)?;
    write(&apt.join("sources.list"), &recipe.sources()?)?;
    let _ = fs::remove_file(apt.join("apt.conf.d/99mmdebstrap"));
    let options: Vec<String> = recipe.options.iter().map(|option| option.clone() + ";\n").collect();
    write(&apt.join("apt.conf.d/99machine"), &options.concat())?;

    // Among the system's own: not every program reads a variable that names a file of certificates.
    let certificates = fs::read_dir(Path::new("/").join(CERTIFICATES)).into_iter().flatten();
    let mut has_some = false;
    for file in certificates.flatten().map(|entry| entry.path()) {
        if let Some(name) = file.file_name()
            && file.extension().is_some_and(|end| end == "crt")
        {
            let to = root.join(CERTIFICATES).join(name);
            fs::copy(&file, to).with_context(|| format!("copy {}", file.display()))?;
            has_some = true;
        }
    }
    if has_some {
        let mut update = Command::new("chroot");
        update.arg(root).arg("/usr/sbin/update-ca-certificates");
        update.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        update.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        signals.run(&mut update).context("add this machine's certificates")?;
    }
    Ok(())
}

/// Clones the checkout's HEAD commit, as a newcomer gets it: nothing that git ignores, no change that
/// is not committed. Returns the commit.
pub fn clone(folder: &Path, to: &Path, signals: &mut Signals) -> Result<String> {
    // Root may read a checkout of another user's.
    let config = folder.join("gitconfig");
    write(&config, "[safe]\n\tdirectory = *\n[advice]\n\tdetachedHead = false\n")?;
    let git = || {
        let mut git = Command::new("git");
        git.current_dir(sh::root()).env("GIT_CONFIG_GLOBAL", &config);
        git
    };
    let changes = sh::probe(git().args(["status", "--porcelain", "--untracked-files=no"]));
    if changes.is_some_and(|changes| !changes.is_empty()) {
        eprintln!("warning: changes that are not committed are not part of it");
    }
    let mut command = git();
    command.args(["clone", "--quiet", "--no-hardlinks"]).arg(sh::root()).arg(to);
    signals.run(&mut command)?;
    let head = sh::probe(git().args(["rev-parse", "HEAD"])).context("`git rev-parse` failed")?;
    let own = sh::probe(git().current_dir(to).args(["rev-parse", "HEAD"]));
    ensure!(own.as_deref() == Some(&head), "the clone is of another commit than HEAD");
    Ok(head.trim().to_owned())
}

/// Gives all files of the clone the time of the commit. So cargo takes what another clone of the same
/// commit has built in `target` for its own; where it was built of another commit, which may be newer,
/// the files stay as new as they are.
pub fn set_times(checkout: &Path, commit: &str, target: &Path) -> Result<()> {
    let record = target.join(TARGET_COMMIT);
    let before = fs::read_to_string(&record).ok();
    let is_empty = fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_none());
    write(&record, commit)?;
    if !is_empty && before.as_deref() != Some(commit) {
        return Ok(());
    }
    let mut git = Command::new("git");
    git.current_dir(checkout).args(["log", "-1", "--format=%ct"]);
    let seconds = sh::probe(&mut git).context("`git log` failed")?;
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.trim().parse()?);
    let tree = WalkDir::new(checkout).into_iter();
    let tree = tree.filter_entry(|entry| entry.file_name() != ".git");
    let entries: Vec<_> = tree.collect::<Result<_, _>>().context("list the clone")?;
    for entry in entries.iter().filter(|entry| !entry.path_is_symlink()) {
        let file = fs::File::open(entry.path());
        file.and_then(|file| file.set_modified(time))
            .with_context(|| format!("set the time of {}", entry.path().display()))?;
    }
    Ok(())
}

/// Makes the unprivileged user, and all below its HOME its own.
pub fn user(root: &Path, layout: &Layout, signals: &mut Signals) -> Result<()> {
    let id = format!("{USER_ID}:{USER_ID}");
    for (file, line) in [
        ("etc/passwd", format!("{USER}:x:{id}::{}:/bin/bash\n", layout.home.display())),
        ("etc/group", format!("{USER}:x:{USER_ID}:\n")),
    ] {
        let file = fs::OpenOptions::new().append(true).open(root.join(file));
        file.context("open the user database")?.write_all(line.as_bytes())?;
    }
    let mut chown = Command::new("chown");
    chown.args(["--recursive", "--no-dereference", &id]);
    for folder in [&layout.home, &layout.cargo_home, &layout.rustup_home] {
        chown.arg(below(root, folder));
    }
    signals.run(&mut chown)?;
    let home = below(root, &layout.home);
    fs::set_permissions(&home, fs::Permissions::from_mode(0o755)).context("open HOME")
}

/// Downloads what Cargo.lock names, with its own cargo home; what is in the cache already is not
/// downloaded again.
pub fn fetch_crates(checkout: &Path, cargo_home: &Path, signals: &mut Signals) -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.args(["fetch", "--locked", "--quiet"]).current_dir(checkout);
    cargo.env("CARGO_HOME", cargo_home);
    sh::echo(&cargo);
    signals.run(&mut cargo).context("download crates for a machine without network")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_the_machine_is_below_its_root() {
        assert_eq!(below(Path::new("/r"), Path::new("/root/x")), Path::new("/r/root/x"));
        assert_eq!(below(Path::new("/r"), Path::new("opt")), Path::new("/r/opt"));
    }

    #[test]
    fn clones_of_a_commit_have_its_time_unless_the_target_folder_is_of_another() {
        let name = format!("samport-pristine-times-test-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&folder);
        let (checkout, target) = (folder.join("checkout"), folder.join("target"));
        fs::create_dir_all(&checkout).unwrap();
        fs::create_dir_all(&target).unwrap();
        let git = |args: &[&str]| {
            let mut git = Command::new("git");
            let time = "2020-01-02T03:04:05Z";
            git.current_dir(&checkout).env("GIT_COMMITTER_DATE", time).env("GIT_AUTHOR_DATE", time);
            // Set where a rebase runs this: then it would be that repository's commit.
            for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
                git.env_remove(variable);
            }
            git.args(["-c", "user.name=a", "-c", "user.email=a@b.test"]).args(args);
            assert!(git.status().unwrap().success());
        };
        git(&["init", "--quiet"]);
        let file = checkout.join("a");
        fs::write(&file, "a").unwrap();
        git(&["add", "a"]);
        git(&["commit", "--quiet", "--message", "a"]);
        let time = || fs::metadata(&file).unwrap().modified().unwrap();
        let new = time();
        let commit = SystemTime::UNIX_EPOCH + Duration::from_secs(1_577_934_245);

        set_times(&checkout, "one", &target).unwrap();
        let first = time();
        fs::File::open(&file).unwrap().set_modified(new).unwrap();
        set_times(&checkout, "two", &target).unwrap();
        let other = time();
        set_times(&checkout, "two", &target).unwrap();
        let same = time();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!([first, other, same], [commit, new, commit]);
    }
}
