//! The CUDA backend in a whole model, on one rank and on several that share a GPU: what PEFT and
//! the CPU compute, wherever a GPU is found.

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use adapters::cut::PlainSharding;
use config::settings::{Backend, CommKind, Engine, Model, Parallel};
use contract::adapter::{Generation, Slot};
use contract::counts::Purpose;
use contract::sampling::Sampling;
use contract::step::{Choice, Draw, Executor, Fault, Query};
use contract::tensor::DType;
use ranks::error::StartError;
use ranks::group::Group;

use super::ahead;
use super::collectives::{BASE, LAYERS, cost};
use super::feed::{Feed, batch, distance, logprobs};
use super::fixture::{BASES, ENGINE, Fixture, parallel};

/// Of logprobs, by element type; those of 16 bits are compared with the CPU's, whose activations
/// are in f32.
const TOLERANCES: [(DType, f32); 3] =
    [(DType::F32, 1e-4), (DType::F16, 2e-2), (DType::Bf16, 1.5e-1)];

/// The ways that a model can be cut here.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cut {
    Cpu,
    One,
    Peer(usize),
    Nccl(usize),
    /// Two ranks, each on a device of its own.
    Apart(CommKind),
}

impl Cut {
    fn ranks(self) -> usize {
        match self {
            Self::Cpu | Self::One => 1,
            Self::Peer(ranks) | Self::Nccl(ranks) => ranks,
            Self::Apart(_) => 2,
        }
    }

    fn parallel(self) -> Parallel {
        let cuda = |tensor, comm| {
            let devices = vec![0; tensor];
            Parallel { backend: Backend::Cuda, comm, devices, ..parallel(tensor) }
        };
        match self {
            Self::Cpu => parallel(1),
            Self::One => cuda(1, CommKind::Auto),
            Self::Peer(ranks) => cuda(ranks, CommKind::Peer),
            Self::Nccl(ranks) => cuda(ranks, CommKind::Nccl),
            Self::Apart(comm) => Parallel { devices: vec![0, 1], ..cuda(2, comm) },
        }
    }

    fn start(self, fixture: &Fixture, dtype: DType) -> Result<Group, StartError> {
        let model = Model { dtype: Some(dtype), ..fixture.model(fixture.base()) };
        fixture.start(&model, &self.parallel())
    }
}

/// Which cuts work here, one test at a time; says why not of the others, past the test's capture,
/// because a skipped test has to be seen. `None` where there is no GPU.
fn cuts(wanted: &[Cut]) -> Option<(MutexGuard<'static, ()>, Vec<Cut>)> {
    // Ranks that wait for each other on one card leave no room for another test's.
    static ONE_TEST: Mutex<()> = Mutex::new(());
    let one = ONE_TEST.lock().unwrap_or_else(PoisonError::into_inner);
    let skipped = |cut: Cut, why: &StartError| {
        let _ = writeln!(std::io::stderr(), "skipped cuda in whole models ({cut:?}): {why}");
    };
    let fixture = Fixture::open("llama");
    if let Err(why) = Cut::One.start(&fixture, DType::F32) {
        assert!(why.to_string().starts_with("backend = \"cuda\": "), "{why}");
        skipped(Cut::One, &why);
        return None;
    }
    let works = |cut: &Cut| match cut.start(&fixture, DType::F32) {
        Ok(_) => true,
        Err(why) => {
            // What may be missing where there is a GPU.
            let lacks = |what: &str| why.to_string().contains(what);
            let excused = match cut {
                Cut::Nccl(_) => lacks("NCCL"),
                Cut::Apart(_) => lacks("NCCL") || lacks("no device 1") || lacks("cannot reach"),
                _ => false,
            };
            assert!(excused, "{why}");
            skipped(*cut, &why);
            false
        }
    };
    Some((one, wanted.iter().copied().filter(works).collect()))
}

/// The adapters of a test in their slots, and how each is cut; the last is cut in both factors.
fn adapters(fixture: &Fixture) -> Vec<(String, PlainSharding)> {
    let mut names = fixture.adapters();
    names.truncate(6);
    let cut = |name| (name, PlainSharding::Replicated);
    let sharded = ("plain".to_owned(), PlainSharding::FullySharded);
    names.into_iter().map(cut).chain([sharded]).collect()
}

