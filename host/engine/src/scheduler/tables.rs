//! Scheduler tests that say what is planned, case by case.

use std::sync::Arc;

use contract::request::Request;
use contract::sampling::Sampling;

use crate::scheduler::Limits;
use crate::scheduler::world::{Adapters, World, expected, request};

fn limits(blocks: usize) -> Limits {
    Limits {
        blocks,
        block_tokens: 4,
        batch_tokens_max: 16,
        sequences_max: 4,
        prefix_cache: true,
        scores_max: 8,
        overtaken_max: 3,
    }
}

fn world(limits: Limits) -> World {
    World::new(limits, Adapters::new(4, 2, 0))
}

#[test]
fn long_prompts_are_computed_in_chunks_beside_decodes() {
    let mut world = world(limits(32));
    let short = world.submit(&[0, 1], 9, None);
    world.step();
    assert_eq!(world.rows, [(short, 2)]);
    let long = world.submit(&[2; 35], 2, None);
    let planned = [[(short, 1), (long, 15)], [(short, 1), (long, 15)], [(short, 1), (long, 5)]];
    for planned in planned {
        world.step();
        assert_eq!(world.rows, planned);
    }
    world.step();
    assert_eq!(world.rows, [(short, 1), (long, 1)], "both decode");
}

#[test]
fn sequences_are_admitted_in_order_up_to_the_bound() {
    let mut world = world(limits(32));
    let keys: Vec<_> = (0..6).map(|at| world.submit(&[at, 1], 2, None)).collect();
    world.step();
    assert_eq!(world.rows, keys[..4].iter().map(|key| (*key, 2)).collect::<Vec<_>>());
    world.step();
    world.step();
    assert_eq!(world.rows, keys[4..].iter().map(|key| (*key, 2)).collect::<Vec<_>>());
}

#[test]
fn lower_priorities_are_admitted_first_and_equals_in_order() {
    let mut world = world(Limits { sequences_max: 1, ..limits(32) });
    let keys = [5, 0, -3, 0, 5, -3].map(|priority| {
        let request = Request { priority, ..request(&[0, 1], 1) };
        world.submit_request(request, None)
    });
    world.finish(20);
    let mut order = keys;
    order.sort_by_key(|key| world.admitted[key]);
    assert_eq!(order, [2, 5, 1, 3, 0, 4].map(|at: usize| keys[at]));
}

#[test]
fn who_gives_way_waits_at_the_head_of_its_priority() {
    let mut world = world(Limits { prefix_cache: false, ..limits(4) });
    let urgent = |prompt| Request { priority: -1, ..request(prompt, 1) };
    world.submit(&[0, 1, 2, 0, 1, 2], 9, None);
    let young = world.submit(&[2, 1, 0, 2, 1, 0], 9, None);
    world.step();
    let late = world.submit(&[1; 14], 1, None);
    while world.plan.preempted.is_empty() {
        world.step();
    }
    let first = world.submit_request(urgent(&[2; 14]), None);
    let order: Vec<_> = world.scheduler.waiting().map(|it| it.key).collect();
    assert_eq!(order, [first, young, late]);
    world.finish(40);
    assert_eq!(world.outputs[&young], expected(&[2, 1, 0, 2, 1, 0], 9));
}

#[test]
fn an_urgent_sequence_waits_for_a_slot_no_longer_than_others() {
    let mut world = world(limits(64));
    let mut late = None;
    for step in 0..60 {
        world.submit(&[0, 1], 4, Some(step % 2));
        world.step();
        if step == 5 {
            let request = Request { priority: -1, ..request(&[2, 2], 2) };
            late = Some(world.submit_request(request, Some(2)));
        }
    }
    let waited = world.admitted[&late.unwrap()] - 6;
    assert!(waited <= 3 + 2 * 4 + 2, "{waited} steps");
}

