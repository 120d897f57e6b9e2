//! Flows that are over leave the tables.

use samport_tests::eventually;
use samport_tests::load::ask;
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

/// Case 33: a full table still serves, and it is counted who had to make room.
#[test]
fn a_full_table_makes_room_and_says_so() {
    let served = Served::start(lab(1), &["--flows", "1024", "--tcp-syn-timeout", "1s"]);
    let [front, _] = served.fronts();
    assert_eq!(ask(&served.lab, front, 2_500).total(), 2_500);
    eventually("evicted flows to be counted", || {
        let table = table(&served);
        let evicted = table["evicted"].as_u64()?;
        // The kernel's table is split between the CPUs and makes room before it is quite full.
        (evicted >= 2_500 - 1_024 && table["ipv4"].as_u64()? <= 1_024).then_some(())
    });
}
