//! Drawing a token: bias, bans and penalties, then the cut, then one uniform number.
//!
//! In this order: `logit_bias`, the ban of stop tokens, repetition, frequency and presence
//! penalties, temperature, `top_k`, `top_p`, `min_p`. Each cut keeps a head of the tokens sorted by
//! falling logit, the lower token first among equals; `top_p` counts the mass that `top_k` left.

use contract::step::Draw;

use super::logits::{argmax, largest};
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
    let kept = keep(draw, logits);
    pick(&kept, uniform(draw.seed, draw.index))
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
fn counts(mut tokens: Vec<u32>) -> Vec<(u32, usize)> {
    tokens.sort_unstable();
    tokens.chunk_by(|a, b| a == b).map(|equal| (equal[0], equal.len())).collect()
}

/// The tokens that the cuts leave, with weights proportional to their probabilities.
fn keep(draw: &Draw, logits: &[f32]) -> Vec<(u32, f32)> {
    let sampling = &draw.sampling;
    let largest = largest(logits);
    let weigh =
        |(token, logit): (u32, f32)| (token, ((logit - largest) / sampling.temperature).exp());
    let k = sampling.top_k as usize;
    let mut kept: Vec<(u32, f32)> = if k > 0 && k < logits.len() {
        likeliest(logits, k).into_iter().map(weigh).collect()
    } else {
        (0..).zip(logits.iter().copied()).map(weigh).collect()
    };
    if sampling.top_p < 1.0 {
        cut_by_mass(&mut kept, sampling.top_p);
    }
    kept.retain(|(_, weight)| *weight >= sampling.min_p);
    kept
}

/// Keeps the shortest head of the sorted tokens that has the share `top_p` of the whole weight.
fn cut_by_mass(tokens: &mut Vec<(u32, f32)>, top_p: f32) {
    let total: f64 = tokens.iter().map(|(_, weight)| f64::from(*weight)).sum();
    // All tokens lighter than this have less than 1 - top_p together, so the head ends before them.
    let negligible = (1.0 - f64::from(top_p)) * total / tokens.len() as f64;
    tokens.retain(|(_, weight)| f64::from(*weight) >= negligible);
    tokens.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut mass = 0.0;
    let reached = tokens.iter().position(|(_, weight)| {
        mass += f64::from(*weight);
        mass >= f64::from(top_p) * total
    });
    tokens.truncate(reached.map_or(tokens.len(), |last| last + 1).max(1));
}

/// The token at which the running sum of weights passes the share `u` of the whole.
fn pick(tokens: &[(u32, f32)], u: f64) -> u32 {
    let total: f64 = tokens.iter().map(|(_, weight)| f64::from(*weight)).sum();
    let mut mass = 0.0;
    let drawn = tokens.iter().find(|(_, weight)| {
        mass += f64::from(*weight);
        mass > u * total
    });
    drawn.or(tokens.first()).map_or(0, |(token, _)| *token)
}

/// A number in `[0, 1)` that depends on seed and index alone: two rounds of the SplitMix64
/// finaliser (Steele et al., OOPSLA 2014).
fn uniform(seed: u64, index: u32) -> f64 {
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
