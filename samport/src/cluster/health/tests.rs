use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::*;

const EVERY: Duration = Duration::from_millis(10);

/// Answers probes as a node's kernel programs do, and those only that its path carries.
struct Answering {
    at: SocketAddr,
    /// Bytes of the largest IP packet.
    carries: Arc<AtomicUsize>,
    /// How many have come.
    asked: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Answering {
    async fn at(at: SocketAddr, carries: usize) -> Self {
        let socket = UdpSocket::bind(at).await.unwrap();
        let at = socket.local_addr().unwrap();
        let carries = Arc::new(AtomicUsize::new(carries));
        let asked = Arc::new(AtomicUsize::new(0));
        let (limit, count) = (Arc::clone(&carries), Arc::clone(&asked));
        let task = tokio::spawn(async move {
            let mut bytes = vec![0; 65_536];
            loop {
                let (length, from) = socket.recv_from(&mut bytes).await.unwrap();
                count.fetch_add(1, Relaxed);
                if length + 28 <= limit.load(Relaxed) {
                    bytes[1] = 2;
                    socket.send_to(&bytes[..16], from).await.unwrap();
                }
            }
        });
        Self { at, carries, asked, task }
    }

    async fn begin(carries: usize) -> Self {
        Self::at((Ipv4Addr::LOCALHOST, 0).into(), carries).await
    }

    fn node(&self) -> Node {
        let (address, port) = (self.at.ip(), self.at.port());
        Node { name: "n2".to_owned(), address, port, services: BTreeMap::new() }
    }
}

fn probed(node: Node) -> (watch::Sender<Vec<Node>>, watch::Receiver<Healths>) {
    let (nodes, receiver) = watch::channel(vec![node]);
    let own: OwnEnd = Arc::new(|_| Box::pin(async { Some(Ipv4Addr::LOCALHOST.into()) }));
    (nodes, start_every(EVERY, receiver, own, BTreeSet::new()))
}

async fn until(
    healths: &mut watch::Receiver<Healths>,
    is_so: impl Fn(Option<&NodeHealth>) -> bool,
) {
    let seen = healths.wait_for(|healths| is_so(healths.values().next()));
    let seen = timeout(Duration::from_secs(20), seen).await.map(|seen| seen.unwrap().clone());
    assert!(seen.is_ok(), "{:?}", healths.borrow());
}

#[tokio::test]
async fn a_node_is_up_while_it_answers_and_its_path_is_measured() {
    let node = Answering::begin(1_400).await;
    let (nodes, mut healths) = probed(node.node());
    until(&mut healths, |one| one.is_some_and(|one| one.up && one.path_mtu == Some(1_400))).await;
    node.carries.store(1_300, Relaxed);
    until(&mut healths, |one| one.is_some_and(|one| one.path_mtu == Some(1_300))).await;
    nodes.send_replace(Vec::new());
    until(&mut healths, |one| one.is_none()).await;
    // One may have been on its way.
    tokio::time::sleep(2 * EVERY).await;
    let asked = node.asked.load(Relaxed);
    tokio::time::sleep(10 * EVERY).await;
    assert_eq!(node.asked.load(Relaxed), asked, "whoever is no node is not probed");
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_down_until_it_does() {
    let node = Answering::begin(usize::MAX).await;
    let (_nodes, mut healths) = probed(node.node());
    until(&mut healths, |one| one.is_some_and(|one| one.up)).await;
    let before = healths.borrow().values().next().unwrap().since;
    node.task.abort();
    until(&mut healths, |one| one.is_some_and(|one| !one.up)).await;
    assert!(healths.borrow().values().all(|one| one.since > before));
    // Its port was closed meanwhile, which the kernel has told the socket.
    let _again = Answering::at(node.at, usize::MAX).await;
    until(&mut healths, |one| one.is_some_and(|one| one.up)).await;
}

#[tokio::test]
async fn an_address_that_is_not_this_machines_does_not_keep_it_from_asking() {
    let node = Answering::begin(usize::MAX).await;
    let at = ProbeSocket::open(node.at, Some([192, 0, 2, 7].into())).await;
    let socket = at.unwrap();
    let mut probing = Probing::of(false);
    let Probes { small, .. } = probing.tick(None, nonce);
    assert!(socket.send(&small).await.unwrap());
    assert!(probing.take(&timeout(Duration::from_secs(5), socket.receive()).await.unwrap()));
    assert!(socket.mtu().is_some());
    // More than any device takes.
    assert!(!socket.send(&vec![0; 65_508]).await.unwrap());
}

#[tokio::test]
async fn all_ends_with_the_last_receiver() {
    let node = Answering::begin(usize::MAX).await;
    let (nodes, healths) = probed(node.node());
    drop(healths);
    timeout(Duration::from_secs(5), nodes.closed()).await.expect("the probes have ended");
}

/// Whoever has connections to a node does not lose them because samport is started again.
#[tokio::test]
async fn a_node_that_was_used_before_is_up_until_it_does_not_answer() {
    let node = Answering::begin(usize::MAX).await;
    node.task.abort();
    let (_nodes, receiver) = watch::channel(vec![node.node()]);
    let own: OwnEnd = Arc::new(|_| Box::pin(async { Some(Ipv4Addr::LOCALHOST.into()) }));
    let mut healths = start_every(EVERY, receiver, own, [node.at.ip()].into());
    assert!(healths.borrow().values().all(|one| one.up), "{:?}", healths.borrow());
    until(&mut healths, |one| one.is_some_and(|one| !one.up)).await;
}

/// One may be named before samport runs there.
#[tokio::test]
async fn a_node_that_is_named_later_is_up_when_it_answers() {
    let node = Answering::begin(usize::MAX).await;
    let at = node.at;
    node.task.abort();
    let (nodes, receiver) = watch::channel(Vec::new());
    let own: OwnEnd = Arc::new(|_| Box::pin(async { Some(Ipv4Addr::LOCALHOST.into()) }));
    let mut healths = start_every(EVERY, receiver, own, [at.ip()].into());
    nodes.send_replace(vec![node.node()]);
    until(&mut healths, |one| one.is_some_and(|one| !one.up)).await;
    let _again = Answering::at(at, usize::MAX).await;
    until(&mut healths, |one| one.is_some_and(|one| one.up)).await;
}
