//! A step that is started while the one before is in flight draws what it would have drawn after.

use std::collections::VecDeque;
use std::sync::Arc;

use adapters::cut::PlainSharding;
use config::settings::Engine;
use contract::adapter::Slot;
use contract::sampling::Sampling;
use contract::step::{Batch, Choice, Draw, Executor, Fault, Pending, Query};
use ranks::group::Group;

use super::feed::{Feed, batch};
use super::fixture::{ENGINE, Fixture, parallel};

/// Tokens that each sequence draws.
const TOKENS: usize = 12;

/// A prompt, and how it is gone on with.
pub struct Sequence<'a> {
    pub prompt: &'a [u32],
    pub slot: Option<u32>,
    pub sampling: Arc<Sampling>,
}

/// Every way to draw that ranks are not waited for, with these slots in turn.
pub fn sequences<'a>(prompts: &'a [Vec<u32>], slots: &[Option<u32>]) -> Vec<Sequence<'a>> {
    let plain = Sampling { temperature: 1.5, ..Sampling::default() };
    let samplings = [
        Sampling { temperature: 0.0, ..Sampling::default() },
        Sampling { top_k: 5, ..plain.clone() },
        Sampling { top_p: 0.8, ..plain.clone() },
        Sampling { min_p: 0.05, logit_bias: vec![(3, 2.0)], ..plain.clone() },
        plain,
    ];
    let mut slots: Vec<_> = slots.iter().copied().cycle().take(samplings.len()).collect();
    slots.sort_unstable();
    let sequence = |(index, (sampling, slot)): (usize, _)| Sequence {
        prompt: &prompts[index % prompts.len()],
        slot,
        sampling: Arc::new(sampling),
    };
    samplings.into_iter().zip(slots).enumerate().map(sequence).collect()
}

