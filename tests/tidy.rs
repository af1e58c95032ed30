//! Style and structure as a test: who may know whom, and the sizes that keep files readable.
//!
//! ARCHITECTURE.md has the same table in prose; where a rule is in the way, change both.

use std::fs;
use std::path::{Path, PathBuf};

/// Workspace crates that each crate may use, `[dependencies]` only: tests may use anything.
const MAY_USE: &[(&str, &[&str])] = &[
    ("contract", &[]),
    ("config", &["contract"]),
    ("kernels", &["contract"]),
    ("collective", &["contract", "kernels"]),
    ("adapters", &["contract"]),
    ("model", &["adapters", "collective", "contract", "kernels"]),
    ("ranks", &["collective", "config", "contract", "kernels", "model"]),
    ("engine", &["adapters", "config", "contract"]),
    ("gateway", &["config", "contract", "engine"]),
    ("policy", &["config", "contract"]),
];

/// Outside crates that only these may name, so that a change of library stays in one room.
const NAMES_ALONE: &[(&str, &[&str])] = &[
    ("toml", &["config"]),
    ("tokenizers", &["engine"]),
    ("minijinja", &["engine"]),
    ("axum", &["gateway"]),
    ("hyper", &["gateway"]),
    ("hyper-util", &["gateway"]),
    ("clap", &["drystone"]),
    ("cudarc", &["kernels"]),
    ("tracing-subscriber", &["drystone"]),
    ("safetensors", &["adapters", "model"]),
    ("tokio", &["drystone", "engine", "gateway", "policy"]),
    ("wasmtime", &["policy"]),
    ("wasmtime-wasi", &["policy"]),
];

/// Where `unsafe` may stand: vector instructions, calls of CUDA, the mapping of weight files, the
/// loading of components that this server compiled itself, and the allocator of plugins.
const UNSAFE_ALLOWED: &[&str] = &[
    "kernels/src/cpu/",
    "kernels/src/cuda/",
    "host/model/src/checkpoint",
    "host/policy/src/cache",
    "sdk/src/",
];

const COLUMNS_MAX: usize = 100;
const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace root").to_owned()
}

fn rust_files() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for top in ["host", "kernels", "plugins", "sdk", "tests"] {
        collect(&root().join(top), &mut found);
    }
    assert!(found.len() > 50, "the walk found only {} files", found.len());
    found
}

fn collect(folder: &Path, found: &mut Vec<(String, String)>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).expect("below the root").display().to_string();
            found.push((name, fs::read_to_string(&path).expect("a source file")));
        }
    }
}

fn assert_none(what: &str, offences: &[String]) {
    assert!(offences.is_empty(), "{what}:\n{}", offences.join("\n"));
}

/// `(crate, its [dependencies])` of every crate of the host and the kernels.
fn dependencies() -> Vec<(String, Vec<String>)> {
    let hosts = fs::read_dir(root().join("host")).expect("host/").flatten();
    let folders = hosts.map(|entry| entry.path()).chain([root().join("kernels")]);
    folders
        .map(|folder| {
            let text = fs::read_to_string(folder.join("Cargo.toml")).expect("a manifest");
            let manifest: toml::Table = text.parse().expect("TOML");
            let name = manifest["package"]["name"].as_str().expect("a name").to_owned();
            let table = manifest["dependencies"].as_table().expect("dependencies");
            (name, table.keys().cloned().collect())
        })
        .collect()
}

#[test]
fn crates_use_only_the_floors_below_them() {
    let crates = dependencies();
    let inside: Vec<_> = crates.iter().map(|(name, _)| name.as_str()).collect();
    let mut offences = Vec::new();
    for (name, used) in &crates {
        let Some((_, allowed)) = MAY_USE.iter().find(|(crate_name, _)| crate_name == name) else {
            assert_eq!(name, "drystone", "a crate without a line in MAY_USE");
            continue;
        };
        let forbidden = used.iter().filter(|used| inside.contains(&used.as_str()));
        let forbidden = forbidden.filter(|used| !allowed.contains(&used.as_str()));
        offences.extend(forbidden.map(|used| format!("{name} uses {used}")));
    }
    assert_none("arrows that DESIGN does not have", &offences);
}

