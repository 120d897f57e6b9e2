//! The report as text: a table for each figure, and one of the bars.

use std::fmt::{self, Write as _};

use comfy_table::{CellAlignment, ColumnConstraint, Table, presets};

use super::{Report, digits};
use crate::speed::{Bar, Better, Figure, Series, Spread, Verdict};

impl Report {
    /// All tables, and below them what makes their figures doubtful.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!("{}\n", self.heading);
        for figure in &self.figures {
            let _ = write!(text, "\n{}\n{}", title(figure), of_figure(figure));
        }
        let _ = write!(text, "\nBars\n{}", self.of_bars());
        for skipped in &self.skipped {
            let _ = writeln!(text, "skipped {skipped}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "{note}");
        }
        text
    }

    fn of_bars(&self) -> String {
        let mut rows = Vec::new();
        let mut missing = Vec::new();
        for (bar, figure, verdict) in self.bars() {
            match (figure, verdict) {
                (Some(figure), Some(verdict)) => rows.push(bar_row(bar, figure, verdict)),
                _ => missing.push(bar.to_string()),
            }
        }
        let mut text = String::new();
        if !rows.is_empty() {
            let head = ["figure", "of", "against", "bar", "measured", "", "verdict"];
            text += &lines(head.map(str::to_owned).to_vec(), rows, &[3, 4]);
        }
        if !missing.is_empty() {
            let _ = writeln!(text, "not measured: {}", missing.join(", "));
        }
        text
    }
}

fn title(figure: &Figure) -> String {
    let rounds = figure.series.iter().map(|series| series.samples.len()).max().unwrap_or(0);
    let s = if rounds == 1 { "" } else { "s" };
    format!("{}: {}, median of {rounds} round{s} (min – max)", figure.id, figure.title)
}

/// Medians and extremes, how often the first series is what each other one is, and what belongs to them.
fn of_figure(figure: &Figure) -> String {
    let first = figure.series.first().map_or("", |series| &series.name);
    let beside = beside(figure);
    let mut head = vec![String::new(), figure.unit.to_owned(), String::new()];
    let is_compared = figure.is_compared && figure.series.len() > 1;
    if is_compared {
        head.extend([format!("{first} ×"), String::new()]);
    }
    head.extend(beside.iter().map(|name| (*name).to_owned()));
    head.push(String::new());
    let mut right = vec![1];
    if is_compared {
        right.push(3);
    }
    right.extend(head.len() - 1 - beside.len()..head.len() - 1);
    let row = |series: &Series| {
        let mut row = vec![series.name.clone()];
        row.extend(series.spread().map_or_else(blanks, cells));
        if is_compared {
            let ratio = figure.ratio(first, &series.name).filter(|_| series.name != first);
            row.extend(ratio.map_or_else(blanks, ratio_cells));
        }
        for name in &beside {
            let value = series.beside.iter().find(|(known, _)| known == name);
            row.push(value.map(|(_, value)| Plain(*value).to_string()).unwrap_or_default());
        }
        let doubts = series.doubts.join(", ");
        row.push(if doubts.is_empty() { doubts } else { format!("! {doubts}") });
        row
    };
    lines(head, figure.series.iter().map(row).collect(), &right)
}

/// The names of what is shown beside any series, each once.
fn beside(figure: &Figure) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in figure.series.iter().flat_map(|series| &series.beside) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names
}

fn bar_row(bar: &Bar, figure: &Figure, verdict: Verdict) -> Vec<String> {
    let at = match figure.better {
        Better::More => "≥",
        Better::Less => "≤",
    };
    let (limit, measured) = match bar.against {
        Some(_) => (format!("{at} {:.2} ×", bar.limit), ratio_cells(verdict.spread)),
        None => (format!("{at} {} {}", bar.limit, figure.unit), cells(verdict.spread)),
    };
    let [median, range] = measured;
    let names = [bar.figure, bar.of, bar.against.unwrap_or("")].map(str::to_owned);
    names.into_iter().chain([limit, median, range, verdict.to_string()]).collect()
}

fn cells(spread: Spread) -> [String; 2] {
    let (min, max) = (Plain(spread.min), Plain(spread.max));
    [Plain(spread.median).to_string(), format!("({min} – {max})")]
}

fn ratio_cells(ratio: Spread) -> [String; 2] {
    [format!("{:.2}", ratio.median), format!("({:.2} – {:.2})", ratio.min, ratio.max)]
}

fn blanks() -> [String; 2] {
    [String::new(), String::new()]
}

/// Aligned columns without borders; those whose numbers are given are flushed right.
fn lines(head: Vec<String>, rows: Vec<Vec<String>>, right: &[usize]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(head).add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2)).set_constraint(ColumnConstraint::ContentWidth);
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    // The last column is padded too.
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// A value with about three digits that mean something.
struct Plain(f64);

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.*}", digits(self.0), self.0)
    }
}

#[cfg(test)]
mod tests {
    use crate::speed::report::tests::report;
    use crate::speed::{Better, Figure};

    #[test]
    fn a_figure_is_a_table_with_medians_ratios_what_is_beside_and_doubts() {
        let table = report().table();
        let rows = [
            "connections: new ones, median of 3 rounds (min – max)",
            "           1/s                 samport ×                 CPU µs",
            "samport   3000  (2800 – 3100)                              50.0",
            "docker-p  2000  (2000 – 2000)       1.50  (1.40 – 1.55)          ! 3 timeouts",
        ];
        let found = rows.map(|row| table.contains(&format!("{row}\n")));
        assert_eq!(found, [true; 4], "{table}");
    }

    #[test]
    fn bars_follow_with_their_verdicts_and_those_without_figures_are_named() {
        let table = report().table();
        let (_, bars) = table.split_once("\nBars\n").unwrap();
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = bars.lines().map(words).collect();
        assert_eq!(lines[1], "connections samport docker-p ≥ 1.30 × 1.50 (1.40 – 1.55) met");
        assert_eq!(lines[2], "kernel.foreign forward ≤ 10 ns 12.0 (11.0 – 13.0) missed");
        assert!(lines[3].starts_with("not measured: connections against iptables, "), "{table}");
        assert!(lines[3].contains("kernel.backends of 1000 against 1"), "{table}");
        assert_eq!(lines[4], "skipped nginx: there is no nginx");
        assert_eq!(lines[5], "noisy: very");
    }

    #[test]
    fn a_figure_of_one_series_has_no_ratios() {
        let mut figure = Figure::new("control.kill", "kill", "ms", Better::Less);
        figure.series("samport").samples = vec![3.0];
        let table = super::of_figure(&figure);
        assert!(!table.contains('×'), "{table}");
        assert!(super::title(&figure).ends_with("median of 1 round (min – max)"));
    }
}
