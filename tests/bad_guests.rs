//! Guests that do wrong in the running program, and operators who deploy what cannot be used: the
//! answer is what `on_error` says, it is counted and logged, and the next request is fine.

use std::path::Path;

use serde_json::json;

use crate::policies::{ask, failures, misbehave, serve, serve_misbehave, until};
use crate::program::{Server, demo_deployment, root, run, without_plugins};

/// What a guest does where, what that is called, and the status of the answer: by default, and with
/// the other choice of [`OTHER`].
const DEEDS: [(&str, &str, u16, u16); 11] = [
    ("trap.authorize", "trap", 500, 200),
    ("trap.on-request", "trap", 500, 200),
    ("trap.select-adapter", "trap", 200, 500),
    ("trap.resolve-adapter", "trap", 500, 404),
    ("trap.admit", "trap", 200, 500),
    ("trap.score-replicas", "trap", 200, 500),
    ("trap.on-chunk", "trap", 500, 200),
    ("trap.on-response", "trap", 200, 500),
    ("trap.on-complete", "trap", 200, 200),
    ("big-import.on-request", "host_copy", 500, 200),
    ("hoard.on-chunk", "invalid", 500, 200),
];

const OTHER: &str = r#"on_error = { authorize = "fallback", on-request = "open",
    select-adapter = "closed", resolve-adapter = "fallback", admit = "closed",
    score-replicas = "closed", on-chunk = "open", on-response = "closed" }"#;

/// Two replicas, so that there is a choice, and an adapter under the name of every deed but that of
/// `resolve-adapter`, which is asked about names that are not served.
fn deployment(on_error: &str) -> String {
    let on_error = on_error.replace('\n', " ");
    let mut text = format!(
        r#"
[[plugin]]
name = "all"
source = {{ file = "misbehave.wasm" }}
limits = {{ cpu_ms = 1000, memory_mib = 96 }}
breaker = {{ failures = 0 }}
{on_error}

[[plugin]]
name = "scores"
source = {{ file = "misbehave.wasm" }}
hooks = ["score-replicas"]
match = {{ models = ["trap.score-replicas"] }}
config = {{ command = "trap" }}
breaker = {{ failures = 0 }}
{on_error}
"#
    );
    let path = root().join("tests/fixtures/demo/adapters/sql");
    for (deed, ..) in DEEDS.iter().filter(|(deed, ..)| !deed.contains("resolve")) {
        text += &format!("\n[[adapter]]\nname = {deed:?}\npath = {path:?}\n");
    }
    text
}

#[test]
fn whatever_a_guest_does_in_any_hook_means_what_on_error_says() {
    for other in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        misbehave(&folder);
        let server = Server::deploy(folder, "", |_| {
            let two = without_plugins().replace("tensor = 2", "tensor = 1\nreplicas = 2");
            two + &deployment(if other { OTHER } else { "" })
        });
        for (deed, kind, by_default, otherwise) in DEEDS {
            does(&server, deed, kind, if other { otherwise } else { by_default });
            assert_eq!(ask(&server, "sql").0, 200, "after {deed}\n{}", server.log());
        }
    }
}

/// One deed of the guest: its status, the counter, the log.
fn does(server: &Server, deed: &str, kind: &str, expected: u16) {
    let (_, hook) = deed.split_once('.').unwrap();
    let (key, model) = if hook == "authorize" { (deed, "sql") } else { ("nobody's", deed) };
    let before = failures(server, hook, kind);
    let message = json!({"role": "user", "content": "Hello"});
    let body = json!({"model": model, "messages": [message], "temperature": 0, "max_tokens": 8});
    let (status, answer) = server.post_as(key, "/v1/chat/completions", &body);
    assert_eq!(status, expected, "{deed}: {answer}\n{}", server.log());
    if status == 500 {
        assert_eq!(answer["error"]["code"], "policy_failed", "{deed}");
    }
    until(deed, || failures(server, hook, kind) > before);
    let plugin = if hook == "score-replicas" { "scores" } else { "all" };
    let fields = format!("plugin={plugin:?} hook={hook:?} kind={kind:?}");
    let told = |line: &str| line.contains("the plugin failed: it") && line.contains(&fields);
    until("the log tells", || server.log().lines().any(told));
}

#[test]
fn an_adapter_that_nobody_serves_is_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    misbehave(&folder);
    let plugin = |model: &str, lines: &str| {
        format!(
            "[[plugin]]\nname = {model:?}\nsource = {{ file = \"misbehave.wasm\" }}\n\
             hooks = [\"select-adapter\"]\nmatch = {{ models = [{model:?}] }}\n\
             config = {{ command = \"unknown-adapter\" }}\n{lines}\n"
        )
    };
    let server = serve(folder, &(plugin("sql", "") + &plugin("json", "on_error = \"closed\"")));
    assert_eq!(ask(&server, "sql").0, 200, "the adapter that was asked for");
    assert_eq!(ask(&server, "json").0, 500);
    assert_eq!(failures(&server, "select-adapter", "invalid"), 2.0);
    let told = "the plugin failed: its answer is not valid: no adapter is served under \"nobody\"";
    assert!(server.log().contains(told), "{}", server.log());
}