#[test]
fn outside_libraries_have_one_room_each() {
    let mut offences = Vec::new();
    for (name, used) in dependencies() {
        for (library, owners) in NAMES_ALONE {
            if used.iter().any(|used| used == library) && !owners.contains(&name.as_str()) {
                offences.push(format!("{name} names {library}, which belongs to {owners:?}"));
            }
        }
    }
    assert_none("libraries outside their room", &offences);
}

#[test]
fn unsafe_stands_only_where_it_is_allowed_and_with_its_reason() {
    let mut offences = Vec::new();
    for (name, text) in rust_files() {
        let lines: Vec<_> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if !code.contains("unsafe {") && !code.contains("unsafe fn") {
                continue;
            }
            let allowed = UNSAFE_ALLOWED.iter().any(|prefix| name.starts_with(prefix));
            let reasoned = lines[at.saturating_sub(8)..=at]
                .iter()
                .any(|line| line.contains("SAFETY") || line.contains("# Safety"));
            if name != "tests/tidy.rs" && !(allowed && reasoned) {
                offences.push(format!("{name}:{}: {}", at + 1, line.trim()));
            }
        }
    }
    assert_none("unsafe without a place or without a SAFETY reason", &offences);
}

#[test]
fn the_environment_is_read_in_config_only() {
    let read = concat!("env", "::var");
    let offences: Vec<_> = rust_files()
        .into_iter()
        .filter(|(name, text)| text.contains(read) && !name.starts_with("host/config/"))
        .map(|(name, _)| name)
        .collect();
    assert_none("the environment read outside host/config", &offences);
}

#[test]
fn files_open_with_a_sentence_and_stay_short() {
    let mut offences = Vec::new();
    for (name, text) in rust_files() {
        if !text.starts_with("//! ") {
            offences.push(format!("{name}: opens without a //! sentence"));
        }
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            offences.push(format!("{name}: {lines} lines, at most {FILE_LINES_MAX}"));
        }
        let wide = text.lines().position(|line| line.chars().count() > COLUMNS_MAX);
        if let Some(at) = wide {
            offences.push(format!("{name}:{}: over {COLUMNS_MAX} columns", at + 1));
        }
    }
    assert_none("files that are hard to read", &offences);
}

#[test]
fn functions_stay_short() {
    let mut offences = Vec::new();
    for (name, text) in rust_files() {
        for (line, lines) in functions(&text) {
            if lines > FUNCTION_LINES_MAX {
                offences.push(format!("{name}:{line}: {lines} lines"));
            }
        }
    }
    assert_none("functions over the cap", &offences);
}

/// `(first line, length)` of every function. rustfmt closes a body at the indent of its `fn`.
fn functions(text: &str) -> Vec<(usize, usize)> {
    let lines: Vec<_> = text.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let starts = lines.iter().enumerate().filter(|(_, line)| {
        let code = line.trim_start();
        !code.starts_with("//") && (code.starts_with("fn ") || code.contains(" fn "))
    });
    starts
        .filter_map(|(at, line)| {
            let closes = |end: &&str| {
                let declared = end.trim().starts_with(')') && end.ends_with(';');
                indent(end) == indent(line) && (declared || end.trim() == "}")
            };
            let body = lines[at..].iter().position(closes)?;
            let one_line = lines[at].trim_end().ends_with([';', '}']);
            let has_body = !one_line && lines[at + body].trim() == "}";
            has_body.then_some((at + 1, body + 1))
        })
        .collect()
}

#[test]
fn no_file_is_named_for_nothing_and_no_work_is_left_open() {
    let marks =
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("todo", "!("), concat!("XX", "X")];
    let rooms = ["utils", "helpers", "common", "misc"];
    let mut offences = Vec::new();
    for (name, text) in rust_files() {
        let stem = Path::new(&name).file_stem().expect("a file name").to_string_lossy();
        if rooms.contains(&stem.as_ref()) {
            offences.push(format!("{name}: say what it holds"));
        }
        if let Some(mark) = marks.iter().find(|mark| text.contains(**mark)) {
            offences.push(format!("{name}: {mark}"));
        }
    }
    assert_none("rooms named for nothing, work left open", &offences);
}
