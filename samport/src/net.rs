//! The network as the kernel has it: devices, routes, neighbours, sockets and ports that others have.

pub(crate) mod frontends;
pub(crate) mod netdev;
pub mod netlink;
pub mod placement;
pub(crate) mod port_conflicts;
pub(crate) mod reply_devices;
pub mod reverse_path;
pub mod routes;
pub mod sock_diag;