fn load(group: &mut Group, fixture: &Fixture, ranks: usize, adapters: &[(String, PlainSharding)]) {
    (0..adapters.len() as u32).for_each(|slot| load_one(group, fixture, ranks, adapters, slot));
}

/// Loads what belongs in one slot. The last adapter, which needs collectives of its own, keeps
/// adapted steps from being recorded from then on, so tests of recorded steps load it last.
fn load_one(
    group: &mut Group,
    fixture: &Fixture,
    ranks: usize,
    adapters: &[(String, PlainSharding)],
    slot: u32,
) {
    let (name, sharding) = &adapters[slot as usize];
    group.load(Slot(slot), fixture.generation(name, ranks, *sharding)).unwrap();
}

#[test]
fn cuda_computes_what_the_cpu_and_peft_compute_on_any_ranks() {
    let apart = [CommKind::Peer, CommKind::Nccl].map(Cut::Apart);
    let wanted = [Cut::One, Cut::Peer(2), Cut::Peer(4), Cut::Nccl(2), apart[0], apart[1]];
    let Some((_one, cuts)) = cuts(&wanted) else { return };
    for base in BASES {
        let fixture = Fixture::open(base);
        let fits = |ranks| fixture.rank_counts().any(|count| count == ranks);
        for (dtype, tolerance) in TOLERANCES {
            let wanted = steps(&fixture, Cut::Cpu, dtype);
            for cut in cuts.iter().filter(|cut| fits(cut.ranks())) {
                let found = steps(&fixture, *cut, dtype);
                for (step, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                    let off = distance(found, wanted);
                    let what = format!("{base}, {dtype}, {cut:?}, step {step}");
                    assert!(off < tolerance, "{what}: {off} from the CPU");
                }
                if dtype == DType::F32 {
                    assert_peft(&fixture, &found);
                }
            }
        }
    }
}

/// The base and every adapter in one batch, prefill and then a token of each as decode does:
/// `[step][feed][position * vocab + token]`, the base last.
fn steps(fixture: &Fixture, cut: Cut, dtype: DType) -> [Vec<Vec<f32>>; 2] {
    let (adapters, prompts) = (adapters(fixture), fixture.prompts());
    let mut group = cut.start(fixture, dtype).unwrap();
    load(&mut group, fixture, cut.ranks(), &adapters);
    let slots = (0..adapters.len() as u32).map(Some).chain([None]);
    let feeds = slots.zip((0..).step_by(2));
    let feeds: Vec<_> = feeds.map(|(slot, block)| Feed::new(&prompts[0], block, slot)).collect();
    let split = prompts[0].len() - 1;
    [0..split, split..split + 1].map(|part| {
        let parts: Vec<_> = feeds.iter().map(|feed| feed.part(part.start, part.end)).collect();
        logprobs(&mut group, &parts)
    })
}

/// Both steps of the first prompt, one feed an adapter and then the base.
fn assert_peft(fixture: &Fixture, found: &[Vec<Vec<f32>>; 2]) {
    let vocab = fixture.config.shape.vocab;
    let names = adapters(fixture).into_iter().map(|(name, _)| name).chain(["base".to_owned()]);
    let wanted: Vec<_> = names.map(|name| fixture.logprobs(&name)[0].clone()).collect();
    let split = found[0][0].len();
    assert_eq!(split % vocab, 0);
    for (found, rows) in found.iter().zip([0..split, split..wanted[0].len()]) {
        let wanted: Vec<_> = wanted.iter().map(|all| all[rows.clone()].to_vec()).collect();
        let off = distance(found, &wanted);
        assert!(off < 1e-4, "{:?}, {rows:?}: {off} from PEFT", fixture.base());
    }
}

