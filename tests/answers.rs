//! Policies and the text of answers in the running program: filters over chunks, shadows,
//! recordings, the books of requests; over another server where the text has to be a certain one.

mod far;

use std::path::Path;

use serde_json::{Value, json};

use self::far::Far;
use crate::policies::{ask, count, failures, serve, serve_misbehave, until};
use crate::program::{Server, root, run};

/// Secrets that are cut where a model's tokens could cut them.
const PIECES: &[&str] = &[
    "Write to ann@exa",
    "mple",
    ".org or bob@mail",
    ".a-label-longer-than-most",
    ".example",
    ".com, or call 4111 11",
    "11 1111 ",
    "1111 by noon. That is all there is to say about it, ",
    "and nothing of it is a secret of anybody, as far as one can see from here.",
];
const CLEAN: &str = "Write to [redacted] or [redacted], or call [redacted] by noon. \
                     That is all there is to say about it, and nothing of it is a secret of \
                     anybody, as far as one can see from here.";

fn plugin(name: &str, component: &str, lines: &str) -> String {
    let file = root().join("plugins/prebuilt").join(component);
    format!("[[plugin]]\nname = {name:?}\nsource = {{ file = {file:?} }}\n{lines}\n")
}

fn redactor(name: &str, lines: &str) -> String {
    plugin(name, "redactor.wasm", &format!("allow = {{ messages = true, text = true }}\n{lines}"))
}

/// A server before one that says [`PIECES`] as the model `far-only`.
fn before_far(plugins: &str) -> (Server, Far) {
    let far = Far::saying(PIECES);
    let upstream = format!("[[upstream]]\nname = \"far\"\nurl = {:?}\n", far.url());
    let server = serve(tempfile::tempdir().unwrap(), &(plugins.to_owned() + &upstream));
    until("the upstream is known", || server.get("/v1/models").1.contains("far-only"));
    (server, far)
}

fn question() -> Value {
    json!({
        "model": "far-only", "max_tokens": 99,
        "messages": [{"role": "user", "content": "I am cat@example.org"}],
    })
}

fn whole(server: &Server) -> String {
    let (status, answer) = server.post("/v1/chat/completions", &question());
    assert_eq!(status, 200, "{answer}");
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

fn streamed(server: &Server) -> Vec<String> {
    let mut body = question();
    body["stream"] = true.into();
    let (status, events) = server.stream("/v1/chat/completions", &body);
    assert_eq!(status, 200);
    let text = |event: &Value| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned);
    events.iter().filter_map(text).collect()
}

#[test]
fn secrets_are_redacted_over_the_borders_of_chunks_and_in_whole_answers() {
    let (server, _far) = before_far(&redactor("redactor", ""));
    let pieces = streamed(&server);
    assert_eq!(pieces.concat(), CLEAN);
    assert!(pieces.len() > 2, "it is streamed: {pieces:?}");
    assert_eq!(whole(&server), CLEAN);
}

#[test]
fn what_an_upstream_answers_is_in_the_books_and_in_the_recording() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ledger.ndjson");
    let lines = format!(
        "allow = {{ metrics = true, kv_kib = 64 }}\nrecord = {{ file = {:?}, redact = false }}\n",
        file
    );
    let (server, _far) = before_far(&plugin("ledger", "usage-ledger.wasm", &lines));
    streamed(&server);
    whole(&server);
    let labels = ["adapter=\"far-only\""];
    until("both are in the books", || {
        count(&server, "drystone_plugin_requests_total", &labels) == 2.0
    });
    until("both are recorded", || recorded(&file).len() == 2);
    for call in recorded(&file) {
        let completion = &call["input"]["completion"];
        assert_eq!(completion["replica"], "far", "{call}");
        assert_eq!((&completion["status"], &completion["finish"]), (&json!(200), &json!("stop")));
        assert_eq!(completion["usage"]["completion-tokens"], PIECES.len());
    }
}

