//! Adapter pairs of one site on the device, and launches of `lora_shrink.cu` and `lora_expand.cu`.
//!
//! Kernels find a slot's pairs through a table in device memory, so that a batch names slots only.
//! The host keeps what it needs to size a launch.

use std::sync::Arc;

use contract::adapter::{Exchange, LocalPair, PairShape, Slot};
use contract::tensor::DType;
use cudarc::driver::CudaStream;

use crate::element;
use crate::error::Result;
use crate::lora::{SiteShape, SlotPairs};

use super::device::{Device, Grid, to_u32};
use super::memory::{Buf, Memory};
use super::step::Step;
use super::upload::{Upload, bytes_of};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct LoraParams {
    pairs: u64,
    widths: u64,
    segments: u64,
    x: u64,
    y: u64,
    h: u64,
    segment_count: u32,
    targets: u32,
    width: u32,
    exchange: u32,
    h_stride: u32,
    padding: u32,
}

const _: () = assert!(size_of::<LoraParams>() == 72);

/// One local pair, as kernels find it; all zeros where a target has none.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PairEntry {
    a: u64,
    b: u64,
    shrink_rank: u32,
    expand_rank: u32,
    a_blocks: u32,
    b_blocks: u32,
    output: u32,
    outputs: u32,
    exchange: u32,
    h: u32,
}

const _: () = assert!(size_of::<PairEntry>() == 48);

/// Shrunk columns of one row of a slot, by exchange.
type Widths = [u32; 3];

/// Threads of both kernels.
const THREADS: usize = 128;

/// Rows of A that a block of `lora_shrink.cu` takes.
const TILE: usize = 4;

/// Rows of the batch that a block takes at once, where a segment has more than one.
const ROWS: usize = 8;

/// Factors start at multiples of this many bytes.
const ALIGNMENT: usize = 256;

/// The pairs of all slots at one site.
pub struct Site {
    shape: SiteShape,
    /// The pairs' values are rounded to this.
    dtype: DType,
    /// `[slots, targets]` of [`PairEntry`].
    pairs: Memory,
    /// `[slots]` of [`Widths`].
    widths: Memory,
    slots: Vec<Option<Loaded>>,
}

/// What lies in one slot.
struct Loaded {
    entries: Vec<PairEntry>,
    widths: Widths,
    _factors: Memory,
}

impl Site {
    pub fn new(stream: &Arc<CudaStream>, shape: SiteShape, dtype: DType) -> Result<Self> {
        let pairs = shape.slots * shape.targets.len() * size_of::<PairEntry>();
        let widths = shape.slots * size_of::<Widths>();
        Ok(Self {
            pairs: Memory::zeroed(stream, pairs, "a table of adapters")?,
            widths: Memory::zeroed(stream, widths, "a table of adapters")?,
            slots: (0..shape.slots).map(|_| None).collect(),
            shape,
            dtype,
        })
    }

    pub fn load(
        &mut self,
        device: &Device,
        upload: &mut Upload,
        loaded: &SlotPairs<'_>,
    ) -> Result<()> {
        let held = device.dtype;
        let place = |len: usize| (len * held.bytes()).next_multiple_of(ALIGNMENT);
        let present = loaded.pairs.iter().flatten();
        let bytes = present.map(|pair| place(pair.a.len()) + place(pair.b.len())).sum();
        let factors = Memory::zeroed(&device.stream, bytes, "an adapter")?;
        let mut entries = vec![PairEntry::default(); self.shape.targets.len()];
        let (mut widths, mut address, mut first) = ([0; 3], factors.address(), 0);
        for (target, pair) in loaded.pairs.iter().enumerate() {
            if let Some(pair) = pair {
                let b = address + place(pair.a.len()) as u64;
                self.bring(upload, held, &pair.a, address)?;
                self.bring(upload, held, &pair.b, b)?;
                entries[target] = entry(pair, (address, b), first, &mut widths);
                address = b + place(pair.b.len()) as u64;
            }
            first += self.shape.targets[target];
        }
        self.enter(upload, loaded.slot, Loaded { entries, widths, _factors: factors })
    }

    /// Writes one factor to `address`, rounded to the site's type and held in the backend's.
    fn bring(&self, upload: &mut Upload, held: DType, factor: &[f32], address: u64) -> Result<()> {
        let mut bytes = Vec::with_capacity(factor.len() * held.bytes());
        for value in factor {
            element::write(held, element::round(self.dtype, *value), &mut bytes);
        }
        let mut writer = upload.to(address);
        writer.push(&bytes)?;
        writer.finish()
    }

    /// Puts a slot's entries into the table. What lay there is freed behind the work under way.
    fn enter(&mut self, upload: &mut Upload, slot: Slot, loaded: Loaded) -> Result<()> {
        let entries = bytes_of(&loaded.entries);
        let mut writer = upload.to(self.pairs.address() + (slot.index() * entries.len()) as u64);
        writer.push(entries)?;
        writer.finish()?;
        let widths = bytes_of(&loaded.widths);
        let mut writer = upload.to(self.widths.address() + (slot.index() * widths.len()) as u64);
        writer.push(widths)?;
        writer.finish()?;
        self.slots[slot.index()] = Some(loaded);
        Ok(())
    }

