//! Adapter pairs of one site on the device, and what shrink and expand share.
//!
//! Kernels find a slot's pairs through a table in device memory, so that a batch names slots only.
//! The host keeps what it needs to size a launch.

use contract::adapter::{Exchange, PairShape, Slot};
use contract::tensor::DType;

use crate::element;
use crate::error::{Error, Result};
use crate::lora::{SiteShape, SlotPairs};

use super::beside::COPIED_RANK_MAX;
use super::device::{Device, Kernel, to_u32};
use super::lora_decode::{DecodeTable, STAGED_MAX};
use super::lora_long::Products;
use super::lora_rows::COLUMNS;
use super::memory::Memory;
use super::step::{Run, Step};
use super::upload::{Plain, Upload, bytes_of};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct LoraParams {
    pub pairs: u64,
    pub widths: u64,
    pub segments: u64,
    pub x: u64,
    pub y: u64,
    pub h: u64,
    pub segment_count: u32,
    pub targets: u32,
    pub width: u32,
    pub exchange: u32,
    pub h_stride: u32,
    pub first: u32,
}

const _: () = assert!(size_of::<LoraParams>() == 72);

/// One local pair, as kernels find it; all zeros where a target has none.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct PairEntry {
    pub a: u64,
    pub b: u64,
    pub shrink_rank: u32,
    pub expand_rank: u32,
    pub a_blocks: u32,
    pub b_blocks: u32,
    pub output: u32,
    pub outputs: u32,
    pub exchange: u32,
    /// Where its shrunk activations start in those of a row with the same exchange.
    pub h: u32,
}

const _: () = assert!(size_of::<PairEntry>() == 48);

// SAFETY: two fields of 8 bytes and eight of 4 fill its 48 bytes.
unsafe impl Plain for PairEntry {}

/// Shrunk columns of one row of a slot, by exchange.
type Widths = [u32; 3];

/// Targets of a site, at most, as the kernels have room for.
pub const TARGETS_MAX: usize = 8;

/// Lora rank of all pairs of a slot, at most: 8 rows of them fit into shared memory.
const RANK_MAX: usize = 1536;

/// Rows of the batch that a block takes at once, where a segment has more than one.
pub const ROWS: usize = 8;

/// Factors start at multiples of this many bytes.
const ALIGNMENT: usize = 256;

/// The pairs of all slots at one site.
pub struct Site {
    pub shape: SiteShape,
    /// The pairs' values are rounded to this.
    dtype: DType,
    /// `[slots, targets]` of [`PairEntry`].
    pairs: Memory,
    /// `[slots]` of [`Widths`].
    widths: Memory,
    slots: Vec<Option<Loaded>>,
    pub decode: DecodeTable,
    /// Whether a pair with an exchange was ever loaded: graphs don't serve those.
    pub exchanges: bool,
}

/// What lies in one slot.
struct Loaded {
    entries: Vec<PairEntry>,
    widths: Widths,
    /// What long segments launch, if they need no kernels of ours.
    products: Option<Products>,
    _factors: Memory,
}

impl Site {
    pub fn new(device: &Device, shape: SiteShape, dtype: DType) -> Result<Self> {
        assert!(shape.targets.len() <= TARGETS_MAX, "too many targets: this is a bug");
        let pairs = shape.slots * shape.targets.len() * size_of::<PairEntry>();
        let widths = shape.slots * size_of::<Widths>();
        Ok(Self {
            pairs: Memory::zeroed(&device.stream, pairs, "a table of adapters")?,
            widths: Memory::zeroed(&device.stream, widths, "a table of adapters")?,
            slots: (0..shape.slots).map(|_| None).collect(),
            decode: DecodeTable::new(device, &shape)?,
            exchanges: false,
            shape,
            dtype,
        })
    }

