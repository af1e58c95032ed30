//! Every position's logprobs of every base and adapter, as PEFT has them, at every number of ranks.

use adapters::cut::PlainSharding;
use contract::adapter::Slot;
use contract::step::Executor;

use super::feed::{Feed, distance, logprobs};
use super::fixture::{BASES, Fixture};

/// In f32. Rounding alone comes to about 1e-5.
const TOLERANCE: f32 = 1e-4;

/// What `ranks` ranks compute for each of `names`, "base" among them.
fn answers(
    fixture: &Fixture,
    names: &[String],
    ranks: usize,
    sharding: PlainSharding,
) -> Vec<Vec<Vec<f32>>> {
    let prompts = fixture.prompts();
    let mut group = fixture.group(ranks);
    let answer = |name: &String| {
        let slot = (name != "base").then_some(2);
        if let Some(slot) = slot {
            group.load(Slot(slot), fixture.generation(name, ranks, sharding)).unwrap();
        }
        let feeds = [Feed::new(&prompts[0], 3, slot), Feed::new(&prompts[1], 1, slot)];
        logprobs(&mut group, &feeds)
    };
    names.iter().map(answer).collect()
}

fn assert_goldens(sharding: PlainSharding) {
    for base in BASES {
        let fixture = Fixture::open(base);
        let mut names = fixture.adapters();
        names.push("base".to_owned());
        let expected: Vec<_> = names.iter().map(|name| fixture.logprobs(name)).collect();
        let alone = answers(&fixture, &names, 1, sharding);
        for ranks in fixture.rank_counts() {
            let found = answers(&fixture, &names, ranks, sharding);
            for (index, name) in names.iter().enumerate() {
                let peft = distance(&found[index], &expected[index]);
                let alone = distance(&found[index], &alone[index]);
                let good = peft < TOLERANCE && alone < TOLERANCE;
                assert!(good, "{base}, {name}, {ranks} ranks: {peft} off, {alone} from one rank");
            }
        }
    }
}

#[test]
fn logprobs_are_those_of_peft() {
    assert_goldens(PlainSharding::Replicated);
}

#[test]
fn logprobs_are_those_of_peft_when_fully_sharded() {
    assert_goldens(PlainSharding::FullySharded);
}
