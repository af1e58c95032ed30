//! Several engines behind one server.

use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Reply, get, post};
use super::script::{Bounds, FATAL_SEED, SENTENCE};
use super::server::{Options, Server, until};

async fn start(engines: usize, bounds: Bounds) -> Server {
    Server::with(Options { engines, bounds: Some(bounds), ..Options::default() }).await
}

fn slow() -> Bounds {
    Bounds { step: Duration::from_millis(5), sequences_max: 1, queue_max: 1 }
}

fn ask(model: &str) -> Value {
    json!({"model": model, "prompt": "Hi", "max_tokens": 44, "temperature": 0})
}

async fn complete(server: &Server, body: &Value) -> Reply {
    post(server.address, "/v1/completions", body).await
}

/// The value of a metric of one engine; 0 when it is not there.
async fn metric(server: &Server, name: &str, engine: usize) -> f64 {
    let text = get(server.address, "/metrics").await.text;
    let label = format!("engine=\"{engine}\"");
    let line = text.lines().find(|line| line.starts_with(name) && line.contains(&label));
    line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn two_engines_share_the_load_and_a_full_one_passes_on() {
    let server = start(2, slow()).await;
    let address = server.address;
    let mut asked = Vec::new();
    for busy in 1..=4 {
        let body = json!({"prompt": "Hi", "max_tokens": 40, "temperature": 0});
        asked.push(tokio::spawn(async move { post(address, "/v1/completions", &body).await }));
        let open = |server: &Server| {
            let loads = server.engines.iter().map(|engine| engine.load());
            loads.map(|load| load.running + load.waiting).sum::<usize>()
        };
        until("it is open", || open(&server) == busy).await;
        until("both run", || server.engines.iter().all(|it| it.load().running == 1 || busy < 2))
            .await;
    }
    let waiting = |at: usize| server.engines[at].load().waiting;
    assert_eq!([waiting(0), waiting(1)], [1, 1], "both are full");
    let (status, message, ..) = complete(&server, &ask("base")).await.error();
    assert_eq!(status, 429, "{message}");
    for asked in asked {
        assert_eq!(asked.await.unwrap().ok()["choices"][0]["text"], SENTENCE[..40]);
    }
    for engine in 0..2 {
        assert_eq!(metric(&server, "vllm:request_success_total", engine).await, 2.0);
    }
}

#[tokio::test]
async fn an_adapter_stays_where_it_is() {
    let server = start(3, Bounds::default()).await;
    for _ in 0..4 {
        for model in ["sql", "shout"] {
            complete(&server, &ask(model)).await.ok();
        }
    }
    for model in ["sql", "shout"] {
        let homes = server.engines.iter().filter(|engine| engine.is_resident(model)).count();
        assert_eq!(homes, 1, "{model}");
    }
}

#[tokio::test]
async fn a_dead_engine_is_avoided_until_none_is_left() {
    let server = start(2, Bounds::default()).await;
    let fatal = json!({"prompt": "Hi", "seed": FATAL_SEED, "max_tokens": 9});
    for left in [1, 0] {
        assert_eq!(complete(&server, &fatal).await.status, 500);
        let alive = || server.engines.iter().filter(|engine| !engine.is_dead()).count();
        until("it is dead", || alive() == left).await;
        let health = get(server.address, "/health").await.status;
        for _ in 0..4 {
            let reply = complete(&server, &ask("base")).await;
            assert_eq!(reply.status.is_success(), left > 0, "{}", reply.text);
        }
        assert_eq!(health.is_success(), left > 0);
    }
    assert_eq!(get(server.address, "/ready").await.status, 503);
}

#[tokio::test]
async fn metrics_of_all_engines_stand_together_by_family() {
    let server = start(2, Bounds::default()).await;
    let text = get(server.address, "/metrics").await.text;
    for head in ["# TYPE vllm:num_requests_running gauge", "# TYPE drystone_collectives counter"] {
        assert_eq!(text.matches(head).count(), 1, "{head}\n{text}");
        let family = text.split_once(head).unwrap().1.trim_start();
        let samples: String = family.lines().take_while(|line| !line.starts_with('#')).collect();
        assert!(samples.contains("engine=\"0\"") && samples.contains("engine=\"1\""), "{samples}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn a_server_that_drains_drains_every_engine() {
    let server = start(2, Bounds::default()).await;
    let engines = server.engines.clone();
    server.stop().await;
    assert!(engines.iter().all(|engine| engine.is_draining()));
}
