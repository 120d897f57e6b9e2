//! Which columns of a table fit into a width. Pure.

use crate::system::escape;

/// Between two columns.
pub(super) const GAP: u16 = 1;

/// A column of rows of `T`.
pub(super) struct Column<T: 'static> {
    pub(super) head: &'static str,
    /// Columns of higher ranks are left out first.
    pub(super) rank: u8,
    pub(super) is_right: bool,
    pub(super) cell: fn(&T) -> String,
}

/// A column that is shown: how wide it is, and its cells.
pub(super) struct Shown {
    pub(super) head: &'static str,
    pub(super) is_right: bool,
    pub(super) width: u16,
    pub(super) cells: Vec<String>,
}

/// The columns that fit, as wide as they need to be. The first rank is always there.
pub(super) fn fitting<T>(columns: &[Column<T>], rows: &[T], width: u16) -> Vec<Shown> {
    let mut shown: Vec<(u8, Shown)> = columns.iter().map(|column| show(column, rows)).collect();
    while total(&shown) > u32::from(width) {
        let highest = shown.iter().map(|(rank, _)| *rank).max().unwrap_or(0);
        if highest == 0 {
            break;
        }
        shown.retain(|(rank, _)| *rank != highest);
    }
    shown.into_iter().map(|(_, column)| column).collect()
}

fn show<T>(column: &Column<T>, rows: &[T]) -> (u8, Shown) {
    let fit = |cell: String| escape::line(&cell).into_owned();
    let cells: Vec<String> = rows.iter().map(column.cell).map(fit).collect();
    let widest = cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
    let width = u16::try_from(widest.max(column.head.len())).unwrap_or(u16::MAX);
    (column.rank, Shown { head: column.head, is_right: column.is_right, width, cells })
}

fn total(shown: &[(u8, Shown)]) -> u32 {
    let widths =
        shown.iter().map(|(_, column)| u32::from(column.width) + u32::from(GAP)).sum::<u32>();
    widths.saturating_sub(GAP.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_least_goes_first() {
        let columns: [Column<&str>; 3] = [
            Column { head: "NAME", rank: 0, is_right: false, cell: |name| (*name).to_owned() },
            Column { head: "LENGTH", rank: 2, is_right: true, cell: |name| name.len().to_string() },
            Column { head: "UP", rank: 1, is_right: false, cell: |name| name.to_uppercase() },
        ];
        let heads = |width| -> Vec<_> {
            fitting(&columns, &["web-1", "web-200"], width).iter().map(|one| one.head).collect()
        };
        assert_eq!(heads(22), ["NAME", "LENGTH", "UP"]);
        assert_eq!(heads(21), ["NAME", "UP"]);
        assert_eq!(heads(14), ["NAME"]);
        // Cut off rather than nothing at all.
        assert_eq!(heads(0), ["NAME"]);
    }
}
