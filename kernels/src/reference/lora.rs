//! Shrink and expand of every row by the pairs of its own adapter (arXiv 2310.18547).

use std::ops::Range;

use contract::adapter::{Exchange, LocalPair, PairShape, Slot};
use contract::step::Batch;
use contract::tensor::DType;

use crate::element;
use crate::lora::{SiteShape, SlotPairs};

use super::linear::dot;

/// The pairs of all slots at one site.
pub struct Site {
    shape: SiteShape,
    dtype: DType,
    /// `[slot][target]`; a slot without pairs is empty.
    slots: Vec<Vec<Option<LocalPair>>>,
}

impl Site {
    pub fn new(shape: SiteShape, dtype: DType) -> Self {
        let slots = vec![Vec::new(); shape.slots];
        Self { shape, dtype, slots }
    }

    pub fn load(&mut self, loaded: &SlotPairs<'_>) {
        let round = |factor: &[f32]| -> Vec<f32> {
            factor.iter().map(|value| element::round(self.dtype, *value)).collect()
        };
        let keep = |pair: &LocalPair| LocalPair {
            shape: pair.shape.clone(),
            a: round(&pair.a),
            b: round(&pair.b),
        };
        self.slots[loaded.slot.index()] = loaded.pairs.iter().map(|pair| pair.map(keep)).collect();
    }

    pub fn unload(&mut self, slot: Slot) {
        self.slots[slot.index()] = Vec::new();
    }

    /// Every row's pairs with this exchange: row, first output column of the target, the pair, and
    /// where its shrunk activations lie.
    fn work<'a>(
        &'a self,
        batch: &'a Batch,
        exchange: Exchange,
    ) -> impl Iterator<Item = (usize, usize, &'a LocalPair, Range<usize>)> {
        let rows = batch.segments.iter().filter_map(|segment| Some((segment, segment.slot?)));
        let rows =
            rows.flat_map(|(segment, slot)| segment.rows.clone().map(move |row| (row, slot)));
        let pairs = rows.flat_map(|(row, slot)| {
            let targets = self.slots[slot.index()].iter().enumerate();
            targets.filter_map(move |(target, pair)| Some((row as usize, target, pair.as_ref()?)))
        });
        let mut end = 0;
        pairs.filter(move |(.., pair)| pair.shape.exchange == exchange).map(
            move |(row, target, pair)| {
                let start = end;
                end += pair.shape.shrink_rank;
                (row, self.shape.targets[..target].iter().sum(), pair, start..end)
            },
        )
    }
}

pub fn len(site: &Site, batch: &Batch, exchange: Exchange) -> usize {
    site.work(batch, exchange).last().map_or(0, |(.., at)| at.end)
}

pub fn shrink(x: &[f32], site: &Site, batch: &Batch, exchange: Exchange, h: &mut [f32]) {
    for (row, _, pair, at) in site.work(batch, exchange) {
        let x = &x[row * site.shape.input..][..site.shape.input];
        let PairShape { input, shrink_rank, a_blocks, .. } = pair.shape;
        let (block_input, block_rank) = (input / a_blocks, shrink_rank / a_blocks);
        for (j, h) in h[at].iter_mut().enumerate() {
            let a = &pair.a[j * block_input..][..block_input];
            *h = dot(&x[j / block_rank * block_input..], a);
        }
    }
}

pub fn expand(h: &[f32], site: &Site, batch: &Batch, exchange: Exchange, y: &mut [f32]) {
    let (width, part) = (site.shape.output(), len(site, batch, exchange));
    if part == 0 {
        return;
    }
    for (row, first, pair, at) in site.work(batch, exchange) {
        let h = gathered(h, part, at, pair.shape.expand_rank);
        let PairShape { expand_rank, b_blocks, ref output, .. } = pair.shape;
        let (block_output, block_rank) = (output.len() / b_blocks, expand_rank / b_blocks);
        let y = &mut y[row * width + first..][output.clone()];
        for (o, y) in y.iter_mut().enumerate() {
            let b = &pair.b[o * block_rank..][..block_rank];
            *y += dot(&h[o / block_output * block_rank..], b);
        }
    }
}

/// The shrunk activations of one row and pair: those at `at` of every rank's `part` elements, side
/// by side, until they are `expand_rank` long.
fn gathered(h: &[f32], part: usize, at: Range<usize>, expand_rank: usize) -> Vec<f32> {
    let parts = h.chunks_exact(part).flat_map(|part| &part[at.clone()]);
    parts.take(expand_rank).copied().collect()
}
