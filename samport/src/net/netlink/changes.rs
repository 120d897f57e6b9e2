//! That something about the network has changed. What it is, is looked up: nothing is kept of what the kernel tells,
//! so that a million routes cost a read of a few bytes each.

use std::io;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use rtnetlink::MulticastGroup;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::system::resyncs::{Gap, Resyncs};

/// Links, addresses, routes, policy rules, written settings of devices (of rp_filter and forwarding among others),
/// next hops that routes share, and qdiscs and filters.
const GROUPS: [MulticastGroup; 11] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Ipv4Netconf,
    MulticastGroup::Ipv6Netconf,
    MulticastGroup::Nexthop,
    MulticastGroup::Tc,
];

/// Before a socket that has failed is opened again.
const REOPEN: Duration = Duration::from_secs(1);

/// Messages that are taken before others have their turn.
const BATCH: usize = 256;

/// A socket that is told of these.
pub(super) fn listen(groups: &[MulticastGroup]) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    for group in groups {
        socket.socket_mut().add_membership(*group as u32)?;
    }
    Ok(socket)
}

/// Whether the socket goes on: messages were lost, and the next ones will come.
pub(super) fn is_overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
}

/// A socket in the place of one that has failed.
pub(super) async fn listen_again(groups: &[MulticastGroup], failure: &io::Error) -> TokioSocket {
    tracing::warn!("the kernel cannot be heard ({failure}); what changes is looked up meanwhile");
    loop {
        sleep(REOPEN).await;
        match listen(groups) {
            Ok(socket) => return socket,
            Err(error) => tracing::debug!("open a netlink socket: {error}"),
        }
    }
}

/// Counts messages, those lost included, for as long as anybody wants to know.
pub(super) struct Changes {
    socket: TokioSocket,
    counter: watch::Sender<u64>,
    resyncs: Resyncs,
}

impl Changes {
    pub(super) fn listen(counter: watch::Sender<u64>, resyncs: Resyncs) -> io::Result<Self> {
        Ok(Self { socket: listen(&GROUPS)?, counter, resyncs })
    }

    pub(super) async fn follow(mut self) {
        while !self.counter.is_closed() {
            // All but the first bytes of a message are cut off.
            let mut start = Vec::with_capacity(16);
            let received = self.socket.recv(&mut start).await;
            match received.and_then(|()| self.take_waiting()) {
                Ok(messages) => self.tell(messages + 1),
                Err(error) => {
                    self.resyncs.count(Gap::Netlink);
                    if !is_overrun(&error) {
                        self.socket = listen_again(&GROUPS, &error).await;
                    }
                    self.tell(1);
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Takes what is there already. How much that was.
    fn take_waiting(&self) -> io::Result<u64> {
        let mut start = [0; 16];
        for taken in 0..BATCH {
            match self.socket.socket_ref().recv(&mut &mut start[..], 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(taken as u64),
                Err(error) => return Err(error),
            }
        }
        Ok(BATCH as u64)
    }

    fn tell(&self, messages: u64) {
        self.counter.send_modify(|count| *count += messages);
    }
}
