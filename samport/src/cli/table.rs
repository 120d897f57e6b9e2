//! Tables: columns of text under their heads.

use comfy_table::{CellAlignment, Table, presets};

use crate::system::escape;

pub(super) const LEFT: CellAlignment = CellAlignment::Left;
pub(super) const RIGHT: CellAlignment = CellAlignment::Right;

/// A column: its head, which way it is aligned, and what stands in it.
pub(super) type Column<T> = (&'static str, CellAlignment, fn(&T) -> String);

/// A line for each row, and the heads.
pub(super) fn table<'a, T: 'a>(
    rows: impl IntoIterator<Item = &'a T>,
    columns: &[Column<T>],
) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(columns.iter().map(|(head, ..)| *head));
    for row in rows {
        table.add_row(columns.iter().map(|(_, _, cell)| escape::line(&cell(row)).into_owned()));
    }
    for (column, (_, alignment, _)) in table.column_iter_mut().zip(columns) {
        column.set_cell_alignment(*alignment);
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// What is not known is a dash.
pub(super) fn number(number: Option<u64>) -> String {
    text(number.map(|number| number.to_string()))
}

/// What is not known is a dash.
pub(super) fn text(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_under_the_ends_of_their_heads() {
        let columns: [Column<(&str, u64)>; 2] = [
            ("NAME", LEFT, |(name, _)| (*name).to_owned()),
            ("FLOWS", RIGHT, |(_, flows)| number(Some(*flows))),
        ];
        let shown = table(&[("web-1", 7), ("web-10", 123)], &columns);
        assert_eq!(shown, "NAME    FLOWS\nweb-1       7\nweb-10    123");
        assert_eq!(number(None), "-");
    }
}
