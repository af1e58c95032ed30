//! `/admin`: who may, and what it does.

use std::sync::{Arc, Mutex};

use axum::body::Body;
use config::settings::ApiKey;
use contract::policy::asked::Asked;
use contract::policy::deploy::{DeployError, PluginStatus, Plugins, Replacement};
use contract::policy::replica::{AdapterRow, ReplicaRow, Surroundings};
use gateway::surroundings::View;
use hyper::Request;
use serde_json::json;

use super::client::{Reply, get, send};
use super::server::{Options, Server};

const KEY: &str = "admin-key";

/// One plugin, whose generations are counted.
#[derive(Default)]
struct Shelf {
    generations: Mutex<Vec<Replacement>>,
}

impl Shelf {
    fn status(&self) -> PluginStatus {
        let generation = self.generations.lock().unwrap().len() as u64 + 1;
        let (name, hooks) = ("guard".to_owned(), vec!["on_request"]);
        PluginStatus { name, hooks, generation, mode: "enforce", ..PluginStatus::default() }
    }
}

impl Plugins for Shelf {
    fn list(&self) -> Vec<PluginStatus> {
        vec![self.status()]
    }

    fn replace<'a>(
        &'a self,
        name: &'a str,
        with: Replacement,
    ) -> Asked<'a, Result<PluginStatus, DeployError>> {
        Asked::later(async move {
            let bad = matches!(&with, Replacement::Bytes(bytes) if bytes.is_empty());
            match (name, bad) {
                ("guard", true) => Err(DeployError::Refused("it is empty".to_owned())),
                ("guard", false) => {
                    self.generations.lock().unwrap().push(with);
                    Ok(self.status())
                }
                _ => Err(DeployError::Unknown(name.to_owned())),
            }
        })
    }

    fn roll_back(&self, name: &str) -> Result<PluginStatus, DeployError> {
        let older = self.generations.lock().unwrap().pop();
        older.map(|_| self.status()).ok_or_else(|| DeployError::NoOlder(name.to_owned()))
    }
}

async fn start() -> (Server, Arc<Shelf>) {
    let shelf = Arc::new(Shelf::default());
    let admin_keys = vec![ApiKey { tenant: "ops".to_owned(), key: KEY.to_owned() }];
    let plugins: Arc<dyn Plugins> = shelf.clone();
    let plugins = Some(plugins);
    (Server::with(Options { admin_keys, plugins, ..Options::default() }).await, shelf)
}

async fn ask(server: &Server, method: &str, path: &str, kind: &str, body: Vec<u8>) -> Reply {
    let request = Request::builder().method(method).uri(path).header("host", "test");
    let request = request.header("authorization", format!("Bearer {KEY}"));
    let request = request.header("content-type", kind).body(Body::from(body)).unwrap();
    send(server.address, request).await
}

#[tokio::test]
async fn it_is_closed_unless_a_key_is_configured() {
    let server = Server::start().await;
    let (status, message, _, code) = get(server.address, "/admin/plugins").await.error();
    assert_eq!((status, code), (403, json!("admin_closed")));
    assert!(message.contains("server.admin_keys"), "{message}");
}

#[tokio::test]
async fn only_an_admin_key_opens_it() {
    let (server, _) = start().await;
    for path in ["/admin/plugins", "/admin/replicas", "/admin/adapters"] {
        assert_eq!(get(server.address, path).await.error().0, 401);
        let request = Request::get(path).header("host", "test");
        let request = request.header("authorization", "Bearer other").body(Body::empty()).unwrap();
        assert_eq!(send(server.address, request).await.error().0, 401);
        ask(&server, "GET", path, "", Vec::new()).await.ok();
    }
}

#[tokio::test]
async fn plugins_are_listed_replaced_and_rolled_back() {
    let (server, shelf) = start().await;
    let (wasm, json) = ("application/wasm", "application/json");
    let path = "/admin/plugins/guard";
    let listed = ask(&server, "GET", "/admin/plugins", "", Vec::new()).await.ok();
    let guard = &listed["data"][0];
    assert_eq!((&guard["name"], &guard["hooks"]), (&json!("guard"), &json!(["on_request"])));
    // Larger than bodies of requests may be.
    let large = ask(&server, "POST", path, wasm, vec![1; 2 << 20]).await.ok();
    assert_eq!(large["generation"], 2);
    let named = ask(&server, "POST", path, json, br#"{"path": "a.wasm"}"#.to_vec()).await.ok();
    assert_eq!(named["generation"], 3);
    let kinds = |with: &Replacement| match with {
        Replacement::Bytes(bytes) => bytes.len().to_string(),
        Replacement::Path(path) => path.display().to_string(),
    };
    let seen: Vec<_> = shelf.generations.lock().unwrap().iter().map(kinds).collect();
    assert_eq!(seen, ["2097152", "a.wasm"]);
    let back = format!("{path}/rollback");
    for generation in [2, 1] {
        let status = ask(&server, "POST", &back, "", Vec::new()).await.ok();
        assert_eq!(status["generation"], generation);
    }
    assert_eq!(ask(&server, "POST", &back, "", Vec::new()).await.error().0, 409);
}

#[tokio::test]
async fn a_replacement_that_will_not_do_is_told_why() {
    let (server, _) = start().await;
    let path = "/admin/plugins/guard";
    for (path, kind, body, status, told) in [
        ("/admin/plugins/other", "application/wasm", &b"x"[..], 404, "\"other\""),
        (path, "application/wasm", b"", 400, "it is empty"),
        (path, "application/json", b"{}", 400, "`path` is absent"),
        (path, "text/plain", b"x", 415, "application/wasm"),
    ] {
        let error = ask(&server, "POST", path, kind, body.to_vec()).await.error();
        assert_eq!(error.0, status);
        assert!(error.1.contains(told), "{}", error.1);
    }
    let plain = Server::with(Options {
        admin_keys: vec![ApiKey { tenant: "ops".to_owned(), key: KEY.to_owned() }],
        ..Options::default()
    });
    let plain = plain.await;
    assert_eq!(ask(&plain, "GET", "/admin/plugins", "", vec![]).await.ok()["data"], json!([]));
    assert_eq!(ask(&plain, "POST", path, "application/wasm", vec![1]).await.error().0, 404);
}

#[tokio::test]
async fn operators_and_policies_see_replicas_and_adapters() {
    let (server, _) = start().await;
    let replicas = ask(&server, "GET", "/admin/replicas", "", Vec::new()).await.ok();
    let row = json!({"name": "local-0", "healthy": true, "running": 0, "waiting": 0});
    assert_eq!(replicas["data"], json!([row]));
    let adapters = ask(&server, "GET", "/admin/adapters", "", Vec::new()).await.ok();
    let names: Vec<_> = (0..2).map(|at| adapters["data"][at]["name"].clone()).collect();
    assert_eq!(names, ["shout", "sql"]);
    let view = View::new(&server.app);
    assert!(view.adapter_exists("sql") && !view.adapter_exists("base"));
    let row = ReplicaRow { name: "local-0".to_owned(), healthy: true, ..ReplicaRow::default() };
    assert_eq!(view.replicas(), [row]);
    let rows: Vec<AdapterRow> = view.adapters();
    assert!(rows.iter().all(|row| row.lora_rank > 0 && !row.resident));
    assert_eq!(view.count_tokens("Hi there"), 8);
}
