use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use super::*;
use crate::cluster::tests::settings;

const PORT: u16 = 6080;

fn entry(name: &str, address: &str, services: &str) -> String {
    format!("[[node]]\nname = '{name}'\naddress = '{address}'\nservices = {{ {services} }}\n")
}

fn shown(nodes: &[Node]) -> Vec<String> {
    let one = |node: &Node| {
        let services = node.services.iter().map(|(on, weight)| format!(" {}={weight}", on.brief()));
        format!("{} {}:{}{}", node.name, node.address, node.port, services.collect::<String>())
    };
    nodes.iter().map(one).collect()
}

#[test]
fn nodes_are_read() {
    let text = "[[node]]\nname = 'n2'\naddress = '192.0.2.2'\nservices = { '80' = 3, '53/udp' = 1 }\n\
                [[node]]\nname = 'n3'\naddress = '2001:db8::3'\nport = 6081\n\
                [node.services]\n443 = 0\n'198.51.100.7:80' = 65535\n\
                [[node]]\nname = 'n4'\naddress = '192.0.2.4'\n";
    assert_eq!(
        shown(&parse(text, PORT).unwrap()),
        [
            "n2 192.0.2.2:6080 53/udp=1 80=3",
            "n3 2001:db8::3:6081 198.51.100.7:80=65535 443=0",
            "n4 192.0.2.4:6080",
        ]
    );
    assert_eq!(parse("", PORT).unwrap(), []);
}

#[test]
fn errors_name_line_and_column() {
    let with = |services: &str| entry("n2", "192.0.2.2", services);
    for (text, words) in [
        ("[[node]]\nnam = 'n2'\n".to_owned(), &["line 2, column 1", "nam"][..]),
        ("[[nodes]]\n".to_owned(), &["line 1, column 3", "nodes"]),
        ("[[node]]\nname = 'n2'\n".to_owned(), &["line 1", "address"]),
        ("[[node]]\naddress = '192.0.2.2'\n".to_owned(), &["line 1", "name"]),
        (entry("a/b", "192.0.2.2", ""), &["line 2, column 8", "invalid node name \"a/b\""]),
        (entry("n2", "127.0.0.1", ""), &["line 3, column 11", "loopback"]),
        (entry("n2", "n2.example", ""), &["line 3, column 11", "expected an IP address"]),
        (with("'80' = 65536"), &["line 4, column 21", "expected 0-65535"]),
        (with("'80' = -1"), &["line 4, column 21", "expected 0-65535"]),
        (with("'80' = '3'"), &["line 4, column 21", "expected i64"]),
        (with("'0' = 1"), &["line 4, column 14", "expected 1-65535"]),
        (with("'53/x' = 1"), &["line 4, column 14", "expected tcp or udp"]),
        (with("'80' = 1, '80/tcp' = 2"), &["line 4", "port 80 is given twice"]),
        (
            "[[node]]\nname = 'n2'\naddress = '192.0.2.2'\nport = 0\n".to_owned(),
            &["line 4, column 8"],
        ),
        (
            "[[node]]\nname = 'n2'\naddress = '192.0.2.2'\nservices = 80\n".to_owned(),
            &["line 4", "a table like"],
        ),
        ("[[node\n".to_owned(), &["line 1"]),
    ] {
        let error = format!("{:#}", parse(&text, PORT).unwrap_err());
        assert!(words.iter().all(|word| error.contains(word)), "{text}: {error}");
    }
}

struct Fixture {
    folder: tempfile::TempDir,
    nodes: watch::Receiver<Vec<Node>>,
    status: Arc<ProviderStatus>,
}

async fn begin(path: &Path) -> (Result<watch::Receiver<Vec<Node>>>, Arc<ProviderStatus>) {
    let own: OwnAddresses =
        Box::new(|| Box::pin(async { Ok(BTreeSet::from([[192, 0, 2, 1].into()])) }));
    let (status, resyncs) = (ProviderStatus::of("cluster-file"), Resyncs::default());
    let settings = settings(path.to_owned());
    let nodes = start(path, &settings, own, Arc::clone(&status), &resyncs).await;
    (nodes, status)
}

impl Fixture {
    async fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nodes.toml");
        fs::write(&path, text).unwrap();
        let (nodes, status) = begin(&path).await;
        Self { folder, nodes: nodes.unwrap(), status }
    }

    /// Puts a new file in the old one's place, as careful writers do.
    fn rename_over(&self, text: &str) {
        let path = |name| self.folder.path().join(name);
        fs::write(path("new"), text).unwrap();
        fs::rename(path("new"), path("nodes.toml")).unwrap();
    }

    async fn next(&mut self) -> Vec<String> {
        let changed = tokio::time::timeout(Duration::from_secs(5), self.nodes.changed());
        changed.await.expect("other nodes within 5 s").unwrap();
        shown(&self.nodes.borrow_and_update())
    }

    /// Waits until the source says that it sees what changes, or that it does not.
    async fn until_connected(&self, is_connected: bool) {
        let done = async {
            while self.status.is_connected() != is_connected {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), done).await.expect("another state within 5 s");
    }
}

#[tokio::test]
async fn a_change_is_followed_and_this_node_is_not_among_the_others() {
    let own = entry("n1", "192.0.2.1", "80 = 1");
    let mut fixture = Fixture::new(&(own.clone() + &entry("n2", "192.0.2.2", "80 = 2"))).await;
    assert_eq!(shown(&fixture.nodes.borrow_and_update()), ["n2 192.0.2.2:6080 80=2"]);
    fixture.rename_over(&(entry("n2", "192.0.2.2", "80 = 3") + &own));
    assert_eq!(fixture.next().await, ["n2 192.0.2.2:6080 80=3"]);
    fixture.rename_over(&own);
    assert_eq!(fixture.next().await, [""; 0]);
}

#[tokio::test]
async fn a_bad_file_and_a_missing_file_change_nothing() {
    let good = entry("n2", "192.0.2.2", "80 = 2");
    let mut fixture = Fixture::new(&good).await;
    assert_eq!(shown(&fixture.nodes.borrow_and_update()), ["n2 192.0.2.2:6080 80=2"]);
    for bad in ["[[node]]\n", &entry("n2", "192.0.2.1", ""), &good.repeat(2)] {
        fixture.rename_over(bad);
        fixture.until_connected(false).await;
        fixture.rename_over(&good);
        fixture.until_connected(true).await;
    }
    fs::remove_file(fixture.folder.path().join("nodes.toml")).unwrap();
    fixture.until_connected(false).await;
    assert!(!fixture.nodes.has_changed().unwrap());
    fixture.rename_over(&(good + &entry("n3", "192.0.2.3", "")));
    assert_eq!(fixture.next().await, ["n2 192.0.2.2:6080 80=2", "n3 192.0.2.3:6080"]);
}

#[tokio::test]
async fn at_the_start_a_bad_or_missing_file_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nodes.toml");
    let error = format!("{:#}", begin(&path).await.0.unwrap_err());
    assert!(error.contains("nodes.toml") && error.contains("No such file"), "{error}");
    for (text, word) in [
        ("[[node]]\nx = 1\n".to_owned(), "line 2, column 1"),
        (entry("n2", "192.0.2.1", ""), "an address of this host"),
    ] {
        fs::write(&path, text).unwrap();
        let error = format!("{:#}", begin(&path).await.0.unwrap_err());
        assert!(error.contains("nodes.toml") && error.contains(word), "{error}");
    }
}