/// The first step of decode is launched piece by piece, the next ones as the graph that it left:
/// for the same mix of adapters, for another, for fewer rows, for none at all.
#[test]
fn decode_of_any_mix_is_one_graph() {
    let Some((_one, _)) = cuts(&[]) else { return };
    let (fixture, cut) = (Fixture::open("llama"), PlainSharding::Replicated);
    let (names, prompts) = (fixture.adapters(), fixture.prompts());
    let adapters: Vec<_> = names.into_iter().take(7).map(|name| (name, cut)).collect();
    let all = [Some(0), Some(1), Some(2), Some(3), Some(4), Some(5), Some(6), None];
    let other = [Some(6), Some(6), Some(2), None, None, None, None, Some(0)];
    let mixes = [&all[..], &all, &other, &all[1..6], &[None; 8], &[None; 5], &other];
    for (dtype, tolerance) in TOLERANCES {
        let mut groups = [Cut::One, Cut::Cpu].map(|cut| cut.start(&fixture, dtype).unwrap());
        groups.iter_mut().for_each(|group| load(group, &fixture, 1, &adapters));
        for (turn, slots) in mixes.into_iter().enumerate() {
            let feeds = (0..).step_by(2).zip(slots);
            let feeds = feeds.map(|(block, slot)| Feed::new(&prompts[0], block, *slot));
            let feeds: Vec<_> = feeds.collect();
            let split = prompts[0].len() - 2;
            for part in [0..split, split..split + 1, split + 1..split + 2] {
                let parts = feeds.iter().map(|feed| feed.part(part.start, part.end));
                let parts: Vec<_> = parts.collect();
                let [found, wanted] = groups.each_mut().map(|group| logprobs(group, &parts));
                let off = distance(&found, &wanted);
                assert!(off < tolerance, "{dtype}, mix {turn}, rows {part:?}: {off} from the CPU");
            }
        }
    }
}

/// What a prompt is continued with, greedily, as the engine would: one token a step.
fn greedy(group: &mut Group, prompt: &[u32], slot: Option<u32>) -> Vec<u32> {
    const TOKENS: usize = 12;
    let mut tokens = prompt.to_vec();
    let mut known = 0;
    for index in 0..TOKENS {
        let whole = tokens.clone();
        let feed = Feed { blocks: vec![1, 2, 3], ..Feed::new(&whole, 1, slot) };
        let mut batch = batch(&[feed.part(known, whole.len())]);
        let row = batch.tokens.len() as u32 - 1;
        batch.queries = vec![likeliest(row, index)];
        known = whole.len();
        tokens.push(group.run(Arc::new(batch)).unwrap().answers[0].token);
    }
    tokens.split_off(prompt.len())
}

fn likeliest(row: u32, index: usize) -> Query {
    let draw = Draw {
        sampling: Arc::new(Sampling { temperature: 0.0, ..Sampling::default() }),
        seed: 0,
        index: index as u32,
        prompt: 0..0,
        output: 0..0,
    };
    Query { row, choice: Choice::Draw(draw), top_logprobs: None }
}

#[test]
fn greedy_text_is_the_same_on_the_cpu_and_on_any_ranks() {
    let Some((_one, cuts)) = cuts(&[Cut::One, Cut::Peer(2), Cut::Nccl(2)]) else { return };
    for base in ["llama", "qwen3"] {
        let fixture = Fixture::open(base);
        let (adapters, prompts) = (adapters(&fixture), fixture.prompts());
        let texts = |cut: Cut| {
            let mut group = cut.start(&fixture, DType::F32).unwrap();
            let slots = [None].into_iter().chain((0..adapters.len() as u32).map(Some));
            let text = |slot: Option<u32>| {
                slot.inspect(|slot| load_one(&mut group, &fixture, cut.ranks(), &adapters, *slot));
                greedy(&mut group, &prompts[0], slot)
            };
            slots.map(text).collect::<Vec<_>>()
        };
        let wanted = texts(Cut::Cpu);
        assert!(wanted.iter().any(|text| *text != wanted[0]), "no adapter changes anything");
        for cut in &cuts {
            assert_eq!(texts(*cut), wanted, "{base}, {cut:?}");
        }
    }
}

