//! Launches `lora_gated.cu` and `lora_gated_few.cu`: expand to gate and up with the activation
//! behind it, of long segments whose pairs they have room for. Steps that graphs serve have a
//! kernel of their own (`lora_decode.rs`); all others expand, and then have their activation.

use std::iter;
use std::ops::Range;

use contract::adapter::Exchange;
use contract::tensor::DType;

use crate::error::Result;

use super::device::{Device, Grid, Kernel, in_launches, to_u32};
use super::gemm::Gemm;
use super::lora::{PairEntry, Site};
use super::lora_decode;
use super::lora_expand::{expand_others, lora_expand};
use super::lora_long::{Long, LongSegments};
use super::lora_long_expand::{LongPair, RANKS_MAX, ROWS, THREADS};
use super::memory::Buf;
use super::program::{Programs, SHARED_BYTES_ANYWHERE};
use super::silu_mul::silu_mul;
use super::step::Step;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct GatedSegment {
    pairs: [LongPair; 2],
    row: u32,
    rows: u32,
    h: u32,
    width: u32,
}

const _: () = assert!(size_of::<GatedSegment>() == 48);

#[repr(C)]
#[derive(Clone, Copy)]
pub struct LoraGatedParams {
    h: u64,
    gate_up: u64,
    out: u64,
    width: u32,
    padding: u32,
    segments: [GatedSegment; SEGMENTS_MAX],
}

const _: () = assert!(size_of::<LoraGatedParams>() == 800);

/// Segments of a launch, at most.
const SEGMENTS_MAX: usize = 16;

/// Columns of a tile, and tiles that a block takes.
const COLUMNS: usize = 32;
const TILES: usize = 16;

/// Bytes of both factors in shared memory: two tiles of B, in rows padded by 16 bytes.
const SHARED_BYTES: usize = (2 * ROWS + 4 * COLUMNS) * (RANKS_MAX + 8) * 2;

const _: () = assert!(SHARED_BYTES <= SHARED_BYTES_ANYWHERE);

/// Lora ranks of a pair that `lora_gated_few.cu` takes, at most; columns of a warp, and warps and
/// rows of a block.
const FEW_RANKS_MAX: u32 = 16;
const FEW_COLUMNS: usize = 64;
const FEW_WARPS: usize = THREADS as usize / 32;
const FEW_ROWS: usize = 64;

/// The kernels.
pub struct LoraGated {
    any: Kernel<LoraGatedParams>,
    few: Kernel<LoraGatedParams>,
}

impl LoraGated {
    /// `None` where they are not compiled.
    pub fn new(programs: &Programs) -> Result<Option<Self>> {
        let [any, few] = ["lora_gated", "lora_gated_few"];
        if programs.module(any).is_none() {
            return Ok(None);
        }
        Ok(Some(Self {
            any: Kernel::new(programs, any, any)?.allow_shared(SHARED_BYTES)?,
            few: Kernel::new(programs, few, few)?,
        }))
    }

    fn launch(&self, device: &Device, params: LoraGatedParams, segments: &[Long]) -> Result<()> {
        let width = params.width as usize;
        let even = width.is_multiple_of(FEW_COLUMNS);
        let (few, others): (Vec<_>, Vec<_>) = segments
            .iter()
            .map(GatedSegment::new)
            .partition(|segment| even && segment.pairs.iter().all(|it| it.rank <= FEW_RANKS_MAX));
        let blocks = |columns, of_rows: usize, some: &[GatedSegment]| {
            let rows = some.iter().map(|segment| segment.rows as usize).max().unwrap_or(0);
            Grid::of_3((width.div_ceil(columns), rows.div_ceil(of_rows), some.len()), THREADS)
        };
        in_launches(&few, |segments, some| {
            let grid = blocks(FEW_COLUMNS * FEW_WARPS, FEW_ROWS, some);
            device.launch(&self.few, grid, &LoraGatedParams { segments, ..params })
        })?;
        in_launches(&others, |segments, some| {
            let grid = blocks(COLUMNS * TILES, ROWS, some).shared(SHARED_BYTES);
            device.launch(&self.any, grid, &LoraGatedParams { segments, ..params })
        })
    }
}

impl GatedSegment {
    fn new(long: &Long) -> Self {
        let pair = |i: usize| {
            let PairEntry { b, expand_rank: rank, h, .. } = long.pairs[i];
            LongPair { b, rank, h }
        };
        Self {
            pairs: [pair(0), pair(1)],
            row: to_u32(long.row),
            rows: to_u32(long.rows),
            h: to_u32(long.h),
            width: to_u32(long.width),
        }
    }
}

/// Whether the pairs of a segment add to all of gate and up, each as one block.
fn fits(long: &Long, width: usize) -> bool {
    let whole = |(at, pair): (usize, &PairEntry)| {
        let columns = (pair.output as usize, pair.outputs as usize) == (at * width, width);
        columns && pair.takes_part(Exchange::None) && pair.b_blocks == 1
    };
    let room = long.pairs.iter().all(|pair| pair.expand_rank as usize <= RANKS_MAX);
    room && long.pairs.len() == 2 && long.pairs.iter().enumerate().all(whole)
}

pub fn lora_expand_silu_mul(
    (device, gemm): (&Device, &mut Gemm),
    h: &Buf,
    (site, step): (&Site, &Step),
    (gate_up, width): (&mut Buf, usize),
    out: &mut Buf,
) -> Result<()> {
    if lora_decode::expand_silu_mul(device, h, (site, step), (&*gate_up, width), out)? {
        return Ok(());
    }
    let len = site.len(step, Exchange::None);
    let serves = len > 0 && step.alike.is_none() && width.is_multiple_of(COLUMNS);
    let Some(kernel) = device.kernels.lora_gated.as_ref().filter(|_| serves) else {
        lora_expand((device, gemm), h, site, step, Exchange::None, gate_up)?;
        return silu_mul(device, gate_up, width, 0..step.rows, out);
    };
    let long = LongSegments::of(device, site, step, Exchange::None);
    let (gated, others) = long.part(|long| fits(long, width));
    let params = LoraGatedParams {
        h: h.address(DType::F32, len),
        gate_up: gate_up.address(device.dtype, step.rows * 2 * width),
        out: out.address(device.dtype, step.rows * width),
        width: to_u32(width),
        padding: 0,
        segments: [GatedSegment::default(); SEGMENTS_MAX],
    };
    kernel.launch(device, params, &gated.0)?;
    expand_others((device, gemm), h, (site, step), (&others, &gated), gate_up)?;
    let rest = gaps(gated.0.iter().map(|long| long.row..long.row + long.rows), step.rows);
    rest.into_iter().try_for_each(|rows| silu_mul(device, gate_up, width, rows, out))
}

/// What lies before, between and behind ranges that are in order.
pub fn gaps(ranges: impl Iterator<Item = Range<usize>>, end: usize) -> Vec<Range<usize>> {
    let mut start = 0;
    let gaps = ranges.chain(iter::once(end..end)).map(|range| {
        let gap = start..range.start;
        start = range.end;
        gap
    });
    gaps.filter(|gap| !gap.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_what_no_range_has() {
        assert_eq!(gaps([3..5, 5..9].into_iter(), 12), [0..3, 9..12]);
        assert_eq!(gaps(iter::once(0..4), 4), []);
        assert_eq!(gaps(iter::once(1..2), 3), [0..1, 2..3]);
    }
}
