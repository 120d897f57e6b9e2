//! `samport`, the program.

use std::process::ExitCode;

fn main() -> ExitCode {
    samport::cli::main()
}
