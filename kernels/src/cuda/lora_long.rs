//! Shrink and expand of long segments, prefill: products of few lora ranks by kernels of ours,
//! those of all segments in one launch, and others by cuBLASLt.
//!
//! There are as few products as there can be: the As of targets that lie one behind the other
//! shrink as one, and diagonal blocks or targets of one shape are a batch. They are known once a
//! slot is loaded.

use contract::adapter::Exchange;
use contract::tensor::DType;

use crate::error::Result;
use crate::lora::SiteShape;

use super::device::{Device, to_u32};
use super::gemm::{Addresses, Gemm, Shape, Stride};
use super::lora::{PairEntry, Site};
use super::lora_long_expand::{self, LongExpand, LongPair};
use super::lora_long_shrink::{self, LongShrink};
use super::memory::Buf;
use super::step::Step;

/// Rows of a segment from which on its products take longer than their launches.
const ROWS_MIN: u32 = 256;

/// Bytes of an element of A, B, x and y: there are no such products of f32.
const SIXTEEN_BITS: usize = 2;

/// Bytes that cuBLASLt's fast kernels move at once, and elements.
const UNIT_BYTES: usize = 16;
const UNIT: usize = UNIT_BYTES / SIXTEEN_BITS;

/// The products of one slot.
pub struct Products {
    shrink: Vec<Product>,
    expand: Vec<Product>,
}

/// `to = from factor^T`, once or for several places that are equally far apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Product {
    inputs: usize,
    outputs: usize,
    batch: usize,
    first: Place,
    step: Place,
}

/// Where a product's operands start: the address of its factor, and columns of `from` and `to`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    factor: usize,
    from: usize,
    to: usize,
}

/// Rows that a product reads or writes, all columns of them.
struct Rows {
    address: u64,
    width: usize,
    dtype: DType,
}

impl Products {
    /// `None` where a lora rank or a width is not what cuBLASLt's fast kernels take.
    pub fn new(pairs: &[PairEntry], shape: &SiteShape) -> Option<Self> {
        let (mut shrink, mut expand) = (Vec::new(), Vec::new());
        for pair in pairs.iter().filter(|pair| pair.takes_part(Exchange::None)) {
            shrinks(pair, shape.input).for_each(|product| join(&mut shrink, product));
            expands(pair).for_each(|product| join(&mut expand, product));
        }
        let widths = shape.input.is_multiple_of(UNIT) && shape.output().is_multiple_of(UNIT);
        let even = widths && shrink.iter().chain(&expand).all(Product::is_even);
        even.then_some(Self { shrink, expand })
    }
}

/// The diagonal blocks of A.
fn shrinks(pair: &PairEntry, input: usize) -> impl Iterator<Item = Product> {
    let blocks = pair.a_blocks as usize;
    let (inputs, ranks) = (input / blocks, pair.shrink_rank as usize / blocks);
    let first = Place { factor: pair.a as usize, from: 0, to: pair.h as usize };
    let step = Place { factor: ranks * inputs * SIXTEEN_BITS, from: inputs, to: ranks };
    (0..blocks).map(move |block| Product::new((inputs, ranks), first.after(step, block)))
}

/// The diagonal blocks of B.
fn expands(pair: &PairEntry) -> impl Iterator<Item = Product> {
    let blocks = pair.b_blocks as usize;
    let (ranks, outputs) = (pair.expand_rank as usize / blocks, pair.outputs as usize / blocks);
    let (from, to) = (pair.h as usize, pair.output as usize);
    let first = Place { factor: pair.b as usize, from, to };
    let step = Place { factor: outputs * ranks * SIXTEEN_BITS, from: ranks, to: outputs };
    (0..blocks).map(move |block| Product::new((ranks, outputs), first.after(step, block)))
}

/// Adds a product: as more outputs of the last one, as one more of its batch, or by itself.
fn join(products: &mut Vec<Product>, next: Product) {
    let joined = products.last_mut().is_some_and(|last| last.stack(&next) || last.repeat(&next));
    if !joined {
        products.push(next);
    }
}

