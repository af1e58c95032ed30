//! What cannot be done is refused, and a rank that fails ends its group with its message.

use std::sync::Arc;

use adapters::cut::PlainSharding;
use config::settings::{Backend, CommKind, Engine, Model, Parallel};
use contract::adapter::{Generation, Slot};
use contract::step::{Executor, Fault};
use ranks::group::Group;

use super::feed::{Feed, batch, logprobs};
use super::fixture::{ENGINE, Fixture, parallel};

#[test]
fn what_this_build_or_model_does_not_have_is_refused_by_name() {
    let fixture = Fixture::open("llama");
    let model = fixture.model(fixture.base());
    let cases = [
        (Parallel { backend: Backend::Cuda, devices: vec![999], ..parallel(1) }, "\"cuda\": "),
        (Parallel { backend: Backend::Cuda, ..parallel(2) }, "backend = \"cuda\": "),
        (Parallel { comm: CommKind::Nccl, ..parallel(2) }, "comm = \"nccl\""),
        (Parallel { comm: CommKind::Peer, ..parallel(2) }, "comm = \"peer\""),
        (parallel(3), "8 attention heads cannot be cut across 3 ranks"),
    ];
    for (parallel, expected) in cases {
        let why = fixture.start(&model, &parallel).err().unwrap().to_string();
        assert!(why.contains(expected), "{why:?} does not say {expected:?}");
    }
}

#[test]
fn a_cache_without_room_is_refused_with_its_numbers() {
    let fixture = Fixture::open("llama");
    // 2 layers, keys and values, 8 heads of 8 in f32 on 8 ranks, 16 positions.
    let block: u64 = 2 * 2 * 8 * 8 * 4 * 16;
    let group = fixture.group(8);
    assert_eq!(group.limits().blocks as u64, ENGINE.kv_cache_bytes.unwrap() / block);

    let model = fixture.model(fixture.base());
    let with = |kv_cache_bytes| {
        let engine = Engine { kv_cache_bytes: Some(kv_cache_bytes), ..ENGINE };
        fixture.start_with(&model, &parallel(8), &engine)
    };
    let why = with(block - 1).err().unwrap().to_string();
    assert!(why.contains(&block.to_string()), "{why}");
    assert_eq!(with(block).unwrap().limits().positions_max, 16);

    let engine = Engine { kv_cache_bytes: Some(block), ..ENGINE };
    let long = Model { context_max: Some(17), ..model };
    let why = fixture.start_with(&long, &parallel(8), &engine).err().unwrap().to_string();
    assert!(why.contains("model.context_max = 17") && why.contains("holds 16 tokens"), "{why}");
}

#[test]
fn a_cache_of_no_given_size_is_as_large_as_can_be_used() {
    let fixture = Fixture::open("llama");
    let engine = Engine { kv_cache_bytes: None, ..ENGINE };
    let longest = fixture.config.positions_max.div_ceil(ENGINE.block_tokens);
    for ranks in [1, 2] {
        let group = fixture.start_with(&fixture.model(fixture.base()), &parallel(ranks), &engine);
        let limits = group.unwrap().limits();
        assert_eq!(limits.blocks, ENGINE.sequences_max * longest);
        assert_eq!(limits.positions_max, fixture.config.positions_max);
    }
}

#[test]
fn a_refused_load_or_batch_leaves_the_group_running() {
    let fixture = Fixture::open("llama");
    let prompts = fixture.prompts();
    let mut group = fixture.group(2);
    let elsewhere = fixture.generation("bd2", 4, PlainSharding::Replicated);
    let Err(Fault::Refused(why)) = group.load(Slot(0), elsewhere) else { panic!("was taken") };
    assert!(why.contains("cut for 4 ranks"), "{why}");

    let long = prompts[0].repeat(ENGINE.batch_tokens_max);
    let long = Feed { blocks: vec![0; long.len()], ..Feed::new(&long, 0, None) };
    let Err(Fault::Refused(why)) = group.run(Arc::new(batch(&[long]))) else { panic!("ran") };
    assert!(why.contains("batch_tokens_max"), "{why}");
    logprobs(&mut group, &[Feed::new(&prompts[0], 1, None)]);
}

/// A generation that is right for every rank but the second.
fn torn(fixture: &Fixture) -> Arc<Generation> {
    let mut generation = (*fixture.generation("plain", 2, PlainSharding::Replicated)).clone();
    let pair = generation.ranks[1][1][0].as_mut().unwrap();
    pair.a.truncate(3);
    Arc::new(generation)
}

#[test]
fn a_rank_that_panics_ends_the_group_and_frees_its_peers() {
    let fixture = Fixture::open("llama");
    let prompts = fixture.prompts();
    let mut group = fixture.group(2);
    let use_it = |group: &mut Group| {
        group.load(Slot(0), torn(&fixture))?;
        group.run(Arc::new(batch(&[Feed::new(&prompts[0], 1, Some(0))])))
    };
    for _ in 0..2 {
        let Err(Fault::Dead { rank: 1, message }) = use_it(&mut group) else { panic!("no fault") };
        assert!(message.contains("panicked"), "{message}");
    }
}
