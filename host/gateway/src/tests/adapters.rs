//! Adapters that come and go while the server runs.

use std::sync::Arc;

use axum::body::Body;
use config::settings::ApiKey;
use contract::policy::verdict::Source;
use hyper::Request;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::client::{Reply, get, post, send};
use super::script::{SENTENCE, goldens};
use super::server::{Options, Server, until};

const KEY: &str = "admin-key";

async fn start() -> Server {
    let admin_keys = vec![ApiKey { tenant: "ops".to_owned(), key: KEY.to_owned() }];
    let root = Some(goldens());
    Server::with(Options { admin_keys, root, engines: 2, ..Options::default() }).await
}

async fn change(server: &Server, path: &str, body: &Value) -> Reply {
    let request = Request::post(path).header("host", "test");
    let request = request.header("authorization", format!("Bearer {KEY}"));
    let request = request.header("content-type", "application/json");
    send(server.address, request.body(Body::from(body.to_string())).unwrap()).await
}

async fn load(server: &Server, name: &str, path: &str) -> Reply {
    change(server, "/v1/load_lora_adapter", &json!({"lora_name": name, "lora_path": path})).await
}

async fn unload(server: &Server, name: &str) -> Reply {
    change(server, "/v1/unload_lora_adapter", &json!({"lora_name": name})).await
}

async fn say(server: &Server, model: &str) -> Reply {
    let body = json!({"model": model, "prompt": "Hi", "max_tokens": 9, "temperature": 0});
    post(server.address, "/v1/completions", &body).await
}

#[tokio::test]
async fn an_adapter_is_served_from_its_load_to_its_unload() {
    let server = start().await;
    assert_eq!(say(&server, "new").await.status, 404);
    let reply = load(&server, "new", "llama/adapters/plain").await;
    assert_eq!(reply.text, "Success: LoRA adapter 'new' added successfully.");
    assert!(reply.header("content-type").starts_with("text/plain"));
    let text = SENTENCE[..9].to_ascii_uppercase();
    assert_eq!(say(&server, "new").await.ok()["choices"][0]["text"], text);
    get(server.address, "/v1/models/new").await.ok();
    until("it is resident", || server.engines.iter().any(|it| it.is_resident("new"))).await;

    let reply = load(&server, "new", "llama/adapters/plain").await;
    let taken = "The lora adapter 'new' has already been loaded. If you want to load the adapter \
                 in place, set 'load_inplace' to True.";
    assert_eq!(reply.error().1, taken);
    assert_eq!(reply.json()["error"]["type"], "InvalidUserInput");
    let again =
        json!({"lora_name": "new", "lora_path": "llama/adapters/bd2", "load_inplace": true});
    assert_eq!(change(&server, "/v1/load_lora_adapter", &again).await.status, 200);
    assert_eq!(say(&server, "new").await.ok()["choices"][0]["text"], text);

    let reply = unload(&server, "new").await;
    assert_eq!(reply.text, "Success: LoRA adapter 'new' removed successfully.");
    assert_eq!(say(&server, "new").await.status, 404);
    let (status, message, ..) = unload(&server, "new").await.error();
    assert_eq!((status, &*message), (404, "The lora adapter 'new' cannot be found."));
}

#[tokio::test]
async fn what_cannot_be_loaded_is_told_in_vllms_words() {
    let server = start().await;
    let both = "Both 'lora_name' and 'lora_path' must be provided.";
    for body in [json!({}), json!({"lora_name": "x"}), json!({"lora_name": "", "lora_path": "y"})] {
        let reply = change(&server, "/v1/load_lora_adapter", &body).await;
        assert_eq!((reply.error().0, &*reply.error().1), (400, both));
    }
    let conflict = "The lora adapter 'base' conflicts with a served base model.";
    assert_eq!(load(&server, "base", "llama/adapters/plain").await.error().1, conflict);
    for (path, status) in [
        ("llama/adapters/nothing", 404),
        ("llama/base", 404),
        ("../..", 400),
        ("/", 400),
        ("bad-adapters/rank-wrong", 400),
    ] {
        let reply = load(&server, "x", path).await;
        assert!(reply.status.is_client_error(), "{path}: {}", reply.text);
        assert!([status, 404].contains(&reply.error().0), "{path}: {}", reply.text);
        let root = goldens().display().to_string();
        assert!(!reply.text.contains(&root), "no path of this machine: {}", reply.text);
    }
    assert_eq!(say(&server, "x").await.status, 404);
}

#[tokio::test]
async fn only_holders_of_an_admin_key_may_and_only_below_a_root() {
    let server = start().await;
    let body = json!({"lora_name": "x", "lora_path": "llama/adapters/plain"});
    assert_eq!(post(server.address, "/v1/load_lora_adapter", &body).await.status, 401);
    let admin_keys = vec![ApiKey { tenant: "ops".to_owned(), key: KEY.to_owned() }];
    let closed = Server::with(Options { admin_keys, ..Options::default() }).await;
    let reply = change(&closed, "/v1/load_lora_adapter", &body).await;
    assert_eq!(reply.error().0, 403);
    assert!(reply.error().1.contains("resolve_root"));
    assert_eq!(unload(&closed, "sql").await.status, 200, "what is there may go");
}

#[tokio::test]
async fn a_hundred_requests_for_one_unknown_name_load_it_once() {
    let server = start().await;
    let source = Source { path: "llama/adapters/plain".to_owned(), sha256: None };
    let mut loads = JoinSet::new();
    for _ in 0..100 {
        let (app, source) = (Arc::clone(&server.app), source.clone());
        loads.spawn(async move { app.load_adapter("new", source).await.is_ok() });
    }
    assert!(loads.join_all().await.into_iter().all(|loaded| loaded));
    let id = |name: &str| server.engine().catalogue().get(name).unwrap().id;
    let first = id("new");
    server.app.load_adapter("next", source.clone()).await.unwrap();
    assert_eq!(id("next"), first + 1, "nothing was checked between the two");
    let wrong = Source { sha256: Some("00".repeat(32)), ..source };
    let error = server.app.load_adapter("wrong", wrong).await.unwrap_err();
    assert!(error.to_string().contains("SHA-256"), "{error}");
}