impl Place {
    fn after(self, step: Self, steps: usize) -> Self {
        Self {
            factor: self.factor + steps * step.factor,
            from: self.from + steps * step.from,
            to: self.to + steps * step.to,
        }
    }

    /// How far it is to a place that is behind this one in every operand.
    fn step_to(self, next: Self) -> Option<Self> {
        let behind = |at: usize, next: usize| next.checked_sub(at).filter(|step| *step > 0);
        Some(Self {
            factor: behind(self.factor, next.factor)?,
            from: behind(self.from, next.from)?,
            to: behind(self.to, next.to)?,
        })
    }

    fn is_even(self) -> bool {
        let columns = self.from.is_multiple_of(UNIT) && self.to.is_multiple_of(UNIT);
        columns && self.factor.is_multiple_of(UNIT_BYTES)
    }
}

impl Product {
    fn new((inputs, outputs): (usize, usize), first: Place) -> Self {
        Self { inputs, outputs, batch: 1, first, step: Place::default() }
    }

    /// Takes in a product of the same inputs whose factor and outputs follow.
    fn stack(&mut self, next: &Self) -> bool {
        let factor = self.outputs * self.inputs * SIXTEEN_BITS;
        let follows = self.first.after(Place { factor, from: 0, to: self.outputs }, 1);
        let stacks = self.batch == 1 && next.inputs == self.inputs && next.first == follows;
        if stacks {
            self.outputs += next.outputs;
        }
        stacks
    }

    /// Takes in a product of the same shape that is where the next of the batch would be.
    fn repeat(&mut self, next: &Self) -> bool {
        let alone = self.batch == 1;
        let step = if alone { self.first.step_to(next.first) } else { Some(self.step) };
        let Some(step) = step else { return false };
        let same = (next.inputs, next.outputs) == (self.inputs, self.outputs);
        let repeats = same && next.first == self.first.after(step, self.batch);
        if repeats {
            (self.step, self.batch) = (step, self.batch + 1);
        }
        repeats
    }

    fn is_even(&self) -> bool {
        let shape = self.inputs.is_multiple_of(UNIT) && self.outputs.is_multiple_of(UNIT);
        shape && self.first.is_even() && self.step.is_even()
    }

    /// Whether shrink has so few outputs that `lora_long_shrink.cu` takes it.
    fn shrinks_few(&self) -> bool {
        self.outputs <= lora_long_shrink::RANKS_MAX
    }

    /// Whether expand has so few inputs that `lora_long_expand.cu` takes it.
    fn expands_few(&self) -> bool {
        self.inputs <= lora_long_expand::RANKS_MAX
            && self.outputs.is_multiple_of(lora_long_expand::COLUMNS)
    }

    /// Its whole batch, for a segment.
    fn shrinks(&self, long: &Long<'_>) -> impl Iterator<Item = LongShrink> {
        self.places().map(|Place { factor, from, to }| LongShrink {
            a: factor as u64,
            inputs: to_u32(self.inputs),
            ranks: to_u32(self.outputs),
            column: to_u32(from),
            row: to_u32(long.row),
            rows: to_u32(long.rows),
            h: to_u32(long.h + to),
            width: to_u32(long.width),
            padding: 0,
        })
    }

    fn expands(&self, long: &Long<'_>) -> impl Iterator<Item = LongExpand> {
        self.places().map(|Place { factor, from, to }| LongExpand {
            pair: LongPair { b: factor as u64, rank: to_u32(self.inputs), h: to_u32(from) },
            column: to_u32(to),
            columns: to_u32(self.outputs),
            row: to_u32(long.row),
            rows: to_u32(long.rows),
            h: to_u32(long.h),
            width: to_u32(long.width),
        })
    }

    fn places(&self) -> impl Iterator<Item = Place> {
        (0..self.batch).map(|of| self.first.after(self.step, of))
    }

