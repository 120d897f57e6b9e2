//! How lists are shown.

/// What `-o` takes where there is no wider table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(super) enum Output {
    Table,
    Json,
}
