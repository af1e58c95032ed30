//! Who wins.

use drystone_sdk::{mock, prelude::*};

use crate::{AffinityRouter, home};

fn idle() -> Replica {
    Replica {
        running: 0,
        waiting: 0,
        kv_used: 0.0,
        adapter_resident: true,
        prefix_hit: 0.0,
        local: true,
    }
}

fn winner(affinity: u64, replicas: &[Replica]) -> usize {
    let router: AffinityRouter = mock::start("{}").unwrap();
    let demand = Demand { prompt_tokens: 100, max_tokens: 100, affinity };
    let scores = router.score_replicas(&demand, replicas);
    (0..scores.len()).min_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap()
}

#[test]
fn an_idle_replica_wins() {
    assert_eq!(winner(1, &[Replica { running: 9, ..idle() }, idle()]), 1);
    assert_eq!(winner(1, &[idle(), Replica { kv_used: 0.9, ..idle() }]), 0);
}

#[test]
fn a_cached_prompt_is_worth_some_load() {
    let cached = Replica { running: 3, prefix_hit: 0.9, ..idle() };
    assert_eq!(winner(1, &[idle(), cached]), 1);
}

#[test]
fn an_adapter_in_its_slot_wins() {
    let cold = Replica { adapter_resident: false, ..idle() };
    assert_eq!(winner(1, &[cold, idle()]), 1);
}

#[test]
fn idle_replicas_share_the_tenants() {
    let homes = (0..1000).map(|affinity| winner(affinity, &[idle(); 4]));
    let mut shares = [0; 4];
    homes.for_each(|home| shares[home] += 1);
    assert!(shares.iter().all(|share| (200..300).contains(share)), "{shares:?}");
}

#[test]
fn a_new_replica_moves_only_its_share() {
    let moved = (0..1000).filter(|affinity| home(*affinity, 4) != home(*affinity, 5)).count();
    assert!((150..250).contains(&moved), "{moved}");
}
