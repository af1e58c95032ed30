//! What adapters add to a product of few rows, computed beside it (`adapters.cuh`): where that is
//! possible, and how shared memory is laid out for it.

use contract::tensor::DType;

use super::device::to_u32;
use super::gemm_stream::ROWS_ANY;
use super::lora::Site;
use super::memory::Buf;
use super::step::Step;

/// Shared memory for adapters' shrunk activations, at most: the ring of weights needs the rest.
const SHRUNK_BYTES_MAX: usize = 32 << 10;

/// Segments of more than [`ROWS_ANY`] rows, at most, and bytes of B that a tile needs where there
/// are more of them: else expand had better be a kernel of its own (docs/performance.md). One that
/// is gated reads and writes more itself, and is worth more bytes, of rows up to so many.
pub const SEGMENTS_MAX: usize = 16;
const TILE_BYTES_MAX: usize = 32 << 10;
const GATED_TILE_BYTES_MAX: usize = 256 << 10;
const GATED_ROWS_MAX: usize = 32;

/// Slots of the ring of B, and bytes of one: no more than hold what a tile needs, as the ring of
/// weights has the rest; of many rows, whose sums take room too, half as many.
const SLOTS: usize = 12;
const SLOT_BYTES_MIN: usize = 1024;
const SLOT_BYTES_MAX: usize = 4096;
const SLOT_BYTES: usize = 2048;

/// Lora ranks of a diagonal block of which 8 columns fit into a slot.
pub const COPIED_RANK_MAX: u32 = (SLOT_BYTES_MAX / 8 / SIXTEEN_BITS) as u32;

/// Bytes of an element: the kernels take no other. Bytes of a piece, as the kernel keeps it.
const SIXTEEN_BITS: usize = 2;
const PIECE_BYTES: usize = 48;

/// Bytes of the slices that warps look up at once, in front of the pieces.
const SLICES_BYTES: usize = 4 * 16 * 20;

/// Slots of the ring that A comes through where the product shrinks itself, bytes of one, and of
/// what is known of pieces and shared of sums.
const A_SLOTS: usize = 4;
const A_SLOT_BYTES: usize = 8 * (512 * SIXTEEN_BITS + 64);
const KNOWN_BYTES: usize = A_SLOTS * 32 + 2 * 4 * 64 * size_of::<f32>();

/// Copies go to multiples of this many bytes.
const ALIGNMENT: usize = 128;

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct AdaptersParams {
    pairs: u64,
    segments: u64,
    segment_count: u64,
    h: u64,
    told: u64,
    pool: u64,
    x: u64,
    shrink: u64,
    shrink_tiles: u32,
    targets: u32,
    splits: u32,
    h_stride: u32,
    pieces: u32,
    known: u32,
    shrunk: u32,
    ring: u32,
    sums: u32,
    slot_bytes: u32,
    columns: u32,
    padding: u32,
}

const _: () = assert!(size_of::<AdaptersParams>() == 112);

/// The adapters of a site that add to a step's product.
#[derive(Clone, Copy)]
pub struct Adapters<'a> {
    pub site: &'a Site,
    pub step: &'a Step,
    /// Shrunk activations.
    pub h: &'a Buf,
    pub shrink: Shrink,
}

/// Who shrinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shrink {
    /// A kernel before the product.
    Before,
    /// A kernel beside it, which tells at this address that its input is there.
    Beside(u64),
    /// The product itself, whose blocks divide the work by what lies at this address.
    Within(u64),
}