    fn launch(
        &self,
        (device, gemm): (&Device, &mut Gemm),
        rows: usize,
        (from, to): (&Rows, &Rows),
        adds: bool,
    ) -> Result<()> {
        let Self { inputs, outputs, batch, first, step } = *self;
        let factor_step = step.factor / SIXTEEN_BITS;
        let shape = Shape {
            rows,
            inputs,
            outputs,
            batch,
            x_stride: Stride { row: from.width, matrix: step.from },
            weight_stride: Stride { row: inputs, matrix: factor_step },
            out_stride: Stride { row: to.width, matrix: step.to },
            held: from.dtype,
            out: to.dtype,
            bias: false,
            adds,
            alignment: UNIT_BYTES as u32,
        };
        let addresses = Addresses {
            x: from.column(first.from),
            weight: first.factor as u64,
            bias: None,
            out: to.column(first.to),
        };
        gemm.launch(device, &shape, &addresses)
    }
}

impl Rows {
    fn column(&self, column: usize) -> u64 {
        self.address + (column * self.dtype.bytes()) as u64
    }

    /// The same from another element on.
    fn from(&self, element: usize) -> Self {
        Self { address: self.column(element), ..*self }
    }
}

/// A long segment of a step.
pub struct Long<'a> {
    /// Its place among the step's segments.
    at: usize,
    pub row: usize,
    pub rows: usize,
    /// Where its shrunk activations start among those of the step, and how many a row has.
    pub h: usize,
    pub width: usize,
    /// One a target.
    pub pairs: &'a [PairEntry],
    products: &'a Products,
}

impl Long<'_> {
    /// Its expand, if that is one product to all of so many columns, from no more than so many lora
    /// ranks.
    pub fn expands_whole(&self, columns: usize, ranks_max: usize) -> Option<LongExpand> {
        let [product] = &self.products.expand[..] else { return None };
        let whole = product.outputs == columns && product.inputs <= ranks_max;
        if whole { product.expands(self).next() } else { None }
    }
}

/// Products of long segments.
type Launches<'s, 'a> = Vec<(&'s Long<'a>, &'a Product)>;

/// The long segments of a step.
pub struct LongSegments<'a>(pub Vec<Long<'a>>);

impl<'a> LongSegments<'a> {
    pub fn of(device: &Device, site: &'a Site, step: &Step, exchange: Exchange) -> Self {
        if exchange != Exchange::None || device.dtype == DType::F32 {
            return Self(Vec::new());
        }
        let mut end = 0;
        let segments = step.segments.entries.iter().enumerate().filter_map(|(at, segment)| {
            let (width, h) = (site.width(segment.slot, exchange), end);
            end += width * segment.rows as usize;
            // A lora rank of a segment before it may have left it where no product can start.
            let long = segment.rows >= ROWS_MIN && h.is_multiple_of(UNIT);
            let (pairs, products) = site.long(segment.slot).filter(|_| long)?;
            let (row, rows) = (segment.row as usize, segment.rows as usize);
            Some(Long { at, row, rows, h, width, pairs, products })
        });
        Self(segments.collect())
    }

