//! Compose in any of its generations: the plugin of the `docker` client, or a program of its own.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use samport::lab::output_of;

/// A Compose that works on this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compose {
    is_plugin: bool,
    /// As it says itself, like `2.26.1`.
    version: String,
}

impl Compose {
    /// The plugin, or else `docker-compose`. That one may be of the first generation, whose last version does not
    /// start on Python 3.12: it is asked only where there is no other. `command` gives what runs a program.
    pub(super) fn find(client: &Path, command: impl Fn(&Path) -> Command) -> Result<Self> {
        let mut said = Vec::new();
        for is_plugin in [true, false] {
            let mut version = command(program(is_plugin, client));
            version.args(plugin_words(is_plugin)).args(["version", "--short"]);
            match output_of(&mut version) {
                Ok(version) => return Ok(Self::new(is_plugin, &version)),
                Err(error) => said.push(format!("{error:#}")),
            }
        }
        bail!("no Compose works here: {}", said.join("; "))
    }

    fn new(is_plugin: bool, version: &str) -> Self {
        Self { is_plugin, version: version.trim().trim_start_matches('v').to_owned() }
    }

    /// The program to start, which `words` are the first arguments of.
    pub(super) fn program<'a>(&self, client: &'a Path) -> &'a Path {
        program(self.is_plugin, client)
    }

    pub(super) fn words(&self) -> &'static [&'static str] {
        plugin_words(self.is_plugin)
    }

    /// The name of a service's container in the project of a folder; the first one's number is 1.
    #[must_use]
    pub fn container_name(&self, folder: &Path, service: &str, number: usize) -> String {
        let project = folder.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let project =
            project.replace(|c: char| !c.is_ascii_alphanumeric() && !"-_".contains(c), "");
        let separator = if self.version.starts_with("1.") { '_' } else { '-' };
        format!("{project}{separator}{service}{separator}{number}")
    }
}

fn program(is_plugin: bool, client: &Path) -> &Path {
    if is_plugin { client } else { Path::new("docker-compose") }
}

fn plugin_words(is_plugin: bool) -> &'static [&'static str] {
    if is_plugin { &["compose"] } else { &[] }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn containers_are_named_as_each_generation_does() {
        for (version, name) in [
            ("1.29.2", "shop1b_app_3"),
            ("2.26.1-4", "shop1b-app-3"),
            ("v2.40.3", "shop1b-app-3"),
            ("5.0.0\n", "shop1b-app-3"),
        ] {
            let compose = Compose::new(false, version);
            assert_eq!(compose.container_name(Path::new("/tmp/.Shop1B"), "app", 3), name);
        }
    }

    /// A folder with programs that print a version, or fail.
    fn folder(programs: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, script) in programs {
            let path = folder.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        folder
    }

    fn found(folder: &Path) -> Result<Compose> {
        Compose::find(&folder.join("docker"), |program| {
            Command::new(folder.join(program.file_name().unwrap_or_default()))
        })
    }

    #[test]
    fn the_plugin_comes_before_the_program_and_the_program_before_nothing() {
        let plugin = ("docker", "test $1 = compose && echo 2.40.3");
        let bare = ("docker", "echo \"docker: 'compose' is not a docker command.\" >&2; exit 1");
        let program = ("docker-compose", "test $1 = version && echo 1.29.2");
        let both = folder(&[plugin, program]);
        assert_eq!(found(both.path()).unwrap(), Compose::new(true, "2.40.3"));
        let one = folder(&[bare, program]);
        assert_eq!(found(one.path()).unwrap(), Compose::new(false, "1.29.2"));
        let broken = ("docker-compose", "echo \"No module named 'distutils'\" >&2; exit 1");
        let none = found(folder(&[bare, broken]).path()).unwrap_err().to_string();
        assert!(none.contains("not a docker command") && none.contains("distutils"), "{none}");
    }
}
