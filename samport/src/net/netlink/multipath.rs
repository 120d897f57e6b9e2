//! The next hops of multipath routes, and how long an answer about them is kept.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::requests::ANSWER;

/// The kernel may be asked at every change if it answered within this time.
const QUICK: Duration = Duration::from_millis(20);

/// One that took longer is kept for as many times as long, so that asking takes 2 % of the time at most.
const KEEP: u32 = 50;

/// How long a newer list is waited for, and the first.
const TIMEOUT: Duration = Duration::from_millis(500);
const FIRST_TIMEOUT: Duration = Duration::from_secs(10);

/// Room for what the kernel sends of a list at a time.
const PART: usize = 64 * 1024;

/// Bytes of netlink's own header, and of a route's after it.
const HEADER: usize = 16;
const ROUTE_HEADER: usize = 12;
/// linux/rtnetlink.h.
const RTM_NEWROUTE: u16 = 24;
const RTA_MULTIPATH: u16 = 9;
const RTA_NH_ID: u16 = 30;

/// What is known of routes that lead to several devices.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct NextHops {
    /// The devices of multipath routes, IPv4 first; those of a route whose next hops are all behind one
    /// device do not count.
    pub devices: [BTreeSet<u32>; 2],
    /// Whether there are routes that do not name their devices: with `net.ipv4.nexthop_compat_mode=0` a route
    /// by a next hop object names only the object.
    pub are_hidden: bool,
}

impl NextHops {
    /// Adds what a route says.
    pub(super) fn add(&mut self, route: &RouteMessage) {
        let (mut hops, mut is_object, mut has_device) = (BTreeSet::new(), false, false);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::MultiPath(next_hops) => {
                    hops.extend(next_hops.iter().map(|hop| hop.interface_index));
                }
                RouteAttribute::NhId(_) => is_object = true,
                RouteAttribute::Oif(_) => has_device = true,
                _ => {}
            }
        }
        self.are_hidden |= is_object && !has_device && hops.is_empty();
        if hops.len() > 1 {
            let family = usize::from(route.header.address_family == AddressFamily::Inet6);
            self.devices[family].append(&mut hops);
        }
    }
}

/// The next hops of all routes, as they were listed last.
///
/// The kernel cannot list multipath routes alone, so all routes are read: about 1 ms for 30 of them and 2 s for 300,000,
/// measured without optimisation. Where it takes long (a table of BGP), they are read again only after 50 times as
/// long, changes or not: a route that becomes multipath meanwhile is found late.
#[derive(Clone, Default)]
pub(super) struct NextHopList(Arc<Shared>);

#[derive(Default)]
struct Shared {
    last: Mutex<Last>,
    /// Told when a list is there after its waiter has given up.
    late: Notify,
}

#[derive(Default)]
struct Last {
    answer: Option<ReadRoutes>,
    /// The list that is being read.
    running: Option<watch::Receiver<()>>,
    /// Whether somebody has given up waiting for it.
    is_late: bool,
    /// Why the last one could not be read.
    failure: Option<String>,
}

#[derive(Debug)]
struct ReadRoutes {
    next_hops: NextHops,
    /// How many changes the kernel had told of before.
    changes: u64,
    /// From when on a change makes it old.
    keep_until: Instant,
}

impl ReadRoutes {
    /// One that was asked for at `began`, when there had been this many changes.
    fn of(next_hops: NextHops, changes: u64, began: Instant, now: Instant) -> Self {
        let took = now.saturating_duration_since(began);
        let keep = if took <= QUICK { Duration::ZERO } else { took * KEEP };
        Self { next_hops, changes, keep_until: now + keep }
    }

    /// Whether it need not be asked for.
    fn is_fresh(&self, changes: u64, now: Instant) -> bool {
        self.changes == changes || now < self.keep_until
    }
}

