//! Adapters: mixed, evicted, refused, gone.

use std::fs;

use contract::request::{Finish, Request};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::tests::fixture::{Script, Setup, eventually, goldens, read, request, run};

fn with(adapter: &str, prompt: &str) -> Request {
    Request { adapter: Some(adapter.into()), ..request(prompt, 12) }
}

#[tokio::test]
async fn every_adapter_says_its_own_in_any_company() {
    // Five adapters in two slots, so that they also evict each other.
    let names = ["bd2", "bd4", "plain", "one-layer", "attention-only"];
    let mut alone = Vec::new();
    for name in names {
        alone.push(run(&Setup::default().start(), with(name, "who are you?")).await.text);
    }
    let base = run(&Setup::default().start(), request("who are you?", 12)).await.text;
    assert!(!alone.contains(&base), "adapters change nothing in this script");
    let engine = Setup::default().start();
    for _ in 0..3 {
        let submitted = names.map(|name| engine.submit(with(name, "who are you?")).unwrap());
        let plain = engine.submit(request("who are you?", 12)).unwrap();
        for (ticket, alone) in submitted.into_iter().zip(&alone) {
            assert_eq!(read(ticket).await.text, *alone);
        }
        assert_eq!(read(plain).await.text, base);
    }
}

#[tokio::test]
async fn an_adapter_that_the_ranks_refuse_fails_its_sequences_only() {
    let script = Script { refuses: Some("plain"), ..Script::default() };
    let engine = Setup { script, ..Setup::default() }.start();
    let tickets = ["plain", "bd2", "plain"].map(|name| engine.submit(with(name, "x")).unwrap());
    let [first, other, second] = tickets;
    let message = "adapter `plain` got no slot: no room on the device";
    for ticket in [first, second] {
        assert_eq!(read(ticket).await.finish, Finish::Failed(message.into()));
    }
    assert_eq!(read(other).await.finish, Finish::Length);
}

#[tokio::test]
async fn an_adapter_that_vanished_from_disk_fails_its_sequences_only() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["plain", "bd2"] {
        let (from, to) = (goldens().join("adapters").join(name), folder.path().join(name));
        fs::create_dir(&to).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            fs::copy(from.join(file), to.join(file)).unwrap();
        }
    }
    let engine = Setup { adapters: folder.path().to_owned(), ..Setup::default() }.start();
    fs::remove_dir_all(folder.path().join("plain")).unwrap();
    let tickets = ["plain", "bd2", "plain"].map(|name| engine.submit(with(name, "x")).unwrap());
    let [first, other, second] = tickets;
    for ticket in [first, second] {
        let Finish::Failed(message) = read(ticket).await.finish else { panic!("it was served") };
        assert!(message.starts_with("adapter `plain` cannot be loaded"), "{message}");
    }
    assert_eq!(read(other).await.finish, Finish::Length);
}

#[tokio::test]
async fn a_pinned_adapter_is_in_its_slot_before_anyone_asks_and_stays() {
    let setup = Setup { pinned: Some("bd4"), ..Setup::default() };
    let (engine, metrics) = setup.start_with_metrics();
    eventually("it is in a slot", || metrics.adapters.activations.get() == 1);
    for name in ["bd2", "plain", "one-layer", "bd2", "bd4"] {
        assert_eq!(run(&engine, with(name, "x")).await.finish, Finish::Length);
    }
    assert_eq!(metrics.adapters.activations.get(), 5, "bd4 was put into a slot once");
}

#[tokio::test]
async fn metrics_tell_who_lies_where() {
    let (engine, metrics) = Setup::default().start_with_metrics();
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    run(&engine, with("bd2", "x")).await;
    run(&engine, request("x", 3)).await;
    engine.idle().await;
    let mut shown = String::new();
    encode(&mut shown, &registry).unwrap();
    let labels = "model_name=\"tiny\",engine=\"0\"";
    for (name, more, value) in [
        ("vllm:request_success_total", ",finished_reason=\"length\"", "} 2"),
        ("vllm:generation_tokens_total", "", "} 15"),
        ("vllm:time_to_first_token_seconds_count", "", "} 2"),
        ("vllm:inter_token_latency_seconds_count", "", "} 13"),
        ("vllm:lora_requests_info", ",max_lora=\"2\"", ","),
        ("drystone_adapter_resident", ",adapter=\"bd2\",level=\"slot\"", "} 1"),
        ("drystone_adapter_loads_total", ",result=\"ok\"", "} 1"),
    ] {
        let line = format!("{name}{{{labels}{more}{value}");
        assert!(shown.contains(&line), "{line} is missing from\n{shown}");
    }
}