#[test]
fn ahead_of_the_host_the_same_tokens_are_drawn_on_any_ranks() {
    let Some((_one, cuts)) = cuts(&[Cut::One, Cut::Peer(2), Cut::Nccl(2)]) else { return };
    let fixture = Fixture::open("llama");
    let (adapters, prompts) = (adapters(&fixture), fixture.prompts());
    for cut in cuts {
        let mut group = cut.start(&fixture, DType::F32).unwrap();
        assert!(group.runs_ahead());
        // The last adapter keeps adapted steps from being recorded.
        for (loaded, slots) in [(2, [None, Some(0), Some(1)]), (7, [None, Some(2), Some(6)])] {
            let slots_loaded = 0..loaded.min(adapters.len() as u32);
            slots_loaded.for_each(|it| load_one(&mut group, &fixture, cut.ranks(), &adapters, it));
            let sequences = ahead::sequences(&prompts, &slots);
            let wanted = ahead::texts(&mut group, &sequences, false);
            for turn in 0..2 {
                let found = ahead::texts(&mut group, &sequences, true);
                assert_eq!(found, wanted, "{cut:?}, {slots:?}, turn {turn}");
            }
        }
        group.time_idle().unwrap();
        let step = Arc::new(batch(&[Feed::new(&prompts[0], 1, None)]));
        let idle = [(); 3].map(|()| group.run(Arc::clone(&step)).unwrap().idle);
        assert!(idle[0].is_none() && idle[1..].iter().all(Option::is_some), "{cut:?}: {idle:?}");
    }
}

#[test]
fn a_crowd_is_drawn_for_ahead_of_the_host_on_any_ranks() {
    let Some((_one, cuts)) = cuts(&[Cut::One, Cut::Peer(2), Cut::Nccl(2)]) else { return };
    let fixture = Fixture::open("llama");
    let model = fixture.model(fixture.base());
    for cut in cuts {
        let mut group = fixture.start_with(&model, &cut.parallel(), &ahead::CROWDED).unwrap();
        let mut texts = |ahead| ahead::crowd(&mut group, fixture.config.shape.vocab, ahead);
        assert_eq!(texts(true), texts(false), "{cut:?}");
    }
}

#[test]
fn adapters_add_no_collective_unless_fully_sharded() {
    let Some((_one, cuts)) = cuts(&[Cut::Peer(2), Cut::Peer(4), Cut::Nccl(2)]) else { return };
    let fixture = Fixture::open("llama");
    let (adapters, prompts) = (adapters(&fixture), fixture.prompts());
    for cut in cuts {
        let mut group = cut.start(&fixture, DType::Bf16).unwrap();
        let slots = [None].into_iter().chain((0..adapters.len() as u32).map(Some));
        for slot in slots {
            slot.inspect(|slot| load_one(&mut group, &fixture, cut.ranks(), &adapters, *slot));
            let sharded =
                slot.is_some_and(|slot| adapters[slot as usize].1 != PlainSharding::Replicated);
            let lora = if sharded { 4 * LAYERS } else { 0 };
            let whole = Feed::new(&prompts[0], 1, slot);
            let found = cost(&mut group, std::slice::from_ref(&whole));
            assert_eq!(found, (BASE, lora), "{cut:?}, slot {slot:?}");
            // Steps of decode: the first is recorded, and the others are what was recorded.
            for step in 0..3 {
                let last = whole.part(whole.tokens.len() - 1, whole.tokens.len());
                let found = cost(&mut group, &[last]);
                assert_eq!(found, (BASE, lora), "{cut:?}, slot {slot:?}, step {step} of decode");
            }
        }
        assert_eq!(group.counts().get(Purpose::Lora), 4 * 4 * LAYERS);
    }
}

#[test]
fn a_cache_that_no_device_holds_is_refused_with_its_size() {
    let Some((_one, cuts)) = cuts(&[Cut::One, Cut::Peer(2), Cut::Nccl(2)]) else { return };
    let fixture = Fixture::open("llama");
    let engine = Engine { kv_cache_bytes: Some(4 << 40), ..ENGINE };
    for cut in cuts {
        let model = fixture.model(fixture.base());
        let started = fixture.start_with(&model, &cut.parallel(), &engine);
        let why = started.err().unwrap().to_string();
        let parts = ["device 0 (", "free for ", "GiB for a KV cache of ", "parallel.tensor"];
        assert!(parts.iter().all(|part| why.contains(part)), "{cut:?}: {why}");
    }
}

