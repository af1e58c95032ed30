//! Policies in the running program: what a plugin does, and what one that misbehaves does not.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::plugins::build;
use crate::program::{Server, root};

/// A deployment of the demo's model whose plugins are `plugins`, written as TOML.
pub fn serve(folder: TempDir, plugins: &str) -> Server {
    let admin = format!("[[key]]\ntenant = \"admin\"\nkey = \"{}\"\n", Server::KEY);
    std::fs::write(folder.path().join("admin.toml"), admin).unwrap();
    Server::deploy(folder, "admin_keys_file = \"admin.toml\"", |demo| {
        let (without_plugins, _) = demo.split_once("# Three policies").unwrap();
        without_plugins.to_owned() + plugins
    })
}

/// The guest that misbehaves on command, built once a test.
pub fn misbehave(folder: &TempDir) {
    let component = folder.path().join("misbehave.wasm");
    build(&root().join("tests/guests/misbehave"), &component);
}

/// The same with that guest beside the deployment, as `misbehave.wasm`.
pub fn serve_misbehave(plugins: &str) -> Server {
    let folder = tempfile::tempdir().unwrap();
    misbehave(&folder);
    serve(folder, plugins)
}

pub fn ask(server: &Server, model: &str) -> (u16, Value) {
    let message = json!({"role": "user", "content": "Hello"});
    let body = json!({"model": model, "messages": [message], "temperature": 0, "max_tokens": 8});
    server.post("/v1/chat/completions", &body)
}

/// Calls of a hook that failed in this way, of all plugins.
pub fn failures(server: &Server, hook: &str, kind: &str) -> f64 {
    let labels = [&*format!("hook=\"{hook}\""), &*format!("outcome=\"{kind}\"")];
    count(server, "drystone_plugin_calls_total", &labels)
}

/// The sum of a counter over all series that have these labels.
pub fn count(server: &Server, name: &str, labels: &[&str]) -> f64 {
    let metrics = server.get("/metrics").1;
    let lines = metrics.lines().filter(|line| line.starts_with(name));
    let lines = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[test]
fn a_guest_that_misbehaves_costs_its_own_request_and_no_other() {
    let server = serve_misbehave(
        r#"
[[plugin]]
name = "misbehave"
source = { file = "misbehave.wasm" }
hooks = ["on-request"]
limits = { cpu_ms = 100, memory_mib = 4 }
breaker = { failures = 0 }
"#,
    );
    for (command, kind) in [
        ("spin", "timeout"),
        ("recurse", "trap"),
        ("bomb", "memory"),
        ("trap", "trap"),
        ("huge", "invalid"),
        ("nan", "invalid"),
        ("bad-index", "invalid"),
        ("bad-status", "invalid"),
    ] {
        let before = failures(&server, "on-request", kind);
        let (status, body) = ask(&server, command);
        assert_eq!((status, &body["error"]["code"]), (500, &"policy_failed".into()), "{command}");
        assert_eq!(failures(&server, "on-request", kind), before + 1.0, "{command}");
        assert_eq!(ask(&server, "drystone-demo").0, 200, "after {command}");
    }
}

#[test]
fn what_a_failure_means_is_the_operators_choice() {
    let server = serve_misbehave(
        r#"
[[plugin]]
name = "opens"
source = { file = "misbehave.wasm" }
hooks = ["on-response"]
config = { command = "bad-header" }

[[plugin]]
name = "falls-back"
source = { file = "misbehave.wasm" }
hooks = ["select-adapter", "admit"]
config = { command = "trap" }

[[plugin]]
name = "shadow"
source = { file = "misbehave.wasm" }
hooks = ["on-request"]
mode = "shadow"
config = { command = "trap" }
"#,
    );
    let (status, body) = ask(&server, "sql");
    assert_eq!(status, 200, "{body}");
    assert!(failures(&server, "on-response", "invalid") > 0.0);
    assert!(failures(&server, "select-adapter", "trap") > 0.0);
}

#[test]
fn a_plugin_that_fails_often_is_set_aside() {
    let server = serve_misbehave(
        r#"
[[plugin]]
name = "misbehave"
source = { file = "misbehave.wasm" }
hooks = ["on-request"]
breaker = { failures = 3, window_s = 60, cooldown_s = 60 }
"#,
    );
    for _ in 0..3 {
        assert_eq!(ask(&server, "trap").0, 500);
    }
    assert_eq!(ask(&server, "drystone-demo").0, 503, "the plugin would behave, and is not asked");
    assert_eq!(failures(&server, "on-request", "quarantined"), 1.0);
}

#[test]
fn a_plugin_is_replaced_by_file_and_over_http_and_rolled_back() {
    let folder = tempfile::tempdir().unwrap();
    let prebuilt = |name: &str| std::fs::read(root().join("plugins/prebuilt").join(name)).unwrap();
    let file = folder.path().join("policy.wasm");
    std::fs::write(&file, prebuilt("usage-ledger.wasm")).unwrap();
    let server = serve(
        folder,
        r#"
[[plugin]]
name = "policy"
source = { file = "policy.wasm" }
allow = { metrics = true, kv_kib = 64, messages = true, text = true }
"#,
    );
    assert_eq!(hooks(&server), json!(["on-complete"]));
    swap(&file, b"not Wasm");
    until("the refusal is told", || !admin(&server)["last_error"].is_null());
    assert_eq!(hooks(&server), json!(["on-complete"]));
    swap(&file, &prebuilt("prompt-template.wasm"));
    until("the new file is live", || hooks(&server) == json!(["on-request"]));
    let back = server.call("/admin/plugins/policy/rollback", &[]);
    assert_eq!(back.0, 200, "{}", back.1);
    assert_eq!(hooks(&server), json!(["on-complete"]));
    let sent = server.call("/admin/plugins/policy", &prebuilt("affinity-router.wasm"));
    assert_eq!(sent.0, 200, "{}", sent.1);
    assert_eq!(hooks(&server), json!(["score-replicas"]));
    assert_eq!(server.call("/admin/plugins/policy", b"\0asm").0, 400);
    assert_eq!(server.call("/admin/plugins/nobody", b"\0asm").0, 404);
}

/// Puts a file in another's place, as package managers do.
fn swap(file: &Path, content: &[u8]) {
    let new = file.with_extension("new");
    std::fs::write(&new, content).unwrap();
    std::fs::rename(new, file).unwrap();
}

fn admin(server: &Server) -> Value {
    let list: Value = serde_json::from_str(&server.get_with_key("/admin/plugins").1).unwrap();
    list["data"][0].clone()
}

fn hooks(server: &Server) -> Value {
    admin(server)["hooks"].clone()
}

/// Waits until something has happened.
pub fn until(what: &str, happened: impl Fn() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(begun.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
