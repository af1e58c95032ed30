//! Trials count the same on every run.

use config::settings::Allow;
use contract::policy::hook::Hook;
use serde_json::json;

use super::guest::{GOOD, Guest};
use crate::trial::{LIMITS, Trial, TrialError};

fn trial(guest: Guest) -> Trial {
    let loaded = Trial::load(&guest.wasm(), &json!({}), &Allow::default(), LIMITS);
    loaded.expect("the guest can be used")
}

#[test]
fn a_trial_answers_and_counts() {
    let trial = trial(GOOD);
    let replica = json!({
        "running": 3, "waiting": 0, "kv_used": 0.0,
        "adapter_resident": true, "prefix_hit": 0.0, "local": true,
    });
    let demand = json!({ "prompt_tokens": 1, "max_tokens": 1, "affinity": 1 });
    let input = json!({ "demand": demand, "replicas": [replica] });
    let [first, second] = [(); 2].map(|()| trial.call(Hook::ScoreReplicas, &input).expect("works"));
    assert_eq!(first.answer, json!([3.0]));
    assert!(first.fuel > 0 && first.fuel == second.fuel);
    assert_eq!(first.peak_bytes, 64 << 10);
}

#[test]
fn a_trial_says_what_does_not_fit() {
    let trial = trial(GOOD);
    let missing = trial.call(Hook::Admit, &json!({}));
    assert!(matches!(missing, Err(TrialError::Input(_) | TrialError::NoHook(Hook::Admit))));
    let wrong = trial.call(Hook::ScoreReplicas, &json!({ "demand": 1, "replicas": [] }));
    assert!(matches!(wrong, Err(TrialError::Input(_))));
}
