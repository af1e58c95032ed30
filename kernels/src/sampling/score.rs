//! Logprobs: what is known about a token under the untouched logits.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use contract::step::Answer;

use crate::math::{exp, largest};

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
    let sum: f64 = logits.iter().map(|logit| f64::from(exp(logit - largest))).sum();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_scored_against_all_others() {
        let logits: Vec<f32> = [0.1_f32, 0.5, 0.15, 0.25].iter().map(|p| p.ln() + 3.0).collect();
        let answer = score(3, 2, &logits);
        assert_eq!((answer.token, answer.place), (3, 2));
        assert!((answer.logprob - 0.25_f32.ln()).abs() < 1e-6);
        let tokens: Vec<u32> = answer.top.iter().map(|(token, _)| *token).collect();
        assert_eq!(tokens, [1, 3]);
        assert!((answer.top[0].1 - 0.5_f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn the_likeliest_are_a_head_of_the_sorted_tokens() {
        let logits: Vec<f32> = (0..1000).map(|i| (i * 7919 % 251) as f32).collect();
        let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
        for count in [0, 1, 5, 250, 1000, 2000] {
            assert_eq!(likeliest(&logits, count), sorted[..count.min(1000)], "{count}");
        }
    }
}
