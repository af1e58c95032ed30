//! Metrics of adapters: where they lie, their loads, and who uses them.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::metrics::Label;

/// Where a generation lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// In a device slot.
    Slot,
    /// In host memory.
    Host,
}

/// Everything that is counted about adapters.
pub struct AdapterMetrics {
    /// 1 for each adapter and level that holds it.
    resident: Family<[(&'static str, String); 2], Gauge>,
    /// Host memory that generations take, in bytes.
    pub host_bytes: Gauge,
    /// Loads from disk into host memory, by result.
    pub loads: Family<Label, Counter>,
    /// Time of a load.
    pub load_seconds: Histogram,
    /// Generations put into a slot.
    pub activations: Counter,
    /// Time that the ranks take to put one there.
    pub activation_seconds: Histogram,
    in_use: Mutex<InUse>,
}

/// Names of adapters with open sequences.
#[derive(Clone, Debug, Default)]
struct InUse {
    slots_max: usize,
    running: Vec<String>,
    waiting: Vec<String>,
}

impl Default for AdapterMetrics {
    fn default() -> Self {
        Self {
            resident: Family::default(),
            host_bytes: Gauge::default(),
            loads: Family::default(),
            load_seconds: Histogram::new(LOAD_BUCKETS),
            activations: Counter::default(),
            activation_seconds: Histogram::new(LOAD_BUCKETS),
            in_use: Mutex::default(),
        }
    }
}

impl AdapterMetrics {
    /// Replaces what is known about where adapters lie.
    pub fn set_resident<'a>(&self, adapters: impl Iterator<Item = (&'a str, Level)>) {
        self.resident.clear();
        for (name, level) in adapters {
            let level = match level {
                Level::Slot => "slot",
                Level::Host => "host",
            };
            let labels = [("adapter", name.to_owned()), ("level", level.to_owned())];
            self.resident.get_or_create(&labels).set(1);
        }
    }

    /// Replaces what is known about who is used.
    pub fn set_in_use(&self, slots_max: usize, running: Vec<String>, waiting: Vec<String>) {
        *self.in_use.lock().unwrap_or_else(PoisonError::into_inner) =
            InUse { slots_max, running, waiting };
    }

    pub(super) fn register(self: &std::sync::Arc<Self>, registry: &mut Registry) {
        let help = "1 for each adapter and the levels that hold it";
        registry.register("drystone_adapter_resident", help, self.resident.clone());
        let help = "Host memory that adapters take";
        registry.register("drystone_adapter_host_bytes", help, self.host_bytes.clone());
        let help = "Adapters read from disk, by result";
        registry.register("drystone_adapter_loads", help, self.loads.clone());
        let help = "Time to read an adapter from disk";
        registry.register("drystone_adapter_load_seconds", help, self.load_seconds.clone());
        let help = "Adapters put into a device slot";
        registry.register("drystone_adapter_activations", help, self.activations.clone());
        let help = "Time to put an adapter into a device slot";
        let seconds = self.activation_seconds.clone();
        registry.register("drystone_adapter_activation_seconds", help, seconds);
        registry.register_collector(Box::new(self.clone()));
    }
}

/// vLLM tells adapters in use in the labels of one gauge whose value is the time.
impl Collector for AdapterMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let labels = [
            ("max_lora", in_use.slots_max.to_string()),
            ("running_lora_adapters", in_use.running.join(",")),
            ("waiting_lora_adapters", in_use.waiting.join(",")),
        ];
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = ConstGauge::new(since_epoch.as_secs_f64());
        let help = "Adapters in use; the value is the time";
        let mut family =
            encoder.encode_descriptor("vllm:lora_requests_info", help, None, MetricType::Gauge)?;
        now.encode(family.encode_family(&labels)?)
    }
}

impl fmt::Debug for AdapterMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterMetrics").finish_non_exhaustive()
    }
}

const LOAD_BUCKETS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
