//! The process and the machine: its instance and record, privileges, files that are watched, the service manager.

pub(crate) mod causes;
pub mod cgroups;
pub(crate) mod descriptors;
pub mod escape;
pub mod exit;
pub(crate) mod file_watch;
pub mod hash_seed;
pub mod instance;
pub mod kernel;
pub(crate) mod leaving;
pub mod privileges;
pub mod provider_status;
pub mod resyncs;
pub mod sandbox;
pub(crate) mod sd_notify;
pub(crate) mod shared_folder;
pub(crate) mod snapshots;
pub(crate) mod user;
