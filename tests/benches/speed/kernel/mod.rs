//! What a packet costs in the programs alone, by `BPF_PROG_TEST_RUN` on packets made anew, net of a program
//! that does nothing.

pub mod bed;
pub mod load;
mod operations;
pub mod packets;
mod stopwatch;
