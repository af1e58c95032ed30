//! The CUDA backend in a whole model: what PEFT and the CPU compute, wherever a GPU is found.

use std::io::Write;

use adapters::cut::PlainSharding;
use config::settings::{Backend, Model, Parallel};
use contract::adapter::Slot;
use contract::step::Executor;
use contract::tensor::DType;
use ranks::group::Group;

use super::feed::{Feed, distance, logprobs};
use super::fixture::{BASES, Fixture, parallel};

/// Of logprobs, by element type; those of 16 bits are compared with the CPU's, whose activations
/// are in f32.
const TOLERANCES: [(DType, f32); 3] =
    [(DType::F32, 1e-4), (DType::F16, 2e-2), (DType::Bf16, 1.5e-1)];

/// Whether a GPU can be used; says why not, past the test's capture, because a skipped test has to
/// be seen.
fn found() -> bool {
    let fixture = Fixture::open("llama");
    match fixture.start(&fixture.model(fixture.base()), &on(Backend::Cuda)) {
        Ok(_) => true,
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "skipped cuda in whole models: {why}");
            assert!(why.to_string().starts_with("backend = \"cuda\": "), "{why}");
            false
        }
    }
}

fn on(backend: Backend) -> Parallel {
    Parallel { backend, ..parallel(1) }
}

/// One rank of each backend, with the same adapters in the same slots.
fn pair(fixture: &Fixture, names: &[String], dtype: DType) -> [Group; 2] {
    [Backend::Cuda, Backend::Cpu].map(|backend| {
        let model = Model { dtype: Some(dtype), ..fixture.model(fixture.base()) };
        let mut group = fixture.start(&model, &on(backend)).unwrap();
        for (slot, name) in (0..).zip(names) {
            let generation = fixture.generation(name, 1, PlainSharding::Replicated);
            group.load(Slot(slot), generation).unwrap();
        }
        group
    })
}

#[test]
fn cuda_computes_what_the_cpu_and_peft_compute() {
    if !found() {
        return;
    }
    for base in BASES {
        let fixture = Fixture::open(base);
        let (mut names, prompts) = (fixture.adapters(), fixture.prompts());
        names.truncate(7);
        for (dtype, tolerance) in TOLERANCES {
            let [mut cuda, mut cpu] = pair(&fixture, &names, dtype);
            // The base and every adapter in one batch; then a token more of each, as decode does.
            let slots = || (0..names.len() as u32).map(Some).chain([None]);
            let split = prompts[0].len() - 1;
            let feeds = slots().zip((0..).step_by(2));
            let feeds = feeds.map(|(slot, block)| Feed::new(&prompts[0], block, slot));
            let feeds: Vec<_> = feeds.collect();
            for part in [0..split, split..split + 1] {
                let parts = feeds.iter().map(|feed| feed.part(part.start, part.end));
                let parts: Vec<_> = parts.collect();
                let [found, wanted] = [&mut cuda, &mut cpu].map(|group| logprobs(group, &parts));
                let off = distance(&found, &wanted);
                assert!(off < tolerance, "{base}, {dtype}, rows {part:?}: {off} from the CPU");
                if dtype == DType::F32 {
                    assert_peft(&fixture, &names, &found, part);
                }
            }
        }
    }
}

/// The first step of decode is launched piece by piece, the next ones as the graph that it left: for
/// the same mix of adapters, for another, for fewer rows, for none at all.
#[test]
fn cuda_decodes_any_mix_as_one_graph() {
    if !found() {
        return;
    }
    let fixture = Fixture::open("llama");
    let (mut names, prompts) = (fixture.adapters(), fixture.prompts());
    names.truncate(7);
    for (dtype, tolerance) in TOLERANCES {
        let [mut cuda, mut cpu] = pair(&fixture, &names, dtype);
        let all: Vec<_> = (0..names.len() as u32).map(Some).chain([None]).collect();
        let other: Vec<_> = [Some(6), Some(6), Some(2), None, None, None, None, Some(0)].into();
        let mixes = [&all[..], &all, &other, &all[1..6], &[None; 8], &[None; 5], &other];
        for (turn, slots) in mixes.into_iter().enumerate() {
            let feeds = (0..).step_by(2).zip(slots);
            let feeds = feeds.map(|(block, slot)| Feed::new(&prompts[0], block, *slot));
            let feeds: Vec<_> = feeds.collect();
            let split = prompts[0].len() - 2;
            for part in [0..split, split..split + 1, split + 1..split + 2] {
                let parts = feeds.iter().map(|feed| feed.part(part.start, part.end));
                let parts: Vec<_> = parts.collect();
                let [found, wanted] = [&mut cuda, &mut cpu].map(|group| logprobs(group, &parts));
                let off = distance(&found, &wanted);
                assert!(off < tolerance, "{dtype}, mix {turn}, rows {part:?}: {off} from the CPU");
            }
        }
    }
}

/// Rows of the first prompt, one feed an adapter and then the base.
fn assert_peft(
    fixture: &Fixture,
    names: &[String],
    found: &[Vec<f32>],
    rows: std::ops::Range<usize>,
) {
    let vocab = fixture.config.shape.vocab;
    let all = names.iter().map(String::as_str).chain(["base"]);
    let wanted =
        all.map(|name| fixture.logprobs(name)[0][rows.start * vocab..rows.end * vocab].to_vec());
    let off = distance(found, &wanted.collect::<Vec<_>>());
    assert!(off < 1e-4, "{:?}, rows {rows:?}: {off} from PEFT", fixture.base());
}