impl Adapters<'_> {
    /// Whether the kernel takes them, where a block adds to so many columns of a tile, of so many
    /// parts.
    pub fn fit(&self, columns: usize, parts: usize) -> bool {
        let decode = &self.site.decode;
        self.step.alike.is_some_and(|alike| alike.adapted)
            && decode.tiles() > 0
            && self.few(columns, parts)
            && decode.all.copied
            && self.shrunk_bytes() <= SHRUNK_BYTES_MAX
    }

    /// Columns of B, of every part, at whose multiples a tile may start.
    pub fn unit(&self) -> usize {
        if self.site.decode.all.even_ranks { 4 } else { 8 }
    }

    fn few(&self, columns: usize, parts: usize) -> bool {
        let rows = self.step.rows;
        let gated = parts == 2 && rows <= GATED_ROWS_MAX;
        let bytes_max = if gated { GATED_TILE_BYTES_MAX } else { TILE_BYTES_MAX };
        rows <= ROWS_ANY || self.segments() <= SEGMENTS_MAX || self.b_bytes(columns) <= bytes_max
    }

    fn segments(&self) -> usize {
        self.site.decode.segments(self.step.rows)
    }

    /// Bytes of B that so many columns need.
    fn b_bytes(&self, columns: usize) -> usize {
        self.segments() * columns * self.site.decode.staged() * SIXTEEN_BITS
    }

    fn shrunk_bytes(&self) -> usize {
        self.step.rows * self.site.decode.h_stride() * SIXTEEN_BITS
    }

    /// Shared memory for them, where a block adds to so many columns.
    pub fn shared_bytes(&self, columns: usize) -> usize {
        self.places(columns)[5]
    }

    /// Where slices and pieces, what is known of shrink's, shrunk activations, the ring, and sums
    /// start, and where these end.
    fn places(&self, columns: usize) -> [usize; 6] {
        let within = matches!(self.shrink, Shrink::Within(_));
        let [known_bytes, a_bytes] = match within {
            true => [KNOWN_BYTES, A_SLOTS * A_SLOT_BYTES],
            false => [0; 2],
        };
        let pieces = self.step.rows * self.site.shape.targets.len() * PIECE_BYTES;
        let known = (SLICES_BYTES + pieces).next_multiple_of(ALIGNMENT);
        let shrunk = (known + known_bytes).next_multiple_of(ALIGNMENT);
        let ring = (shrunk + self.shrunk_bytes()).next_multiple_of(ALIGNMENT);
        let sums = ring + (SLOTS * self.slot_bytes(columns)).max(a_bytes);
        let end = sums + self.step.rows * (columns + 4) * size_of::<f32>();
        [0, known, shrunk, ring, sums, end]
    }

    /// Always enough for the 8 columns that are multiplied at once.
    fn slot_bytes(&self, columns: usize) -> usize {
        let least = 8 * self.site.decode.staged() * SIXTEEN_BITS;
        let wanted = match self.step.rows > ROWS_ANY {
            true => SLOT_BYTES,
            false => self.b_bytes(columns).div_ceil(SLOTS).next_power_of_two(),
        };
        wanted.max(least.next_power_of_two()).clamp(SLOT_BYTES_MIN, SLOT_BYTES_MAX)
    }

    /// With what [`Self::shared_bytes`] counts from `start` on.
    /// x lies at that address, and the product has so many blocks.
    pub fn params(&self, columns: usize, start: usize, x: u64, blocks: usize) -> AdaptersParams {
        let [pieces, known, shrunk, ring, sums, _] =
            self.places(columns).map(|place| to_u32(start + place));
        let decode = &self.site.decode;
        let (told, pool) = match self.shrink {
            Shrink::Before => (0, 0),
            Shrink::Beside(told) => (told, 0),
            Shrink::Within(pool) => (0, pool),
        };
        let splits = match self.shrink {
            Shrink::Within(_) => decode.splits_within(self.step.rows, blocks),
            _ => decode.splits(self.step.rows),
        };
        AdaptersParams {
            pairs: self.site.pairs_address(),
            segments: self.step.segments.address,
            segment_count: self.step.segments.count,
            h: self.h.address(DType::F32, decode.len(self.step.rows)),
            told,
            pool,
            x,
            shrink: decode.address(),
            shrink_tiles: to_u32(decode.tiles()),
            targets: to_u32(self.site.shape.targets.len()),
            splits: to_u32(splits),
            h_stride: to_u32(decode.h_stride()),
            pieces,
            known,
            shrunk,
            ring,
            sums,
            slot_bytes: to_u32(self.slot_bytes(columns)),
            columns: to_u32(columns),
            padding: 0,
        }
    }
}
