//! The command line's answers to right and wrong deployments.

use std::path::Path;
use std::process::Command;

use crate::program::{Server, binary, demo_deployment, root, run};

/// What `check` says, and whether it was content.
fn check(file: &Path) -> (bool, String) {
    let output = run(&["check", "-c", file.to_str().unwrap()]);
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    (output.status.success(), text.concat())
}

/// `check` of a deployment that differs from the demo's by one replacement.
fn check_changed(from: &str, to: &str) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let text = demo_deployment();
    assert!(text.contains(from));
    let text = text.replace(from, to);
    let file = folder.path().join("changed.toml");
    std::fs::write(&file, text).unwrap();
    check(&file)
}

#[test]
fn check_tells_what_a_good_deployment_would_serve() {
    let (good, text) = check(&root().join("configs/demo.toml"));
    assert!(good, "{text}");
    for expected in ["LlamaForCausalLM", "2 ranks", "sql: block-diagonal, 2 blocks", "shout: plain"]
    {
        assert!(text.contains(expected), "no {expected:?} in\n{text}");
    }
}

#[test]
fn check_names_the_key_the_value_and_what_would_do() {
    for (from, to, expected) in [
        ("tensor = 2", "tensor = 3", "parallel.tensor = 3: 1, 2, 4 or 8 would do"),
        ("tensor = 2", "tensr = 2", "unknown field `tensr`, expected one of"),
        ("demo/base", "demo/none", "no config.json in"),
        ("demo/adapters", "demo/none", "is not a folder"),
        ("demo/base", "goldens/qwen2/base", "tokenizer"),
        (
            "kv_cache_gib = 0.25",
            "kv_cache_gib = 1e-6",
            "engine.kv_cache_gib: 1073 bytes hold not one",
        ),
        (
            "kv_cache_gib = 0.25",
            "kv_cache_gib = \"lots\"",
            "= \"lots\": a number of GiB above 0, or",
        ),
    ] {
        let (good, text) = check_changed(from, to);
        assert!(!good && text.contains(expected), "{to}: no {expected:?} in\n{text}");
    }
}

#[test]
fn check_tells_how_large_the_kv_cache_is() {
    for (gib, expected) in [
        ("0.25", "kv cache  0.25 GiB: 104848 tokens, 2.5 KiB a token over all ranks"),
        ("\"auto\"", "kv cache  auto: what there is room for, 2.5 KiB a token"),
    ] {
        let (good, text) = check_changed("kv_cache_gib = 0.25", &format!("kv_cache_gib = {gib}"));
        assert!(good && text.contains(expected), "{gib}: no {expected:?} in\n{text}");
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let (good, text) = check(Path::new("none.toml"));
    assert!(!good && text.contains("none.toml: No such file"), "{text}");
}

/// The deployments whose models nobody has in a clone, beside stand-ins for those models.
#[test]
fn every_deployment_in_configs_is_well_formed() {
    let folder = tempfile::tempdir().unwrap();
    for stand_in in ["models/tinyllama-1.1b", "models/llama-3.1-70b", "adapters", "configs"] {
        std::fs::create_dir_all(folder.path().join(stand_in)).unwrap();
    }
    for model in ["tinyllama-1.1b", "llama-3.1-70b"] {
        std::fs::write(folder.path().join("models").join(model).join("config.json"), "{}").unwrap();
    }
    for name in ["cpu-tp2.toml", "gpu-tp8.toml", "keys.example.toml"] {
        let copy = folder.path().join("configs").join(name);
        std::fs::copy(root().join("configs").join(name), copy).unwrap();
    }
    for name in ["cpu-tp2.toml", "gpu-tp8.toml"] {
        let file = folder.path().join("configs").join(name);
        let loaded = config::load(&file).map_err(|error| error.to_string());
        assert!(loaded.is_ok(), "{name}: {}", loaded.unwrap_err());
    }
}

#[test]
fn plugins_are_those_that_the_deployments_pin() {
    for name in ["demo.toml", "policies.toml"] {
        let file = root().join("configs").join(name);
        let output = run(&["check", "-c", file.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{name}: {said}");
    }
}

#[test]
fn a_taken_port_is_named() {
    let server = Server::demo(1);
    let address = server.url().replace("http://", "");
    let output = run(&["demo", "--once", "--listen", &address]);
    let text = String::from_utf8(output.stderr).unwrap();
    let expected = format!("cannot listen on {address}");
    assert!(!output.status.success() && text.contains(&expected), "{text}");
}

/// A driver that is a file of the right name and nothing more, as a broken installation leaves it:
/// with no compiler beside it, or with one.
#[test]
fn a_gpu_that_cannot_be_used_is_said_to_lack_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let deployment = demo_deployment().replace("\"auto\"", "\"cuda\"");
    std::fs::write(folder.path().join("cuda.toml"), deployment).unwrap();
    std::fs::copy(a_library(), folder.path().join("libcuda.so")).unwrap();
    let serve = Command::new(binary())
        .args(["serve", "-c", "cuda.toml"])
        .current_dir(folder.path())
        .env("LD_LIBRARY_PATH", folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8(serve.stderr).unwrap();
    assert_eq!(serve.status.code(), Some(1), "{text}");
    let says = |part: &str| text.contains(part);
    assert!(says("backend = \"cuda\": ") && says("\"cpu\" works"), "{text}");
    assert!(
        says("NVRTC was not found: looked for libnvrtc.so") || says("does not start"),
        "{text}"
    );
}

/// Any shared library: one that this process has loaded.
fn a_library() -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    paths.into_iter().find(|path| path.contains("/libgcc_s.so")).unwrap().to_owned()
}

#[test]
fn bench_offline_says_why_it_uses_no_gpu() {
    let small = ["--shape", "100m", "--prompt", "16", "--batch", "1", "--steps", "1"];
    let ranks = ["--tensor", "2", "--threads", "1", "--lora", "off"];
    let output = run(&[&["bench", "offline"], &small[..], &ranks].concat());
    let [table, log] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(log.contains("no GPU is used: 2 ranks get GPUs where"), "{log}");
    assert!(table.contains("decode"), "{table}");
}