    pub fn unload(&mut self, slot: Slot) {
        self.slots[slot.index()] = None;
    }

    /// Shrunk activations of one rank for all rows of a step.
    pub fn len(&self, step: &Step, exchange: Exchange) -> usize {
        let segments = step.segments.entries.iter();
        segments.map(|(slot, rows)| self.width(*slot, exchange) * *rows as usize).sum()
    }

    fn width(&self, slot: Slot, exchange: Exchange) -> usize {
        let loaded = self.slots[slot.index()].as_ref();
        loaded.map_or(0, |loaded| loaded.widths[exchange as usize] as usize)
    }

    /// The most that `size` says about the pairs of any slot that a step names.
    fn most(&self, step: &Step, exchange: Exchange, size: impl Fn(&PairEntry) -> usize) -> usize {
        let of_slot = |(slot, _): &(Slot, u32)| {
            let loaded = self.slots[slot.index()].iter();
            let pairs = loaded.flat_map(|loaded| &loaded.entries);
            pairs.filter(|pair| pair.takes_part(exchange)).map(&size).sum()
        };
        step.segments.entries.iter().map(of_slot).max().unwrap_or(0)
    }

    fn params(&self, step: &Step, exchange: Exchange) -> LoraParams {
        LoraParams {
            pairs: self.pairs.address(),
            widths: self.widths.address(),
            segments: step.segments.address,
            x: 0,
            y: 0,
            h: 0,
            segment_count: to_u32(step.segments.entries.len()),
            targets: to_u32(self.shape.targets.len()),
            width: 0,
            exchange: exchange as u32,
            h_stride: 0,
            padding: 0,
        }
    }
}

impl PairEntry {
    fn takes_part(&self, exchange: Exchange) -> bool {
        self.shrink_rank > 0 && self.exchange == exchange as u32
    }

    /// Blocks of `lora_shrink.cu` that this pair takes.
    fn tiles(&self) -> usize {
        let block_rank = (self.shrink_rank / self.a_blocks) as usize;
        block_rank.div_ceil(TILE) * self.a_blocks as usize
    }
}

/// The entry of a pair whose factors lie at `a` and `b` and whose target starts at output column
/// `first`; counts its columns in `widths`.
fn entry(pair: &LocalPair, (a, b): (u64, u64), first: usize, widths: &mut Widths) -> PairEntry {
    let PairShape { ref output, shrink_rank, expand_rank, a_blocks, b_blocks, exchange, .. } =
        pair.shape;
    let width = &mut widths[exchange as usize];
    let h = *width;
    *width += to_u32(shrink_rank);
    PairEntry {
        a,
        b,
        shrink_rank: to_u32(shrink_rank),
        expand_rank: to_u32(expand_rank),
        a_blocks: to_u32(a_blocks),
        b_blocks: to_u32(b_blocks),
        output: to_u32(first + output.start),
        outputs: to_u32(output.len()),
        exchange: exchange as u32,
        h,
    }
}

pub fn shrink(
    device: &Device,
    x: &Buf,
    site: &Site,
    step: &Step,
    exchange: Exchange,
    h: &mut Buf,
) -> Result<()> {
    let len = site.len(step, exchange);
    if len == 0 {
        return Ok(());
    }
    let params = LoraParams {
        x: x.address(device.dtype, step.rows * site.shape.input),
        h: h.address(DType::F32, len),
        width: to_u32(site.shape.input),
        ..site.params(step, exchange)
    };
    let tiles = site.most(step, exchange, PairEntry::tiles);
    let (kernels, groups) = (&device.kernels.lora_shrink, groups(step));
    let kernel = if step.segments.rows_max == 1 { &kernels.one } else { &kernels.eight };
    let grid = Grid::of_3((tiles, step.segments.entries.len(), groups), THREADS as u32);
    device.launch(kernel, grid, &params)
}

pub fn expand(
    device: &Device,
    h: &Buf,
    site: &Site,
    step: &Step,
    exchange: Exchange,
    y: &mut Buf,
) -> Result<()> {
    let len = site.len(step, exchange);
    if len == 0 {
        return Ok(());
    }
    let stride = site.most(step, exchange, |pair| pair.expand_rank.next_multiple_of(4) as usize);
    let width = site.shape.output();
    let params = LoraParams {
        y: y.address(device.dtype, step.rows * width),
        h: h.address(DType::F32, len),
        width: to_u32(width),
        h_stride: to_u32(stride),
        ..site.params(step, exchange)
    };
    let (kernels, groups) = (&device.kernels.lora_expand, groups(step));
    let one = step.segments.rows_max == 1;
    let (kernel, rows) = if one { (&kernels.one, 1) } else { (&kernels.eight, ROWS) };
    let segments = step.segments.entries.len();
    let grid = Grid::of_3((width.div_ceil(THREADS), segments, groups), THREADS as u32);
    device.launch(kernel, grid.shared(rows * stride * size_of::<f32>()), &params)
}

/// Groups of rows of the longest segment.
fn groups(step: &Step) -> usize {
    (step.segments.rows_max as usize).div_ceil(ROWS)
}
