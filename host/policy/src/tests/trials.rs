//! Tools count the same on every run, of calls that fail too.

use config::settings::Allow;
use contract::policy::hook::Hook;
use serde_json::{Value, json};

use super::guest::{GOOD, Guest};
use crate::failure::Failure;
use crate::harness::{AskError, Harness, Started};

fn started(guest: Guest) -> Started {
    let harness = Harness::new(&guest.wasm()).expect("the guest can be used");
    harness.start(&Allow::default(), &json!({})).expect("it starts")
}

fn input() -> Value {
    json!({ "replicas": [{
        "running": 3, "waiting": 0, "kv-used": 0.0,
        "adapter-resident": true, "prefix-hit": 0.0, "local": true,
    }] })
}

#[test]
fn a_call_is_answered_and_counted() {
    let started = started(GOOD);
    let ask = || started.ask(Hook::ScoreReplicas, &input()).expect("it can be asked");
    let (first, second) = (ask(), ask());
    assert_eq!(first.verdict, Ok(json!([3.0])));
    assert!(first.fuel > 0 && first.fuel == second.fuel);
    assert_eq!(first.memory_bytes, 64 << 10);
}

#[test]
fn a_call_that_fails_is_counted_too() {
    let work = "(loop $more (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $more (i32.lt_u (local.get $i) (i32.const 1000))))
        (drop (memory.grow (i32.const 1)))";
    for (score, is_it) in [
        ("(unreachable)", (|failure| matches!(failure, Failure::Trap(_))) as fn(&Failure) -> bool),
        ("(return (i32.const 128))", |failure| matches!(failure, Failure::Invalid(_))),
    ] {
        let score: &'static str = format!("{work} {score}").leak();
        let run = started(Guest { score, ..GOOD }).ask(Hook::ScoreReplicas, &input());
        let run = run.expect("it can be asked");
        assert!(run.verdict.as_ref().is_err_and(is_it), "{run:?}");
        assert!(run.fuel > 1000 && run.memory_bytes == 128 << 10, "{run:?}");
    }
}

#[test]
fn what_does_not_fit_is_said() {
    let started = started(GOOD);
    let missing = started.ask(Hook::Admit, &json!({}));
    assert!(matches!(missing, Err(AskError::Input(_))));
    let wrong = started.ask(Hook::ScoreReplicas, &json!({ "demand": 1, "replicas": [] }));
    assert!(matches!(wrong, Err(AskError::Input(_))));
}
