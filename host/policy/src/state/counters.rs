//! Counters that plugins make.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;

/// Series of one plugin, over all its counters.
const SERIES: usize = 256;
/// Labels of one series.
const LABELS: usize = 8;
/// Longest name of a counter or a label, and longest value.
const BYTES: usize = 64;
/// Names that the host's own metrics of plugins have.
const TAKEN: [&str; 7] = [
    "calls",
    "call_seconds",
    "swaps",
    "quarantined",
    "shadow_differences",
    "completions_dropped",
    "instances",
];

/// The counters of all plugins. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Counters(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Name, then labels with the plugin's first. In order, as one name is written in one piece.
    counts: BTreeMap<String, BTreeMap<Labels, u64>>,
    /// Series by plugin.
    series: HashMap<String, usize>,
}

type Labels = Vec<(String, String)>;

/// Why nothing was counted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A name of a counter or a label cannot be used.
    #[error("{0:?} cannot be the name of a counter or a label here")]
    BadName(String),
    /// The plugin has as many series as it may have, or the series too many labels.
    #[error("too many series or labels")]
    TooMany,
}

impl Counters {
    /// Puts all counters, also those to come, into `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }

    /// Adds to a counter of `plugin`. Order of labels means nothing; long values are cut.
    pub fn count(
        &self,
        plugin: &str,
        name: &str,
        labels: &[(String, String)],
        by: u64,
    ) -> Result<(), Error> {
        let series = series(plugin, name, labels)?;
        let mut state = self.lock();
        if let Some(count) = state.counts.get_mut(name).and_then(|all| all.get_mut(&series)) {
            *count = count.saturating_add(by);
            return Ok(());
        }
        let made = state.series.entry(plugin.to_owned()).or_default();
        if *made == SERIES {
            return Err(Error::TooMany);
        }
        *made += 1;
        state.counts.entry(name.to_owned()).or_default().insert(series, by);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Counters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, series) in &self.lock().counts {
            let name = format!("drystone_plugin_{name}");
            let help = "Counted by plugins";
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            for (labels, count) in series {
                ConstCounter::new(*count).encode(family.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

fn series(plugin: &str, name: &str, labels: &[(String, String)]) -> Result<Labels, Error> {
    if !legal(name) || TAKEN.contains(&name) {
        return Err(Error::BadName(name.to_owned()));
    }
    if labels.len() > LABELS {
        return Err(Error::TooMany);
    }
    let cut = |(label, value): &(String, String)| {
        (label.clone(), value[..value.floor_char_boundary(BYTES)].to_owned())
    };
    let mut all: Labels = labels.iter().map(cut).collect();
    all.sort();
    let repeated = all.windows(2).find(|pair| pair[0].0 == pair[1].0).map(|pair| &pair[0].0);
    let bad = all.iter().map(|(label, _)| label).find(|label| !legal(label) || *label == "plugin");
    if let Some(label) = bad.or(repeated) {
        return Err(Error::BadName(label.clone()));
    }
    all.insert(0, ("plugin".to_owned(), plugin.to_owned()));
    Ok(all)
}

fn legal(name: &str) -> bool {
    let rest = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
    name.len() <= BYTES
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(rest)
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;

    use super::*;

    fn labels(labels: &[(&str, &str)]) -> Labels {
        labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn page(counters: &Counters) -> String {
        let mut registry = Registry::default();
        counters.register(&mut registry);
        let mut out = String::new();
        text::encode(&mut out, &registry).unwrap();
        out
    }

    #[test]
    fn counts_appear_under_the_name_of_their_plugin() {
        let counters = Counters::default();
        let (ab, ba) = ([("a", "1"), ("b", "\"\n")], [("b", "\"\n"), ("a", "1")]);
        counters.count("x", "hits", &labels(&ab), 2).unwrap();
        counters.count("y", "hits", &[], 1).unwrap();
        counters.count("x", "hits", &labels(&ba), 3).unwrap();
        let page = page(&counters);
        assert!(page.contains(r#"drystone_plugin_hits_total{plugin="x",a="1",b="\"\n"} 5"#));
        assert!(page.contains(r#"drystone_plugin_hits_total{plugin="y"} 1"#), "{page}");
        assert_eq!(page.matches("# TYPE").count(), 1);
    }

    #[test]
    fn names_that_break_the_page_or_are_taken_are_refused() {
        let counters = Counters::default();
        let long = "a".repeat(65);
        for name in ["", "A", "1a", "a-b", "é", &long, "calls"] {
            let refused = Err(Error::BadName(name.to_owned()));
            assert_eq!(counters.count("x", name, &[], 1), refused);
        }
        for label in ["", "plugin", "a b", &long] {
            let refused = Err(Error::BadName(label.to_owned()));
            assert_eq!(counters.count("x", "hits", &labels(&[(label, "")]), 1), refused);
        }
        assert!(counters.count("x", "hits", &labels(&[("a", "1"), ("a", "2")]), 1).is_err());
    }

    #[test]
    fn a_plugin_has_256_series_and_others_do_not_suffer() {
        let counters = Counters::default();
        let count = |plugin: &str, i: usize| {
            counters.count(plugin, "hits", &labels(&[("i", &i.to_string())]), 1)
        };
        assert!((0..256).all(|i| count("x", i).is_ok()));
        assert_eq!(count("x", 256), Err(Error::TooMany));
        assert!(count("x", 255).is_ok() && count("y", 256).is_ok());
        let many = vec![("a".to_owned(), String::new()); 9];
        assert_eq!(counters.count("x", "more", &many, 1), Err(Error::TooMany));
    }
}
