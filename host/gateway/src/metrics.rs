//! `GET /metrics`, and the counters that no crate below can register: collectives by purpose.

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

/// The format that prometheus-client writes; Prometheus reads it as it reads its own.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Adds the collectives of a replica.
pub fn register(registry: &mut Registry, counts: Arc<CollectiveCounts>) {
    registry.register_collector(Box::new(Collectives(counts)));
}

/// `GET /metrics`. What the engine counts is there once the model is loaded.
pub async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    let mut out = String::new();
    let registries = [Some(&app.registry), app.loaded().map(|replica| &replica.registry)];
    registries
        .into_iter()
        .flatten()
        .try_for_each(|registry| text::encode_registry(&mut out, registry))
        .and_then(|()| text::encode_eof(&mut out))
        .expect("a String takes any text: this is a bug");
    ([(header::CONTENT_TYPE, OPEN_METRICS)], out)
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
