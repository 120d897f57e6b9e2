//! The user that `samport run --user` goes on as, once what needs root is done.

use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, chown, lchown};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context as _, Result};
use caps::{CapSet, Capability};
use nix::unistd::{Gid, Uid, User as Account, getgrouplist};
use rustix::fs::{Access, Mode};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread;

use crate::system::exit::{Exit, coded};
use crate::system::hash_seed;
use crate::system::instance;

/// What it takes to become another user and to give it its files.
const NEEDED: [Capability; 3] =
    [Capability::CAP_CHOWN, Capability::CAP_SETGID, Capability::CAP_SETUID];

/// Of folders that are made for a user: for that user alone.
const FOLDER_MODE: u32 = 0o700;

/// A user of this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct User {
    name: String,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl User {
    /// The user of a name.
    ///
    /// # Errors
    /// [`Exit::Usage`] if the user does not exist.
    pub fn named(name: &str) -> Result<Self> {
        let account =
            Account::from_name(name).with_context(|| format!("cannot look for user {name:?}"))?;
        let Some(account) = account else {
            let message = format!(
                "--user: there is no user {name:?}; make it (adduser --system --group {name}), or name another"
            );
            return Err(coded(Exit::Usage, message));
        };
        let name = std::ffi::CString::new(name)?;
        let groups =
            getgrouplist(&name, account.gid).context("cannot look for the user's groups")?;
        let Account { name, uid, gid, .. } = account;
        Ok(Self { name, uid, gid, groups })
    }

    /// Root, as which a run without `--user` goes on.
    #[must_use]
    pub fn root() -> Self {
        let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
        Self { name: "root".to_owned(), uid, gid, groups: vec![gid] }
    }

    /// Adds the group of a socket that the user cannot connect to otherwise. Never root's: it has files all over the
    /// machine.
    pub fn join_group_of(&mut self, socket: &Path) {
        let Ok(metadata) = fs::metadata(socket) else { return };
        let (gid, mode) = (Gid::from_raw(metadata.gid()), metadata.mode());
        let is_open = mode & Mode::WOTH.as_raw_mode() != 0 || metadata.uid() == self.uid.as_raw();
        let helps = mode & Mode::WGRP.as_raw_mode() != 0 && gid.as_raw() != 0;
        if !is_open && helps && !self.groups.contains(&gid) {
            let name = self.name.as_str();
            tracing::info!(
                "user {name} keeps group {gid} for {}; whoever may write there is as good as root",
                socket.display()
            );
            self.groups.push(gid);
        }
    }

    /// To be called as the user: whether it may connect to a socket. One that is not there yet may be made for it.
    ///
    /// # Errors
    /// [`Exit::Privileges`] if it may not, with the ways out.
    pub fn require_access_to(&self, socket: &Path) -> Result<()> {
        let refused = rustix::fs::access(socket, Access::WRITE_OK);
        let Err(error @ (Errno::ACCESS | Errno::PERM)) = refused else { return Ok(()) };
        let (name, socket) = (&self.name, socket.display());
        let message = format!(
            "user {name} cannot connect to {socket}: {error}; give the socket a group (SocketGroup= of its systemd unit), use \
             a socket proxy, or take out --user (key user)"
        );
        Err(coded(Exit::Privileges, message))
    }

    /// Gives the user folders that all instances share, and what is in them: at an upgrade they are root's.
    ///
    /// # Errors
    /// [`Exit::Conflict`] while an instance of another user runs, which could not use them any more.
    pub fn take_folders(&self, folders: &[&Path]) -> Result<()> {
        for folder in folders {
            let Ok(metadata) = fs::symlink_metadata(folder) else { continue };
            if metadata.uid() == self.uid.as_raw() {
                continue;
            }
            if let Some(running) = instance::known().iter().find(|name| instance::is_running(name))
            {
                let message = format!(
                    "{} belongs to user {}, as whom samport {running} runs; run all of them as the same --user",
                    folder.display(),
                    metadata.uid()
                );
                return Err(coded(Exit::Conflict, message));
            }
            self.take(folder, &metadata).with_context(|| {
                format!("cannot give {} to user {}", folder.display(), self.name)
            })?;
        }
        Ok(())
    }

    fn take(&self, path: &Path, metadata: &Metadata) -> io::Result<()> {
        if metadata.is_dir() {
            for entry in fs::read_dir(path)? {
                let path = entry?.path();
                // The seed is root's, who has read it.
                if !path.ends_with(hash_seed::NAME) {
                    self.take(&path, &fs::symlink_metadata(&path)?)?;
                }
            }
        } else if metadata.nlink() > 1 {
            // Another name of somebody else's file.
            return Ok(());
        }
        lchown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw()))
    }

    /// Lets the user's group alone pass a folder of root's: systemd mounts bpffs for root alone.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn may_pass(&self, folder: &Path) -> Result<()> {
        let about = || format!("cannot let user {} pass {}", self.name, folder.display());
        let metadata = fs::metadata(folder).with_context(about)?;
        let mode = Mode::from_raw_mode(metadata.mode());
        if mode.contains(Mode::XOTH) || metadata.uid() == self.uid.as_raw() {
            return Ok(());
        }
        chown(folder, None, Some(self.gid.as_raw())).with_context(about)?;
        rustix::fs::chmod(folder, mode | Mode::XGRP).with_context(about)
    }

    /// Makes folders for the user alone where they are missing.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn make_folder(&self, folder: &Path) -> Result<()> {
        let about = || format!("cannot make {} for user {}", folder.display(), self.name);
        let missing: Vec<PathBuf> =
            folder.ancestors().take_while(|one| !one.exists()).map(Path::to_owned).collect();
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder).with_context(about)?;
        for made in missing {
            chown(made, Some(self.uid.as_raw()), Some(self.gid.as_raw())).with_context(about)?;
        }
        Ok(())
    }

    /// Goes on as the user, with the capabilities that there are. To be called while there is one thread only.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn become_it(&self) -> Result<()> {
        let about = || format!("cannot go on as user {}", self.name);
        let groups: Vec<_> =
            self.groups.iter().map(|one| rustix::process::Gid::from_raw(one.as_raw())).collect();
        let uid = rustix::process::Uid::from_raw(self.uid.as_raw());
        let gid = rustix::process::Gid::from_raw(self.gid.as_raw());
        thread::set_keep_capabilities(true).with_context(about)?;
        thread::set_thread_groups(&groups).with_context(about)?;
        thread::set_thread_res_gid(gid, gid, gid).with_context(about)?;
        thread::set_thread_res_uid(uid, uid, uid).with_context(about)?;
        thread::set_keep_capabilities(false).with_context(about)?;
        let permitted = caps::read(None, CapSet::Permitted).with_context(about)?;
        caps::set(None, CapSet::Effective, &permitted).with_context(about)?;
        // Otherwise what /proc says of ourselves is root's to read.
        set_dumpable_behavior(DumpableBehavior::Dumpable).with_context(about)
    }
}

/// Whether another user can be gone on as.
///
/// # Errors
/// [`Exit::Privileges`], naming what is missing.
pub fn require() -> Result<()> {
    let have = caps::read(None, CapSet::Effective).context("cannot read our capabilities")?;
    let missing: Vec<String> =
        NEEDED.iter().filter(|one| !have.contains(one)).map(ToString::to_string).collect();
    if missing.is_empty() && rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let missing = if missing.is_empty() { "root".to_owned() } else { missing.join(" and ") };
    let message =
        format!("--user needs to be started by root, and lacks {missing}; run it with sudo");
    Err(coded(Exit::Privileges, message))
}

/// The name of the user that this process is, or its number, since this was first asked.
pub fn name_of_ours() -> String {
    static NAME: OnceLock<String> = OnceLock::new();
    let look = || {
        let uid = nix::unistd::geteuid();
        let account = Account::from_uid(uid).ok().flatten();
        account.map_or_else(|| uid.to_string(), |account| account.name)
    };
    NAME.get_or_init(look).clone()
}
