//! Whatever comes, in whatever order, into however small a pool: nothing is lost, leaked, mixed up
//! or starved. What is checked in every step stands in [`crate::scheduler::world`].

use std::sync::Arc;

use contract::request::Request;
use contract::sampling::Sampling;
use proptest::prelude::*;

use crate::scheduler::Limits;
use crate::scheduler::world::{Adapters, VOCAB, World, expected_until, request};

/// A sequence and what happens to it.
#[derive(Clone, Debug)]
struct Arrival {
    /// Steps after the arrival before it.
    after: usize,
    prompt: Vec<u32>,
    max_tokens: u32,
    adapter: Option<usize>,
    prompt_logprobs: bool,
    /// How its sampling stands to steps that run ahead.
    manner: Manner,
    priority: i32,
    cancelled_after: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Ends by its length.
    Plain,
    /// Ends when it says this, which nobody knows before.
    Stops(u32),
    /// Its draws read all that was drawn before.
    ReadsHistory,
    /// Its draws are answered on the host.
    Logprobs,
}

impl Manner {
    fn set(self, request: &mut Request) {
        let mut sampling = Sampling::default();
        match self {
            Self::Plain => {}
            Self::Stops(token) => sampling.stop_tokens = vec![token],
            Self::ReadsHistory => sampling.presence_penalty = 1.0,
            Self::Logprobs => request.logprobs = Some(0),
        }
        request.sampling = Arc::new(sampling);
    }
}

fn manner() -> impl Strategy<Value = Manner> {
    prop_oneof![
        4 => Just(Manner::Plain),
        3 => (0..VOCAB).prop_map(Manner::Stops),
        1 => Just(Manner::ReadsHistory),
        1 => Just(Manner::Logprobs),
    ]
}

#[derive(Clone, Debug)]
struct Scenario {
    limits: Limits,
    slots_max: usize,
    host_max: usize,
    load_steps: usize,
    runs_ahead: bool,
    arrivals: Vec<Arrival>,
}

const ADAPTERS: usize = 5;

fn arrival(context_max: usize) -> impl Strategy<Value = Arrival> {
    let prompt = prop::collection::vec(0..VOCAB, 1..=context_max);
    let adapter = prop::option::weighted(0.7, 0..ADAPTERS);
    (
        0..4usize,
        prompt,
        0..12u32,
        adapter,
        prop::bool::weighted(0.2),
        manner(),
        -1..2i32,
        prop::option::weighted(0.2, 0..20usize),
    )
        .prop_map(
            move |(
                after,
                prompt,
                tokens,
                adapter,
                prompt_logprobs,
                manner,
                priority,
                cancelled,
            )| {
                let max_tokens = tokens.min((context_max - prompt.len()) as u32);
                Arrival {
                    after,
                    prompt,
                    max_tokens,
                    adapter,
                    prompt_logprobs,
                    manner,
                    priority,
                    cancelled_after: cancelled,
                }
            },
        )
}

fn limits() -> impl Strategy<Value = Limits> {
    (2..14usize, 1..5usize, 1..20usize, 1..6usize, any::<bool>(), 1..6usize, 0..4u32).prop_map(
        |(
            blocks,
            block_tokens,
            batch_tokens_max,
            sequences_max,
            prefix_cache,
            scores_max,
            overtaken_max,
        )| {
            Limits {
                blocks,
                block_tokens,
                batch_tokens_max,
                sequences_max,
                prefix_cache,
                scores_max,
                overtaken_max,
            }
        },
    )
}

fn scenario() -> impl Strategy<Value = Scenario> {
    let residency = (1..4usize, 1..4usize, 0..4usize);
    (limits(), residency, any::<bool>()).prop_flat_map(|(limits, residency, runs_ahead)| {
        let (slots_max, host_max, load_steps) = residency;
        let context_max = limits.blocks * limits.block_tokens;
        prop::collection::vec(arrival(context_max), 1..24).prop_map(move |arrivals| Scenario {
            limits: limits.clone(),
            slots_max,
            host_max,
            load_steps,
            runs_ahead,
            arrivals,
        })
    })
}

fn check(scenario: &Scenario) {
    let Scenario { slots_max, host_max, load_steps, .. } = *scenario;
    let adapters = Adapters::with_host_memory(ADAPTERS, slots_max, load_steps, host_max);
    let mut world = World::new(scenario.limits.clone(), adapters);
    world.runs_ahead = scenario.runs_ahead;
    let mut cancels = Vec::new();
    for arrival in &scenario.arrivals {
        let mut request = request(&arrival.prompt, arrival.max_tokens);
        request.priority = arrival.priority;
        arrival.manner.set(&mut request);
        request.prompt_logprobs = arrival.prompt_logprobs.then_some(1);
        let key = world.submit_request(request, arrival.adapter);
        cancels.extend(arrival.cancelled_after.map(|after| (world.steps + after, key)));
        for _ in 0..arrival.after {
            world.step();
            let due = |(step, _): &(usize, usize)| *step <= world.steps;
            let due: Vec<_> = cancels.iter().copied().filter(due).collect();
            due.iter().for_each(|(_, key)| world.cancel(*key));
        }
    }
    world.finish(20_000);
    for (key, arrival) in scenario.arrivals.iter().enumerate() {
        check_output(&world, key, arrival);
    }
}

fn check_output(world: &World, key: usize, arrival: &Arrival) {
    let Some(output) = world.outputs.get(&key) else {
        assert!(arrival.cancelled_after.is_some(), "{key} got no output");
        return;
    };
    let stop = match arrival.manner {
        Manner::Stops(token) => Some(token),
        _ => None,
    };
    let stopped = stop.is_some() && output.last().copied() == stop;
    assert!(stopped || output.len() == arrival.max_tokens as usize);
    if arrival.adapter.is_none() {
        assert_eq!(*output, expected_until(&arrival.prompt, arrival.max_tokens, stop));
    }
    if arrival.prompt_logprobs {
        assert_eq!(world.scored[&key], (0..arrival.prompt.len() - 1).collect::<Vec<_>>());
    }
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn every_sequence_ends_right_and_leaves_nothing_behind(scenario in scenario()) {
        check(&scenario);
    }
}
