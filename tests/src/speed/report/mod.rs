//! All figures of a run, and what is shown of them.

mod svg;
mod table;

use serde_json::{Value, json};

use super::{BARS, Bar, Better, Figure, Verdict};

/// What was measured, on which machine, and what there is to say about it.
#[derive(Debug)]
pub struct Report {
    /// The machine in a line.
    heading: String,
    /// The machine, and all else that the figures are worth little without.
    machine: Value,
    figures: Vec<Figure>,
    skipped: Vec<String>,
    notes: Vec<String>,
}

impl Report {
    /// Without any figures. The heading names the machine in a line; `machine` goes into the file of raw figures.
    #[must_use]
    pub fn new(heading: String, machine: Value) -> Self {
        Self { heading, machine, figures: Vec::new(), skipped: Vec::new(), notes: Vec::new() }
    }

    /// Adds a figure with all its series.
    pub fn add(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    /// Says what was not measured, and why: `nginx: there is no nginx`.
    pub fn skip(&mut self, why: String) {
        if !self.skipped.contains(&why) {
            self.skipped.push(why);
        }
    }

    /// Says something about the run as a whole: `noisy: …`.
    pub fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// All bars, with how they came out if their figures were measured.
    fn bars(&self) -> impl Iterator<Item = (&'static Bar, Option<&Figure>, Option<Verdict>)> {
        BARS.iter().map(|bar| {
            let figure = self.figures.iter().find(|figure| figure.id == bar.figure);
            (bar, figure, bar.judge(&self.figures))
        })
    }

    /// All there is to know of a run.
    #[must_use]
    pub fn json(&self) -> Value {
        let bars = self.bars().map(|(bar, figure, verdict)| {
            json!({
                "figure": bar.figure, "of": bar.of, "against": bar.against, "limit": bar.limit,
                "at": figure.map(|figure| match figure.better { Better::More => "least", Better::Less => "most" }),
                "measured": verdict.map(|verdict| verdict.spread.json()),
                "met": verdict.map(|verdict| verdict.met),
                "sure": verdict.map(|verdict| verdict.sure),
                "verdict": verdict.map(|verdict| verdict.to_string()),
            })
        });
        json!({
            "machine": self.machine,
            "figures": self.figures.iter().map(Figure::json).collect::<Vec<_>>(),
            "bars": bars.collect::<Vec<_>>(),
            "skipped": self.skipped, "notes": self.notes,
        })
    }
}