impl NextHopList {
    /// As they are now, after this many changes; as they were, if reading them takes longer than anybody may wait.
    ///
    /// # Errors
    /// If they have never been read.
    pub(super) async fn get(&self, changes: u64) -> Result<NextHops> {
        let (mut running, limit) = {
            let mut last = self.last();
            let fresh = last.answer.as_ref().filter(|one| one.is_fresh(changes, Instant::now()));
            if let Some(fresh) = fresh {
                return Ok(fresh.next_hops.clone());
            }
            let limit = if last.answer.is_some() { TIMEOUT } else { FIRST_TIMEOUT };
            (last.running.get_or_insert_with(|| self.begin(changes)).clone(), limit)
        };
        // It ends by being closed.
        let is_late = timeout(limit, running.changed()).await.is_err();
        let mut last = self.last();
        last.is_late = is_late && last.running.is_some();
        match (&last.answer, &last.failure) {
            (Some(answer), _) => Ok(answer.next_hops.clone()),
            (None, Some(failure)) => bail!("list routes: {failure}"),
            (None, None) => bail!("list routes: no end within {limit:?}"),
        }
    }

    /// Waits until a list is there that came too late.
    pub(super) async fn late(&self) {
        self.0.late.notified().await;
    }

    /// Reads the list, elsewhere.
    fn begin(&self, changes: u64) -> watch::Receiver<()> {
        let (done, running) = watch::channel(());
        let of = self.clone();
        tokio::spawn(async move {
            let began = Instant::now();
            let found = read().await;
            let mut last = of.last();
            last.running = None;
            match found {
                Ok(found) => {
                    last.answer = Some(ReadRoutes::of(found, changes, began, Instant::now()));
                    last.failure = None;
                }
                Err(error) => last.failure = Some(format!("{error:#}")),
            }
            if std::mem::take(&mut last.is_late) {
                of.0.late.notify_one();
            }
            drop(done);
        });
        running
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.0.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads all routes, one after the other: what is not multipath is forgotten as it comes, and a million of them
/// take no memory.
async fn read() -> Result<NextHops> {
    let mut found = NextHops::default();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        read_family(family, &mut found).await?;
    }
    Ok(found)
}

async fn read_family(family: AddressFamily, found: &mut NextHops) -> Result<()> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE).context("cannot open a netlink socket")?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0)).context("cannot open a netlink socket")?;
    let mut question = RouteMessage::default();
    question.header.address_family = family;
    let mut question = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(question));
    question.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    question.finalize();
    let mut bytes = vec![0; question.buffer_len()];
    question.serialize(&mut bytes);
    let is_sent = timeout(ANSWER, socket.send(&bytes)).await;
    is_sent.context("the kernel takes no question")?.context("cannot ask for routes")?;
    let mut part = Vec::with_capacity(PART);
    loop {
        part.clear();
        let received = timeout(ANSWER, socket.recv(&mut part)).await;
        received
            .with_context(|| format!("no answer from the kernel within {ANSWER:?}"))?
            .context("cannot read the routes")?;
        if take_part(&part, found)? {
            return Ok(());
        }
    }
}

