//! Drawing a token: bias, bans and penalties, then the cuts, then one uniform number.
//!
//! In this order: `logit_bias`, the ban of stop tokens, repetition, frequency and presence
//! penalties, temperature, `top_k`, `top_p`, `min_p`. Each cut keeps a head of the tokens sorted by
//! falling logit, the lower token first among equals; `top_p` counts the mass that `top_k` left.

use contract::sampling::Sampling;
use contract::step::Draw;

use crate::math::{exp, largest, sum};

use super::logits::argmax;
use super::score::likeliest;

/// Whether the draw is the largest of the untouched logits.
pub fn takes_largest(draw: &Draw) -> bool {
    let sampling = &draw.sampling;
    sampling.temperature == 0.0
        && sampling.logit_bias.is_empty()
        && !sampling.reads_history()
        && draw.index >= sampling.min_tokens
}

/// Draws from `logits`, which are used up.
pub fn draw(draw: &Draw, logits: &mut [f32], history: &[u32]) -> u32 {
    adjust(draw, logits);
    if draw.sampling.reads_history() {
        penalise(draw, logits, history);
    }
    if draw.sampling.temperature == 0.0 {
        return argmax(std::iter::once(&*logits));
    }
    weigh(logits, draw.sampling.temperature);
    draw_by_weight(draw, logits)
}

/// Draws from weights proportional to probabilities, the largest of which is 1.
fn draw_by_weight(draw: &Draw, weights: &[f32]) -> u32 {
    let u = uniform(draw.seed, draw.index);
    match cut(&draw.sampling, weights) {
        Some(kept) => pick(kept.into_iter(), u),
        None => pick((0..).zip(weights.iter().copied()), u),
    }
}

