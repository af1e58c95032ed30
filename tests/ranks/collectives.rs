//! How many collectives a step costs, and for what.

use adapters::cut::PlainSharding;
use contract::adapter::Slot;
use contract::counts::Purpose;
use contract::step::Executor;
use ranks::group::Group;

use super::feed::{Feed, logprobs};
use super::fixture::Fixture;

/// Of the llama fixture.
pub const LAYERS: u64 = 2;

/// Two all-reduces a layer, one for the embedding, one gather for up to 64 rows of logits.
pub const BASE: u64 = 2 * LAYERS + 1 + 1;

/// `(base, lora)` collectives of one step.
pub fn cost(group: &mut Group, feeds: &[Feed<'_>]) -> (u64, u64) {
    let counts = |group: &Group| Purpose::ALL.map(|purpose| group.counts().get(purpose));
    let before = counts(group);
    logprobs(group, feeds);
    let after = counts(group);
    (after[0] - before[0], after[1] - before[1])
}

#[test]
fn one_rank_has_nobody_to_talk_to() {
    let fixture = Fixture::open("llama");
    let prompts = fixture.prompts();
    let mut group = fixture.group(1);
    group.load(Slot(0), fixture.generation("plain", 1, PlainSharding::FullySharded)).unwrap();
    assert_eq!(cost(&mut group, &[Feed::new(&prompts[0], 1, Some(0))]), (0, 0));
}

#[test]
fn adapters_of_every_kind_add_none() {
    let fixture = Fixture::open("llama");
    let prompts = fixture.prompts();
    for ranks in [2, 4, 8] {
        let mut group = fixture.group(ranks);
        assert_eq!(cost(&mut group, &[Feed::new(&prompts[0], 1, None)]), (BASE, 0));
        for name in fixture.adapters() {
            let generation = fixture.generation(&name, ranks, PlainSharding::Replicated);
            group.load(Slot(0), generation).unwrap();
            let cost = cost(&mut group, &[Feed::new(&prompts[0], 1, Some(0))]);
            assert_eq!(cost, (BASE, 0), "{name} on {ranks} ranks");
        }
    }
}

#[test]
fn fully_sharded_plain_adapters_add_four_a_layer() {
    let fixture = Fixture::open("llama");
    let prompts = fixture.prompts();
    for ranks in [2, 4, 8] {
        let mut group = fixture.group(ranks);
        for (slot, name) in ["plain", "bd2"].into_iter().enumerate() {
            let generation = fixture.generation(name, ranks, PlainSharding::FullySharded);
            group.load(Slot(slot as u32), generation).unwrap();
        }
        let base = Feed::new(&prompts[0], 1, None);
        let plain = Feed::new(&prompts[1], 3, Some(0));
        let blocks = Feed::new(&prompts[0], 5, Some(1));
        assert_eq!(cost(&mut group, &[base.clone(), blocks.clone()]), (BASE, 0));
        assert_eq!(cost(&mut group, &[base, blocks, plain]), (BASE, 4 * LAYERS));
    }
}

#[test]
fn logits_are_gathered_64_rows_at_a_time() {
    let fixture = Fixture::open("llama");
    let prompts = fixture.prompts();
    let mut group = fixture.group(2);
    let feeds: Vec<_> = (0..4).map(|index| Feed::new(&prompts[0], 2 * index, None)).collect();
    assert_eq!(cost(&mut group, &feeds), (BASE + 1, 0), "4 x 17 rows");
}
