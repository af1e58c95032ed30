//! Draws as a device takes them: what `choose.cu` reads, as words.

use std::collections::BTreeMap;

use contract::step::{Batch, Choice, Draw, Query};

use super::draw::{counts, uniform};

/// Words of one draw.
pub const DRAW_WORDS: usize = 12;

/// Words of one edit.
const EDIT_WORDS: usize = 4;

const BANNED: u32 = 1;
const SEEN: u32 = 2;

/// What is said about one token before anything is drawn.
#[derive(Default)]
struct Edit {
    bias: f32,
    /// How often it is in the output.
    count: u32,
    flags: u32,
}

/// The draw of a query that a device answers: nothing else is asked about the row.
pub fn on_device(query: &Query) -> Option<&Draw> {
    match &query.choice {
        Choice::Draw(draw) if query.is_followed() => Some(draw),
        _ => None,
    }
}

/// Draws for `rows` queries, and edits to lie `apart` words behind the first draw. Rows without a
/// draw are asked for their largest logit.
pub struct Draws {
    pub draws: Vec<u32>,
    pub edits: Vec<u32>,
}

impl Draws {
    /// The draws of a batch, padded to `rows`.
    pub fn new(batch: &Batch, rows: usize) -> Self {
        let mut all = Self { draws: vec![0; rows * DRAW_WORDS], edits: Vec::new() };
        let words = all.draws.chunks_exact_mut(DRAW_WORDS);
        for (words, query) in words.zip(&batch.queries) {
            if let Some(draw) = on_device(query) {
                write(draw, &batch.history, words, &mut all.edits);
            }
        }
        all
    }

    /// Says how far the edits are from the draws: a draw finds its own from its own place on.
    pub fn part(&mut self, words: usize) {
        for (row, draw) in self.draws.chunks_exact_mut(DRAW_WORDS).enumerate() {
            draw[9] += (words - row * DRAW_WORDS) as u32;
        }
    }
}

fn write(draw: &Draw, history: &[u32], words: &mut [u32], edits: &mut Vec<u32>) {
    let sampling = &draw.sampling;
    let share = uniform(draw.seed, draw.index).to_bits();
    let first = edits.len();
    for (token, edit) in edits_of(draw, history) {
        edits.extend([token, edit.bias.to_bits(), edit.count, edit.flags]);
    }
    words.copy_from_slice(&[
        share as u32,
        (share >> 32) as u32,
        sampling.temperature.to_bits(),
        sampling.top_p.to_bits(),
        sampling.min_p.to_bits(),
        sampling.top_k,
        sampling.repetition_penalty.to_bits(),
        sampling.presence_penalty.to_bits(),
        sampling.frequency_penalty.to_bits(),
        first as u32,
        ((edits.len() - first) / EDIT_WORDS) as u32,
        0,
    ]);
}

/// Each token once.
fn edits_of(draw: &Draw, history: &[u32]) -> BTreeMap<u32, Edit> {
    let mut edits: BTreeMap<u32, Edit> = BTreeMap::new();
    for (token, bias) in &draw.sampling.logit_bias {
        edits.entry(*token).or_default().bias += bias;
    }
    if draw.index < draw.sampling.min_tokens {
        for token in &draw.sampling.stop_tokens {
            edits.entry(*token).or_default().flags |= BANNED;
        }
    }
    if draw.sampling.reads_history() {
        let prompt = &history[draw.prompt.start as usize..draw.prompt.end as usize];
        let output = &history[draw.output.start as usize..draw.output.end as usize];
        for token in prompt.iter().chain(output) {
            edits.entry(*token).or_default().flags |= SEEN;
        }
        for (token, count) in counts(output.to_vec()) {
            edits.entry(token).or_default().count = count as u32;
        }
    }
    edits
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use contract::sampling::Sampling;

    use super::*;

    #[test]
    fn a_draw_finds_its_edits_from_its_own_place_on() {
        let sampling = Sampling {
            logit_bias: vec![(7, 0.5)],
            presence_penalty: 1.0,
            stop_tokens: vec![9],
            min_tokens: 5,
            ..Sampling::default()
        };
        let draw =
            Draw { sampling: Arc::new(sampling), seed: 1, index: 2, prompt: 0..2, output: 2..4 };
        let query = |row| Query { row, choice: Choice::Draw(draw.clone()), top_logprobs: None };
        let given = Query { row: 1, choice: Choice::Given(3), top_logprobs: None };
        let queries = vec![query(0), given, query(2)];
        let batch = Batch { queries, history: vec![4, 5, 7, 7], ..Batch::default() };
        let mut draws = Draws::new(&batch, 4);
        draws.part(100);
        // Tokens 4, 5, 7 and 9, twice.
        assert_eq!(draws.edits.len(), 2 * 4 * EDIT_WORDS);
        assert_eq!(draws.edits[8..16], [7, 0.5_f32.to_bits(), 2, SEEN, 9, 0, 0, BANNED]);
        let place = |row: usize| &draws.draws[row * DRAW_WORDS..][9..11];
        assert_eq!([place(0), place(2)], [&[100, 4][..], &[100 + 16 - 24, 4]]);
        assert_eq!(draws.draws[DRAW_WORDS..][2..9], [0; 7]);
    }
}
