//! Shrink and expand of a mixed batch (arXiv 2310.18547): each segment by its own adapter's pairs.
//!
//! A is kept row-major, so that a shrink costs its true lora rank; B is kept in panels, one matrix
//! a diagonal block, so that an expand is a product like the base layer's.

use std::borrow::Cow;
use std::ops::Range;

use contract::adapter::{Exchange, LocalPair, PairShape, Slot};
use contract::step::Batch;
use contract::tensor::DType;

use crate::error::Result;
use crate::lora::{SiteShape, SlotPairs};

use super::dot::{Dots, Rows};
use super::format::Stored;
use super::gemm::{Onto, Product};
use super::pack::Pack;
use super::panels::Panels;
use super::workers::Workers;

/// The pairs of all slots at one site.
pub struct Site {
    shape: SiteShape,
    dtype: DType,
    /// `[slot][pair]`; an empty slot has none.
    slots: Vec<Vec<Pair>>,
}

/// A local pair as it is kept.
struct Pair {
    shape: PairShape,
    /// First output column of its target.
    first: usize,
    a: Rows,
    /// One `[output, expand_rank] / b_blocks` a diagonal block.
    b: Vec<Panels>,
}

impl Pair {
    fn new(pair: &LocalPair, first: usize, dtype: DType) -> Result<Self> {
        let shape = pair.shape.clone();
        let a = Rows::new(&pair.a, shape.input / shape.a_blocks, dtype)?;
        let (rows, cols) =
            (shape.output.len() / shape.b_blocks, shape.expand_rank / shape.b_blocks);
        let mut b = Vec::with_capacity(shape.b_blocks);
        for block in pair.b.chunks_exact((rows * cols).max(1)) {
            b.push(Panels::of(block, rows, cols, dtype)?);
        }
        Ok(Self { shape, first, a, b })
    }
}

impl Site {
    /// A site of empty slots.
    pub fn new(shape: SiteShape, dtype: DType) -> Self {
        let slots = (0..shape.slots).map(|_| Vec::new()).collect();
        Self { shape, dtype, slots }
    }

    /// [`crate::ops::Ops::site_load`].
    pub fn load(&mut self, loaded: &SlotPairs<'_>) -> Result<()> {
        let mut pairs = Vec::new();
        let mut first = 0;
        for (pair, width) in loaded.pairs.iter().zip(&self.shape.targets) {
            if let Some(pair) = pair {
                pairs.push(Pair::new(pair, first, self.dtype)?);
            }
            first += width;
        }
        self.slots[loaded.slot.index()] = pairs;
        Ok(())
    }

    /// [`crate::ops::Ops::site_unload`].
    pub fn unload(&mut self, slot: Slot) {
        self.slots[slot.index()] = Vec::new();
    }

    /// The pairs of a slot with this exchange.
    fn pairs(&self, slot: Slot, exchange: Exchange) -> impl Iterator<Item = &Pair> {
        self.slots[slot.index()].iter().filter(move |pair| pair.shape.exchange == exchange)
    }

    /// Shrunk elements of a row whose adapter lies in `slot`.
    fn width(&self, slot: Slot, exchange: Exchange) -> usize {
        self.pairs(slot, exchange).map(|pair| pair.shape.shrink_rank).sum()
    }
}

/// Rows with one adapter, and where their shrunk activations lie.
struct Share {
    slot: Slot,
    rows: Range<usize>,
    /// Start in the ragged buffer.
    at: usize,
    /// Shrunk elements of a row.
    width: usize,
}

/// All rows with such pairs, in shares of at most `rows_max`.
fn shares(site: &Site, batch: &Batch, exchange: Exchange, rows_max: usize) -> Vec<Share> {
    let mut shares = Vec::new();
    let mut at = 0;
    for segment in &batch.segments {
        let Some(slot) = segment.slot else { continue };
        let width = site.width(slot, exchange);
        let (start, end) = (segment.rows.start as usize, segment.rows.end as usize);
        for start in (start..end).step_by(rows_max) {
            let rows = start..(start + rows_max).min(end);
            let share = Share { slot, at, width, rows };
            at += share.rows.len() * width;
            shares.push(share);
        }
    }
    shares.retain(|share| share.width > 0);
    shares
}

/// [`crate::ops::Ops::lora_len`].
pub fn len(site: &Site, batch: &Batch, exchange: Exchange) -> usize {
    let adapted = batch.segments.iter().filter_map(|segment| Some((segment.slot?, segment)));
    adapted.map(|(slot, segment)| segment.rows.len() * site.width(slot, exchange)).sum()
}