#[test]
fn a_prompt_that_needs_more_blocks_than_are_free_waits_and_keeps_its_place() {
    let mut world = world(Limits { prefix_cache: false, ..limits(4) });
    world.submit(&[0; 7], 2, None);
    let large = world.submit(&[1; 9], 1, None);
    let small = world.submit(&[2; 2], 1, None);
    world.step();
    world.step();
    assert_eq!(world.admitted.get(&large), None);
    assert_eq!(world.admitted.get(&small), None, "nobody overtakes for want of blocks");
    world.step();
    assert_eq!((world.admitted[&large], world.admitted[&small]), (3, 3));
}

#[test]
fn the_youngest_gives_way_when_blocks_run_out_and_says_the_same_again() {
    let mut world = world(Limits { prefix_cache: false, ..limits(4) });
    let prompts: [&[u32]; 2] = [&[0, 1, 2, 0, 1, 2], &[2, 1, 0, 2, 1, 0]];
    let keys = prompts.map(|prompt| world.submit(prompt, 9, None));
    let mut preempted = Vec::new();
    while !world.is_empty() {
        world.step();
        preempted.extend(world.plan.preempted.clone());
    }
    assert_eq!(preempted, [keys[1]], "the older one never gives way");
    for (key, prompt) in keys.into_iter().zip(prompts) {
        assert_eq!(world.outputs[&key], expected(prompt, 9));
    }
}

#[test]
fn a_prompt_seen_before_is_not_computed_again() {
    let mut world = world(limits(32));
    let prompt: Vec<u32> = (0..11).collect();
    world.submit(&prompt, 3, None);
    world.finish(10);
    let again = world.submit(&prompt, 3, None);
    world.step();
    assert_eq!(world.rows, [(again, 3)], "two of three blocks are shared");
    assert_eq!(world.plan.admitted[0].cached, 8);
    world.finish(10);
    assert_eq!(world.outputs[&again], expected(&prompt, 3));
}

#[test]
fn a_prompt_of_whole_blocks_computes_its_last_block_for_the_logits() {
    let mut world = world(limits(32));
    let prompt: Vec<u32> = (0..8).collect();
    world.submit(&prompt, 1, None);
    world.finish(10);
    let again = world.submit(&prompt, 1, None);
    world.step();
    assert_eq!(world.rows, [(again, 4)]);
}

#[test]
fn generations_share_no_blocks_even_under_one_name() {
    // One slot and host memory for one: each switch of adapters loads a new generation.
    let mut world = World::new(limits(32), Adapters::with_host_memory(2, 1, 0, 1));
    let prompt: Vec<u32> = (0..9).collect();
    for adapter in [None, Some(0), Some(1), Some(0)] {
        world.submit(&prompt, 2, adapter);
        for _ in 0..4 {
            world.step();
            assert!(world.plan.admitted.iter().all(|admission| admission.cached == 0));
        }
    }
    let same = world.submit(&prompt, 2, Some(0));
    world.step();
    assert_eq!(world.rows, [(same, 1)], "the same generation does share");
}

#[test]
fn without_a_prefix_cache_nothing_is_shared() {
    let mut world = world(Limits { prefix_cache: false, ..limits(32) });
    for _ in 0..2 {
        let key = world.submit(&[0, 1, 2, 0, 1, 2, 0, 1, 2], 1, None);
        world.step();
        assert_eq!(world.rows, [(key, 9)]);
    }
}

#[test]
fn prompt_logprobs_come_a_few_a_step_and_each_once() {
    let mut world = world(limits(32));
    world.submit(&[1; 20], 1, None);
    world.finish(10);
    let prompt: Vec<u32> = [1; 20].to_vec();
    let mut scored = request(&prompt, 2);
    scored.prompt_logprobs = Some(0);
    let key = world.submit_request(scored, None);
    for rows_planned in [8, 8, 4] {
        world.step();
        assert_eq!(world.rows, [(key, rows_planned)], "the cache is not used");
    }
    world.finish(10);
    assert_eq!(world.scored[&key], (0..19).collect::<Vec<_>>());
}

