//! Logprobs: what is known about a token under the untouched logits.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use contract::step::Answer;

use super::logits::largest;

/// Describes `token`, and the `named` likeliest tokens beside it.
pub fn score(token: u32, named: usize, logits: &[f32]) -> Answer {
    let norm = log_sum_exp(logits);
    let own = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    let above = logits.iter().filter(|logit| **logit > own).count();
    let top = likeliest(logits, named).into_iter();
    Answer {
        token,
        logprob: own - norm,
        place: above as u32 + 1,
        top: top.map(|(token, logit)| (token, logit - norm)).collect(),
    }
}

fn log_sum_exp(logits: &[f32]) -> f32 {
    let largest = largest(logits);
    let sum: f64 = logits.iter().map(|logit| f64::from((logit - largest).exp())).sum();
    largest + sum.ln() as f32
}

/// The `count` tokens with the largest logits, largest first, the lower token first among equals.
pub fn likeliest(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut heap = BinaryHeap::with_capacity(count + 1);
    for (token, logit) in (0..).zip(logits) {
        // Most tokens end here: one comparison with the last of those held.
        let behind = |Reverse(last): &Reverse<Ranked>| *logit <= last.logit;
        if heap.len() == count && heap.peek().is_none_or(behind) {
            continue;
        }
        heap.push(Reverse(Ranked { logit: *logit, token }));
        if heap.len() > count {
            heap.pop();
        }
    }
    let sorted = heap.into_sorted_vec().into_iter();
    sorted.map(|Reverse(ranked)| (ranked.token, ranked.logit)).collect()
}

/// Greater is likelier.
#[derive(PartialEq)]
struct Ranked {
    logit: f32,
    token: u32,
}

impl Eq for Ranked {}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.logit.total_cmp(&other.logit).then(other.token.cmp(&self.token))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
