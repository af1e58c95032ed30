//! One row of logits as an all-gather over ranks leaves it.

use crate::math::largest;
use crate::ops::LogitsLayout;

/// The logits that answer one query: one piece a rank.
#[derive(Clone, Copy)]
pub struct Logits<'a> {
    gathered: &'a [f32],
    layout: &'a LogitsLayout,
    row: usize,
}

impl<'a> Logits<'a> {
    pub fn new(gathered: &'a [f32], layout: &'a LogitsLayout, row: usize) -> Self {
        Self { gathered, layout, row }
    }

    /// The pieces in token order, padding left out.
    pub fn pieces(self) -> impl Iterator<Item = &'a [f32]> {
        let LogitsLayout { parts, rows, part_width, vocab } = *self.layout;
        (0..parts).map(move |part| {
            let tokens = vocab.saturating_sub(part * part_width).min(part_width);
            &self.gathered[(part * rows + self.row) * part_width..][..tokens]
        })
    }

    /// Puts the whole row into `row`, in token order.
    pub fn copy_to(self, row: &mut Vec<f32>) {
        row.clear();
        self.pieces().for_each(|piece| row.extend_from_slice(piece));
    }
}

/// The token with the largest logit, the first of equals.
pub fn argmax<'a>(pieces: impl Iterator<Item = &'a [f32]>) -> u32 {
    let (mut best, mut token, mut first) = (f32::NEG_INFINITY, 0, 0);
    for piece in pieces {
        let largest = largest(piece);
        if largest > best {
            let at = piece.iter().position(|logit| *logit == largest);
            (best, token) = (largest, first + at.unwrap_or(0));
        }
        first += piece.len();
    }
    token as u32
}
