use std::fs;
use std::time::Duration;

use tokio::time::sleep;

use super::*;

const DRAIN: Duration = Duration::from_millis(150);

fn ports(list: &[&str]) -> Vec<PortSpec> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

fn parse(text: &str, ports: &[PortSpec]) -> Result<Vec<Candidate>> {
    super::parse(text, ports, &Config::default())
}

fn backend(address: &str) -> String {
    format!("[[backend]]\naddress = \"{address}\"\n")
}

fn served(candidates: &[Candidate]) -> Vec<String> {
    let one =
        |c: &Candidate| format!("{} {}>{} {:?}", c.name, c.listen.brief(), c.endpoint, c.condition);
    candidates.iter().map(one).collect()
}

#[test]
fn backends_are_read() {
    let text = "[[backend]]\nname = 'web'\naddress = '10.0.0.2:8080'\nweight = 3\nlisten = 80\n\
                [[backend]]\naddress = '[::1]:80'\n[[backend]]\naddress = '::2'\nlisten = '443/udp'\n";
    let candidates = parse(text, &ports(&["80", "443:8443/udp"])).unwrap();
    assert_eq!(
        served(&candidates),
        [
            "::2 443/udp>[::2]:8443 Ready",
            "[::1]:80 80>[::1]:80 Ready",
            "[::1]:80 443/udp>[::1]:80 Ready",
            "web 80>10.0.0.2:8080 Ready",
        ]
    );
    assert_eq!(candidates[3].weight, 3);
    let text = "[[backend]]\naddress = '10.0.0.2'\nlisten = '192.0.2.7:80'\n";
    let given = parse(text, &ports(&["80:9090", "192.0.2.7:80:8080"])).unwrap();
    assert_eq!(served(&given), ["10.0.0.2 192.0.2.7:80>10.0.0.2:8080 Ready"]);
    assert_eq!(parse("", &ports(&["80"])).unwrap(), []);
}

#[test]
fn errors_name_line_and_column_or_the_backend() {
    for (text, ports_given, words) in [
        ("[[backend]]\nadress = '10.0.0.2'\n", &["80"][..], &["line 2, column 1", "adress"][..]),
        (
            "[[backend]]\naddress = 'web'\n",
            &["80"],
            &["line 2, column 11", "invalid address \"web\""],
        ),
        ("[[backend]]\naddress = '10.0.0.2'\nweight = -1\n", &["80"], &["line 3, column 10"]),
        ("[[backend]]\nname = 'x'\n", &["80"], &["line 1", "address"]),
        ("[[backend\n", &["80"], &["line 1"]),
        ("[[backend]]\naddress = '10.0.0.2'\nlisten = 81\n", &["80"], &["10.0.0.2", "-p 81"]),
        (
            "[[backend]]\naddress = '10.0.0.2'\nlisten = '80/udp'\n",
            &["80"],
            &["10.0.0.2", "-p 80/udp"],
        ),
        (
            "[[backend]]\naddress = '10.0.0.2'\nlisten = 0\n",
            &[],
            &["line 3, column 10", "from 1 to 65535"],
        ),
        (
            "[[backend]]\naddress = '10.0.0.2'\nlisten = '53/x'\n",
            &[],
            &["line 3, column 10", "expected tcp or udp"],
        ),
        ("[[backend]]\naddress = '10.0.0.2'\n", &[], &["-p PORT", "listen = PORT"]),
        (
            "[[backend]]\naddress = '10.0.0.2'\n[[backend]]\naddress = '10.0.0.2:80'\n",
            &["80"],
            &["10.0.0.2:80 is given twice"],
        ),
    ] {
        let error = format!("{:#}", parse(text, &ports(ports_given)).unwrap_err());
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}

fn terms() -> ProviderSettings {
    ProviderSettings { drain: DRAIN, ..ProviderSettings::default() }
}

struct Fixture {
    folder: tempfile::TempDir,
    change: watch::Sender<ProviderSettings>,
    snapshots: watch::Receiver<Snapshot>,
}

impl Fixture {
    async fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("backends.toml");
        fs::write(&path, text).unwrap();
        let (change, terms) = watch::channel(terms());
        let resyncs = Resyncs::default();
        let started = start(path, ports(&["80"]), terms, ProviderStatus::of("file"), &resyncs);
        let snapshots = started.await.unwrap();
        Self { folder, change, snapshots }
    }

    /// Puts a new file in the old one's place, as careful writers do.
    fn rename_over(&self, text: &str) {
        let path = |name| self.folder.path().join(name);
        fs::write(path("new"), text).unwrap();
        fs::rename(path("new"), path("backends.toml")).unwrap();
    }

    async fn next(&mut self) -> Vec<String> {
        let changed = tokio::time::timeout(Duration::from_secs(5), self.snapshots.changed());
        changed.await.expect("a new snapshot within 5 s").unwrap();
        served(&self.snapshots.borrow_and_update().candidates)
    }
}