    /// Fills a slot. True if launches recorded before no longer serve.
    pub fn load(
        &mut self,
        device: &Device,
        upload: &mut Upload,
        loaded: &SlotPairs<'_>,
    ) -> Result<bool> {
        fits(loaded)?;
        let held = device.dtype;
        let place = |len: usize| (len * held.bytes()).next_multiple_of(ALIGNMENT);
        let present = || loaded.pairs.iter().flatten();
        let a_bytes = present().map(|pair| place(pair.a.len())).sum::<usize>();
        let b_bytes = present().map(|pair| place(pair.b.len())).sum::<usize>();
        let factors = Memory::zeroed(&device.stream, a_bytes + b_bytes, "an adapter")?;
        let mut entries = vec![PairEntry::default(); self.shape.targets.len()];
        // All As come first: those of one input are rows of one matrix.
        let (mut a, mut b) = (factors.address(), factors.address() + a_bytes as u64);
        let (mut widths, mut first) = ([0; 3], 0);
        for ((entry, pair), outputs) in
            entries.iter_mut().zip(&loaded.pairs).zip(&self.shape.targets)
        {
            if let Some(pair) = pair {
                self.bring(upload, held, &pair.a, a)?;
                self.bring(upload, held, &pair.b, b)?;
                *entry = PairEntry::new(&pair.shape, (a, b), first, &mut widths);
                a += place(pair.a.len()) as u64;
                b += place(pair.b.len()) as u64;
            }
            first += outputs;
        }
        self.exchanges |= entries.iter().any(|entry| entry.exchange != Exchange::None as u32);
        let (slot, input) = (loaded.slot, self.shape.input);
        let pairs = (&*entries, input);
        let grows = self.decode.enter(upload, &device.stream, slot.index(), pairs)?;
        let products = Products::new(&entries, &self.shape);
        self.enter(upload, slot, Loaded { entries, widths, products, _factors: factors })?;
        Ok(grows)
    }

    /// Where the pairs of all slots lie.
    pub fn pairs_address(&self) -> u64 {
        self.pairs.address()
    }

    /// Writes one factor to `address`, rounded to the site's type and held in the backend's.
    fn bring(&self, upload: &mut Upload, held: DType, factor: &[f32], address: u64) -> Result<()> {
        let mut bytes = vec![0; factor.len() * held.bytes()];
        let values = factor.iter().zip(bytes.chunks_exact_mut(held.bytes()));
        match (self.dtype, held) {
            // The usual types, in a form that the compiler vectorises: factors are large.
            (DType::Bf16, DType::Bf16) => values.for_each(|(value, to)| {
                to.copy_from_slice(&element::bf16_bits(*value).to_le_bytes());
            }),
            (dtype, held) => values.for_each(|(value, to)| {
                element::put(held, element::round(dtype, *value), to);
            }),
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

    /// Shrunk activations of one rank for all rows of a step, at most.
    pub fn len(&self, step: &Step, exchange: Exchange) -> usize {
        if step.alike.is_some() {
            let none = exchange == Exchange::None;
            return if none { self.decode.len(step.rows) } else { 0 };
        }
        let segments = step.segments.entries.iter();
        segments.map(|of| self.width(of.slot, exchange) * of.rows as usize).sum()
    }

    pub fn width(&self, slot: Slot, exchange: Exchange) -> usize {
        let loaded = self.slots[slot.index()].as_ref();
        loaded.map_or(0, |loaded| loaded.widths[exchange as usize] as usize)
    }

    /// A slot's pairs, one a target, and what long segments launch, if they need no kernels of
    /// ours.
    pub fn long(&self, slot: Slot) -> Option<(&[PairEntry], &Products)> {
        let loaded = self.slots[slot.index()].as_ref()?;
        Some((&*loaded.entries, loaded.products.as_ref()?))
    }

    /// The pairs with this exchange of each slot that a run of a step's segments names.
    pub fn pairs<'a>(
        &'a self,
        (step, run): (&'a Step, &Run),
        exchange: Exchange,
    ) -> impl Iterator<Item = impl Iterator<Item = &'a PairEntry>> {
        step.segments.entries[run.segments.clone()].iter().map(move |segment| {
            let loaded = self.slots[segment.slot.index()].iter();
            let entries = loaded.flat_map(|loaded| &loaded.entries);
            entries.filter(move |pair| pair.takes_part(exchange))
        })
    }

    pub fn params(&self, (step, run): (&Step, &Run), exchange: Exchange) -> LoraParams {
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
            first: to_u32(run.segments.start),
        }
    }
}

