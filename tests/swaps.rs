//! Plugins that change under load: no request fails, whatever generation it meets.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::json;

use crate::policies::{count, serve};
use crate::program::{Server, root};

const SWAPS: usize = 1000;
/// Every so many swaps a component is sent; the others roll back, which takes no compiler.
const SENT: usize = 4;

#[test]
fn a_thousand_swaps_under_load_fail_no_request() {
    let prebuilt = |name: &str| std::fs::read(root().join("plugins/prebuilt").join(name)).unwrap();
    let components = [prebuilt("redactor.wasm"), prebuilt("usage-ledger.wasm")];
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("policy.wasm"), &components[0]).unwrap();
    let server = serve(
        folder,
        r#"
[[plugin]]
name = "policy"
source = { file = "policy.wasm" }
allow = { messages = true, text = true, metrics = true, kv_kib = 64 }
"#,
    );
    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for caller in [whole, stream, whole, stream] {
            let (server, over, answered) = (&server, &over, &answered);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    caller(server);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for swap in 0..SWAPS {
            let (status, said) = match swap % SENT {
                0 => server.call("/admin/plugins/policy", &components[swap / SENT % 2]),
                _ => server.call("/admin/plugins/policy/rollback", &[]),
            };
            if status != 200 {
                over.store(true, Ordering::Relaxed);
                panic!("swap {swap}: {status} {said}");
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(count(&server, "drystone_plugin_swaps_total", &[]) as usize, SWAPS);
    let failed = count(&server, "drystone_plugin_calls_total", &[])
        - count(&server, "drystone_plugin_calls_total", &["outcome=\"ok\""]);
    let answered = answered.load(Ordering::Relaxed);
    assert!(failed == 0.0 && answered >= 20, "{failed} calls failed of {answered} requests");
}

fn whole(server: &Server) {
    let body = json!({"model": "sql", "prompt": "Mail ann@example.org", "max_tokens": 24});
    let (status, answer) = server.post("/v1/completions", &body);
    assert_eq!(status, 200, "{answer}");
    assert!(answer["choices"][0]["finish_reason"].is_string(), "{answer}");
}

fn stream(server: &Server) {
    let body = json!({
        "model": "shout", "prompt": "Mail ann@example.org", "max_tokens": 24, "stream": true,
    });
    let (status, events) = server.stream("/v1/completions", &body);
    assert_eq!(status, 200);
    assert!(events.iter().all(|event| event["error"].is_null()), "{events:?}");
}