fn adjust(draw: &Draw, logits: &mut [f32]) {
    for (token, bias) in &draw.sampling.logit_bias {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit += bias;
        }
    }
    if draw.index < draw.sampling.min_tokens {
        for token in &draw.sampling.stop_tokens {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

fn penalise(draw: &Draw, logits: &mut [f32], history: &[u32]) {
    let prompt = &history[draw.prompt.start as usize..draw.prompt.end as usize];
    let output = &history[draw.output.start as usize..draw.output.end as usize];
    let sampling = &draw.sampling;
    for (token, _) in counts([prompt, output].concat()) {
        if let Some(logit) = logits.get_mut(token as usize) {
            let up = *logit < 0.0;
            let penalty = sampling.repetition_penalty;
            *logit = if up { *logit * penalty } else { *logit / penalty };
        }
    }
    for (token, count) in counts(output.to_vec()) {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit -= sampling.frequency_penalty * count as f32 + sampling.presence_penalty;
        }
    }
}

/// Each token once, with how often it occurs.
pub fn counts(mut tokens: Vec<u32>) -> Vec<(u32, usize)> {
    tokens.sort_unstable();
    tokens.chunk_by(|a, b| a == b).map(|equal| (equal[0], equal.len())).collect()
}

/// Turns logits into weights proportional to probabilities; the largest becomes 1.
fn weigh(logits: &mut [f32], temperature: f32) {
    let largest = largest(logits);
    for logit in logits {
        *logit = exp((*logit - largest) / temperature);
    }
}

/// The tokens that the cuts leave, with their weights; `None` when all stay.
fn cut(sampling: &Sampling, weights: &[f32]) -> Option<Vec<(u32, f32)>> {
    let Sampling { top_k, top_p, min_p, .. } = *sampling;
    let limited = 0 < top_k && (top_k as usize) < weights.len();
    if !limited && top_p >= 1.0 && min_p <= 0.0 {
        return None;
    }
    let (mut kept, total) = if limited {
        let kept = likeliest(weights, top_k as usize);
        let total = kept.iter().map(|(_, weight)| weight).sum();
        (kept, total)
    } else {
        let total = sum(weights);
        (heaviest(weights, (1.0 - top_p) * total / weights.len() as f32), total)
    };
    if top_p < 1.0 {
        truncate(&mut kept, top_p * total);
    }
    kept.retain(|(_, weight)| *weight >= min_p);
    Some(kept)
}

/// All tokens of at least this weight, sorted. Lighter ones than `(1 - top_p) / vocabulary` have
/// less than `1 - top_p` together, so `top_p` needs none of them; few tokens are left to sort.
fn heaviest(weights: &[f32], least: f32) -> Vec<(u32, f32)> {
    let tokens = (0..).zip(weights.iter().copied());
    let mut tokens: Vec<_> = tokens.filter(|(_, weight)| *weight >= least).collect();
    tokens.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    tokens
}

/// Keeps the shortest head that weighs `mass` together; never nothing.
fn truncate(tokens: &mut Vec<(u32, f32)>, mass: f32) {
    let mut running = 0.0;
    let reached = tokens.iter().position(|(_, weight)| {
        running += weight;
        running >= mass
    });
    tokens.truncate(reached.map_or(tokens.len(), |last| last + 1));
}

/// The token at which the running sum of weights passes the share `u` of the whole.
fn pick(tokens: impl Iterator<Item = (u32, f32)> + Clone, u: f64) -> u32 {
    let total: f64 = tokens.clone().map(|(_, weight)| f64::from(weight)).sum();
    let mut running = 0.0;
    let drawn = tokens.clone().find(|(_, weight)| {
        running += f64::from(*weight);
        running > u * total
    });
    drawn.or(tokens.clone().next()).map_or(0, |(token, _)| token)
}

/// A number in `[0, 1)` that depends on seed and index alone: two rounds of the SplitMix64
/// finaliser (Steele et al., OOPSLA 2014).
pub fn uniform(seed: u64, index: u32) -> f64 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let golden = 0x9e37_79b9_7f4a_7c15_u64;
    let stream = mix(seed.wrapping_add(golden));
    let bits = mix(stream.wrapping_add(golden.wrapping_mul(u64::from(index) + 1)));
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Draws `count` tokens by settings from logits.
    fn drawn(sampling: &Sampling, logits: &[f32], count: u32) -> Vec<u32> {
        let sampling = Arc::new(sampling.clone());
        let draw_at = |index| {
            let sampling = Arc::clone(&sampling);
            let one = Draw { sampling, seed: 7, index, prompt: 0..3, output: 3..6 };
            draw(&one, &mut logits.to_vec(), &[1, 1, 2, 2, 2, 4])
        };
        (100..100 + count).map(draw_at).collect()
    }

    /// The tokens that occur, sorted.
    fn support(tokens: Vec<u32>) -> Vec<u32> {
        counts(tokens).into_iter().map(|(token, _)| token).collect()
    }

    /// Logits of these probabilities.
    fn logits(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn tokens_come_as_often_as_they_are_likely() {
        let probabilities = [0.4, 0.05, 0.0, 0.25, 0.3];
        let tokens = drawn(&Sampling::default(), &logits(&probabilities), 40_000);
        for (token, probability) in probabilities.into_iter().enumerate() {
            let share = tokens.iter().filter(|t| **t == token as u32).count() as f32 / 40_000.0;
            assert!((share - probability).abs() < 0.01, "{token}: {share}, not {probability}");
        }
    }

    #[test]
    fn each_cut_keeps_a_head_of_the_sorted_tokens() {
        let logits = logits(&[0.05, 0.4, 0.1, 0.3, 0.15]);
        let plain = Sampling::default();
        let cases = [
            (Sampling { top_k: 2, ..plain.clone() }, vec![1, 3]),
            (Sampling { top_p: 0.69, ..plain.clone() }, vec![1, 3]),
            (Sampling { top_p: 0.71, ..plain.clone() }, vec![1, 3, 4]),
            (Sampling { top_p: 0.0, ..plain.clone() }, vec![1]),
            (Sampling { min_p: 0.3, ..plain.clone() }, vec![1, 3, 4]),
            // Of the 0.85 that top_k leaves, 0.8 is 0.68: two tokens.
            (Sampling { top_k: 3, top_p: 0.8, ..plain.clone() }, vec![1, 3]),
            (Sampling { top_k: 4, top_p: 0.99, min_p: 0.7, ..plain.clone() }, vec![1, 3]),
            (Sampling { temperature: 0.05, min_p: 1e-4, ..plain }, vec![1, 3]),
        ];
        for (sampling, kept) in cases {
            assert_eq!(support(drawn(&sampling, &logits, 3000)), kept, "{sampling:?}");
        }
    }

    #[test]
    fn top_p_over_a_flat_vocabulary_counts_tokens() {
        let sampling = Sampling { top_p: 0.25, ..Sampling::default() };
        let mut weights = vec![1.0; 100_000];
        weights[77] = 1.5;
        let kept = cut(&sampling, &weights).expect("a cut");
        assert_eq!((kept.len(), kept[0].0, kept[1].0), (25_000, 77, 0));
    }

    #[test]
    fn penalties_and_bias_act_in_their_order() {
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        let moved = |sampling: Sampling| {
            let mut logits = vec![0.5, -1.0, 2.0, 3.0, 4.0];
            let sampling = Arc::new(sampling);
            let draw = Draw { sampling, seed: 0, index: 3, prompt: 0..3, output: 3..6 };
            assert!(!takes_largest(&draw));
            super::draw(&draw, &mut logits, &[1, 1, 2, 2, 2, 4]);
            logits
        };
        let repetition = Sampling { repetition_penalty: 2.0, ..greedy.clone() };
        assert_eq!(moved(repetition.clone()), [0.5, -2.0, 1.0, 3.0, 2.0]);
        let counted = Sampling { frequency_penalty: 0.5, presence_penalty: 0.25, ..greedy.clone() };
        assert_eq!(moved(counted), [0.5, -1.0, 0.75, 3.0, 3.25]);
        // The bias is there before the penalty halves it; an unknown token is nobody's.
        let biased = Sampling { logit_bias: vec![(4, 6.0), (99, 1.0)], ..repetition };
        assert_eq!(moved(biased)[4], 5.0);
        let stop = Sampling { stop_tokens: vec![4, 99], min_tokens: 4, ..greedy };
        assert_eq!(moved(stop)[4], f32::NEG_INFINITY);
    }

    #[test]
    fn a_draw_depends_on_seed_and_index_alone() {
        let numbers: Vec<f64> = (0..1000).map(|index| uniform(3, index)).collect();
        assert!(numbers.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = numbers.iter().sum::<f64>() / 1000.0;
        assert!((mean - 0.5).abs() < 0.05, "{mean}");
        assert_eq!(numbers[7], uniform(3, 7));
        assert_ne!(numbers[7], uniform(4, 7));
        assert_ne!(uniform(0, 1), uniform(1, 0));
    }

    #[test]
    fn hopeless_logits_still_yield_a_token() {
        for logit in [f32::NEG_INFINITY, f32::NAN, f32::INFINITY] {
            for top_p in [0.5, 1.0] {
                let sampling = Sampling { top_p, ..Sampling::default() };
                assert!(drawn(&sampling, &[logit; 5], 10).iter().all(|token| *token < 5));
            }
        }
    }
}