    /// Those that `which` says, and the others.
    pub fn part(self, which: impl Fn(&Long<'a>) -> bool) -> (Self, Self) {
        let (these, others) = self.0.into_iter().partition(which);
        (Self(these), Self(others))
    }

    /// Whether the step's segment at a place is one of them.
    pub fn has(&self, at: usize) -> bool {
        self.0.iter().any(|long| long.at == at)
    }

    /// `h = x A^T`
    pub fn shrink(
        &self,
        (device, gemm): (&Device, &mut Gemm),
        x: &Buf,
        (site, step): (&Site, &Step),
        h: &mut Buf,
    ) -> Result<()> {
        let width = site.shape.input;
        let x = Rows {
            address: x.address(device.dtype, step.rows * width),
            width,
            dtype: device.dtype,
        };
        let h = h.address(DType::F32, site.len(step, Exchange::None));
        let kernel = device.kernels.lora_long_shrink.as_ref();
        let (few, rest) =
            self.products(|long| &long.products.shrink, |it| kernel.is_some() && it.shrinks_few());
        if let Some(kernel) = kernel {
            let entries: Vec<_> = few.iter().flat_map(|(long, it)| it.shrinks(long)).collect();
            kernel.launch(device, (x.address, width), h, &entries)?;
        }
        rest.into_iter().try_for_each(|(long, product)| {
            let h = Rows { address: h, width: long.width, dtype: DType::F32 }.from(long.h);
            product.launch((device, gemm), long.rows, (&x.from(long.row * width), &h), false)
        })
    }

    /// `y += h B^T`, where h is rounded to the type that tensor cores multiply.
    pub fn expand(
        &self,
        (device, gemm): (&Device, &mut Gemm),
        h: &Buf,
        (site, step): (&Site, &Step),
        y: &mut Buf,
    ) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let (len, width, dtype) =
            (site.len(step, Exchange::None), site.shape.output(), device.dtype);
        let (h, y) = (h.address(DType::F32, len), y.address(dtype, step.rows * width));
        let kernel = device.kernels.lora_long_expand.as_ref();
        let (few, rest) =
            self.products(|long| &long.products.expand, |it| kernel.is_some() && it.expands_few());
        if let Some(kernel) = kernel {
            let entries: Vec<_> = few.iter().flat_map(|(long, it)| it.expands(long)).collect();
            kernel.launch(device, h, (y, width), &entries)?;
        }
        if rest.is_empty() {
            return Ok(());
        }
        let (h, y) = (gemm.round(device, h, len)?, Rows { address: y, width, dtype });
        rest.into_iter().try_for_each(|(long, product)| {
            let h = Rows { address: h, width: long.width, dtype }.from(long.h);
            product.launch((device, gemm), long.rows, (&h, &y.from(long.row * width)), true)
        })
    }

    /// Those of all segments that `which` says, and the others.
    fn products(
        &self,
        of: impl Fn(&Long<'a>) -> &'a [Product],
        which: impl Fn(&Product) -> bool,
    ) -> (Launches<'_, 'a>, Launches<'_, 'a>) {
        let all = self.0.iter().flat_map(|long| of(long).iter().map(move |it| (long, it)));
        all.partition(|(_, product)| which(product))
    }
}

#[cfg(test)]
mod tests {
    use contract::adapter::PairShape;

    use super::*;

    fn pair(
        (rank, a_blocks, b_blocks): (usize, usize, usize),
        (a, b): (u64, u64),
        (output, h): (usize, usize),
    ) -> PairEntry {
        let shape = PairShape {
            input: 64,
            output: 0..32,
            shrink_rank: rank,
            expand_rank: rank,
            a_blocks,
            b_blocks,
            exchange: Exchange::None,
        };
        let mut widths = [h as u32, 0, 0];
        PairEntry::new(&shape, (a, b), output, &mut widths)
    }

    fn products(pairs: &[PairEntry]) -> Option<Products> {
        Products::new(pairs, &SiteShape { input: 64, targets: vec![32, 32], slots: 1 })
    }

    fn place(factor: usize, from: usize, to: usize) -> Place {
        Place { factor, from, to }
    }

    #[test]
    fn targets_of_one_input_shrink_together_and_expand_as_a_batch() {
        let (first, second) = ((0, 8192), (16 * 64 * 2, 8192 + 2048));
        let pairs = [pair((16, 1, 1), first, (0, 0)), pair((16, 1, 1), second, (32, 16))];
        let Products { shrink, expand } = products(&pairs).expect("even pairs");
        assert_eq!(shrink, [Product::new((64, 32), place(0, 0, 0))]);
        let twice = Product { batch: 2, step: place(2048, 16, 32), ..expand[0] };
        assert_eq!(expand, [twice]);
        assert_eq!((twice.inputs, twice.outputs, twice.first), (16, 32, place(8192, 0, 0)));
    }

