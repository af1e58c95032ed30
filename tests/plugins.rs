//! The six plugins of `plugins/`: what is committed as built says the same as its source.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::json;

use crate::program::{Server, root, run, without_plugins};

const PLUGINS: [&str; 6] = [
    "adapter-router",
    "affinity-router",
    "prompt-template",
    "redactor",
    "tenant-quota",
    "usage-ledger",
];

#[test]
fn prebuilt_plugins_say_what_their_sources_say() {
    let folder = tempfile::tempdir().unwrap();
    for plugin in PLUGINS {
        let built = folder.path().join(format!("{plugin}.wasm"));
        build(&root().join("plugins").join(plugin), &built);
        let prebuilt = root().join("plugins/prebuilt").join(format!("{plugin}.wasm"));
        assert_eq!(verdicts(plugin, &built), verdicts(plugin, &prebuilt), "{plugin}");
    }
}

#[test]
fn a_new_plugin_builds_and_passes_its_cases_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let project = folder.path().join("my-policy");
    let (path, sdk) = (project.display().to_string(), root().join("sdk").display().to_string());
    succeeds(&run(&["plugin", "new", &path, "--sdk", &sdk]));
    let component = folder.path().join("my-policy.wasm");
    build(&project, &component);
    let cases = project.join("cases").display().to_string();
    succeeds(&run(&["plugin", "test", component.to_str().unwrap(), "--cases", &cases]));
}

#[test]
fn a_plugin_is_built_and_loaded_again_when_its_source_changes() {
    let folder = tempfile::tempdir().unwrap();
    let project = folder.path().join("my-policy");
    let (path, sdk) = (project.display().to_string(), root().join("sdk").display().to_string());
    succeeds(&run(&["plugin", "new", &path, "--sdk", &sdk]));
    build(&project, &project.join("my-policy.wasm"));
    let deployment = project.join("dev.toml");
    let plugin = "[[plugin]]\nname = \"mine\"\nsource = { file = \"my-policy.wasm\" }\n\
                  config = { adapter = \"sql\", tenants = [\"anonymous\"] }\n";
    std::fs::write(&deployment, without_plugins() + plugin).unwrap();
    let server = Server::start(&["plugin", "dev", "-c", deployment.to_str().unwrap()]);
    assert!(answer(&server).starts_with("SELECT"), "by the adapter of the deployment");

    let source = project.join("src/lib.rs");
    let first = std::fs::read_to_string(&source).unwrap();
    let named = "Selection::Adapter(self.0.adapter.clone())";
    std::fs::write(&source, first.replacen(named, "Selection::Adapter(1)", 1)).unwrap();
    server.until_log("the old one stays: the plugin does not compile");
    assert!(server.log().contains("error[E0308]"), "{}", server.log());
    assert!(answer(&server).starts_with("SELECT"), "by the old component");

    let other = "Selection::Adapter(\"shout\".into())";
    std::fs::write(&source, first.replacen(named, other, 1)).unwrap();
    server.until_log("another generation of the plugin is asked plugin=\"mine\"");
    let shouted = answer(&server);
    assert_eq!(shouted, shouted.to_uppercase());
    assert!(!shouted.starts_with("SELECT"), "{shouted}");
}

/// What a request comes to that names no adapter.
fn answer(server: &Server) -> String {
    let question = "I have 3 red cubes, 2 blue balls and 5 red cones. How many red things?";
    let message = json!({"role": "user", "content": question});
    let body = json!({"model": "drystone-demo", "messages": [message], "temperature": 0});
    let (status, answer) = server.post("/v1/chat/completions", &body);
    assert_eq!(status, 200, "{answer}");
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

/// Builds a project as its author would.
pub fn build(project: &Path, component: &Path) {
    let (project, component) = (project.to_str().unwrap(), component.to_str().unwrap());
    succeeds(&run(&["plugin", "build", project, "-o", component]));
}

/// The verdicts on all cases of a plugin, which are as expected; what they cost is left out.
fn verdicts(plugin: &str, component: &Path) -> Vec<String> {
    let cases: PathBuf = root().join("plugins").join(plugin).join("cases");
    let arguments =
        ["plugin", "test", component.to_str().unwrap(), "--cases", cases.to_str().unwrap()];
    let output = run(&arguments);
    succeeds(&output);
    let table = String::from_utf8(output.stdout).unwrap();
    let verdict = |line: &str| line.split_once("  ok ").map(|(_, verdict)| verdict.to_owned());
    let verdicts: Vec<_> = table.lines().filter_map(verdict).collect();
    assert!(!verdicts.is_empty(), "{plugin} has no case:\n{table}");
    verdicts
}

fn succeeds(output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}
