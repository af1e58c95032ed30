//! What a guest does wrong costs its own request, and is counted by kind.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::guest::{GOOD, Guest};
use super::rig::{BUILTIN, Rig, on_one_thread};
use config::settings::Isolation;
use contract::policy::Policy;
use contract::policy::hook::{Hook, OnError};
use contract::policy::replica::{Demand, Replica};
use contract::policy::subject::Subject;

const SPIN: Guest = Guest { score: "(loop $spin (br $spin))", ..GOOD };
const TRAP: Guest = Guest { score: "(unreachable)", ..GOOD };

/// The server's own answer holds, and the failure is counted as `kind`.
fn falls_back(score: &'static str, kind: &str) {
    let rig = Rig::new(Guest { score, ..GOOD }, |_| {});
    on_one_thread(async {
        assert_eq!(rig.scores().await, BUILTIN);
        assert_eq!(rig.calls(kind), 1);
        // The next call has an instance of its own, and fails by itself.
        assert_eq!(rig.scores().await, BUILTIN);
        assert_eq!(rig.calls(kind), 2);
    });
}

#[test]
fn a_guest_that_behaves_is_heard() {
    for isolation in [Isolation::PerRequest, Isolation::Pooled] {
        let rig = Rig::new(GOOD, |plugin| plugin.isolation = isolation);
        on_one_thread(async {
            for _ in 0..2000 {
                assert_eq!(rig.scores().await, [1.0, 5.0]);
            }
        });
        assert_eq!(rig.calls("ok"), 2000);
    }
}

#[test]
fn a_trap_is_a_failure_and_no_more() {
    falls_back("(unreachable)", "trap");
}

#[test]
fn memory_is_bounded() {
    falls_back("(drop (memory.grow (i32.const 1000)))", "memory");
}

#[test]
fn recursion_is_bounded() {
    falls_back(
        "(drop (call 5 (i32.const 0) (i32.const 0) (i64.const 0) (i32.const 1) (i32.const 0)
        (i32.const 0)))",
        "trap",
    );
}

#[test]
fn scores_that_are_no_numbers_are_not_valid() {
    let nan =
        "(i32.store (i32.const 128) (i32.const 200)) (i32.store (i32.const 132) (i32.const 2))
        (i32.store (i32.const 200) (i32.const 0x7fc00000)) (return (i32.const 128))";
    falls_back(nan, "invalid");
}

#[test]
fn too_few_scores_are_not_valid() {
    falls_back("(i64.store (i32.const 128) (i64.const 0)) (return (i32.const 128))", "invalid");
}

#[test]
fn answers_beyond_the_host_copy_limit_are_cut_off() {
    let many = "(i32.store (i32.const 128) (i32.const 0))
        (i32.store (i32.const 132) (i32.const 1000)) (return (i32.const 128))";
    let rig = Rig::new(Guest { score: many, ..GOOD }, |plugin| {
        plugin.limits.host_copy_bytes = 1000;
    });
    assert_eq!(on_one_thread(rig.scores()), BUILTIN);
    assert_eq!(rig.calls("host_copy"), 1);
}

#[test]
fn a_spinning_guest_ends_in_time_and_the_thread_goes_on() {
    let rig = Rig::new(SPIN, |_| {});
    on_one_thread(async {
        let (done, start) = (Cell::new(false), Instant::now());
        let call = async {
            let scores = rig.scores().await;
            done.set(true);
            scores
        };
        let (scores, stall) = tokio::join!(call, longest_stall(&done));
        let took = start.elapsed();
        assert_eq!(scores, BUILTIN);
        assert!(took >= Duration::from_millis(19), "{took:?}");
        // Other programs on the machine may take the processor away for a while.
        assert!(took < Duration::from_millis(500), "{took:?}");
        assert!(stall < Duration::from_millis(200), "{stall:?}");
    });
    assert_eq!(rig.calls("timeout"), 1);
}

/// The longest that another task of the thread had to wait until it is `done`.
async fn longest_stall(done: &Cell<bool>) -> Duration {
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    while !done.get() {
        tokio::task::yield_now().await;
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    longest
}

#[test]
fn a_request_that_goes_away_takes_its_guest_with_it() {
    let rig = Rig::new(SPIN, |plugin| plugin.limits.cpu = Duration::from_secs(60));
    on_one_thread(async {
        let impatient = tokio::time::timeout(Duration::from_millis(20), rig.scores());
        assert!(impatient.await.is_err());
    });
}

#[test]
fn more_calls_than_allowed_are_not_made() {
    let rig = Rig::new(SPIN, |plugin| plugin.limits.concurrency = 1);
    on_one_thread(async {
        let (first, second) = tokio::join!(rig.scores(), rig.scores());
        assert_eq!((first, second), (BUILTIN.to_vec(), BUILTIN.to_vec()));
    });
    assert_eq!((rig.calls("timeout"), rig.calls("concurrency")), (1, 1));
}

#[test]
fn a_plugin_that_fails_too_often_is_set_aside_and_tried_again() {
    let rig = Rig::new(TRAP, |plugin| {
        plugin.breaker.failures = 3;
        plugin.breaker.cooldown = Duration::from_millis(50);
    });
    on_one_thread(async {
        for _ in 0..5 {
            assert_eq!(rig.scores().await, BUILTIN);
        }
        assert!(rig.status().quarantined);
        assert_eq!((rig.calls("trap"), rig.calls("quarantined")), (3, 2));
        tokio::time::sleep(Duration::from_millis(60)).await;
        rig.scores().await;
        assert_eq!(rig.calls("trap"), 4);
    });
}

#[test]
fn where_it_is_closed_a_failed_score_refuses_the_request() {
    let rig = Rig::new(TRAP, |plugin| {
        plugin.on_error[Hook::ScoreReplicas as usize] = OnError::Closed;
    });
    let (subject, demand) = (Subject::default(), Demand::default());
    let answer = on_one_thread(async {
        rig.host.score_replicas(&subject, &demand, &[Replica::default(); 2]).await
    });
    let denied = answer.expect_err("it is refused");
    assert_eq!((denied.status, &*denied.code), (500, "policy_failed"));
}
