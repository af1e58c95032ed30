//! A row depends on its own sequence alone: not on its batch, its chunks or its block table.

use adapters::cut::PlainSharding;
use config::settings::Model;
use contract::adapter::Slot;
use contract::step::Executor;
use contract::tensor::DType;
use ranks::group::Group;

use super::feed::{Feed, logprobs};
use super::fixture::{Fixture, parallel};

/// Neighbours of different kinds and lora ranks, and the base between them.
const SLOTS: [Option<&str>; 7] = [
    Some("bd2"),
    Some("plain"),
    None,
    Some("rslora-patterns"),
    Some("bd8"),
    None,
    Some("attention-only"),
];

/// Where each sequence is after each step: whole prompts, chunks over block borders, decoding.
const STEPS: [[usize; 7]; 4] = [
    [17, 3, 16, 0, 1, 5, 0],
    [17, 8, 17, 16, 2, 17, 0],
    [17, 17, 17, 17, 3, 17, 0],
    [17, 17, 17, 17, 17, 17, 17],
];

/// A group with an adapter in every slot of [`SLOTS`].
fn start(fixture: &Fixture, ranks: usize, sharding: PlainSharding, dtype: DType) -> Group {
    let model = Model { dtype: Some(dtype), ..fixture.model(fixture.base()) };
    let mut group = fixture.start(&model, &parallel(ranks)).unwrap();
    for (slot, name) in SLOTS.iter().enumerate() {
        if let Some(name) = name {
            let generation = fixture.generation(name, ranks, sharding);
            group.load(Slot(slot as u32), generation).unwrap();
        }
    }
    group
}

/// Seven prompts made of the two of the fixture, with an adapter or none, in scattered blocks.
fn feeds(prompts: &[Vec<u32>]) -> Vec<Feed<'_>> {
    let feed = |(index, name): (usize, &Option<&str>)| {
        let slot = name.map(|_| index as u32);
        let scattered = [40 - 5 * index as u32, 3 + 5 * index as u32];
        Feed { blocks: scattered.to_vec(), ..Feed::new(&prompts[index % 2], 0, slot) }
    };
    SLOTS.iter().enumerate().map(feed).collect()
}

fn assert_alone_equals_mixed(ranks: usize, sharding: PlainSharding, dtype: DType) {
    let fixture = Fixture::open("llama");
    let prompts = fixture.prompts();
    let feeds = feeds(&prompts);
    let mut group = start(&fixture, ranks, sharding, dtype);
    let mut alone = |feed: &Feed<'_>| {
        let elsewhere = Feed { blocks: vec![1, 2], ..feed.clone() };
        logprobs(&mut group, &[elsewhere]).remove(0)
    };
    let expected: Vec<_> = feeds.iter().map(&mut alone).collect();

    let mut found = vec![Vec::new(); feeds.len()];
    let mut from = [0; 7];
    for to in STEPS {
        let running: Vec<_> = (0..feeds.len()).filter(|index| from[*index] < to[*index]).collect();
        let parts: Vec<_> =
            running.iter().map(|index| feeds[*index].part(from[*index], to[*index])).collect();
        for (index, rows) in running.iter().zip(logprobs(&mut group, &parts)) {
            found[*index].extend(rows);
        }
        from = to;
    }
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!(found == expected, "sequence {index} on {ranks} ranks in {dtype} differs");
    }
}

#[test]
fn a_row_is_the_same_to_the_bit_alone_and_in_any_batch() {
    for ranks in [1, 2, 4, 8] {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            assert_alone_equals_mixed(ranks, PlainSharding::Replicated, dtype);
        }
    }
}

#[test]
fn a_row_is_the_same_to_the_bit_when_fully_sharded() {
    for ranks in [2, 8] {
        assert_alone_equals_mixed(ranks, PlainSharding::FullySharded, DType::Bf16);
    }
}

#[test]
fn a_slot_forgets_what_it_held() {
    let fixture = Fixture::open("llama");
    let prompts = fixture.prompts();
    let mut group = start(&fixture, 2, PlainSharding::Replicated, DType::F32);
    let in_slot = |slot| [Feed::new(&prompts[0], 1, slot)];
    let (base, plain) =
        (logprobs(&mut group, &in_slot(None)), logprobs(&mut group, &in_slot(Some(1))));
    assert!(base != plain);

    // "attention-only" has no pair at most sites: those of "bd2" must not stay there.
    let only = logprobs(&mut group, &in_slot(Some(6)));
    let generation = fixture.generation("attention-only", 2, PlainSharding::Replicated);
    group.load(Slot(0), generation).unwrap();
    assert!(logprobs(&mut group, &in_slot(Some(0))) == only);

    group.unload(Slot(0)).unwrap();
    assert!(logprobs(&mut group, &in_slot(Some(1))) == plain, "another slot was emptied");
}