/// [`crate::ops::Ops::lora_shrink`].
pub fn shrink(
    workers: &Workers,
    x: &[f32],
    site: &Site,
    (batch, exchange): (&Batch, Exchange),
    h: &mut [f32],
) {
    let rows_max = batch.tokens.len().div_ceil(workers.threads());
    let mut rest = h;
    let shares = shares(site, batch, exchange, rows_max).into_iter().map(|share| {
        let (h, after) = std::mem::take(&mut rest).split_at_mut(share.rows.len() * share.width);
        rest = after;
        (share, h)
    });
    workers.each(shares.collect(), |(share, h)| {
        let mut h: Vec<&mut [f32]> = h.chunks_exact_mut(share.width).collect();
        let x = &x[share.rows.start * site.shape.input..][..share.rows.len() * site.shape.input];
        for pair in site.pairs(share.slot, exchange) {
            let mut of_pair = Vec::with_capacity(h.len());
            for h in &mut h {
                of_pair.push(h.split_off_mut(..pair.shape.shrink_rank).expect("as wide"));
            }
            shrink_pair(workers, x, site, pair, &mut of_pair);
        }
    });
}

/// Shrinks rows of `x` by one pair, block by block.
fn shrink_pair(workers: &Workers, x: &[f32], site: &Site, pair: &Pair, h: &mut [&mut [f32]]) {
    let PairShape { input, shrink_rank, a_blocks, .. } = pair.shape;
    let (columns, ranks) = (input / a_blocks, shrink_rank / a_blocks);
    for block in 0..a_blocks {
        let x = x.chunks_exact(site.shape.input).map(|x| &x[block * columns..][..columns]);
        let x: Vec<&[f32]> = x.collect();
        let mut out: Vec<&mut [f32]> =
            h.iter_mut().map(|h| &mut h[block * ranks..][..ranks]).collect();
        let work = Dots { x: &x, matrix: &pair.a, first: block * ranks, out: &mut out };
        workers.isa.run(Stored { dtype: site.dtype, work });
    }
}

/// [`crate::ops::Ops::lora_expand`].
pub fn expand(
    workers: &Workers,
    h: &[f32],
    site: &Site,
    (batch, exchange): (&Batch, Exchange),
    y: &mut [f32],
) {
    let part = len(site, batch, exchange);
    let rows_max = batch.tokens.len().div_ceil(workers.threads());
    let width = site.shape.output();
    let mut rows = y.chunks_exact_mut(width);
    let mut row = 0;
    let shares = shares(site, batch, exchange, rows_max).into_iter().map(|share| {
        let skipped = share.rows.start - row;
        row = share.rows.end;
        let y: Vec<&mut [f32]> = rows.by_ref().skip(skipped).take(share.rows.len()).collect();
        (share, y)
    });
    workers.each(shares.collect(), |(share, mut y)| {
        let mut first = share.at;
        for pair in site.pairs(share.slot, exchange) {
            let starts = (0..share.rows.len()).map(|row| first + row * share.width);
            let x = starts.map(|start| gathered(h, part, start, &pair.shape)).collect::<Vec<_>>();
            expand_pair(workers, &x, site.dtype, pair, &mut y);
            first += pair.shape.shrink_rank;
        }
    });
}

/// The shrunk activations of one row and pair: those at `start` of every rank's `part` elements,
/// side by side.
fn gathered<'a>(h: &'a [f32], part: usize, start: usize, shape: &PairShape) -> Cow<'a, [f32]> {
    if shape.exchange != Exchange::Gather {
        return Cow::Borrowed(&h[start..][..shape.expand_rank]);
    }
    let parts = h.chunks_exact(part).flat_map(|part| &part[start..][..shape.shrink_rank]);
    Cow::Owned(parts.take(shape.expand_rank).copied().collect())
}

/// Expands rows of `h` by one pair, block by block.
fn expand_pair(
    workers: &Workers,
    h: &[Cow<'_, [f32]>],
    dtype: DType,
    pair: &Pair,
    y: &mut [&mut [f32]],
) {
    let mut packed = Vec::new();
    for (block, matrix) in pair.b.iter().enumerate() {
        let h: Vec<&[f32]> = h.iter().map(|h| &h[block * matrix.cols..][..matrix.cols]).collect();
        workers.isa.run(Stored { dtype, work: Pack { x: &h, packed: &mut packed } });
        let first = pair.first + pair.shape.output.start + block * matrix.rows;
        let mut out: Vec<&mut [f32]> =
            y.iter_mut().map(|y| &mut y[first..][..matrix.rows]).collect();
        let (x, onto) = (&*packed, Onto::Output);
        workers
            .isa
            .run(Stored { dtype, work: Product { x, matrix, first: 0, onto, out: &mut out } });
    }
}