#[tokio::test]
async fn a_backend_that_leaves_drains_and_then_goes() {
    let mut fixture = Fixture::new(&(backend("10.0.0.2") + &backend("10.0.0.3"))).await;
    fixture.rename_over(&backend("10.0.0.3"));
    assert_eq!(
        fixture.next().await,
        ["10.0.0.2 80>10.0.0.2:80 Draining", "10.0.0.3 80>10.0.0.3:80 Ready"]
    );
    assert_eq!(fixture.next().await, ["10.0.0.3 80>10.0.0.3:80 Ready"]);
}

#[tokio::test]
async fn one_that_comes_back_is_ready_at_once() {
    let mut fixture = Fixture::new(&backend("10.0.0.2")).await;
    fixture.rename_over("");
    assert_eq!(fixture.next().await, ["10.0.0.2 80>10.0.0.2:80 Draining"]);
    fs::write(fixture.folder.path().join("backends.toml"), backend("10.0.0.2")).unwrap();
    assert_eq!(fixture.next().await, ["10.0.0.2 80>10.0.0.2:80 Ready"]);
}

#[tokio::test]
async fn a_bad_file_and_a_missing_file_change_nothing() {
    let mut fixture = Fixture::new(&backend("10.0.0.2")).await;
    fixture.rename_over("[[backend]]\naddress = 'x'\n");
    sleep(Duration::from_millis(50)).await;
    fs::remove_file(fixture.folder.path().join("backends.toml")).unwrap();
    sleep(Duration::from_millis(50)).await;
    assert!(!fixture.snapshots.has_changed().unwrap());
    fixture.rename_over(&(backend("10.0.0.2") + &backend("10.0.0.4")));
    assert_eq!(
        fixture.next().await,
        ["10.0.0.2 80>10.0.0.2:80 Ready", "10.0.0.4 80>10.0.0.4:80 Ready"]
    );
}

#[tokio::test]
async fn at_the_start_a_bad_or_missing_file_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backends.toml");
    let begin = async |path: &Path| {
        let (_change, terms) = watch::channel(terms());
        let resyncs = Resyncs::default();
        let started =
            start(path.to_owned(), ports(&["80"]), terms, ProviderStatus::of("file"), &resyncs);
        format!("{:#}", started.await.unwrap_err())
    };
    let error = begin(&path).await;
    assert!(error.contains("backends.toml") && error.contains("No such file"), "{error}");
    fs::write(&path, "[[backend]]\nx = 1\n").unwrap();
    let error = begin(&path).await;
    assert!(error.contains("backends.toml") && error.contains("line 2, column 1"), "{error}");
    let error = begin(Path::new("/nonexistent/backends.toml")).await;
    assert!(error.contains("/nonexistent"), "{error}");
}

#[tokio::test]
async fn other_terms_change_how_its_backends_are_checked() {
    let mut fixture = Fixture::new(&backend("10.0.0.2")).await;
    let health = Config { source: "tcp".parse().unwrap(), ..Config::default() };
    fixture.change.send_modify(|terms| terms.health = health.clone());
    fixture.snapshots.changed().await.unwrap();
    let conditions = |snapshot: &Snapshot| {
        snapshot.candidates.iter().map(|one| one.condition.clone()).collect::<Vec<_>>()
    };
    let tcp = health.of_listed(samport_common::wire::protocol::Protocol::Tcp);
    assert_eq!(conditions(&fixture.snapshots.borrow()), [tcp]);
}

/// Whoever has changed them waits for that.
#[tokio::test]
async fn terms_that_change_nothing_are_in_force_too() {
    let mut fixture = Fixture::new(&backend("10.0.0.2")).await;
    assert_eq!(fixture.snapshots.borrow().generation, 0);
    fixture.change.send_modify(|terms| terms.generation = 1);
    assert_eq!(fixture.next().await, ["10.0.0.2 80>10.0.0.2:80 Ready"]);
    assert_eq!(fixture.snapshots.borrow().generation, 1);
}
