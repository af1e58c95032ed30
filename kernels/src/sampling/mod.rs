//! Answers from logits: draws, and what is known about a token. Host code that backends share.

pub mod device;
mod draw;
mod logits;
mod score;

use contract::step::{Answer, Batch, Choice, Query};

use crate::ops::LogitsLayout;

use logits::{Logits, argmax};

/// What [`crate::ops::Ops::sample`] promises.
pub fn sample(logits: &[f32], layout: &LogitsLayout, batch: &Batch, first: usize) -> Vec<Answer> {
    let mut scratch = Vec::new();
    let queries = batch.queries[first..].iter().take(layout.rows).enumerate();
    queries
        .map(|(row, query)| answer(query, Logits::new(logits, layout, row), batch, &mut scratch))
        .collect()
}

fn answer(query: &Query, logits: Logits<'_>, batch: &Batch, scratch: &mut Vec<f32>) -> Answer {
    let token = match &query.choice {
        Choice::Given(token) => *token,
        Choice::Draw(draw) if draw::takes_largest(draw) => argmax(logits.pieces()),
        Choice::Draw(draw) => {
            logits.copy_to(scratch);
            draw::draw(draw, scratch, &batch.history)
        }
    };
    let Some(named) = query.top_logprobs else {
        return Answer { token, ..Answer::default() };
    };
    logits.copy_to(scratch);
    score::score(token, named as usize, scratch)
}
