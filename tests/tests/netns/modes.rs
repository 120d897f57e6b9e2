//! Ways to choose that are changed while connections are open.

use samport_common::choose::Balance;
use samport_tests::daemon::samport;
use samport_tests::load::{Connection, ask};
use samport_tests::served::Served;

use crate::lab;

#[test]
fn no_connection_moves_when_the_way_to_choose_changes() {
    let served = Served::start(lab(3), &[]);
    let open = |front| {
        let mut connection = Connection::open(front).unwrap();
        let backend = connection.get("/").unwrap().backend;
        (connection, backend)
    };
    let fronts = served.fronts().into_iter().flat_map(|front| [front; 20]);
    let mut kept: Vec<_> = served.lab.client().run(|| fronts.map(open).collect());
    for balance in Balance::ALL.into_iter().rev() {
        let said = samport(served.lab.host(), &["balance", balance.name()]);
        assert!(said.status.success(), "{said:?}");
        for (connection, backend) in &mut kept {
            assert_eq!(connection.get("/").unwrap().backend, *backend, "{}", balance.name());
        }
        for front in served.fronts() {
            let tally = ask(&served.lab, front, 60);
            assert_eq!(tally.total(), 60, "{}: {tally}", balance.name());
            match balance {
                Balance::RoundRobin => assert_eq!(tally.counts(), [20; 3], "{tally}"),
                Balance::SourceHash => assert_eq!(tally.counts(), [60], "one client: {tally}"),
                _ => assert_eq!(tally.counts().len(), 3, "{}: {tally}", balance.name()),
            }
        }
    }
}
