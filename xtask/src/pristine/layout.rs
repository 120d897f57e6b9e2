//! Where things are in a pristine machine, and how its command is started.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Args;

/// What runs in the namespaces.
const INSIDE: &str = include_str!("inside.sh");
/// The unprivileged user of `--user`, its uid and its gid.
pub const USER: &str = "user";
pub const USER_ID: u32 = 1000;
/// Variables the command gets from this process: the terminal, and what the network asks for.
const PASSED: [&str; 12] = [
    "TERM",
    "CI",
    "SAMPORT_DEBIAN_MIRROR",
    "SAMPORT_DEBIAN_SECURITY_MIRROR",
    "SAMPORT_UBUNTU_MIRROR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
];
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Folders in the machine.
#[derive(PartialEq, Eq, Debug)]
pub struct Layout {
    pub home: PathBuf,
    pub checkout: PathBuf,
    pub cargo_home: PathBuf,
    pub rustup_home: PathBuf,
}

impl Layout {
    pub fn new(is_user: bool, is_home_read_only: bool) -> Self {
        let home = if is_user { Path::new("/home").join(USER) } else { "/root".into() };
        // Cargo writes into its home: who has a read-only HOME has it elsewhere, as CI images do.
        let (cargo_home, rustup_home) = if is_home_read_only {
            ("/opt/cargo".into(), "/opt/rustup".into())
        } else {
            (home.join(".cargo"), home.join(".rustup"))
        };
        Self { checkout: home.join("checkout"), home, cargo_home, rustup_home }
    }

    /// The environment of the command.
    fn environment(
        &self,
        args: &Args,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Vec<OsString> {
        let user = if args.user { USER } else { "root" };
        let mut words: Vec<OsString> = Vec::new();
        let mut set = |name: &str, value: OsString| {
            let mut word = OsString::from(name);
            word.push("=");
            word.push(value);
            words.push(word);
        };
        set("HOME", self.home.clone().into());
        set("USER", user.into());
        set("LOGNAME", user.into());
        set("SHELL", "/bin/bash".into());
        set("PATH", format!("{}/bin:{SYSTEM_PATH}", self.cargo_home.display()).into());
        if args.read_only_home {
            set("CARGO_HOME", self.cargo_home.clone().into());
            set("RUSTUP_HOME", self.rustup_home.clone().into());
        }
        for name in PASSED {
            if let Some(value) = variable(name) {
                set(name, value);
            }
        }
        words
    }

    /// What the first process does before it runs the command, as inside.sh takes it.
    fn instructions(&self, args: &Args, toolchain: &Path) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        let mut add = |verb: &str, paths: [&Path; 2]| {
            words.push(verb.into());
            words.extend(paths.map(OsString::from));
        };
        add("bind-read-only", [toolchain, &self.toolchain(toolchain)]);
        if let Some(target) = &args.target {
            add("bind", [target, &self.checkout.join("target")]);
        }
        for bind in &args.binds {
            add("bind", [&bind.folder, &bind.place]);
        }
        if args.read_only_home {
            // Last: nothing can be made below it afterwards. The checkout stays writable.
            add("read-only", [&self.home, &self.checkout]);
        }
        if args.offline {
            words.push("loopback".into());
        }
        words
    }

    /// Where a toolchain of this machine is in the other.
    pub fn toolchain(&self, toolchain: &Path) -> PathBuf {
        self.rustup_home.join("toolchains").join(toolchain.file_name().unwrap_or_default())
    }

