//! What decode knows about a site: the tiles of A that each slot has, and how shrink's work is cut.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use crate::cuda::beside::{SEGMENTS_MAX, Shrink};
use crate::cuda::device::{Device, to_u32};
use crate::cuda::gemm_stream::{GemmStream, ROWS_ANY};
use crate::cuda::lora::{PairEntry, Site, TARGETS_MAX};
use crate::cuda::lora_rows::COLUMNS;
use crate::cuda::memory::Memory;
use crate::cuda::step::Step;
use crate::cuda::upload::{Plain, Upload, bytes_of};
use crate::error::Result;
use crate::lora::SiteShape;

use super::{LoraDecodeParams, ROWS, SHRINK_BLOCKS, SIXTEEN_BITS};

/// Up to [`TILE_RANKS`] rows of one A, as the kernel finds them; `rows` is 0 where there are none.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ShrinkTile {
    a: u64,
    inputs: u32,
    input: u32,
    h: u32,
    rows: u32,
    padding: [u32; 2],
}

const _: () = assert!(size_of::<ShrinkTile>() == 32);

// SAFETY: a field of 8 bytes and six of 4 fill its 32 bytes.
unsafe impl Plain for ShrinkTile {}

/// Lora ranks of a tile of shrink.
const TILE_RANKS: u32 = 8;

/// Pieces of [`ON_THEIR_WAY`] inputs a multiprocessor from which on shrink takes all of it, though
/// a product has room beside one block: the product then starts once blocks of shrink are done.
const ALONE_MIN: usize = 6;

/// Inputs that shrink's warps have on their way at once, of one piece; parts that the inputs are
/// cut into, at most; and what a piece costs besides, in per cent of bringing that many.
const ON_THEIR_WAY: usize = 1024;
pub const SPLITS_MAX: usize = 16;
const PIECE_COST: usize = 60;

/// Rows from which on products have warps that shrink (`gemm_groups.cu`).
const WITHIN_ROWS_MIN: usize = 33;

/// Inputs from which on they are cut beside a product: of fewer, more blocks cost it more than
/// they save (docs/performance.md).
const CUT_BESIDE_MIN: usize = 4 * ON_THEIR_WAY;

/// Shrunk activations of a row are that many, or a multiple: 16 bytes of them once rounded.
const H_ALIGNMENT: usize = 8;

/// What decode needs to know about a site besides its pairs.
pub struct DecodeTable {
    /// `[slots, tiles]` of [`ShrinkTile`].
    device: Memory,
    slots: Vec<Vec<ShrinkTile>>,
    /// Tiles of the slot that has the most, of all that were ever loaded.
    tiles: usize,
    /// Shrunk columns of a row, likewise: no more than [`crate::ops::Ops::shrunk_rows`] counts on.
    h_stride: usize,
    /// What expand stages of a row, likewise.
    staged: usize,
    /// Inputs of the site, and multiprocessors.
    inputs: usize,
    processors: usize,
    /// Rows of few segments up to which products leave room for shrink; none where they do not
    /// stream.
    beside_rows: usize,
    /// What all pairs that were ever loaded are.
    pub all: Cuts,
}

/// How pairs are cut: what launches count on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cuts {
    /// As `lora_rows.cu` needs it.
    pub even: bool,
    /// As `adapters.cuh` needs it.
    pub copied: bool,
    /// So that rows of A, of any diagonal block, are multiples of 16 bytes.
    pub whole: bool,
    /// So that 4 columns of any B are a multiple of 16 bytes.
    pub even_ranks: bool,
}

impl Cuts {
    fn and(self, (pairs, input): (&[PairEntry], usize)) -> Self {
        Self {
            even: self.even && pairs.iter().all(PairEntry::is_even),
            whole: self.whole && pairs.iter().all(|pair| pair.has_whole_inputs(input)),
            copied: self.copied && pairs.iter().all(PairEntry::is_copied),
            even_ranks: self.even_ranks && pairs.iter().all(PairEntry::has_even_ranks),
        }
    }
}

impl DecodeTable {
    pub fn new(device: &Device, shape: &SiteShape) -> Result<Self> {
        Ok(Self {
            device: Memory::zeroed(&device.stream, 0, "a table of adapters")?,
            slots: vec![Vec::new(); shape.slots],
            tiles: 0,
            h_stride: 0,
            staged: 0,
            inputs: shape.input,
            processors: device.processors,
            beside_rows: device.kernels.gemm_stream.as_ref().map_or(0, GemmStream::beside_rows),
            all: Cuts {
                even: shape.input.is_multiple_of(8) && shape.output().is_multiple_of(COLUMNS),
                whole: true,
                copied: true,
                even_ranks: true,
            },
        })
    }

