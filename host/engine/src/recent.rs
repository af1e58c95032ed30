//! What the prefix cache is expected to hold, guessed on the callers' side.
//!
//! Whoever picks one of several engines wants to know where a prompt begins as an earlier one did.
//! Asking the engine's thread would cost it time, so each engine keeps the marks of the prompts
//! that it accepted: one hash a block, chained over all before it and begun with the adapter's
//! entry, in a table of fixed size that the newest marks overwrite. It has as many places as there
//! are KV blocks, so both forget at about the same pace.
//!
//! A guess, and wrong in both directions: the cache evicts in another order, and it also keeps
//! outputs, which are not marked. Only the choice of an engine hangs on it, never what is computed,
//! so the hash need not withstand anybody.

use std::sync::atomic::{AtomicU64, Ordering};

/// Marks of the prompts that an engine accepted lately.
pub struct Recent {
    /// A mark lies at its number modulo the length; 0 is none.
    marks: Box<[AtomicU64]>,
    block_tokens: usize,
}

impl Recent {
    /// No marks, and room for one a KV block.
    pub fn new(blocks: usize, block_tokens: usize) -> Self {
        let marks = (0..blocks.next_power_of_two()).map(|_| AtomicU64::new(0)).collect();
        Self { marks, block_tokens }
    }

    /// Marks the full blocks of a prompt.
    pub fn note(&self, adapter: Option<u64>, tokens: &[u32]) {
        for mark in self.chain(adapter, tokens) {
            self.place(mark).store(mark, Ordering::Relaxed);
        }
    }

    /// Share of the prompt, 0 to 1, whose blocks are marked from its beginning on.
    pub fn hit(&self, adapter: Option<u64>, tokens: &[u32]) -> f32 {
        let known = |mark: &u64| self.place(*mark).load(Ordering::Relaxed) == *mark;
        let blocks = self.chain(adapter, tokens).take_while(known).count();
        (blocks * self.block_tokens) as f32 / tokens.len().max(1) as f32
    }

    /// The marks of a prompt's blocks, up to its last token, which is always computed.
    fn chain(&self, adapter: Option<u64>, tokens: &[u32]) -> impl Iterator<Item = u64> {
        let cached = &tokens[..tokens.len().saturating_sub(1)];
        let begin = adapter.map_or(1, |entry| mix(2, entry));
        cached.chunks_exact(self.block_tokens).scan(begin, |mark, block| {
            *mark = block.iter().fold(*mark, |mark, token| mix(mark, u64::from(*token))).max(1);
            Some(*mark)
        })
    }

    fn place(&self, mark: u64) -> &AtomicU64 {
        // The high bits are the best mixed ones.
        let at = (mark >> 32) as usize & (self.marks.len() - 1);
        &self.marks[at]
    }
}

/// One round of a multiplicative hash; the constant is 2^64 over the golden ratio.
fn mix(state: u64, value: u64) -> u64 {
    (state.rotate_left(23) ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_hits_as_far_as_it_begins_like_an_earlier_one_of_its_adapter() {
        let recent = Recent::new(64, 4);
        let tokens: Vec<u32> = (0..16).collect();
        assert_eq!(recent.hit(None, &tokens), 0.0);
        recent.note(None, &tokens);
        assert_eq!(recent.hit(None, &tokens), 12.0 / 16.0, "the last token is computed anyway");
        let mut other = tokens.clone();
        other[9] = 77;
        assert_eq!(recent.hit(None, &other), 0.5);
        other[0] = 77;
        assert_eq!(recent.hit(None, &other), 0.0);
        assert_eq!(recent.hit(Some(1), &tokens), 0.0);
        recent.note(Some(1), &tokens[..9]);
        assert_eq!(recent.hit(Some(1), &tokens), 0.5);
        assert_eq!((recent.hit(None, &[]), recent.hit(None, &[3])), (0.0, 0.0));
    }

    #[test]
    fn the_newest_marks_overwrite_the_oldest() {
        let recent = Recent::new(8, 1);
        let prompt = |at: u32| [at, at, at, at];
        (0..100).for_each(|at| recent.note(None, &prompt(at)));
        assert!(recent.hit(None, &prompt(99)) >= 0.25);
        let hits = (0..90).filter(|at| recent.hit(None, &prompt(*at)) > 0.0).count();
        assert!(hits <= 8, "{hits} of the old ones are known");
    }
}
