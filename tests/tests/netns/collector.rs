//! Flows that are over leave the tables.

use samport_tests::eventually;
use samport_tests::load::ask;
use samport_tests::open_connections::OpenConnection;
use samport_tests::served::Served;
use serde_json::Value;

use crate::lab;

fn table(served: &Served) -> Value {
    served.status().0["flow_table"].clone()
}

#[test]
fn flows_that_are_over_are_collected() {
    let served = Served::start(
        lab(2),
        &["--tcp-syn-timeout", "1s", "--tcp-fin-timeout", "1s", "--tcp-rst-timeout", "1s"],
    );
    for front in served.fronts() {
        assert_eq!(ask(&served.lab, front, 40).total(), 40);
    }
    assert_eq!(table(&served)["inserted"], 80);
    eventually("80 flows to be collected", || {
        let table = table(&served);
        (table["expired"] == 80 && table["ipv4"] == 0 && table["ipv6"] == 0).then_some(())
    });
    // Nobody had to make room.
    assert_eq!(table(&served)["evicted"], 0);
}

#[test]
fn flows_that_are_not_over_stay() {
    let served = Served::start(lab(1), &["--tcp-syn-timeout", "1s", "--tcp-fin-timeout", "30d"]);
    let [front, _] = served.fronts();
    assert_eq!(ask(&served.lab, front, 10).total(), 10);
    eventually("the collector's first round", || (table(&served)["ipv4"] == 10).then_some(()));
    assert_eq!(table(&served)["expired"], 0);
}

/// Case 33: closed flows leave a table that fills before their time, and that is no eviction.
#[test]
fn closed_flows_make_room_first() {
    let served = Served::start(lab(1), &["--flows", "1024", "--tcp-fin-timeout", "30d"]);
    let [front, _] = served.fronts();
    let mut kept = OpenConnection::open(served.lab.client(), &[front], 100);
    assert_eq!(ask(&served.lab, front, 2_500).total(), 2_500);
    eventually("closed flows leave the table", || {
        let table = table(&served);
        (table["expired"].as_u64()? > 0 && table["ipv4"].as_u64()? <= 768).then_some(())
    });
    OpenConnection::check_all(&mut kept);
    assert_eq!(table(&served)["evicted"], 0);
}

/// Case 33: a full table still serves, and it is counted who had to make room: of open flows those that have been
/// idle for longest.
#[test]
fn a_full_table_makes_room_and_says_so() {
    let served = Served::start(lab(1), &["--flows", "1024"]);
    let (client, [front, _]) = (served.lab.client(), served.fronts());
    let mut used = OpenConnection::open(client, &[front], 100);
    let mut idle = Vec::new();
    eventually("evicted flows are counted", || {
        // Some at a time: a table that was filled all at once makes room for the rest only later.
        if idle.len() < 1_500 {
            idle.extend(OpenConnection::open(client, &[front], 100));
        }
        OpenConnection::check_all(&mut used);
        let table = table(&served);
        (table["evicted"].as_u64()? > 0 && table["ipv4"].as_u64()? <= 1_024).then_some(())
    });
    assert!(idle.len() > 800, "{}", idle.len());
    OpenConnection::check_all(&mut used);
    assert_eq!(ask(&served.lab, front, 100).total(), 100);
}
