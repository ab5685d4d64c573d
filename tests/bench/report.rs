//! The figures of all systems: medians, a table, a file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::gauge::Sample;
use crate::ground::LinkMode;
use crate::plot;

/// All samples of one kind of link.
pub(crate) struct Report {
    mode: LinkMode,
    /// In the order of their first turn.
    systems: Vec<Entry>,
}

struct Entry {
    name: String,
    version: String,
    samples: Vec<Sample>,
}

/// Median, least and greatest of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

const COLUMNS: [(&str, &str, usize); 16] = [
    ("tcp1_gbps", "TCP x1", 2),
    ("tcp1_reverse_gbps", "reverse", 2),
    ("tcp4_gbps", "TCP x4", 2),
    ("pods_gbps", "pods", 2),
    ("cpu_s_per_gb", "CPU s/GB", 2),
    ("retransmits", "retrans.", 0),
    ("rtt_idle_ms", "RTT idle ms", 3),
    ("rtt_load_ms", "RTT load ms", 3),
    ("rtt_beside_ms", "beside ms", 3),
    ("udp1300_free_kpps", "kpps 1300", 0),
    ("udp1300_flood_kpps", "flooded", 0),
    ("udp64_free_kpps", "kpps 64", 0),
    ("udp64_flood_kpps", "flooded", 0),
    ("flood_answered_pct", "answered %", 0),
    ("flood_rtt_ms", "after ms", 2),
    ("rss_mib", "RSS MiB", 1),
];

impl Report {
    pub(crate) fn new(mode: LinkMode) -> Self {
        Self {
            mode,
            systems: Vec::new(),
        }
    }

    pub(crate) fn mode(&self) -> LinkMode {
        self.mode
    }

    pub(crate) fn add(&mut self, name: &str, version: &str, sample: Sample) {
        match self.systems.iter_mut().find(|entry| entry.name == name) {
            Some(entry) => entry.samples.push(sample),
            None => self.systems.push(Entry {
                name: name.to_owned(),
                version: version.to_owned(),
                samples: vec![sample],
            }),
        }
    }

    /// A figure of a system over all rounds.
    pub(crate) fn figure(&self, system: &str, figure: &str) -> Option<Spread> {
        let entry = self.systems.iter().find(|entry| entry.name == system)?;
        entry.figure(figure)
    }

    /// The systems with a figure's median.
    pub(crate) fn ranking(&self, figure: &str) -> Vec<(&str, f64)> {
        let medians = self.systems.iter().filter_map(|entry| {
            let median = entry.figure(figure)?.median;
            Some((entry.name.as_str(), median))
        });
        medians.collect()
    }

    /// For people: Gbit/s unless the column says otherwise, medians.
    pub(crate) fn table(&self) -> String {
        let mut table = format!("\nlink: {}; medians of all rounds, Gbit/s\n", self.mode);
        // Writing to a String can't fail.
        let _ = write!(table, "{:<14}{:<28}", "system", "version");
        for (_, title, _) in COLUMNS {
            let _ = write!(table, "{title:>13}");
        }
        for entry in &self.systems {
            let version: String = entry.version.chars().take(26).collect();
            let _ = write!(table, "\n{:<14}{version:<28}", entry.name);
            for (name, _, digits) in COLUMNS {
                let cell = entry.figure(name).map_or("-".to_owned(), |spread| {
                    format!("{:.digits$}", spread.median)
                });
                let _ = write!(table, "{cell:>13}");
            }
        }
        table
    }

    /// Writes the figures and their picture into `folder`.
    ///
    /// # Errors
    ///
    /// If a file can't be written.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let name = match self.mode {
            LinkMode::Whole => "dataplane",
            LinkMode::Wire => "dataplane-wire",
        };
        let figures = serde_json::to_string_pretty(&self.json())?;
        for (end, content) in [("json", figures), ("svg", plot::draw(self))] {
            let file = folder.join(format!("{name}.{end}"));
            fs::write(&file, content)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }

    fn json(&self) -> Value {
        let systems: Vec<Value> = self.systems.iter().map(Entry::json).collect();
        json!({
            "schema": "podmesh.bench/v1",
            "link": self.mode.to_string(),
            "systems": systems,
        })
    }
}

impl Entry {
    fn figure(&self, name: &str) -> Option<Spread> {
        let values = self.samples.iter().flat_map(Sample::figures);
        let values = values.filter(|(figure, _)| *figure == name);
        Spread::of(values.filter_map(|(_, value)| value).collect())
    }

    fn json(&self) -> Value {
        let mut all = Map::new();
        all.insert("system".into(), self.name.clone().into());
        all.insert("version".into(), self.version.clone().into());
        all.insert("rounds".into(), self.samples.len().into());
        let mut spreads = BTreeMap::new();
        for (name, _, _) in COLUMNS {
            let spread = self.figure(name);
            all.insert(name.into(), json!(spread.map(|spread| spread.median)));
            if let Some(spread) = spread {
                spreads.insert(name, [spread.least, spread.most]);
            }
        }
        all.insert("ranges".into(), json!(spreads));
        Value::Object(all)
    }
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let upper = *values.get(middle)?;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(*values.get(middle - 1)?, upper)
        } else {
            upper
        };
        Some(Self {
            median,
            least,
            most,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_or_the_mean_of_both() {
        let odd = Spread::of(vec![5.0, 1.0, 2.0]).expect("three values");
        assert_eq!((odd.median, odd.least, odd.most), (2.0, 1.0, 5.0));
        let even = Spread::of(vec![4.0, 1.0, 2.0, 8.0]).expect("four values");
        assert_eq!(even.median, 3.0);
        assert_eq!(Spread::of(Vec::new()), None);
    }
}
