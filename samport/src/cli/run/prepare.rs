//! What `samport run` does while it is one thread: it takes what it may do from itself, for every thread to come.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::Args;
use super::config::Config;
use crate::cli::resolved::{self, ResolvedConfig};
use crate::dataplane::pins;
use crate::net::port_conflicts;
use crate::system::causes::io_kind;
use crate::system::exit::{Exit, coded};
use crate::system::hash_seed::{self, SeedFile};
use crate::system::instance;
use crate::system::privileges;
use crate::system::sandbox::{Grant, Purpose};
use crate::system::shared_folder::SharedFolder;
use crate::system::user::{self, User};

/// A configuration, and what takes more to have than is left.
#[derive(Debug)]
pub struct Prepared {
    pub(super) asked: ResolvedConfig,
    pub(super) config: Config,
    /// Nothing of it for a dry run.
    pub(super) held: Option<Held>,
}

/// What is there before the process is restricted.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) hash_seed: SeedFile,
    /// Those of records and of pins. What may be done in a folder is granted for that very folder, so it must not be
    /// removed and made again by others.
    _folders: [SharedFolder; 2],
}

/// Reads the configuration, makes folders and the hash seed where they are missing, and gives up everything else.
///
/// # Errors
/// Wrong usage, missing privileges, or what cannot be made.
pub fn prepare(args: &Args, log: bool) -> Result<Prepared> {
    let asked = resolved::configuration()?;
    let config = asked.flags.config(log)?;
    let hash_seed = match &config.user {
        Some(name) if !args.dry_run => Some(go_on_as(name, &config)?),
        None if !args.dry_run => {
            take_folders_back()?;
            None
        }
        _ => None,
    };
    privileges::shed(asked.flags.reads_files())?;
    privileges::require()?;
    port_conflicts::remember(&config.listens());
    let held = if args.dry_run { None } else { Some(hold(&config, hash_seed)?) };
    let grants = if args.dry_run { Vec::new() } else { grants(&config) };
    if config.sandbox {
        privileges::restrict(&grants)?;
    } else {
        privileges::leave_unrestricted();
    }
    Ok(Prepared { asked, config, held })
}

/// Does what needs root, and goes on as another user. The seed, which is root's, is read before.
fn go_on_as(name: &str, config: &Config) -> Result<SeedFile> {
    let mut user = User::named(name)?;
    user::require()?;
    privileges::require()?;
    let mut sockets = Vec::new();
    for provider in &config.providers {
        if let Some(socket) = provider.socket()? {
            user.join_group_of(&socket);
            sockets.push(socket);
        }
    }
    pins::ensure_mounted()?;
    user.may_pass(Path::new(pins::BPFFS))?;
    let folders = [instance::RUN, pins::ROOT].map(Path::new);
    user.take_folders(&folders)?;
    for folder in folders.into_iter().chain(folder_of_socket(config)) {
        user.make_folder(folder)?;
    }
    let hash_seed = hash_seed::open(config.hash_seed_file.as_deref())?;
    user.become_it()?;
    sockets.iter().try_for_each(|socket| user.require_access_to(socket))?;
    Ok(hash_seed)
}

/// Root without `--user` has folders again that were another user's.
fn take_folders_back() -> Result<()> {
    if user::require().is_err() {
        return Ok(());
    }
    User::root().take_folders(&[instance::RUN, pins::ROOT].map(Path::new))
}

fn hold(config: &Config, hash_seed: Option<SeedFile>) -> Result<Held> {
    let folders = [instance::hold_folder().map_err(refused)?, pins::hold_root().map_err(refused)?];
    if let Some(folder) = folder_of_socket(config) {
        let about = || format!("cannot make {}", folder.display());
        fs::create_dir_all(folder).with_context(about)?;
    }
    let hash_seed = match hash_seed {
        Some(read) => read,
        None => hash_seed::open(config.hash_seed_file.as_deref())?,
    };
    Ok(Held { hash_seed, _folders: folders })
}

/// Names the way out for who may not make a folder.
fn refused(error: anyhow::Error) -> anyhow::Error {
    if io_kind(&*error) == Some(io::ErrorKind::PermissionDenied) {
        let message = format!("{error:#}; run samport as root, or make the folder for its user");
        coded(Exit::Privileges, message)
    } else {
        error
    }
}

/// Where is written from now on. A folder that is removed is removed from the one above it.
fn grants(config: &Config) -> Vec<Grant> {
    let own = [
        (instance::RUN, Purpose::Files),
        (pins::ROOT, Purpose::Pins),
        ("/run", Purpose::EmptyFolders),
        (pins::BPFFS, Purpose::EmptyFolders),
    ];
    let own = own.map(|(folder, purpose)| (Path::new(folder).to_owned(), purpose));
    let of_socket = folder_of_socket(config).map(Path::to_owned);
    let of_sockets = instance::folders_of_abandoned_sockets().into_iter().chain(of_socket);
    let of_sockets = of_sockets.map(|folder| (folder, Purpose::Sockets));
    let all = own.into_iter().chain(of_sockets);
    all.map(|(folder, purpose)| Grant { folder, purpose }).collect()
}

/// The folder of a control socket that is not in the usual one.
fn folder_of_socket(config: &Config) -> Option<&Path> {
    let folder = config.socket.as_deref()?.parent()?;
    Some(if folder == Path::new("") { Path::new(".") } else { folder })
}
