//! What is made of what the benchmark measures: figures, the bars they are held to, and the report.
//! The measuring itself is in `tests/benches/speed`, which has no tests of its own.

mod bars;
mod figure;
mod report;

pub use bars::{BARS, Bar, Verdict};
pub use figure::{Better, Figure, Series, Spread};
pub use report::Report;
