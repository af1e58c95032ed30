//! What cannot be used is refused before it answers anything, in words that help.

use super::guest::{GOOD, Guest};
use super::rig::{BUILTIN, Rig, on_one_thread, start};
use config::settings::{Mode, Plugin};
use contract::policy::hook::Hook;

/// Why `wasm` is refused.
fn refusal(wasm: &[u8], change: impl FnOnce(&mut Plugin)) -> String {
    let error = start(wasm, change).err().expect("it is refused").to_string();
    assert!(error.contains("\"guest\"") && error.contains("guest.wasm"), "{error}");
    error
}

/// Why `guest` is refused.
fn guest_refusal(guest: Guest) -> String {
    refusal(&guest.wasm(), |_| {})
}

#[test]
fn other_files_are_told_apart() {
    let text = refusal(b"plugins are great", |_| {});
    assert!(text.contains("not WebAssembly") && text.contains("plugins"), "{text}");
    let text = refusal(b"", |_| {});
    assert!(text.contains("not WebAssembly"), "{text}");
    let module = wat::parse_str("(module)").expect("a module");
    let text = refusal(&module, |_| {});
    assert!(text.contains("core module"), "{text}");
    let text = refusal(&GOOD.wasm()[..200], |_| {});
    assert!(text.contains("does not compile"), "{text}");
    let empty = wat::parse_str("(component)").expect("a component");
    let text = refusal(&empty, |_| {});
    assert!(text.contains("drystone:policy/plugin"), "{text}");
}

#[test]
fn native_code_is_never_loaded() {
    let engine = crate::engine::measuring().expect("an engine");
    let native = engine.precompile_component(&GOOD.wasm()).expect("it compiles");
    let text = refusal(&native, |_| {});
    assert!(text.contains("native code"), "{text}");
}

#[test]
fn imports_need_a_grant() {
    let guest = Guest {
        import: r#"(import "drystone:policy/kv@0.1.0" (instance
            (export "delete" (func (param "key" string)))))"#,
        ..GOOD
    };
    let text = guest_refusal(guest);
    assert!(text.contains("drystone:policy/kv, which is not granted"), "{text}");
    assert!(text.contains("allow = { kv_kib = 256 }"), "{text}");
    assert!(start(&guest.wasm(), |plugin| plugin.allow.kv_bytes = 1).is_ok());
}

#[test]
fn unknown_imports_are_refused() {
    for (import, name) in [
        (r#"(import "wasi:cli/environment@0.2.0" (instance))"#, "allow = { wasi = true }"),
        (r#"(import "drystone:policy/files@0.1.0" (instance))"#, "drystone:policy/files"),
        (r#"(import "acme:own/thing" (instance))"#, "acme:own/thing"),
    ] {
        let text = guest_refusal(Guest { import, ..GOOD });
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn another_version_of_the_interfaces_is_named() {
    let text = guest_refusal(Guest { version: "0.2.0", ..GOOD });
    assert!(text.contains("0.2.0") && text.contains("0.1.0"), "{text}");
}

#[test]
fn a_pinned_plugin_is_that_file() {
    let text = refusal(&GOOD.wasm(), |plugin| plugin.sha256 = Some("0".repeat(64)));
    assert!(text.contains("SHA-256") && text.contains(&"0".repeat(64)), "{text}");
    let right = crate::load::inspect(&GOOD.wasm()).expect("it can be used").sha256;
    assert!(start(&GOOD.wasm(), |plugin| plugin.sha256 = Some(right)).is_ok());
}

#[test]
fn hooks_that_it_lacks_are_refused() {
    let text = refusal(&GOOD.wasm(), |plugin| plugin.hooks = Some(vec![Hook::Admit]));
    assert!(text.contains("admit") && text.contains("score-replicas"), "{text}");
}

#[test]
fn starts_that_fail_say_why() {
    let text = guest_refusal(Guest { init: "(unreachable)", ..GOOD });
    assert!(text.contains("trapped"), "{text}");
    let text = guest_refusal(Guest { init: "(loop $spin (br $spin))", ..GOOD });
    assert!(text.contains("time limit"), "{text}");
    let refuse = "(i32.store (i32.const 128) (i32.const 1)) (i32.store (i32.const 132)
        (i32.const 8)) (i32.store (i32.const 136) (i32.const 3)) (return (i32.const 128))";
    let text = guest_refusal(Guest { init: refuse, ..GOOD });
    assert!(text.contains("refuses its configuration: bad"), "{text}");
    let text = guest_refusal(Guest { self_test: 1, ..GOOD });
    assert!(text.contains("self-test failed: bad"), "{text}");
}

const SCHEMA: &str = r#"{"type": "object", "additionalProperties": false,
    "properties": {"percent": {"type": "integer", "maximum": 100}}}"#;

#[test]
fn a_configuration_is_held_to_the_schema_before_the_guest_sees_it() {
    let guest = Guest { schema: SCHEMA, init: "(unreachable)", ..GOOD };
    let config = serde_json::json!({ "percent": 300 });
    let text = refusal(&guest.wasm(), |plugin| plugin.config = config.clone());
    assert!(text.contains("config.percent = 300: at most 100 would do"), "{text}");
    let harness = crate::harness::Harness::new(&guest.wasm()).expect("it can be used");
    let error = harness.start(&Default::default(), &config).err().expect("it is refused");
    assert!(error.to_string().contains("config.percent = 300"), "{error}");
    let text = guest_refusal(Guest { schema: "{", ..GOOD });
    assert!(text.contains("no JSON Schema"), "{text}");
    let fits = serde_json::json!({ "percent": 3 });
    let guest = Guest { schema: SCHEMA, ..GOOD };
    assert!(start(&guest.wasm(), |plugin| plugin.config = fits).is_ok());
}

/// Looks at the clock and takes a random number before it scores, both of WASI.
const WASI: Guest = Guest {
    import: r#"
        (import "wasi:random/random@0.2.0" (instance $random
            (export "get-random-u64" (func (result u64)))))
        (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
            (export "now" (func (result u64)))))
        (core func $random (canon lower (func $random "get-random-u64")))
        (core func $now (canon lower (func $clock "now")))"#,
    core_import: r#"
        (import "host" "random" (func $random (result i64)))
        (import "host" "now" (func $now (result i64)))"#,
    with: r#"(with "host" (instance
        (export "random" (func $random)) (export "now" (func $now))))"#,
    score: "(if (i64.eqz (i64.or (call $random) (call $random))) (then (unreachable)))
        (if (i64.gt_u (call $now) (call $now)) (then (unreachable)))",
    ..GOOD
};

