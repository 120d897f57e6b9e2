//! The report as a picture: for each bar what was measured, from the worst to the best round, and where the bar is.

use std::fmt::Write as _;

use super::{Report, digits};
use crate::speed::{Better, Spread, Verdict};

const WIDTH: f64 = 900.0;
/// Where the axis begins and ends; to its left stand names, to its right numbers.
const LEFT: f64 = 250.0;
const RIGHT: f64 = 590.0;
const ROW: f64 = 26.0;
const FONT: f64 = 13.0;
/// All of them can be read on white and on black.
const TEXT: &str = "#7a828c";
const LINE: &str = "#8b949e";
const MET: &str = "#2da44e";
const UNSURE: &str = "#bf8700";
const MISSED: &str = "#e5534b";

/// Bars that share an axis.
struct Panel {
    unit: &'static str,
    rows: Vec<Row>,
}

struct Row {
    name: String,
    limit: f64,
    better: Better,
    verdict: Verdict,
}

impl Report {
    /// A picture of all bars whose figures were measured.
    #[must_use]
    pub fn svg(&self) -> String {
        let panels = self.panels();
        let rows: usize = panels.iter().map(|panel| panel.rows.len() + 2).sum();
        let height = ROW * (f64::from(u32::try_from(rows).unwrap_or(0)) + 1.5);
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" font-family=\"sans-serif\" font-size=\"{FONT}\" fill=\"{TEXT}\">\n"
        );
        let mut y = ROW;
        words(&mut text, (10.0, y), "start", &self.heading);
        for panel in &panels {
            y = panel.draw(&mut text, y + ROW);
        }
        text + "</svg>\n"
    }

    /// In the order of bars; those of one unit are together.
    fn panels(&self) -> Vec<Panel> {
        let mut panels: Vec<Panel> = Vec::new();
        for (bar, figure, verdict) in self.bars() {
            let (Some(figure), Some(verdict)) = (figure, verdict) else { continue };
            let unit = if bar.against.is_some() { "×" } else { figure.unit };
            let row =
                Row { name: bar.to_string(), limit: bar.limit, better: figure.better, verdict };
            match panels.iter_mut().find(|panel| panel.unit == unit) {
                Some(panel) => panel.rows.push(row),
                None => panels.push(Panel { unit, rows: vec![row] }),
            }
        }
        panels
    }
}

impl Panel {
    /// From a height on; the height below it.
    fn draw(&self, text: &mut String, top: f64) -> f64 {
        let largest = self.rows.iter().map(|row| row.verdict.spread.max.max(row.limit));
        let end = largest.fold(0.0, f64::max) * 1.05;
        let x = |value: f64| LEFT + (RIGHT - LEFT) * (value / end).clamp(0.0, 1.0);
        let heading = match self.unit {
            "×" => "ratios; | is the bar".to_owned(),
            unit => format!("{unit}; | is the bar"),
        };
        words(text, (LEFT, top), "start", &heading);
        let mut y = top;
        for row in &self.rows {
            y += ROW;
            row.draw(text, y, x);
        }
        line(text, (LEFT, y + ROW / 2.0), (RIGHT, y + ROW / 2.0), LINE, 1.0);
        words(text, (LEFT, y + ROW), "middle", "0");
        if self.unit == "×" {
            let one = x(1.0);
            line(text, (one, top + ROW / 2.0), (one, y + ROW / 2.0), LINE, 0.5);
            words(text, (one, y + ROW), "middle", "1");
        }
        y + ROW
    }
}

impl Row {
    fn draw(&self, text: &mut String, y: f64, x: impl Fn(f64) -> f64) {
        let Verdict { spread: Spread { median, min, max }, met, sure } = self.verdict;
        let color = match (sure, met) {
            (true, true) => MET,
            (true, false) => MISSED,
            (false, _) => UNSURE,
        };
        words(text, (LEFT - 12.0, y + FONT / 3.0), "end", &self.name);
        line(text, (x(min), y), (x(max), y), color, 2.0);
        for end in [min, max] {
            line(text, (x(end), y - 4.0), (x(end), y + 4.0), color, 2.0);
        }
        let _ = writeln!(
            text,
            "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4.5\" fill=\"{color}\"/>",
            x(median)
        );
        line(text, (x(self.limit), y - 9.0), (x(self.limit), y + 9.0), TEXT, 2.0);
        let sign = match self.better {
            Better::More => "≥",
            Better::Less => "≤",
        };
        let numbers =
            format!("{median:.0$} ({sign} {1}) {2}", digits(median), self.limit, self.verdict);
        words(text, (RIGHT + 12.0, y + FONT / 3.0), "start", &numbers);
    }
}

fn line(text: &mut String, from: (f64, f64), to: (f64, f64), color: &str, width: f64) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = writeln!(
        text,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{color}\" stroke-width=\"{width}\"/>"
    );
}

fn words(text: &mut String, at: (f64, f64), anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        text,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{words}</text>",
        at.0, at.1
    );
}

#[cfg(test)]
mod tests {
    use crate::speed::report::tests::report;

    #[test]
    fn each_measured_bar_is_a_row_with_a_whisker_its_median_and_its_limit() {
        let svg = report().svg();
        assert_eq!(svg.matches("<circle").count(), 2, "{svg}");
        assert!(svg.contains(">connections against docker-p</text>"), "{svg}");
        assert!(svg.contains(">1.50 (≥ 1.3) met</text>"), "{svg}");
        assert!(svg.contains(">kernel.foreign of forward</text>"), "{svg}");
        assert!(svg.contains(">12.0 (≤ 10) missed</text>"), "{svg}");
    }

    #[test]
    fn what_stands_in_a_picture_is_text_and_not_markup() {
        let mut text = String::new();
        super::words(&mut text, (0.0, 0.0), "start", "A & <b>");
        assert!(text.contains(">A &amp; &lt;b></text>"), "{text}");
    }
}