    /// The command in its namespaces. They end with it: so does whatever it leaves running, and no
    /// mount outlives it.
    pub fn command(&self, args: &Args, root: &Path, toolchain: &Path) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]);
        if args.offline {
            command.arg("--net");
        }
        command.args(["--propagation", "private", "bash", "-c", INSIDE, "inside.sh"]);
        command.arg(root).args(self.instructions(args, toolchain)).arg("--").arg(&self.checkout);
        command.args(["/usr/bin/env", "-i"]).args(self.environment(args, |name| env::var_os(name)));
        if args.user {
            let (uid, gid) = (format!("--reuid={USER_ID}"), format!("--regid={USER_ID}"));
            command.args(["setpriv", &uid, &gid, "--clear-groups", "--"]);
        }
        command.args(&args.command);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::args;
    use super::*;

    const TOOLCHAIN: &str = "/home/me/.rustup/toolchains/stable-x86_64-unknown-linux-gnu";

    fn text(words: &[OsString]) -> String {
        words.join(std::ffi::OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn the_command_runs_in_namespaces_of_its_own() {
        let args = args(&["--", "cargo", "xtask", "demo"]);
        let layout = Layout::new(false, false);
        let command = layout.command(&args, Path::new("/r"), Path::new(TOOLCHAIN));
        let words: Vec<OsString> = command.get_args().map(OsString::from).collect();
        let text = text(&words);
        assert!(text.starts_with("--mount --pid --ipc --uts --fork --kill-child --propagation"));
        assert!(!text.contains("--net") && !text.contains("setpriv"));
        assert!(text.contains("-- /root/checkout /usr/bin/env -i HOME=/root USER=root"), "{text}");
        assert!(text.ends_with("cargo xtask demo"));
    }

    #[test]
    fn offline_is_a_network_namespace_with_a_loopback_device() {
        let args = args(&["--offline", "--", "true"]);
        let layout = Layout::new(false, false);
        let command = layout.command(&args, Path::new("/r"), Path::new(TOOLCHAIN));
        assert!(command.get_args().any(|word| word == "--net"));
        assert!(command.get_args().any(|word| word == "loopback"));
    }

    #[test]
    fn a_user_has_a_home_and_a_checkout_and_no_rights() {
        let args = args(&["--user", "--", "id"]);
        let layout = Layout::new(args.user, args.read_only_home);
        assert_eq!(layout.checkout, Path::new("/home/user/checkout"));
        let environment = text(&layout.environment(&args, |_| None));
        assert!(environment.starts_with("HOME=/home/user USER=user LOGNAME=user"), "{environment}");
        let command = layout.command(&args, Path::new("/r"), Path::new(TOOLCHAIN));
        let words: Vec<OsString> = command.get_args().map(OsString::from).collect();
        let text = text(&words);
        assert!(text.ends_with("setpriv --reuid=1000 --regid=1000 --clear-groups -- id"), "{text}");
    }

    #[test]
    fn cargo_and_rustup_are_elsewhere_where_home_is_read_only() {
        let args = args(&["--read-only-home", "--", "true"]);
        let layout = Layout::new(false, true);
        let environment = text(&layout.environment(&args, |_| None));
        assert!(environment.contains("CARGO_HOME=/opt/cargo RUSTUP_HOME=/opt/rustup"));
        assert!(environment.contains("PATH=/opt/cargo/bin:/usr/local/sbin"));
        let instructions = text(&layout.instructions(&args, Path::new(TOOLCHAIN)));
        assert!(instructions.ends_with("read-only /root /root/checkout"), "{instructions}");
    }

    #[test]
    fn what_another_run_has_built_lies_at_the_target_folder() {
        let args = args(&["--target", "/t", "--bind", "/a:/b", "--", "true"]);
        let instructions = Layout::new(false, false).instructions(&args, Path::new(TOOLCHAIN));
        let place = "/root/.rustup/toolchains/stable-x86_64-unknown-linux-gnu";
        let expected =
            format!("bind-read-only {TOOLCHAIN} {place} bind /t /root/checkout/target bind /a /b");
        assert_eq!(text(&instructions), expected);
    }

    #[test]
    fn only_variables_of_the_terminal_and_the_network_are_passed_on() {
        let args = args(&["--", "true"]);
        let variable = |name: &str| {
            let known = ["TERM", "https_proxy", "SAMPORT_UBUNTU_MIRROR", "RUSTUP_TOOLCHAIN"];
            known.contains(&name).then(|| OsString::from("x"))
        };
        let environment = text(&Layout::new(false, false).environment(&args, variable));
        assert!(environment.ends_with("TERM=x SAMPORT_UBUNTU_MIRROR=x https_proxy=x"));
        assert!(!environment.contains("RUSTUP"));
    }
}