#[test]
fn wasi_works_where_it_is_allowed() {
    let text = guest_refusal(WASI);
    assert!(text.contains("add allow = { wasi = true }"), "{text}");
    let rig = start(&WASI.wasm(), |plugin| plugin.allow.wasi = true).expect("it is allowed");
    assert_eq!(on_one_thread(rig.scores()), [1.0, 5.0]);
    assert_eq!(rig.calls("ok"), 1);
}

#[test]
fn wasi_has_no_more_than_its_standard() {
    let import = r#"(import "wasi:keyvalue/store@0.2.0" (instance
        (export "open" (func (param "identifier" string)))))"#;
    let text = refusal(&Guest { import, ..GOOD }.wasm(), |plugin| plugin.allow.wasi = true);
    assert!(text.contains("wasi:keyvalue/store"), "{text}");
}

#[test]
fn a_component_describes_itself() {
    let inspection = crate::load::inspect(&GOOD.wasm()).expect("it can be used");
    assert_eq!((&*inspection.name, &*inspection.version), ("guest", "1.0"));
    assert_eq!(inspection.hooks, ["score-replicas"]);
    assert!(inspection.imports.is_empty() && !inspection.wasi);
}

#[test]
fn disabled_plugins_are_not_even_read() {
    let rig = start(b"nothing", |plugin| plugin.mode = Mode::Disabled).expect("it starts");
    assert_eq!(on_one_thread(rig.scores()), BUILTIN);
    assert_eq!(rig.status().mode, "disabled");
}

#[test]
fn shadows_have_no_say_and_their_differences_count() {
    let rig = Rig::new(GOOD, |plugin| plugin.mode = Mode::Shadow);
    on_one_thread(async {
        assert_eq!(rig.scores().await, BUILTIN);
        while rig.calls("ok") == 0 {
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(rig.differences(), 0, "the same replica would have won");
    let last = "(i32.store (i32.const 128) (i32.const 200)) (i32.store (i32.const 132)
        (i32.const 2)) (f32.store (i32.const 200) (f32.const 9)) (return (i32.const 128))";
    let rig = Rig::new(Guest { score: last, ..GOOD }, |plugin| plugin.mode = Mode::Shadow);
    on_one_thread(async {
        assert_eq!(rig.scores().await, BUILTIN);
        while rig.differences() == 0 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_damaged_cache_is_compiled_again() {
    let rig = Rig::new(GOOD, |_| {});
    let folder = rig.deployment.cache_dir.clone().expect("a cache");
    let files =
        std::fs::read_dir(&folder).expect("the cache").map(|file| file.expect("one").path());
    let compiled: Vec<_> =
        files.filter(|file| file.extension().is_some_and(|e| e == "cwasm")).collect();
    assert_eq!(compiled.len(), 1);
    std::fs::write(&compiled[0], b"damaged").expect("a file");
    let builtin = contract::policy::builtin::Builtin::new("base", []);
    let again = crate::host::Host::start(&rig.deployment, builtin);
    assert!(again.is_ok());
    assert_ne!(std::fs::read(&compiled[0]).expect("a file"), b"damaged");
}
