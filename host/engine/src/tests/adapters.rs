//! Adapters: mixed, evicted, refused, gone.

use std::fs;
use std::path::PathBuf;

use contract::request::{Finish, Request};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::handle::SubmitError;
use crate::tests::fixture::{Script, Setup, eventually, goldens, read, refusal, request, run};

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

/// Folder of an adapter of the goldens.
fn folder(name: &str) -> PathBuf {
    goldens().join("adapters").join(name)
}

#[tokio::test]
async fn an_adapter_that_is_unloaded_finishes_what_it_began_and_is_freed_then() {
    let (setup, turnstile) = Setup::default().with_turnstile();
    let (engine, metrics) = setup.start_with_metrics();
    let running = engine.submit(with("bd2", "x")).unwrap();
    turnstile.send(()).unwrap();
    eventually("it is in a slot", || engine.is_resident("bd2"));
    let waiting = engine.submit(with("plain", "x")).unwrap();
    for name in ["bd2", "plain"] {
        engine.catalogue().remove(name).unwrap();
    }
    engine.catalogue_changed();
    assert!(!engine.is_resident("bd2"), "nobody can ask for it");
    let unknown = SubmitError::UnknownAdapter { name: "bd2".into() };
    assert_eq!(refusal(&engine, with("bd2", "x")), unknown);
    assert!(metrics.adapters.host_bytes.get() > 0);
    drop(turnstile);
    for ticket in [running, waiting] {
        let told = read(ticket).await;
        assert_eq!((told.tokens.len(), told.finish), (12, Finish::Length));
    }
    eventually("host memory is free", || metrics.adapters.host_bytes.get() == 0);
}

#[tokio::test]
async fn an_idle_adapter_is_freed_at_once() {
    let (engine, metrics) = Setup::default().start_with_metrics();
    run(&engine, with("bd2", "x")).await;
    engine.catalogue().remove("bd2").unwrap();
    engine.catalogue_changed();
    eventually("host memory is free", || metrics.adapters.host_bytes.get() == 0);
}

#[tokio::test]
async fn a_name_that_is_replaced_serves_the_new_adapter_and_the_old_one_ends_as_it_began() {
    let alone = |name| async move { run(&Setup::default().start(), with(name, "who?")).await.text };
    let (old, new) = (alone("bd2").await, alone("bd4").await);
    let (setup, turnstile) = Setup { pinned: Some("bd2"), ..Setup::default() }.with_turnstile();
    let (engine, metrics) = setup.start_with_metrics();
    let before = engine.submit(with("bd2", "who?")).unwrap();
    turnstile.send(()).unwrap();
    eventually("it is in a slot", || engine.is_resident("bd2"));
    engine.catalogue().add("bd2", &folder("bd4"), true, None).unwrap();
    engine.catalogue_changed();
    let after = engine.submit(with("bd2", "who?")).unwrap();
    drop(turnstile);
    assert_eq!(read(before).await.text, old);
    assert_eq!(read(after).await.text, new);
    engine.idle().await;
    eventually("the new one is pinned", || engine.is_resident("bd2"));
    let bytes = engine.catalogue().get("bd2").unwrap().bytes as i64;
    eventually("the old one is freed", || metrics.adapters.host_bytes.get() == bytes);
}

#[tokio::test]
async fn an_adapter_that_is_added_can_be_asked_for_at_once() {
    let engine = Setup::default().start();
    engine.catalogue().add("new", &folder("plain"), false, None).unwrap();
    let plain = run(&engine, with("plain", "who?")).await.text;
    assert_eq!(run(&engine, with("new", "who?")).await.text, plain);
}

#[tokio::test]
async fn columns_for_scores_tell_load_residency_and_likely_hits() {
    let engine = Setup::default().start();
    let asked = with("bd2", "who are you and who am I?");
    let prompt = asked.prompt.clone();
    assert!(!engine.is_resident("bd2") && !engine.is_resident("nobody"));
    assert_eq!(engine.prefix_hit(Some("bd2"), &prompt), 0.0);
    let told = run(&engine, asked.clone()).await;
    assert_eq!(told.cached_tokens, 0);
    engine.idle().await;
    assert!(engine.is_resident("bd2") && !engine.is_resident("plain"));
    let hit = engine.prefix_hit(Some("bd2"), &prompt);
    let told = run(&engine, asked).await;
    assert_eq!(hit, told.cached_tokens as f32 / prompt.len() as f32);
    assert!(hit > 0.0);
    assert_eq!(engine.prefix_hit(None, &prompt), 0.0, "the base has its own");
    assert_eq!(engine.prefix_hit(Some("nobody"), &prompt), 0.0);
    engine.idle().await;
    let load = || engine.load();
    // Callers have their answers before the count of what runs is told.
    eventually("nothing runs", || (load().running, load().waiting) == (0, 0));
    assert_eq!(load().queue_max, 64);
    eventually("blocks are free", || engine.load().kv_used() == 0.0);
}
