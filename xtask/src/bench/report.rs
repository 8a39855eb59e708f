//! Collects figures by way and round; prints medians, and ratios to plain routing.
//!
//! A ratio is taken within each round, where both sides met the same machine, and the median of
//! those is printed. Beside it stands the ratio of the best rounds: what else runs on the machine
//! only ever takes away.

use serde_json::json;

use super::Offload;
use super::measure::Metric;
use super::ways::Way;
use crate::table::Table;

/// All figures of a run, in the order in which they were taken.
#[derive(Debug, Default)]
pub struct Report {
    figures: Vec<Figure>,
}

#[derive(Clone, Copy, Debug)]
struct Figure {
    offload: Offload,
    way: Way,
    metric: Metric,
    value: f64,
}

impl Report {
    /// Adds one figure of the current round.
    pub fn add(&mut self, offload: Offload, way: Way, metric: Metric, value: f64) {
        self.figures.push(Figure { offload, way, metric, value });
    }

    /// Figures of each round.
    fn rounds(&self, offload: Offload, way: Way, metric: Metric) -> Vec<f64> {
        self.figures
            .iter()
            .filter(|f| (f.offload, f.way, f.metric) == (offload, way, metric))
            .map(|figure| figure.value)
            .collect()
    }

    /// The median of the rounds' ratios to plain routing.
    fn ratio(&self, offload: Offload, way: Way, metric: Metric) -> Option<f64> {
        let direct = self.rounds(offload, Way::Direct, metric);
        let own = self.rounds(offload, way, metric);
        median(own.iter().zip(&direct).map(|(own, direct)| own / direct).collect())
    }

    /// The ratio of the best round to that of plain routing.
    fn best_ratio(&self, offload: Offload, way: Way, metric: Metric) -> Option<f64> {
        let best = |way| {
            let rounds = self.rounds(offload, way, metric).into_iter();
            if metric.less_is_better() { rounds.reduce(f64::min) } else { rounds.reduce(f64::max) }
        };
        Some(best(way)? / best(Way::Direct)?)
    }

    /// One table per setting of the ends.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for (offload, title) in [
            (Offload::On, "Segmentation and merging as the kernel does by default"),
            (Offload::WireLike, "Wire-like: segmentation and merging off at the ends"),
        ] {
            let ways: Vec<Way> = Way::ALL
                .into_iter()
                .filter(|way| self.figures.iter().any(|f| f.offload == offload && f.way == *way))
                .collect();
            let head: Vec<&str> =
                std::iter::once("").chain(ways.iter().map(|way| way.name())).collect();
            let mut table = Table::new(&head);
            let measured = |metric: &Metric| self.figures.iter().any(|f| f.metric == *metric);
            for metric in Metric::ALL.into_iter().filter(measured) {
                let mut row = vec![metric.name().to_owned()];
                for way in &ways {
                    row.push(self.cell(offload, *way, metric));
                }
                table.row(row);
            }
            text += &format!(
                "\n{title} (medians; in brackets the ratio to direct, and that of the best rounds)\n\n"
            );
            text += &table.render();
        }
        text
    }

    fn cell(&self, offload: Offload, way: Way, metric: Metric) -> String {
        let Some(median) = median(self.rounds(offload, way, metric)) else { return "-".to_owned() };
        match self.ratio(offload, way, metric) {
            Some(ratio) if way != Way::Direct => {
                let best = self.best_ratio(offload, way, metric).unwrap_or(ratio);
                format!("{median:.0} ({ratio:.2}, {best:.2})")
            }
            _ => format!("{median:.0}"),
        }
    }

    /// Everything, each round kept.
    pub fn json(&self) -> serde_json::Value {
        let mut rows = Vec::new();
        for offload in [Offload::On, Offload::WireLike] {
            for way in Way::ALL {
                for metric in Metric::ALL {
                    let rounds = self.rounds(offload, way, metric);
                    if !rounds.is_empty() {
                        rows.push(json!({
                            "offload": offload == Offload::On,
                            "way": way.name(),
                            "metric": metric.name(),
                            "rounds": rounds,
                            "median": median(self.rounds(offload, way, metric)),
                            "ratio": self.ratio(offload, way, metric),
                            "best_ratio": self.best_ratio(offload, way, metric),
                        }));
                    }
                }
            }
        }
        json!({ "mesh": rows })
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_the_median_of_the_rounds_ratios() {
        let mut report = Report::default();
        for (direct, shoal) in [(100.0, 90.0), (200.0, 100.0), (50.0, 40.0)] {
            report.add(Offload::On, Way::Direct, Metric::KeepAlive, direct);
            report.add(Offload::On, Way::Shoal, Metric::KeepAlive, shoal);
        }
        assert_eq!(report.ratio(Offload::On, Way::Shoal, Metric::KeepAlive), Some(0.8));
        assert_eq!(report.cell(Offload::On, Way::Shoal, Metric::KeepAlive), "90 (0.80, 0.50)");
        assert_eq!(report.cell(Offload::On, Way::Direct, Metric::KeepAlive), "100");
        assert_eq!(report.cell(Offload::On, Way::Haproxy, Metric::KeepAlive), "-");
    }

    #[test]
    fn json_keeps_every_round() {
        let mut report = Report::default();
        report.add(Offload::WireLike, Way::Shoal, Metric::BulkUp, 5.0);
        let json = report.json();
        assert_eq!(json["mesh"][0]["rounds"], json!([5.0]));
        assert_eq!(json["mesh"][0]["ratio"], serde_json::Value::Null);
    }
}
