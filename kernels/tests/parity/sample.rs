//! Tokens and logprobs from logits.

use std::sync::Arc;

use contract::sampling::Sampling;
use contract::step::{Batch, Choice, Draw, Query};
use contract::tensor::DType;
use kernels::ops::{LogitsLayout, Ops, Precision};

use crate::bench::{Bench, Case, upload_as};

pub fn check<O: Ops>(bench: &mut Bench<O>) {
    for (parts, part_width, vocab) in [(1, 50, 50), (4, 13, 50), (3, 512, 1500), (2, 3000, 5600)] {
        let samplings = samplings(vocab as u32);
        let layout = LogitsLayout { parts, rows: samplings.len() + 1, part_width, vocab };
        let mut logits = bench.random.values(parts * layout.rows * part_width);
        logits.iter_mut().for_each(|logit| *logit *= 8.0);
        let history = (0..30).map(|_| bench.random.below(vocab) as u32).collect();
        let seed = bench.random.next();
        let mut sample = Sample { logits, layout, samplings, history, seed, top_logprobs: None };
        bench.agree(&format!("sample {layout:?}"), DType::F32, &sample);
        sample.top_logprobs = Some(4);
        bench.agree(&format!("sample {layout:?}, logprobs"), DType::F32, &sample);
    }
}

/// Every setting alone, and all together.
fn samplings(vocab: u32) -> Vec<Sampling> {
    let plain = Sampling::default();
    let greedy = Sampling { temperature: 0.0, ..plain.clone() };
    let logit_bias = vec![(3, 9.0), (vocab - 1, -9.0)];
    vec![
        greedy.clone(),
        Sampling { stop_tokens: (0..vocab / 2).collect(), min_tokens: 9, ..greedy.clone() },
        Sampling { logit_bias: logit_bias.clone(), ..greedy.clone() },
        Sampling { repetition_penalty: 1.7, ..greedy },
        plain.clone(),
        Sampling { temperature: 0.3, ..plain.clone() },
        Sampling { top_k: 5, ..plain.clone() },
        Sampling { top_p: 0.7, ..plain.clone() },
        Sampling { min_p: 0.2, ..plain.clone() },
        // Nearly all tokens, more of them than a device may care to sort.
        Sampling { temperature: 50.0, top_p: 0.999, ..plain.clone() },
        Sampling { temperature: 60.0, top_k: vocab * 3 / 4, ..plain.clone() },
        Sampling { temperature: 70.0, top_k: vocab - 1, top_p: 0.9, min_p: 0.01, ..plain.clone() },
        Sampling { temperature: 1e9, min_p: 0.5, ..plain },
        Sampling {
            temperature: 1.4,
            top_k: 20,
            top_p: 0.9,
            min_p: 0.01,
            repetition_penalty: 1.2,
            presence_penalty: 0.5,
            frequency_penalty: 0.3,
            logit_bias,
            stop_tokens: vec![0, 7],
            min_tokens: 9,
        },
    ]
}

struct Sample {
    logits: Vec<f32>,
    layout: LogitsLayout,
    samplings: Vec<Sampling>,
    history: Vec<u32>,
    seed: u64,
    top_logprobs: Option<u32>,
}

impl Case for Sample {
    /// Everything in the answers, flat.
    fn run<O: Ops>(&self, ops: &mut O) -> Vec<f32> {
        let draw = |sampling: &Sampling| Draw {
            sampling: Arc::new(sampling.clone()),
            seed: self.seed,
            index: 4,
            prompt: 0..20,
            output: 20..30,
        };
        let drawn = self.samplings.iter().map(|sampling| Choice::Draw(draw(sampling)));
        let choices = drawn.chain([Choice::Given(self.layout.vocab as u32 / 3)]);
        let query = |choice| Query { row: 0, choice, top_logprobs: self.top_logprobs };
        let unasked = query(Choice::Given(0));
        let queries = [unasked].into_iter().chain(choices.map(query)).collect();
        let batch = Batch { queries, history: self.history.clone(), ..Batch::default() };
        let logits = upload_as(ops, &self.logits, Precision::Full);
        let step = ops.step(&Arc::new(batch.clone()), 0).expect("a step");
        ops.choose(&logits, &self.layout, &step, 1).expect("choose");
        let answers = ops.sample(&logits, &self.layout, &batch, 1).expect("answers");
        let flat = answers.iter().flat_map(|answer| {
            let top = answer.top.iter().flat_map(|(token, logprob)| [*token as f32, *logprob]);
            [answer.token as f32, answer.logprob, answer.place as f32].into_iter().chain(top)
        });
        flat.collect()
    }
}
