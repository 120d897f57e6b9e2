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

/// After the point, so that about three digits of a value mean something.
fn digits(value: f64) -> usize {
    match value.abs() {
        100.0.. => 0,
        10.0..100.0 => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two figures, of which one meets its bar.
    pub(super) fn report() -> Report {
        let mut report = Report::new("Linux 6, 2 CPUs".to_owned(), json!({ "kernel": "6" }));
        let mut figure = Figure::new("connections", "new ones", "1/s", Better::More);
        let samport = figure.series("samport");
        samport.samples = vec![3000.0, 2800.0, 3100.0];
        samport.beside = vec![("CPU µs".to_owned(), 50.0)];
        let docker = figure.series("docker-p");
        docker.samples = vec![2000.0; 3];
        docker.doubts = vec!["3 timeouts".to_owned()];
        report.add(figure);
        let mut figure = Figure::new("kernel.foreign", "not ours", "ns", Better::Less);
        figure.series("forward").samples = vec![12.0, 11.0, 13.0];
        report.add(figure);
        report.skip("nginx: there is no nginx".to_owned());
        report.skip("nginx: there is no nginx".to_owned());
        report.note("noisy: very".to_owned());
        report
    }

    #[test]
    fn the_raw_figures_have_the_machine_every_sample_and_every_bar() {
        let json = report().json();
        assert_eq!(json["machine"]["kernel"], "6");
        let series = &json["figures"][0]["series"];
        assert_eq!(series[0]["samples"], json!([3000.0, 2800.0, 3100.0]));
        assert_eq!(series[0]["beside"], json!({ "CPU µs": 50.0 }));
        assert_eq!(series[1]["first_by_it"]["median"], 1.5);
        assert_eq!(series[1]["doubts"], json!(["3 timeouts"]));
        assert_eq!(json["bars"].as_array().unwrap().len(), BARS.len());
        let bar = &json["bars"][0];
        assert_eq!((&bar["verdict"], &bar["at"]), (&json!("met"), &json!("least")));
        assert_eq!(json["bars"][1]["verdict"], Value::Null);
        assert_eq!(json["skipped"], json!(["nginx: there is no nginx"]));
    }
}