#[test]
fn rows_of_a_slot_are_consecutive() {
    let mut world = world(limits(32));
    let adapters = [Some(1), None, Some(0), Some(1)];
    let keys = adapters.map(|adapter| world.submit(&[0, 1], 3, adapter));
    world.step();
    world.step();
    let order: Vec<_> = world.rows.iter().map(|(key, _)| *key).collect();
    assert_eq!(order.len(), 4);
    let at = |key| order.iter().position(|it| *it == key).unwrap();
    assert_eq!(at(keys[1]), 0, "the base comes first: {order:?}");
    assert_eq!(at(keys[0]).abs_diff(at(keys[3])), 1, "{order:?}");
}

#[test]
fn a_sequence_whose_adapter_loads_is_overtaken_by_all() {
    let mut world = World::new(limits(32), Adapters::new(4, 2, 10));
    let cold = world.submit(&[0, 1], 2, Some(0));
    for step in 1..=10 {
        let base = world.submit(&[1, 2], 1, None);
        world.step();
        assert_eq!(world.admitted[&base], step);
    }
    world.step();
    assert_eq!(world.admitted[&cold], 11);
}

#[test]
fn a_sequence_that_waits_for_a_slot_is_overtaken_a_bounded_number_of_times() {
    let mut world = world(limits(64));
    let mut late = None;
    for step in 0..60 {
        // Two adapters keep both slots busy: their sequences overlap and never stop coming.
        world.submit(&[0, 1], 4, Some(step % 2));
        world.step();
        if step == 5 {
            late = Some(world.submit(&[2, 2], 2, Some(2)));
        }
    }
    let waited = world.admitted[&late.unwrap()] - 6;
    // Three overtake, then the sequences of one slot end, and one step more to load.
    assert!(waited <= 3 + 2 * 4 + 2, "{waited} steps");
}

#[test]
fn while_a_slot_is_drained_the_base_and_the_other_slot_go_on() {
    let mut world = world(Limits { sequences_max: 8, ..limits(64) });
    let long = [0, 1, 1].map(|adapter| world.submit(&[0, 1], 30, Some(adapter)));
    let late = world.submit(&[0, 1], 1, Some(2));
    while world.scheduler.waiting().next().is_none_or(|late| late.overtaken < 3) {
        world.step();
        world.submit(&[0, 1], 1, Some(0));
    }
    world.step();
    let (drained, other) = (world.submit(&[0, 1], 1, Some(0)), world.submit(&[0, 1], 1, Some(1)));
    let base = world.submit(&[0, 1], 1, None);
    world.step();
    assert!(world.admitted.contains_key(&other) && world.admitted.contains_key(&base));
    assert!(!world.admitted.contains_key(&drained), "its slot has the fewest holders");
    world.cancel(long[0]);
    world.step();
    world.step();
    assert!(world.admitted.contains_key(&late));
}

#[test]
fn a_cancelled_sequence_gives_everything_back() {
    let mut world = world(limits(8));
    let running = world.submit(&[0; 9], 20, Some(0));
    world.step();
    let waiting = world.submit(&[1; 30], 1, None);
    world.step();
    world.cancel(running);
    assert_eq!(world.scheduler.pool().available(), 8);
    world.step();
    assert!(world.admitted.contains_key(&waiting));
    world.cancel(waiting);
    assert!(world.is_empty());
    world.finish(1);
}

#[test]
fn who_stops_while_the_next_step_runs_has_a_row_for_nothing_and_leaves_its_seat_at_once() {
    let mut world = world(Limits { sequences_max: 1, ..limits(32) });
    world.runs_ahead = true;
    let mut stopped = request(&[0], 9);
    let says = expected(&[0], 1);
    stopped.sampling = Arc::new(Sampling { stop_tokens: says.clone(), ..Sampling::default() });
    let stopped = world.submit_request(stopped, None);
    let (long, next) = (world.submit(&[1, 2], 2, None), world.submit(&[2, 0], 1, None));
    let rows = [(stopped, 1), (stopped, 1), (long, 2), (long, 1), (next, 2)];
    for (step, rows) in rows.into_iter().enumerate() {
        world.step();
        assert_eq!(world.rows, [rows], "step {step}");
        assert_eq!(world.outputs.contains_key(&stopped), step > 0);
    }
    world.finish(3);
    assert_eq!(world.outputs[&stopped], says);
    assert_eq!(world.outputs[&long], expected(&[1, 2], 2));
}