    /// Where the tiles of all slots lie.
    pub fn address(&self) -> u64 {
        self.device.address()
    }

    /// Tiles of a slot.
    pub fn tiles(&self) -> usize {
        self.tiles
    }

    /// Lora ranks of the largest pair, as expand stages them.
    pub fn staged(&self) -> usize {
        self.staged
    }

    /// Floats from a row's shrunk activations to the next one's.
    pub fn h_stride(&self) -> usize {
        self.h_stride
    }

    /// Parts that shrink cuts the inputs into in a step of so many rows.
    pub fn splits(&self, rows: usize) -> usize {
        if self.is_one_a_processor(rows) && self.inputs < CUT_BESIDE_MIN {
            return 1;
        }
        splits(self.inputs, self.segments(rows) * self.tiles, self.blocks(rows))
    }

    /// Whether a product of so many rows starts beside shrink, not behind it.
    pub fn beside(&self, rows: usize) -> bool {
        rows <= self.beside_rows && (rows <= ROWS_ANY || self.segments(rows) <= SEGMENTS_MAX)
    }

    /// Whether shrink of so many rows has one block a multiprocessor.
    pub fn is_one_a_processor(&self, rows: usize) -> bool {
        self.blocks(rows) == self.processors
    }

    /// Blocks of shrink in a step of so many rows: one a multiprocessor where a product may be
    /// beside it, unless those would have too much to do.
    pub(super) fn blocks(&self, rows: usize) -> usize {
        let pieces = self.segments(rows) * self.tiles * splits_most(self.inputs);
        let much = pieces >= ALONE_MIN * self.processors;
        self.processors * if self.beside(rows) && !much { 1 } else { SHRINK_BLOCKS }
    }

    /// Takes note of what lies in a slot. True if launches recorded before no longer serve.
    pub fn enter(
        &mut self,
        upload: &mut Upload,
        stream: &Arc<CudaStream>,
        slot: usize,
        (pairs, input): (&[PairEntry], usize),
    ) -> Result<bool> {
        let mut tiles = Vec::new();
        let all = self.all.and((pairs, input));
        let differ = all != self.all;
        self.all = all;
        pairs.iter().for_each(|pair| add_tiles(pair, input, &mut tiles));
        let columns = tiles.iter().map(|tile| (tile.h + tile.rows) as usize).max().unwrap_or(0);
        let columns = columns.next_multiple_of(H_ALIGNMENT);
        let staged = pairs.iter().map(PairEntry::staged).max().unwrap_or(0);
        let grows = tiles.len() > self.tiles || columns > self.h_stride || staged > self.staged;
        self.h_stride = self.h_stride.max(columns);
        self.staged = self.staged.max(staged);
        self.slots[slot] = tiles;
        if self.slots[slot].len() > self.tiles {
            self.tiles = self.slots[slot].len();
            let bytes = self.slots.len() * self.tiles * size_of::<ShrinkTile>();
            self.device = Memory::zeroed(stream, bytes, "a table of adapters")?;
            (0..self.slots.len()).try_for_each(|slot| self.send(upload, slot))?;
        } else {
            self.send(upload, slot)?;
        }
        Ok(grows || differ)
    }

    /// Brings a slot's tiles to the device.
    fn send(&self, upload: &mut Upload, slot: usize) -> Result<()> {
        let mut tiles = self.slots[slot].clone();
        tiles.resize(self.tiles, ShrinkTile::default());
        let bytes = bytes_of(&tiles);
        let mut writer = upload.to(self.device.address() + (slot * bytes.len()) as u64);
        writer.push(bytes)?;
        writer.finish()
    }

    /// Segments that a step of so many rows is likely to have: one an adapter, but of no more than
    /// [`ROWS`] rows.
    pub fn segments(&self, rows: usize) -> usize {
        let loaded = self.slots.iter().filter(|tiles| !tiles.is_empty()).count();
        rows.min(loaded.max(rows.div_ceil(ROWS)))
    }

    /// Floats that shrink writes for `rows` rows at most; 0 where nothing was ever loaded.
    pub fn len(&self, rows: usize) -> usize {
        splits_most(self.inputs) * rows * self.h_stride
    }