fn recorded(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn what_was_recorded_is_redacted_and_can_be_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let record = |name: &str, redact: bool| {
        let file = file(&format!("{name}.ndjson"));
        redactor(name, &format!("record = {{ file = {file:?}, redact = {redact} }}"))
    };
    let plugins = record("hashed", true) + &record("plain", false);
    let (server, _far) = before_far(&plugins);
    streamed(&server);
    let last = |file: &Path| {
        let is_last = |call: &Value| call["input"]["chunk"]["last"] == true;
        recorded(file).iter().any(is_last)
    };
    let (hashed, plain) = (file("hashed.ndjson"), file("plain.ndjson"));
    until("all is recorded", || last(&hashed) && last(&plain));
    let text = std::fs::read_to_string(&hashed).unwrap();
    assert!(text.contains("sha256-8") && !text.contains("example"), "{text}");

    let setup = file("setup.toml");
    std::fs::write(&setup, "allow = { messages = true, text = true }\n").unwrap();
    let component = root().join("plugins/prebuilt/redactor.wasm");
    let replay = |recording: &Path, old: &str| {
        let [recording, setup, new] =
            [recording, &setup, &component].map(|path| path.to_str().unwrap());
        let output =
            run(&["plugin", "replay", recording, "--old", old, "--new", new, "--setup", setup]);
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(output.status.success(), "{said:?}");
        said.concat()
    };
    let calls = recorded(&hashed).len();
    let same = replay(&hashed, component.to_str().unwrap());
    assert!(same.contains(&format!("{calls} calls: {calls} the same, 0 different")), "{same}");
    assert!(same.contains("are redacted"), "{same}");
    let builtin = replay(&hashed, "builtin");
    assert!(builtin.contains(" 0 different"), "hashes are no secrets: {builtin}");
}

#[test]
fn a_recording_with_texts_shows_where_verdicts_differ() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plain.ndjson");
    let lines = format!("record = {{ file = {file:?}, redact = false }}");
    let server = serve(tempfile::tempdir().unwrap(), &redactor("plain", &lines));
    let message = json!({"role": "user", "content": "I am cat@example.org"});
    let body = json!({"model": "sql", "messages": [message], "max_tokens": 4});
    assert_eq!(server.post("/v1/chat/completions", &body).0, 200);
    until("it is recorded", || !recorded(&file).is_empty());
    let setup = folder.path().join("setup.toml");
    std::fs::write(&setup, "allow = { messages = true, text = true }\n").unwrap();
    let component = root().join("plugins/prebuilt/redactor.wasm");
    let [file, setup, new] = [&file, &setup, &component].map(|path| path.to_str().unwrap());
    let output =
        run(&["plugin", "replay", file, "--old", "builtin", "--new", new, "--setup", setup]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("line 1, on-request:\n  old \"pass\"\n  new {\"edit\""), "{said}");
}

#[test]
fn shadows_are_compared_at_their_place_in_the_chain() {
    let shadow = "hooks = [\"on-chunk\"]\nmode = \"shadow\"";
    let plugins = redactor("first", shadow)
        + &redactor("enforced", "hooks = [\"on-chunk\"]")
        + &redactor("last", shadow);
    let (server, _far) = before_far(&plugins);
    assert_eq!(whole(&server), CLEAN);
    assert_eq!(streamed(&server).concat(), CLEAN);
    let named = |plugin: &str| format!("plugin={plugin:?}");
    let calls = |plugin: &str| count(&server, "drystone_plugin_calls_total", &[&named(plugin)]);
    let differences = |plugin: &str| {
        count(&server, "drystone_plugin_shadow_differences_total", &[&named(plugin)])
    };
    until("shadows are done", || {
        // The whole answer is one call, of the streamed one every piece that comes their way.
        calls("first") == calls("enforced") && calls("last") >= 3.0
    });
    assert!(differences("first") >= 2.0, "it sees what the model says");
    assert_eq!(differences("last"), 0.0, "it sees what the enforced one lets through");
}

#[test]
fn a_shadow_that_fails_is_counted_and_refuses_nothing() {
    let server = serve_misbehave(
        r#"
[[plugin]]
name = "shadow"
source = { file = "misbehave.wasm" }
hooks = ["admit", "on-request"]
mode = "shadow"
config = { command = "bad-index.admit" }
"#,
    );
    assert_eq!(ask(&server, "sql").0, 200);
    until("it was asked", || failures(&server, "on-request", "ok") == 1.0);
    until("its answer is wrong", || failures(&server, "admit", "invalid") == 1.0);
    assert_eq!(count(&server, "drystone_plugin_shadow_differences_total", &[]), 0.0);
}

#[test]
fn completions_that_nobody_has_time_for_are_dropped_and_counted() {
    /// Beside those that wait, one is told and some more are while the rest arrive.
    const REQUESTS: usize = 1024 + 100;
    let server = serve_misbehave(
        r#"
[[plugin]]
name = "slow"
source = { file = "misbehave.wasm" }
hooks = ["on-complete"]
limits = { cpu_ms = 2000 }
breaker = { failures = 0 }
"#,
    );
    // No such model is served: the answer is there at once, and the request is over.
    let body = json!({"model": "spin", "prompt": "Hello"});
    for _ in 0..REQUESTS {
        assert_eq!(server.post("/v1/completions", &body).0, 404);
    }
    let dropped = count(&server, "drystone_plugin_completions_dropped_total", &["plugin=\"slow\""]);
    assert!((1.0..=100.0).contains(&dropped), "{dropped} were dropped");
    assert_eq!(ask(&server, "sql").0, 200);
}