/// Without a size, ranks agree on one and leave room; a step still fits beside it.
#[test]
fn a_cache_of_no_given_size_leaves_room_for_steps_and_adapters() {
    let Some((_one, cuts)) = cuts(&[Cut::One, Cut::Peer(2), Cut::Nccl(2)]) else { return };
    let fixture = Fixture::open("llama");
    let (adapters, prompts) = (adapters(&fixture), fixture.prompts());
    let engine = Engine { kv_cache_bytes: None, sequences_max: 1 << 24, ..ENGINE };
    let engine = Engine { batch_tokens_max: 4096, ..engine };
    for cut in cuts {
        let model = fixture.model(fixture.base());
        let mut group = fixture.start_with(&model, &cut.parallel(), &engine).unwrap();
        let blocks = group.limits().blocks;
        assert!(blocks > 1 << 20, "{cut:?}: {blocks} blocks");
        load(&mut group, &fixture, cut.ranks(), &adapters);
        let feed = Feed::new(&prompts[0], blocks as u32 - 3, Some(0));
        logprobs(&mut group, &[feed]);
    }
}

/// Two replicas of two ranks on one device, both with a cache of no given size: each gets its
/// share, and the collectives of both fit at once.
#[test]
fn replicas_on_one_device_share_it() {
    let Some((_one, cuts)) = cuts(&[Cut::Peer(2)]) else { return };
    let fixture = Fixture::open("llama");
    let (model, prompts) = (fixture.model(fixture.base()), fixture.prompts());
    let engine = Engine { kv_cache_bytes: None, sequences_max: 1 << 24, ..ENGINE };
    for cut in cuts {
        let parallel = Parallel { replicas: 2, devices: vec![0; 4], ..cut.parallel() };
        let start = |replica| fixture.start_replica(&model, &parallel, &engine, replica).unwrap();
        let mut groups = [start(0), start(1)];
        let [one, two] = [0, 1].map(|at| groups[at].limits().blocks);
        assert!(one.abs_diff(two) < one / 8, "{one} and {two} blocks");
        let feed = Feed::new(&prompts[0], 1, None);
        let found = std::thread::scope(|scope| {
            let feed = std::slice::from_ref(&feed);
            let threads = groups.each_mut().map(|group| scope.spawn(move || logprobs(group, feed)));
            threads.map(|thread| thread.join().unwrap())
        });
        assert!(found[0] == found[1], "{cut:?}: the same model on the same prompt");
    }
}

/// A generation that is right for every rank but the second, which divides by zero taking it.
fn torn(fixture: &Fixture, ranks: usize) -> Arc<Generation> {
    let whole = fixture.generation("plain", ranks, PlainSharding::Replicated);
    let mut torn = (*whole).clone();
    torn.ranks[1][1][0].as_mut().unwrap().shape.a_blocks = 0;
    Arc::new(torn)
}

#[test]
fn a_rank_that_dies_ends_its_group_and_nobody_waits() {
    let apart = [CommKind::Peer, CommKind::Nccl].map(Cut::Apart);
    let wanted = [Cut::Peer(2), Cut::Peer(4), Cut::Nccl(2), apart[0], apart[1]];
    let Some((_one, cuts)) = cuts(&wanted) else { return };
    let fixture = Fixture::open("llama");
    let prompts = fixture.prompts();
    for cut in cuts {
        let mut group = cut.start(&fixture, DType::Bf16).unwrap();
        logprobs(&mut group, &[Feed::new(&prompts[0], 1, None)]);
        let start = Instant::now();
        let loaded = group.load(Slot(0), torn(&fixture, cut.ranks()));
        let says = |fault: Fault| {
            let Fault::Dead { rank: 1, message } = fault else { panic!("{cut:?}: {fault}") };
            assert!(message.contains("panicked"), "{cut:?}: {message}");
        };
        says(loaded.err().unwrap());
        let output = group.run(Arc::new(batch(&[Feed::new(&prompts[0], 1, None)])));
        says(output.err().unwrap());
        drop(group);
        assert!(start.elapsed() < Duration::from_secs(10), "{cut:?}: {:?}", start.elapsed());
    }
}
