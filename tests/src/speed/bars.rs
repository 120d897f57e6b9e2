//! The bars: what samport is to be faster than, and by how much.

use std::fmt;

use super::figure::{Better, Figure, Spread};

/// What a figure is held to.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    /// The figure's id.
    pub figure: &'static str,
    /// The series that is held to it.
    pub of: &'static str,
    /// Whose value it is a ratio to, round by round; the value itself counts without.
    pub against: Option<&'static str>,
    /// At least this if more is better of the figure, or at most.
    pub limit: f64,
}

const fn ratio(figure: &'static str, against: &'static str, limit: f64) -> Bar {
    Bar { figure, of: "samport", against: Some(against), limit }
}

const fn value(figure: &'static str, of: &'static str, limit: f64) -> Bar {
    Bar { figure, of, against: None, limit }
}

/// All of them, in the order they are shown.
pub const BARS: &[Bar] = &[
    ratio("connections", "docker-p", 1.30),
    ratio("connections", "iptables", 1.40),
    ratio("connections", "nftables", 1.25),
    ratio("connections", "haproxy", 1.80),
    ratio("connections", "nginx", 1.80),
    ratio("connections", "direct", 1.20),
    ratio("requests", "docker-p", 1.05),
    ratio("requests.p99", "docker-p", 1.00),
    ratio("bulk.1", "direct", 1.00),
    ratio("bulk.8", "direct", 1.00),
    ratio("local", "direct", 0.98),
    ratio("cluster.connections", "direct", 0.80),
    ratio("cluster.connections", "haproxy", 1.80),
    ratio("cluster.bulk", "direct", 0.80),
    ratio("cluster.bulk", "haproxy", 1.80),
    value("kernel.flows.1", "forward", 55.0),
    value("kernel.flows.1", "reply", 55.0),
    value("kernel.flows.10000", "forward", 140.0),
    value("kernel.flows.100000", "forward", 350.0),
    value("kernel.new", "full", 600.0),
    value("kernel.foreign", "forward", 10.0),
    Bar { figure: "kernel.backends", of: "1000", against: Some("1"), limit: 1.15 },
    Bar { figure: "kernel.backends.new", of: "1000", against: Some("1"), limit: 1.15 },
    value("control.start", "samport", 50.0),
    value("control.kill", "samport", 5.0),
    value("control.table", "10000", 20.0),
    value("memory.flows", "1000000 of IPv4", 256.0),
    value("memory.flows", "1000000 of IPv6", 256.0),
];

/// How a bar came out.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Verdict {
    /// The ratios, or the values.
    pub spread: Spread,
    /// Whether the median keeps it.
    pub met: bool,
    /// Whether all rounds agree on that: otherwise it lies within the spread.
    pub sure: bool,
}

impl Bar {
    /// Nothing if the figure, or one of its series, was not measured.
    #[must_use]
    pub fn judge(&self, figures: &[Figure]) -> Option<Verdict> {
        let figure = figures.iter().find(|figure| figure.id == self.figure)?;
        let spread = match self.against {
            Some(other) => figure.ratio(self.of, other)?,
            None => figure.find(self.of)?.spread()?,
        };
        let keeps = |value: f64| match figure.better {
            Better::More => value >= self.limit,
            Better::Less => value <= self.limit,
        };
        let met = keeps(spread.median);
        Some(Verdict { spread, met, sure: keeps(spread.min) == met && keeps(spread.max) == met })
    }
}

impl fmt::Display for Bar {
    /// `connections against docker-p`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.figure)?;
        if self.of != "samport" {
            write!(f, " of {}", self.of)?;
        }
        self.against.map_or(Ok(()), |other| write!(f, " against {other}"))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.met, self.sure) {
            (true, true) => "met",
            (true, false) => "met, within the spread",
            (false, false) => "missed, within the spread",
            (false, true) => "missed",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn figure(id: &str, better: Better, series: &[(&str, &[f64])]) -> Figure {
        let mut figure = Figure::new(id, "", "", better);
        for (name, samples) in series {
            figure.series(name).samples = samples.to_vec();
        }
        figure
    }

    fn said(bar: &Bar, better: Better, series: &[(&str, &[f64])]) -> String {
        bar.judge(&[figure(bar.figure, better, series)]).unwrap().to_string()
    }

    #[test]
    fn a_bar_is_met_or_missed_by_the_median_and_surely_if_all_rounds_agree() {
        let bar = ratio("connections", "direct", 1.2);
        let direct: (&str, &[f64]) = ("direct", &[10.0, 10.0, 10.0]);
        let with = |samples| said(&bar, Better::More, &[("samport", samples), direct]);
        assert_eq!(with(&[12.0, 13.0, 14.0]), "met");
        assert_eq!(with(&[11.0, 13.0, 14.0]), "met, within the spread");
        assert_eq!(with(&[11.0, 11.5, 14.0]), "missed, within the spread");
        assert_eq!(with(&[11.0, 11.5, 11.9]), "missed");
    }

    #[test]
    fn of_some_figures_less_is_better() {
        let bar = value("kernel.new", "full", 600.0);
        assert_eq!(said(&bar, Better::Less, &[("full", &[500.0, 550.0])]), "met");
        assert_eq!(
            said(&bar, Better::Less, &[("full", &[500.0, 550.0, 650.0])]),
            "met, within the spread"
        );
        assert_eq!(said(&bar, Better::Less, &[("full", &[610.0, 650.0])]), "missed");
    }

    #[test]
    fn what_was_not_measured_is_not_judged() {
        let bar = ratio("connections", "direct", 1.2);
        assert_eq!(bar.judge(&[]), None);
        let alone = figure("connections", Better::More, &[("samport", &[1.0])]);
        assert_eq!(bar.judge(&[alone]), None);
    }

    #[test]
    fn no_bar_is_there_twice() {
        let names: BTreeSet<String> = BARS.iter().map(|bar| format!("{bar} {}", bar.of)).collect();
        assert_eq!(names.len(), BARS.len());
    }
}
