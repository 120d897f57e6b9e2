//! What is measured: figures with a series of samples for each contender, and what is made of them.

use std::fmt;

use serde_json::{Value, json};

/// Which of two values of a figure is better.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Better {
    /// Like connections a second.
    More,
    /// Like nanoseconds a packet.
    Less,
}

/// One thing that was measured, of one or several contenders.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What bars, files and `--against` know it by: lower case, parts joined by dots.
    pub id: String,
    /// The line above its table: what, with how much, for how long.
    pub title: String,
    /// What its values are in, as it stands above a column.
    pub unit: &'static str,
    /// Which of two of its values is better.
    pub better: Better,
    /// In the order they are shown. The first one is whose ratios to the others are shown.
    pub series: Vec<Series>,
    /// Whether such ratios mean anything.
    pub is_compared: bool,
}

/// One contender's samples.
#[derive(Clone, Debug)]
pub struct Series {
    /// What the table calls it: a contender, a program, a size.
    pub name: String,
    /// One for each round, in the order of rounds: those with the same index saw the same machine.
    pub samples: Vec<f64>,
    /// Other values that belong to it and are only shown, with their unit: medians of their own.
    pub beside: Vec<(String, f64)>,
    /// What makes its samples ones that should not be used.
    pub doubts: Vec<String>,
}

impl Figure {
    /// A figure without any series.
    pub fn new(
        id: impl Into<String>,
        title: impl Into<String>,
        unit: &'static str,
        better: Better,
    ) -> Self {
        let (id, title, series) = (id.into(), title.into(), Vec::new());
        Self { id, title, unit, better, series, is_compared: true }
    }

    /// The same of series that are different things.
    #[must_use]
    pub fn of_different_things(self) -> Self {
        Self { is_compared: false, ..self }
    }

    /// The series of this name, made if there is none yet.
    pub fn series(&mut self, name: &str) -> &mut Series {
        let known = self.series.iter().position(|series| series.name == name);
        let index = known.unwrap_or_else(|| {
            self.series.push(Series {
                name: name.to_owned(),
                samples: Vec::new(),
                beside: Vec::new(),
                doubts: Vec::new(),
            });
            self.series.len() - 1
        });
        &mut self.series[index]
    }

    /// The series of this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.name == name)
    }

    /// How often one is what the other is, round by round: both of a round saw the same machine.
    #[must_use]
    pub fn ratio(&self, one: &str, other: &str) -> Option<Spread> {
        let (one, other) = (self.find(one)?, self.find(other)?);
        Spread::of(one.samples.iter().zip(&other.samples).map(|(one, other)| one / other))
    }

    /// For the file of raw figures.
    #[must_use]
    pub fn json(&self) -> Value {
        let first = self.series.first().map(|series| series.name.clone());
        let series = self.series.iter().map(|series| {
            let ratio = first.as_deref().and_then(|first| self.ratio(first, &series.name));
            json!({
                "name": series.name,
                "spread": Spread::of(series.samples.iter().copied()).map(|spread| spread.json()),
                "first_by_it": ratio.map(|ratio| ratio.json()),
                "beside": series.beside.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
                "doubts": series.doubts,
                "samples": series.samples,
            })
        });
        json!({
            "id": self.id, "title": self.title, "unit": self.unit,
            "better": match self.better { Better::More => "more", Better::Less => "less" },
            "series": series.collect::<Vec<_>>(),
        })
    }
}

impl Series {
    /// Median and extremes of its samples, if there are any.
    #[must_use]
    pub fn spread(&self) -> Option<Spread> {
        Spread::of(self.samples.iter().copied())
    }
}

/// Median and extremes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    /// Half of the values are no larger, half no smaller.
    pub median: f64,
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
}

impl Spread {
    /// Of at least one value.
    #[must_use]
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Some(Self { median, min, max })
    }

    /// For the file of raw figures.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }
}

impl fmt::Display for Spread {
    /// `1.30 (1.22 – 1.32)`; with `{:.0}` as many digits as asked for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(2);
        write!(f, "{:.digits$} ({:.digits$} – {:.digits$})", self.median, self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f64]) -> Option<Spread> {
        Spread::of(values.iter().copied())
    }

    #[test]
    fn a_spread_is_the_median_and_the_extremes_in_any_order() {
        assert_eq!(of(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_spread_is_shown_with_as_many_digits_as_asked_for() {
        let spread = of(&[1.25, 1.0, 2.5]).unwrap();
        assert_eq!(spread.to_string(), "1.25 (1.00 – 2.50)");
        assert_eq!(format!("{spread:.0}"), "1 (1 – 2)");
    }

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        let mut figure = Figure::new("connections", "", "1/s", Better::More);
        // The machine was slow in the second round, for both.
        figure.series("samport").samples = vec![30.0, 15.0, 33.0];
        figure.series("direct").samples = vec![20.0, 10.0, 20.0];
        let ratio = figure.ratio("samport", "direct").unwrap();
        assert_eq!(ratio, Spread { median: 1.5, min: 1.5, max: 1.65 });
        assert_eq!(figure.ratio("samport", "nobody"), None);
    }

    #[test]
    fn a_series_is_made_once() {
        let mut figure = Figure::new("connections", "", "1/s", Better::More);
        figure.series("samport").samples.push(1.0);
        figure.series("samport").samples.push(2.0);
        assert_eq!(figure.series.len(), 1);
        assert_eq!(figure.find("samport").unwrap().samples, [1.0, 2.0]);
    }
}
