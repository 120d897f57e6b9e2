//! Which backend gets a new connection.

use samport_tests::daemon::Daemon;
use samport_tests::load::{Connection, Tally, ask};
use samport_tests::served::{LISTEN, Served, TARGET};
use samport_tests::{Lab, stats};

use crate::lab;

/// Chance alone fails a fair sample one time in a few hundred: then a second one decides.
fn assert_fair(mut sample: impl FnMut() -> Result<(), String>) {
    if let Err(first) = sample()
        && let Err(second) = sample()
    {
        panic!("two unfair samples: {first}; {second}");
    }
}

/// Whether a backend's count is within 3 σ of its share.
fn judge(tally: &Tally, name: &str, share: f64) -> Result<(), String> {
    let (count, total) = (tally.of(name), tally.total());
    if stats::within_three_sigma(count, total, share) {
        return Ok(());
    }
    Err(format!("{name} got {count} of {total}, its share is {share}"))
}

/// `samport run --backend …` with a weight for each backend, in a lab whose backends serve.
pub fn weighted(lab: &Lab, weights: &[u32], options: &[&str]) -> Daemon {
    let backend = |(backend, weight): (&samport::lab::Backend, &u32)| {
        ["--backend".to_owned(), format!("{}@{weight}", backend.v4(TARGET))]
    };
    let backends: Vec<_> = lab.backends().iter().zip(weights).flat_map(backend).collect();
    let port = LISTEN.to_string();
    let mut args = vec!["-i", "eth0", "-p", &port];
    args.extend(backends.iter().map(String::as_str));
    args.extend(options);
    Daemon::start(lab, &args)
}

/// Case 44: Random over 4: χ² passes over 2,000 connections.
#[test]
fn two_thousand_connections_spread_evenly_over_four_backends() {
    let served = Served::start(lab(4), &[]);
    for front in served.fronts() {
        assert_fair(|| {
            let tally = ask(&served.lab, front, 2_000);
            let counts: Vec<_> =
                served.lab.backends().iter().map(|one| tally.of(one.name())).collect();
            assert_eq!(counts.iter().sum::<u32>(), 2_000, "somebody else answered: {tally}");
            let chi = stats::chi_square(&counts, &[1.0; 4]);
            if chi < stats::chi_square_limit(3) { Ok(()) } else { Err(format!("{counts:?}")) }
        });
    }
}

/// Case 53: The seeds' experiment: 300 requests over 2 backends within 3 σ of half.
#[test]
fn three_hundred_requests_over_two_backends_are_shared_in_halves() {
    let lab = lab(2);
    let _servers = lab.serve(TARGET).unwrap();
    let _daemon = weighted(&lab, &[1, 1], &[]);
    assert_fair(|| judge(&ask(&lab, lab.front(LISTEN), 300), "web-1", 0.5));
}

/// Case 46, with weights of the command line: each share is as its weight.
#[test]
fn shares_follow_the_weights_of_the_command_line() {
    let lab = lab(3);
    let _servers = lab.serve(TARGET).unwrap();
    let _daemon = weighted(&lab, &[7, 2, 1], &[]);
    assert_fair(|| {
        let tally = ask(&lab, lab.front(LISTEN), 2_000);
        judge(&tally, "web-1", 0.7)?;
        judge(&tally, "web-2", 0.2)?;
        judge(&tally, "web-3", 0.1)
    });
}

/// Case 46: a weight that changes while it runs counts from the next connection on.
#[test]
fn shares_follow_a_weight_that_changes() {
    let mut served = Served::start(lab(2), &[]);
    served.change(("~", "web-1", "weight 3"), |file| file.set_weight("web-1", 3));
    for front in served.fronts() {
        assert_fair(|| judge(&ask(&served.lab, front, 1_000), "web-1", 0.75));
    }
}

/// Case 50: Weight 0: no new flows.
#[test]
fn a_backend_of_weight_zero_gets_no_new_connection_and_keeps_its_old_ones() {
    let mut served = Served::start(lab(2), &[]);
    let mut kept = served.lab.client().run(|| {
        let connect = || Connection::open(served.fronts()[0]).unwrap();
        std::iter::repeat_with(connect)
            .find_map(|mut one| (one.get("/").unwrap().backend == "web-1").then_some(one))
            .unwrap()
    });
    served.change(("~", "web-1", "weight 0"), |file| file.set_weight("web-1", 0));
    for front in served.fronts() {
        assert_eq!(ask(&served.lab, front, 100).of("web-2"), 100);
    }
    assert_eq!(kept.get("/").unwrap().backend, "web-1");
}

/// Case 50: the same for a weight that was 0 from the beginning.
#[test]
fn weight_zero_on_the_command_line_takes_no_part() {
    let lab = lab(3);
    let _servers = lab.serve(TARGET).unwrap();
    let _daemon = weighted(&lab, &[1, 0, 1], &[]);
    let tally = ask(&lab, lab.front(LISTEN), 100);
    assert_eq!((tally.of("web-2"), tally.total()), (0, 100), "{tally}");
}
