//! What programs are made of.

use anyhow::Result;
use samport::dataplane::program_run::harness::{Harness, Measured, OPERATIONS};
use samport_common::harness::Order;
use samport_tests::speed::Figure;

use super::bed::{self, Flags};
use super::stopwatch::{self, Case};

const TITLE: &str = "single operations, net of a program that does all of it but them";

/// Single operations.
pub fn measure(harness: &mut Harness, rounds: u32) -> Result<Vec<Figure>> {
    let frame = bed::from_client(Flags::Ack);
    let case = |name: &'static str| {
        // An insert wants a client it has not seen yet.
        let clients = if name == "op_lru_insert" { 1 << 24 } else { 1 };
        let traffic = bed::client_traffic(&frame, clients, Order::Each);
        let series = name.trim_start_matches("op_");
        let program = Measured::Own(name);
        let case = Case::tc("kernel.operations", TITLE, series, program, traffic);
        Case { nothing: Measured::Own("op_nothing"), ..case }
    };
    let cases: Vec<_> =
        OPERATIONS.into_iter().filter(|name| *name != "op_nothing").map(case).collect();
    stopwatch::measure(harness, &cases, rounds)
}