#[test]
fn a_stream_that_a_filter_fails_ends_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    misbehave(&folder);
    let plugin = "[[plugin]]\nname = \"filter\"\nsource = { file = \"misbehave.wasm\" }\n\
                  hooks = [\"on-chunk\"]\nmatch = { models = [\"sql\"] }\n\
                  config = { command = \"trap\" }\n";
    let server = serve(folder, plugin);
    let body = |model| json!({"model": model, "prompt": "Hello", "max_tokens": 8, "stream": true});
    let (status, events) = server.stream("/v1/completions", &body("sql"));
    assert_eq!(status, 200);
    assert_eq!(events.last().unwrap()["error"]["code"], "policy_failed", "{events:?}");
    let (_, events) = server.stream("/v1/completions", &body("shout"));
    assert!(events.iter().all(|event| event["error"].is_null()), "{events:?}");
}

#[test]
fn a_hundred_requests_at_a_policy_that_never_answers_all_get_an_answer() {
    const CALLERS: usize = 100;
    let server = serve_misbehave(
        r#"
[[plugin]]
name = "blocks"
source = { file = "misbehave.wasm" }
hooks = ["on-request"]
limits = { cpu_ms = 200, concurrency = 8 }
breaker = { failures = 0 }
"#,
    );
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let ask = || scope.spawn(|| ask(&server, "spin").0);
        let callers: Vec<_> = (0..CALLERS).map(|_| ask()).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    let with = |status: u16| statuses.iter().filter(|it| **it == status).count();
    assert_eq!(with(500) + with(503), CALLERS, "{statuses:?}");
    assert_eq!(failures(&server, "on-request", "timeout") as usize, with(500));
    assert_eq!(failures(&server, "on-request", "concurrency") as usize, with(503));
    assert!(with(500) >= 8 && with(503) > 0, "{statuses:?}");
    assert_eq!(ask(&server, "sql").0, 200);
}

/// A plugin's lines after its name and file, what its component is made of, and what is said.
fn unusable() -> [(&'static str, Vec<u8>, &'static str); 7] {
    let prebuilt = |name: &str| std::fs::read(root().join("plugins/prebuilt").join(name)).unwrap();
    let redactor = prebuilt("redactor.wasm");
    [
        ("", b"plugins are great".to_vec(), "it is not WebAssembly: it begins with \"plugins "),
        ("", b"\0asm\x01\0\0\0".to_vec(), "it is a core module"),
        ("", of_version_2(&redactor), "of drystone:policy@0.2.0, this server speaks 0.1.0"),
        ("", redactor.clone(), "which is not granted; add allow = { messages = true }"),
        (
            "allow = { messages = true, text = true }\nhooks = [\"admit\"]",
            redactor.clone(),
            "it does not export admit; it exports on-request, on-chunk, on-response",
        ),
        (
            "allow = { messages = true, text = true }\nconfig = { longest = \"very\" }",
            redactor.clone(),
            "config.longest = \"very\": a whole number or nothing would do",
        ),
        (
            "allow = { messages = true, text = true }\nconfig = { pattern = [\"a\"] }",
            redactor,
            "config.pattern = [\"a\"]: there is no such key; patterns, longest or replacement",
        ),
    ]
}

/// A component that was made for the next version of the interfaces.
fn of_version_2(component: &[u8]) -> Vec<u8> {
    let (old, new) = (b"@0.1.0", b"@0.2.0");
    let mut bytes = component.to_vec();
    for at in 0..bytes.len() - old.len() {
        if bytes[at..].starts_with(old) {
            bytes[at..at + new.len()].copy_from_slice(new);
        }
    }
    bytes
}

#[test]
fn what_cannot_be_used_ends_check_and_serve_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let component = folder.path().join("mine.wasm");
    for (lines, bytes, expected) in unusable() {
        std::fs::write(&component, bytes).unwrap();
        let plugin = "[[plugin]]\nname = \"mine\"\nsource = { file = \"mine.wasm\" }\n";
        refused(folder.path(), &(without_plugins() + plugin + lines), expected);
    }
    let pinned = demo_deployment();
    let at = pinned.find("sha256 = \"").unwrap() + "sha256 = \"".len();
    let wrong = [&pinned[..at], &"0".repeat(64), &pinned[at + 64..]].concat();
    refused(folder.path(), &wrong, &format!("and the deployment pins {}", "0".repeat(64)));
}

/// Both commands refuse a deployment, naming its plugin.
fn refused(folder: &Path, deployment: &str, expected: &str) {
    let file = folder.join("deployment.toml");
    std::fs::write(&file, deployment).unwrap();
    for command in ["check", "serve"] {
        let output = run(&[command, "-c", file.to_str().unwrap()]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{command}: {said}");
        assert!(said.contains("drystone: plugin \""), "{command}: {said}");
        assert!(said.contains(expected), "{command}: no {expected:?} in {said}");
    }
}

#[test]
fn a_new_component_that_takes_another_configuration_is_refused_and_says_why() {
    let prebuilt = root().join("plugins/prebuilt");
    let plugin = format!(
        "[[plugin]]\nname = \"mine\"\nsource = {{ file = {:?} }}\n\
         allow = {{ messages = true, text = true, metrics = true, kv_kib = 4 }}\n\
         config = {{ replacement = \"-\" }}\n",
        prebuilt.join("redactor.wasm")
    );
    let server = serve(tempfile::tempdir().unwrap(), &plugin);
    let other = std::fs::read(prebuilt.join("usage-ledger.wasm")).unwrap();
    let (status, said) = server.call("/admin/plugins/mine", &other);
    assert_eq!(status, 400, "{said}");
    assert!(said.contains("config.replacement = \\\"-\\\": there is no such key"), "{said}");
    assert_eq!(ask(&server, "sql").0, 200);
}
