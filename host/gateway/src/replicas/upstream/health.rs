//! Checks an upstream every second: whether it is well, what it serves, and how busy it is.

use std::collections::HashSet;
use std::sync::Weak;
use std::time::Duration;

use axum::http::StatusCode;
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::replicas::upstream::Upstream;

/// Time between two checks.
const PERIOD: Duration = Duration::from_secs(1);
/// How long a check may take.
const CHECK_MAX: Duration = Duration::from_secs(5);
/// Bytes that are read of a list of models or of metrics.
const BYTES_MAX: usize = 4 << 20;

/// What a check saw.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Names that can be asked for.
    pub models: Vec<String>,
    /// Of these, the adapters.
    pub adapters: Vec<String>,
    /// Of these, the first that is no adapter.
    first_base: Option<String>,
    /// Sequences that run.
    pub running: u32,
    /// Sequences that wait.
    pub waiting: u32,
    /// Part of its KV cache in use, 0 to 1.
    pub kv_used: f32,
    /// Adapters in a slot, as far as it tells.
    pub resident: HashSet<String>,
}

impl Seen {
    /// What it calls the base that is named `name` here.
    pub fn base<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        match self.models.iter().any(|model| model == name) {
            true => Some(name),
            false => self.first_base.as_deref(),
        }
    }

    /// Reads an answer of `GET /v1/models`.
    fn read_models(&mut self, text: &str) -> Result<(), String> {
        let list: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let cards = list["data"].as_array().ok_or("GET /v1/models has no list")?;
        let id = |card: &Value| card["id"].as_str().map(str::to_owned);
        self.models = cards.iter().filter_map(id).collect();
        let adapters = cards.iter().filter(|card| !card["parent"].is_null());
        self.adapters = adapters.filter_map(id).collect();
        self.first_base = cards.iter().find(|card| card["parent"].is_null()).and_then(id);
        Ok(())
    }

    /// Reads what vLLM and Drystone tell in `GET /metrics`; engines of one server add up.
    fn read_metrics(&mut self, text: &str) {
        let (mut used, mut engines) = (0.0, 0);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let name = series.split('{').next().unwrap_or_default();
            let Ok(value) = value.parse::<f64>() else { continue };
            match name {
                "vllm:num_requests_running" => self.running += value as u32,
                "vllm:num_requests_waiting" => self.waiting += value as u32,
                "vllm:kv_cache_usage_perc" | "vllm:gpu_cache_usage_perc" => {
                    (used, engines) = (used + value, engines + 1);
                }
                "drystone_adapter_resident" if series.contains("level=\"slot\"") => {
                    self.resident.extend(label(series, "adapter").map(str::to_owned));
                }
                "vllm:lora_requests_info" => {
                    let names = label(series, "running_lora_adapters").unwrap_or_default();
                    self.resident.extend(names.split(',').map(str::to_owned));
                }
                _ => {}
            }
        }
        self.kv_used = (used / f64::from(engines.max(1))).clamp(0.0, 1.0) as f32;
    }
}

/// The value of a label; names of adapters hold nothing that would be escaped.
fn label<'a>(series: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = series.split_once(&format!("{name}=\""))?;
    rest.split('"').next()
}

/// Checks until nobody keeps the upstream.
pub async fn watch(upstream: Weak<Upstream>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(upstream) = upstream.upgrade() else { return };
        let seen = timeout(CHECK_MAX, check(&upstream)).await;
        let seen = seen.unwrap_or_else(|_| Err("it does not answer in time".to_owned()));
        let mut state = upstream.state();
        if seen.is_ok() != state.seen.is_some() {
            match &seen {
                Ok(_) => tracing::info!(upstream = upstream.name, "an upstream is well"),
                Err(why) => {
                    tracing::warn!(upstream = upstream.name, why, "an upstream is not well")
                }
            }
        }
        state.seen = seen.ok();
    }
}

async fn check(upstream: &Upstream) -> Result<Seen, String> {
    let target = &upstream.target;
    let health = target.get("/health").await?.status();
    // Not every server has the route; what it serves is what counts.
    if !health.is_success() && health != StatusCode::NOT_FOUND {
        return Err(format!("GET /health answered {health}"));
    }
    let mut models = target.get("/v1/models").await?;
    if !models.status().is_success() {
        return Err(format!("GET /v1/models answered {}", models.status()));
    }
    let mut seen = Seen::default();
    seen.read_models(&models.text(BYTES_MAX).await?)?;
    if let Ok(mut metrics) = target.get("/metrics").await
        && metrics.status().is_success()
        && let Ok(text) = metrics.text(BYTES_MAX).await
    {
        seen.read_metrics(&text);
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_vllm_and_drystone_tell_is_read() {
        let mut seen = Seen::default();
        seen.read_metrics(concat!(
            "# TYPE vllm:num_requests_running gauge\n",
            "vllm:num_requests_running{model_name=\"m\",engine=\"0\"} 3\n",
            "vllm:num_requests_running{model_name=\"m\",engine=\"1\"} 2.0\n",
            "vllm:num_requests_waiting{model_name=\"m\"} 7\n",
            "vllm:kv_cache_usage_perc{engine=\"0\"} 0.5\n",
            "vllm:kv_cache_usage_perc{engine=\"1\"} 0.25\n",
            "vllm:lora_requests_info{max_lora=\"2\",running_lora_adapters=\"a,b\"} 1e9\n",
            "drystone_adapter_resident{adapter=\"c\",level=\"slot\"} 1\n",
            "drystone_adapter_resident{adapter=\"d\",level=\"host\"} 1\n",
            "nonsense\nvllm:num_requests_waiting{} many\n",
        ));
        assert_eq!((seen.running, seen.waiting, seen.kv_used), (5, 7, 0.375));
        let mut resident: Vec<_> = seen.resident.iter().map(String::as_str).collect();
        resident.sort_unstable();
        assert_eq!(resident, ["a", "b", "c"]);
    }

    #[test]
    fn the_base_is_found_under_either_name() {
        let mut seen = Seen::default();
        let list = r#"{"data": [{"id": "x", "parent": "b"}, {"id": "b", "parent": null}]}"#;
        seen.read_models(list).expect("a list");
        assert_eq!((seen.base("b"), seen.base("other")), (Some("b"), Some("b")));
        assert_eq!(seen.adapters, ["x"]);
        assert!(seen.read_models("{}").is_err() && seen.read_models("no").is_err());
    }
}