/// Takes in one read of a list. Whether it was the last.
fn take_part(part: &[u8], found: &mut NextHops) -> Result<bool> {
    let mut rest = part;
    while let Some(header) = rest.get(..HEADER) {
        let length = header.first_chunk().map_or(0, |length| u32::from_ne_bytes(*length)) as usize;
        let message = rest.get(..length).filter(|_| length >= HEADER);
        let message = message.context("the kernel sends a message that ends too early")?;
        if has_several_hops(message) {
            match NetlinkMessage::deserialize(message).map(|message| message.payload) {
                Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route))) => {
                    found.add(&route);
                }
                Ok(NetlinkPayload::Done(_)) => return Ok(true),
                Ok(NetlinkPayload::Error(error)) => return Err(error.to_io().into()),
                // One that is not understood is no next hop.
                Ok(_) | Err(_) => {}
            }
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// Whether a message is to be understood: it is no route, or one that may have several next hops. All others are
/// nearly all of a long list.
fn has_several_hops(message: &[u8]) -> bool {
    let kind = message.get(4..6).and_then(|kind| kind.first_chunk());
    if kind.map(|kind| u16::from_ne_bytes(*kind)) != Some(RTM_NEWROUTE) {
        return true;
    }
    let attributes = message.get(HEADER + ROUTE_HEADER..).unwrap_or_default();
    NlasIterator::new(attributes)
        .any(|one| one.is_ok_and(|one| matches!(one.kind(), RTA_MULTIPATH | RTA_NH_ID)))
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::route::RouteNextHop;

    use super::*;

    fn next_hops(routes: &[Vec<RouteAttribute>]) -> (Vec<u32>, bool) {
        let mut found = NextHops::default();
        for attributes in routes {
            let mut route = RouteMessage::default();
            route.attributes.clone_from(attributes);
            found.add(&route);
        }
        let [v4, v6] = found.devices;
        assert!(v6.is_empty(), "the message is of no family");
        (v4.into_iter().collect(), found.are_hidden)
    }

    fn multipath(devices: &[u32]) -> RouteAttribute {
        let hop = |ifindex: &u32| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = *ifindex;
            hop
        };
        RouteAttribute::MultiPath(devices.iter().map(hop).collect())
    }

    #[test]
    fn devices_of_routes_that_lead_to_several_are_found() {
        let single = vec![RouteAttribute::Oif(9)];
        let one_device = vec![multipath(&[8, 8])];
        let several = vec![multipath(&[2, 3, 2])];
        let others = vec![RouteAttribute::NhId(1), multipath(&[5, 3])];
        assert_eq!(next_hops(&[single.clone(), one_device]), (vec![], false));
        assert_eq!(next_hops(&[single, several, others]), (vec![2, 3, 5], false));
    }

    #[test]
    fn a_next_hop_object_without_its_devices_is_noticed() {
        let object = RouteAttribute::NhId(1);
        assert_eq!(next_hops(&[vec![object.clone(), RouteAttribute::Oif(2)]]), (vec![], false));
        assert_eq!(next_hops(&[vec![object]]), (vec![], true));
    }

    #[test]
    fn an_answer_is_kept_until_a_change_and_longer_if_it_took_long() {
        let began = Instant::now();
        let after = |milliseconds| began + Duration::from_millis(milliseconds);
        let answer = ReadRoutes::of(NextHops::default(), 3, began, after(1));
        assert!(answer.is_fresh(3, after(100_000)) && !answer.is_fresh(4, after(2)));
        let answer = ReadRoutes::of(NextHops::default(), 4, began, after(1_000));
        assert!(answer.is_fresh(9, after(50_000)) && !answer.is_fresh(9, after(51_001)));
    }

    /// A part of a list as the kernel sends it.
    fn part(messages: Vec<NetlinkMessage<RouteNetlinkMessage>>) -> Vec<u8> {
        let mut part = Vec::new();
        for mut message in messages {
            message.finalize();
            let start = part.len();
            part.resize(start + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut part[start..]);
        }
        part
    }

    #[test]
    fn of_a_list_only_routes_with_several_hops_are_kept() {
        let route = |attributes: Vec<RouteAttribute>| {
            let mut route = RouteMessage::default();
            route.header.address_family = AddressFamily::Inet;
            route.attributes = attributes;
            NetlinkMessage::from(RouteNetlinkMessage::NewRoute(route))
        };
        let plain = || route(vec![RouteAttribute::Oif(9)]);
        let mut found = NextHops::default();
        let first = part(vec![plain(), route(vec![multipath(&[2, 3])]), plain()]);
        assert!(!take_part(&first, &mut found).unwrap());
        assert_eq!(found.devices[0], [2, 3].into());
        assert!(!has_several_hops(&part(vec![plain()])));
        let mut done = NetlinkMessage::from(RouteNetlinkMessage::NewRoute(RouteMessage::default()));
        done.payload = NetlinkPayload::Done(netlink_packet_core::DoneMessage::default());
        assert!(take_part(&part(vec![plain(), done]), &mut found).unwrap());
        // Of any bytes it makes an end.
        for length in 0..first.len() {
            let _ = take_part(&first[..length], &mut found);
        }
        assert!(take_part(&[0; 64], &mut found).is_err());
    }

    #[tokio::test]
    async fn a_list_is_read_once_for_all_who_wait_and_again_after_a_change() {
        let list = NextHopList::default();
        let (one, other) = tokio::join!(list.get(1), list.get(1));
        assert_eq!(one.unwrap(), other.unwrap());
        let changes = |list: &NextHopList| list.last().answer.as_ref().unwrap().changes;
        assert_eq!(changes(&list), 1);
        list.last().answer.as_mut().unwrap().keep_until = Instant::now();
        list.get(2).await.unwrap();
        assert_eq!(changes(&list), 2);
    }
}