    /// Parts that a product of so many blocks cuts the inputs into where it shrinks itself.
    pub fn splits_within(&self, rows: usize, blocks: usize) -> usize {
        splits(self.inputs, self.segments(rows) * self.tiles, blocks)
    }

    /// Who shrinks for a product of so many rows that streams; `word` is for these two, or one.
    pub fn shrink(&self, rows: usize, word: u64) -> Shrink {
        if self.beside(rows) {
            return Shrink::Beside(word);
        }
        let within = rows >= WITHIN_ROWS_MIN && self.all.whole;
        if within { Shrink::Within(word) } else { Shrink::Before }
    }

    pub(super) fn params(&self, site: &Site, step: &Step) -> LoraDecodeParams {
        LoraDecodeParams {
            shrink: self.device.address(),
            pairs: site.pairs_address(),
            segments: step.segments.address,
            segment_count: step.segments.count,
            x: 0,
            y: 0,
            out: 0,
            h: 0,
            told: 0,
            rows: to_u32(step.rows),
            width: 0,
            h_stride: to_u32(self.h_stride),
            splits: to_u32(self.splits(step.rows)),
            shrink_tiles: to_u32(self.tiles),
            targets: to_u32(site.shape.targets.len()),
            columns: 0,
            staged: to_u32(self.staged),
            tile_end: [0; TARGETS_MAX],
            target_column: [0; TARGETS_MAX],
        }
    }
}

/// Parts of so many inputs with which blocks that shrink so many tiles have the least to do.
fn splits(inputs: usize, tiles: usize, blocks: usize) -> usize {
    let cost = |splits: &usize| {
        let brought = inputs.div_ceil(splits * ON_THEIR_WAY);
        (tiles * splits).div_ceil(blocks) * (100 * brought + PIECE_COST)
    };
    (1..=splits_most(inputs)).rev().min_by_key(cost).unwrap_or(1)
}

fn splits_most(inputs: usize) -> usize {
    (inputs / ON_THEIR_WAY).clamp(1, SPLITS_MAX)
}

/// The tiles of one pair; none straddles two diagonal blocks.
fn add_tiles(pair: &PairEntry, input: usize, tiles: &mut Vec<ShrinkTile>) {
    if pair.shrink_rank == 0 || pair.exchange != 0 {
        return;
    }
    let inputs = to_u32(input) / pair.a_blocks;
    let ranks = pair.shrink_rank / pair.a_blocks;
    for block in 0..pair.a_blocks {
        for first in (0..ranks).step_by(TILE_RANKS as usize) {
            let rank = block * ranks + first;
            tiles.push(ShrinkTile {
                a: pair.a_row(rank, inputs, SIXTEEN_BITS),
                inputs,
                input: block * inputs,
                h: pair.h + rank,
                rows: (ranks - first).min(TILE_RANKS),
                padding: [0; 2],
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pair_that_is_cut_otherwise_counts_for_all() {
        let pair = |expand_rank, b_blocks, outputs| PairEntry {
            shrink_rank: expand_rank,
            expand_rank,
            b_blocks,
            a_blocks: 1,
            outputs,
            ..PairEntry::default()
        };
        let all = Cuts { even: true, whole: true, copied: true, even_ranks: true };
        assert_eq!(all.and((&[pair(16, 1, 4096), pair(64, 8, 4096), pair(0, 1, 7)], 4096)), all);
        assert_eq!(all.and((&[pair(33, 1, 4096)], 4096)), Cuts { even_ranks: false, ..all });
        assert!(!all.and((&[pair(24, 8, 4096)], 4096)).even_ranks);
        assert!(!all.and((&[pair(16, 1, 4096)], 4100)).whole);
        assert!(
            !all.and((&[pair(16, 8, 96)], 4096)).copied
                && !all.and((&[pair(512, 1, 4096)], 4096)).copied
        );
    }

    #[test]
    fn inputs_are_split_where_tiles_are_few() {
        assert_eq!([1, 24, 99, 396, 768].map(|tiles| splits(4096, tiles, 396)), [4, 4, 4, 1, 1]);
        assert_eq!([8, 256].map(|tiles| splits(14336, tiles, 396)), [14, 3]);
        assert_eq!([8, 256].map(|tiles| splits(896, tiles, 132)), [1, 1]);
    }
}
