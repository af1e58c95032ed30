//! `GET /metrics`, and the counters that no crate below can register: collectives by purpose.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use contract::counts::{CollectiveCounts, Purpose};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;

use crate::app::App;
use crate::replicas::Replicas;

/// The format that prometheus-client writes; Prometheus reads it as it reads its own.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Adds the collectives of the engine with this number.
pub fn register(registry: &mut Registry, engine: usize, counts: Arc<CollectiveCounts>) {
    let label = (Cow::Borrowed("engine"), Cow::Owned(engine.to_string()));
    let registry = registry.sub_registry_with_label(label);
    registry.register_collector(Box::new(Collectives(counts)));
}

/// `GET /metrics`. What engines count is there once the model is loaded.
pub async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    let replicas = app.loaded().map(Replicas::registries).unwrap_or_default();
    let mut families = Families::default();
    for registry in std::iter::once(&app.registry).chain(replicas) {
        let mut text = String::new();
        text::encode_registry(&mut text, registry).expect(WRITABLE);
        families.add(&text);
    }
    let mut out = families.text();
    text::encode_eof(&mut out).expect(WRITABLE);
    ([(header::CONTENT_TYPE, OPEN_METRICS)], out)
}

const WRITABLE: &str = "a String takes any text: this is a bug";

/// What several registries have to say, with the samples of a family together, as the format has
/// it: engines count the same things under different labels.
#[derive(Default)]
struct Families {
    order: Vec<Family>,
    by_name: HashMap<String, usize>,
}

#[derive(Default)]
struct Family {
    /// Lines that begin with `#`.
    head: String,
    samples: String,
}

impl Families {
    /// Adds what a registry wrote.
    fn add(&mut self, text: &str) {
        let (mut at, mut known) = (0, false);
        for line in text.lines() {
            let Some(name) = line.strip_prefix("# ").and_then(|head| head.split(' ').nth(1)) else {
                append(&mut self.order[at].samples, line);
                continue;
            };
            if line.starts_with("# HELP ") {
                let next = self.order.len();
                at = *self.by_name.entry(name.to_owned()).or_insert(next);
                known = at < next;
                if !known {
                    self.order.push(Family::default());
                }
            }
            if !known {
                append(&mut self.order[at].head, line);
            }
        }
    }

    fn text(&self) -> String {
        self.order.iter().flat_map(|family| [&*family.head, &*family.samples]).collect()
    }
}

fn append(to: &mut String, line: &str) {
    to.push_str(line);
    to.push('\n');
}

#[derive(Debug)]
struct Collectives(Arc<CollectiveCounts>);

impl Collector for Collectives {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Collectives between the ranks by purpose, counted once and not once a rank";
        let name = "drystone_collectives";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        Purpose::ALL.into_iter().try_for_each(|purpose| {
            let label = [("purpose", purpose.label())];
            ConstCounter::new(self.0.get(purpose)).encode(family.encode_family(&label)?)
        })
    }
}