/// What sequences are gone on with, one of which joins in every step. With `ahead`, a step is
/// started before the one ahead of it is waited for.
pub fn texts(group: &mut Group, sequences: &[Sequence<'_>], ahead: bool) -> Vec<Vec<u32>> {
    let mut texts = vec![Vec::new(); sequences.len()];
    let mut flights: VecDeque<Vec<usize>> = VecDeque::new();
    for step in 0..TOKENS + sequences.len() - 1 {
        // Who runs: those that have joined and have something left to draw.
        let runs = |index: &usize| *index <= step && step < index + TOKENS;
        let running: Vec<usize> = (0..sequences.len()).filter(runs).collect();
        group.start(Arc::new(decode(sequences, &running, &texts, (step, flights.back()))));
        flights.push_back(running);
        if flights.len() > usize::from(ahead) {
            settle(group, &mut flights, &mut texts);
        }
    }
    settle(group, &mut flights, &mut texts);
    texts
}

fn settle(group: &mut Group, flights: &mut VecDeque<Vec<usize>>, texts: &mut [Vec<u32>]) {
    let Some(running) = flights.pop_front() else { return };
    let answers = group.finish().unwrap().answers;
    assert_eq!(answers.len(), running.len());
    running.into_iter().zip(answers).for_each(|(index, answer)| texts[index].push(answer.token));
}

/// The prompt of a sequence that joins, the last token of the others.
fn decode(
    sequences: &[Sequence<'_>],
    running: &[usize],
    texts: &[Vec<u32>],
    (step, before): (usize, Option<&Vec<usize>>),
) -> Batch {
    let drawn = |index: usize| step - index;
    let known: Vec<Vec<u32>> = running
        .iter()
        .map(|index| match drawn(*index) {
            0 => sequences[*index].prompt.to_vec(),
            drawn => vec![texts[*index].get(drawn - 1).copied().unwrap_or(0)],
        })
        .collect();
    let feeds = running.iter().zip(&known).map(|(index, tokens)| {
        let start = sequences[*index].prompt.len() + drawn(*index) - tokens.len();
        let first = 3 * *index as u32;
        Feed {
            tokens,
            start,
            blocks: vec![first, first + 1, first + 2],
            slot: sequences[*index].slot.map(Slot),
        }
    });
    let mut batch = batch(&feeds.collect::<Vec<_>>());
    batch.queries.clear();
    for (index, span) in running.iter().zip(&batch.spans) {
        let row = span.rows.end - 1;
        batch.queries.push(draw(&sequences[*index], (row, *index, drawn(*index))));
        if let Some(query) = before.and_then(|before| before.iter().position(|it| it == index)) {
            batch.pending.push(Pending { row, query: query as u32 });
        }
    }
    batch
}

fn draw(sequence: &Sequence<'_>, (row, index, drawn): (u32, usize, usize)) -> Query {
    let draw = Draw {
        sampling: Arc::clone(&sequence.sampling),
        seed: index as u64,
        index: drawn as u32,
        prompt: 0..0,
        output: 0..0,
    };
    Query { row, choice: Choice::Draw(draw), top_logprobs: None }
}

/// Room for more draws in a step than any backend keeps logits of.
pub const CROWDED: Engine = Engine {
    kv_cache_bytes: Some(8 << 20),
    batch_tokens_max: CROWD,
    sequences_max: CROWD,
    ..ENGINE
};

const CROWD: usize = 300;

/// Four greedy tokens of each of a crowd of sequences, a row each.
pub fn crowd(group: &mut Group, vocab: usize, ahead: bool) -> Vec<Vec<u32>> {
    const STEPS: usize = 4;
    let mut texts: Vec<Vec<u32>> = (0..CROWD).map(|at| vec![(at * 7 % vocab) as u32]).collect();
    let settle = |group: &mut Group, texts: &mut Vec<Vec<u32>>| {
        let answers = group.finish().unwrap().answers;
        assert_eq!(answers.len(), CROWD);
        texts.iter_mut().zip(answers).for_each(|(text, answer)| text.push(answer.token));
    };
    for step in 0..STEPS {
        let last: Vec<_> = texts.iter().map(|text| text.get(step).copied().unwrap_or(0)).collect();
        let feed = |(at, token)| Feed {
            tokens: std::slice::from_ref(token),
            start: step,
            blocks: vec![at as u32],
            slot: None,
        };
        let mut batch = batch(&last.iter().enumerate().map(feed).collect::<Vec<_>>());
        let greedy = Arc::new(Sampling { temperature: 0.0, ..Sampling::default() });
        let sequence = Sequence { prompt: &[], slot: None, sampling: greedy };
        batch.queries = (0..CROWD as u32).map(|row| draw(&sequence, (row, 0, step))).collect();
        if ahead && step > 0 {
            batch.pending = (0..CROWD as u32).map(|row| Pending { row, query: row }).collect();
        }
        group.start(Arc::new(batch));
        if !ahead || step > 0 {
            settle(group, &mut texts);
        }
    }
    if ahead {
        settle(group, &mut texts);
    }
    texts
}

#[test]
fn a_crowd_is_drawn_for_ahead_of_the_host() {
    let fixture = Fixture::open("llama");
    let model = fixture.model(fixture.base());
    let mut group = fixture.start_with(&model, &parallel(1), &CROWDED).unwrap();
    let vocab = fixture.config.shape.vocab;
    let wanted = crowd(&mut group, vocab, false);
    assert!(wanted.iter().any(|text| text[1..] != wanted[0][1..]));
    assert_eq!(crowd(&mut group, vocab, true), wanted);
}

#[test]
fn ahead_of_the_host_the_same_tokens_are_drawn() {
    let fixture = Fixture::open("llama");
    let prompts = fixture.prompts();
    let mut group = fixture.group(1);
    for (slot, name) in (0..).zip(["plain", "bd2"]) {
        let generation = fixture.generation(name, 1, PlainSharding::Replicated);
        group.load(Slot(slot), generation).unwrap();
    }
    let sequences = sequences(&prompts, &[None, Some(0), Some(1)]);
    let wanted = texts(&mut group, &sequences, false);
    assert!(wanted.iter().all(|text| text.len() == TOKENS));
    assert_eq!(texts(&mut group, &sequences, true), wanted);
}

#[test]
fn pending_tokens_that_a_rank_cannot_know_are_refused() {
    let fixture = Fixture::open("llama");
    let prompts = fixture.prompts();
    let mut group = fixture.group(2);
    assert!(!group.runs_ahead());
    let mut batch = batch(&[Feed::new(&prompts[0], 1, None)]);
    batch.pending = vec![Pending { row: 0, query: 0 }];
    let Err(Fault::Refused(why)) = group.run(Arc::new(batch)) else { panic!("ran") };
    assert!(why.contains("pending"), "{why}");
}
