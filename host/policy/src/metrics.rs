//! What plugins did, in Prometheus' terms.

use contract::policy::hook::Hook;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Upper ends in seconds: 500 ns to 100 ms.
const SECONDS: [f64; 17] = [
    5e-7, 1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2,
    1e-1,
];

/// The families of all plugins. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    calls: Family<Outcome, Counter>,
    seconds: Family<Asked, Histogram>,
    swaps: Family<Swap, Counter>,
    quarantined: Family<Plugin, Gauge>,
    differences: Family<Asked, Counter>,
    dropped: Family<Plugin, Counter>,
    instances: Family<Plugin, Gauge>,
}

/// Metrics of one plugin, found once when it is loaded.
#[derive(Clone, Debug)]
pub struct PluginMetrics {
    /// 1 while the plugin is set aside.
    pub quarantined: Gauge,
    /// Instances that are alive, idle ones too.
    pub instances: Gauge,
    /// `on-complete` calls that were not made because too many waited.
    pub completions_dropped: Counter,
}

/// Metrics of one plugin's hook, likewise.
#[derive(Clone, Debug)]
pub struct HookMetrics {
    /// Calls that were answered.
    pub ok: Counter,
    /// How long calls took, whatever came of them.
    pub seconds: Histogram,
    /// Answers in shadow mode that would have changed something.
    pub differences: Counter,
    calls: Family<Outcome, Counter>,
    asked: Asked,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Plugin {
    plugin: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    plugin: String,
    hook: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    plugin: String,
    hook: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Swap {
    plugin: String,
    outcome: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            calls: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            swaps: Family::default(),
            quarantined: Family::default(),
            differences: Family::default(),
            dropped: Family::default(),
            instances: Family::default(),
        }
    }
}

impl Metrics {
    /// Adds all families.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("drystone_plugin");
        registry.register("calls", "Calls by outcome: ok or what failed", self.calls.clone());
        registry.register("call_seconds", "How long calls took", self.seconds.clone());
        registry.register("swaps", "Generations offered, by outcome", self.swaps.clone());
        let help = "1 while a plugin is set aside after failures";
        registry.register("quarantined", help, self.quarantined.clone());
        let help = "Answers of shadow plugins that would have changed something";
        registry.register("shadow_differences", help, self.differences.clone());
        let help = "on-complete calls that were not made because too many waited";
        registry.register("completions_dropped", help, self.dropped.clone());
        registry.register("instances", "Instances alive, idle or not", self.instances.clone());
    }

    /// What counts for `plugin` as a whole.
    pub fn plugin(&self, plugin: &str) -> PluginMetrics {
        let label = Plugin { plugin: plugin.to_owned() };
        PluginMetrics {
            quarantined: self.quarantined.get_or_create_owned(&label),
            instances: self.instances.get_or_create_owned(&label),
            completions_dropped: self.dropped.get_or_create_owned(&label),
        }
    }

    /// What counts for one hook of `plugin`.
    pub fn hook(&self, plugin: &str, hook: Hook) -> HookMetrics {
        let asked = Asked { plugin: plugin.to_owned(), hook: hook.name() };
        HookMetrics {
            ok: self.calls.get_or_create_owned(&asked.with("ok")),
            seconds: self.seconds.get_or_create_owned(&asked),
            differences: self.differences.get_or_create_owned(&asked),
            calls: self.calls.clone(),
            asked,
        }
    }

    /// Counts a generation that was offered for `plugin`.
    pub fn swapped(&self, plugin: &str, outcome: &'static str) {
        self.swaps.get_or_create(&Swap { plugin: plugin.to_owned(), outcome }).inc();
    }
}

impl HookMetrics {
    /// Counts a call that failed, by what failed. Looks the label up: failures are rare.
    pub fn failed(&self, kind: &'static str) {
        self.calls.get_or_create(&self.asked.with(kind)).inc();
    }
}

impl Asked {
    fn with(&self, outcome: &'static str) -> Outcome {
        Outcome { plugin: self.plugin.clone(), hook: self.hook, outcome }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;

    use super::*;

    #[test]
    fn handles_count_into_the_registered_families() {
        let (metrics, mut registry) = (Metrics::default(), Registry::default());
        metrics.register(&mut registry);
        let hook = metrics.hook("guard", Hook::OnChunk);
        hook.ok.inc();
        hook.failed("timeout");
        hook.seconds.observe(7e-7);
        hook.differences.inc();
        metrics.plugin("guard").instances.set(3);
        metrics.swapped("guard", "ok");
        let mut out = String::new();
        text::encode(&mut out, &registry).unwrap();
        for line in [
            r#"calls_total{plugin="guard",hook="on-chunk",outcome="ok"} 1"#,
            r#"calls_total{plugin="guard",hook="on-chunk",outcome="timeout"} 1"#,
            r#"call_seconds_bucket{le="0.000001",plugin="guard",hook="on-chunk"} 1"#,
            r#"shadow_differences_total{plugin="guard",hook="on-chunk"} 1"#,
            r#"swaps_total{plugin="guard",outcome="ok"} 1"#,
            r#"quarantined{plugin="guard"} 0"#,
            r#"completions_dropped_total{plugin="guard"} 0"#,
            r#"instances{plugin="guard"} 3"#,
        ] {
            assert!(out.contains(&format!("drystone_plugin_{line}")), "{line}\n{out}");
        }
    }
}