impl PairEntry {
    /// The entry of a pair whose factors lie at `a` and `b` and whose target starts at output
    /// column `first`; counts its shrunk columns in `widths`.
    pub fn new(shape: &PairShape, (a, b): (u64, u64), first: usize, widths: &mut Widths) -> Self {
        let width = &mut widths[shape.exchange as usize];
        let h = *width;
        *width += to_u32(shape.shrink_rank);
        Self {
            a,
            b,
            shrink_rank: to_u32(shape.shrink_rank),
            expand_rank: to_u32(shape.expand_rank),
            a_blocks: to_u32(shape.a_blocks),
            b_blocks: to_u32(shape.b_blocks),
            output: to_u32(first + shape.output.start),
            outputs: to_u32(shape.output.len()),
            exchange: shape.exchange as u32,
            h,
        }
    }

    /// Address of one row of A.
    pub fn a_row(&self, rank: u32, inputs: u32, element_bytes: u64) -> u64 {
        self.a + u64::from(rank) * u64::from(inputs) * element_bytes
    }

    /// Lora ranks that expand stages: those of a diagonal block are 16 or a multiple of 32.
    pub fn staged(&self) -> usize {
        staged(self.expand_rank as usize, self.b_blocks as usize)
    }

    /// Whether A is one block, and B's blocks start and end at tiles of columns.
    pub fn is_even(&self) -> bool {
        let even = |columns: u32| (columns as usize).is_multiple_of(COLUMNS);
        self.shrink_rank == 0
            || self.a_blocks == 1 && even(self.output) && even(self.outputs / self.b_blocks)
    }

    /// Whether tiles of its columns can be copied in one piece, and slices of one diagonal block.
    pub fn is_copied(&self) -> bool {
        let blocks = self.b_blocks.max(1);
        let columns = [self.output, self.outputs / blocks];
        self.shrink_rank == 0
            || self.expand_rank / blocks <= COPIED_RANK_MAX
                && columns.iter().all(|columns| columns.is_multiple_of(8))
    }

    /// Whether rows of A are multiples of 16 bytes, where the site has so many inputs.
    pub fn has_whole_inputs(&self, input: usize) -> bool {
        self.shrink_rank == 0 || (input / self.a_blocks.max(1) as usize).is_multiple_of(8)
    }

    /// Whether a diagonal block of B has.
    pub fn has_even_ranks(&self) -> bool {
        (self.expand_rank / self.b_blocks.max(1)).is_multiple_of(2)
    }

    pub fn takes_part(&self, exchange: Exchange) -> bool {
        self.shrink_rank > 0 && self.exchange == exchange as u32
    }
}

fn staged(rank: usize, blocks: usize) -> usize {
    // An entry of zeros is no pair.
    let own = rank / blocks.max(1);
    blocks * if own <= 16 { 16 } else { own.next_multiple_of(32) }
}

/// Refuses pairs whose shrunk activations the kernels have no room for.
fn fits(loaded: &SlotPairs<'_>) -> Result<()> {
    let ranks = loaded.pairs.iter().flatten().map(|pair| pair.shape.expand_rank);
    let rank: usize = ranks.map(|rank| rank.next_multiple_of(4)).sum();
    if rank > RANK_MAX {
        let why = format!("lora ranks of {rank} together at one site: up to {RANK_MAX} would do");
        return Err(Error::Unfit(why));
    }
    let shapes = loaded.pairs.iter().flatten().map(|pair| &pair.shape);
    let staged = shapes.map(|shape| staged(shape.expand_rank, shape.b_blocks)).max().unwrap_or(0);
    if staged > STAGED_MAX {
        let why =
            format!("a lora rank of {staged}, its diagonal blocks padded to 16 or multiples of 32");
        return Err(Error::Unfit(format!("{why}: up to {STAGED_MAX} would do")));
    }
    Ok(())
}

/// Groups of rows of the longest segment.
pub fn groups(run: &Run) -> usize {
    (run.rows_max as usize).div_ceil(ROWS)
}

/// One kernel for segments of one row, and one that takes [`ROWS`] rows at a time.
pub struct ByRows {
    pub one: Kernel<LoraParams>,
    pub eight: Kernel<LoraParams>,
}

impl ByRows {
    /// The kernel for a run of segments, and how many rows it takes.
    pub fn of(&self, run: &Run) -> (&Kernel<LoraParams>, usize) {
        if run.rows_max == 1 { (&self.one, 1) } else { (&self.eight, ROWS) }
    }
}