    #[test]
    fn diagonal_blocks_are_a_batch() {
        let Products { shrink, expand } =
            products(&[pair((16, 2, 2), (0, 4096), (32, 0))]).expect("an even pair");
        let batch = |(inputs, outputs), first, step| Product {
            batch: 2,
            step,
            ..Product::new((inputs, outputs), first)
        };
        assert_eq!(shrink, [batch((32, 8), place(0, 0, 0), place(8 * 32 * 2, 32, 8))]);
        assert_eq!(expand, [batch((8, 16), place(4096, 0, 32), place(16 * 8 * 2, 8, 16))]);
    }

    #[test]
    fn what_is_not_even_stays_with_the_kernels() {
        let odd = [(12, 1, 1), (16, 4, 1), (16, 1, 4), (24, 1, 2)];
        for pair in odd.map(|of| pair(of, (0, 4096), (0, 0))) {
            assert!(products(&[pair]).is_none());
        }
        assert!(products(&[pair((16, 1, 1), (0, 4096), (4, 0))]).is_none());
        let apart =
            [pair((16, 1, 1), (0, 8192), (0, 0)), pair((24, 1, 1), (4096, 65536), (32, 16))];
        let Products { shrink, expand } = products(&apart).expect("even pairs");
        assert_eq!((shrink.len(), expand.len()), (2, 2));
    }

    /// What the products add to two rows, whose factors start at address 0.
    fn sums(products: &[Product], factors: &[f32], (from, to): (&[f32], usize)) -> Vec<f32> {
        let (mut sums, width) = (vec![0.0; 2 * to], from.len() / 2);
        for (product, of) in products.iter().flat_map(|it| (0..it.batch).map(move |of| (it, of))) {
            let Place { factor, from: column, to: first } = product.first.after(product.step, of);
            for (at, out) in (0..2).flat_map(|row| (0..product.outputs).map(move |out| (row, out)))
            {
                let factor = &factors[factor / SIXTEEN_BITS + out * product.inputs..];
                let from = from[at * width + column..].iter().take(product.inputs);
                sums[at * to + first + out] += from.zip(factor).map(|(a, b)| a * b).sum::<f32>();
            }
        }
        sums
    }

    #[test]
    fn products_compute_what_the_pairs_say() {
        // The second pair follows the first in all but its blocks, the third the second entirely.
        let blocks = [(16, 1, 1), (16, 2, 2), (16, 2, 2)];
        let (a, b) = ([0, 1024, 1536], [2048, 2560, 2816]);
        let pairs: Vec<_> =
            (0..3).map(|i| pair(blocks[i], (2 * a[i], 2 * b[i]), (32 * i, 16 * i))).collect();
        let shape = SiteShape { input: 64, targets: vec![32; 3], slots: 1 };
        let Products { shrink, expand } = Products::new(&pairs, &shape).expect("even pairs");
        assert_eq!((shrink.len(), expand.len()), (3, 2));
        let small = |count: usize| (0..count).map(|i| (i * 7919 % 11) as f32 - 5.0);
        let (factors, x): (Vec<_>, Vec<_>) = (small(3072).collect(), small(2 * 64).collect());
        let h = sums(&shrink, &factors, (&x, 48));
        let y = sums(&expand, &factors, (&h, 96));
        for (i, (_, a_blocks, b_blocks)) in blocks.into_iter().enumerate() {
            for row in 0..2 {
                for rank in 0..16 {
                    let inputs = 64 / a_blocks;
                    let from = &x[row * 64 + rank / (16 / a_blocks) * inputs..][..inputs];
                    let factor = &factors[a[i] as usize + rank * inputs..];
                    let sum: f32 = from.iter().zip(factor).map(|(a, b)| a * b).sum();
                    assert_eq!(h[row * 48 + 16 * i + rank], sum);
                }
                for out in 0..32 {
                    let ranks = 16 / b_blocks;
                    let block = out / (32 / b_blocks) * ranks;
                    let from = &h[row * 48 + 16 * i + block..][..ranks];
                    let factor = &factors[b[i] as usize + out * ranks..];
                    let sum: f32 = from.iter().zip(factor).map(|(a, b)| a * b).sum();
                    assert_eq!(y[row * 96 + 32 * i + out], sum);
                }
            }
        }
    }
}
