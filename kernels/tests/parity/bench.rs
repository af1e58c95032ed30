//! What all checks share: two backends side by side, inputs, and the comparison.

use contract::tensor::DType;
use half::{bf16, f16};
use kernels::ops::{Ops, Precision, WeightView};
use kernels::reference::Reference;

/// All element types.
pub const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

/// One operation with its inputs.
pub trait Case {
    /// Runs it; the output is filled with NaN before.
    fn run<O: Ops>(&self, ops: &mut O) -> Vec<f32>;
}

/// How a backend may differ from the reference.
#[derive(Clone, Copy)]
pub struct Promise {
    /// Element type of its activations; unless it is f32, also the only one of its weights.
    pub activations: DType,
    /// A row of a product has the same bits alone and in a batch.
    pub same_products: bool,
    /// A row of attention has the same bits however its sequence is cut into steps.
    pub same_attention: bool,
}

/// A backend, the reference, and a source of inputs.
pub struct Bench<O> {
    name: String,
    pub promise: Promise,
    seed: u64,
    reference: Reference,
    pub backend: O,
    pub random: Random,
}

impl<O: Ops> Bench<O> {
    pub fn new(name: &str, promise: Promise, backend: O) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = now.expect("a clock").as_nanos() as u64;
        let (name, random) = (name.to_owned(), Random(seed));
        Self { name, promise, seed, reference: Reference, backend, random }
    }

    /// The element types that the backend takes weights in.
    pub fn dtypes(&self) -> Vec<DType> {
        match self.promise.activations {
            DType::F32 => DTYPES.to_vec(),
            only => vec![only],
        }
    }

    /// Runs a case on both and fails unless they agree; returns what the backend made.
    pub fn agree(&mut self, what: &str, dtype: DType, case: &impl Case) -> Vec<f32> {
        let (got, want) = (case.run(&mut self.backend), case.run(&mut self.reference));
        self.close(what, dtype, &got, &want);
        got
    }

    /// Fails unless the backend's `got` is what the reference `want`s, up to the rounding that
    /// `dtype` allows: a backend may round activations to it.
    fn close(&self, what: &str, dtype: DType, got: &[f32], want: &[f32]) {
        let tolerance = tolerance(dtype).max(tolerance(self.promise.activations));
        // f16 has nothing between 0 and this.
        let smallest = if self.promise.activations == DType::F16 { 6e-8 } else { 0.0 };
        let Self { name, seed, .. } = self;
        assert_eq!(got.len(), want.len(), "{name}: {what}: length (seed {seed})");
        let squares: f32 = want.iter().map(|want| want * want).sum();
        let rms = (squares / want.len().max(1) as f32).sqrt();
        // Rows of a wide lora rank are few and far larger than the rest, and so is their rounding.
        let largest = want.iter().fold(0.0, |largest: f32, want| largest.max(want.abs()));
        let scale = rms.max(largest / 8.0);
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let near = (got - want).abs() <= tolerance * (want.abs() + scale) + smallest;
            assert!(near, "{name}: {what}: [{i}] is {got}, not {want} (seed {seed})");
        }
    }

    /// Fails unless both have the same bits, or are close where bits are not promised.
    pub fn alike(&self, what: &str, dtype: DType, bits: bool, (got, want): (&[f32], &[f32])) {
        if bits { self.same(what, got, want) } else { self.close(what, dtype, got, want) }
    }

    /// Fails unless both have the same bits.
    pub fn same(&self, what: &str, got: &[f32], want: &[f32]) {
        let Self { name, seed, .. } = self;
        let differs = got.iter().zip(want).position(|(a, b)| a.to_bits() != b.to_bits());
        assert_eq!(got.len(), want.len(), "{name}: {what}: length (seed {seed})");
        assert_eq!(differs, None, "{name}: {what}: first other bits (seed {seed})");
    }
}

fn tolerance(dtype: DType) -> f32 {
    match dtype {
        DType::F32 => 2e-5,
        DType::F16 => 4e-3,
        // Where both factors of a product are rounded (AVX512_BF16), 3e-2 failed once in 17 runs.
        DType::Bf16 => 4e-2,
    }
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Values in `[-1, 1)`.
    pub fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    /// `0..count` in some order.
    pub fn shuffled(&mut self, count: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..count as u32).collect();
        for i in (1..count).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// Activations that start with `values`.
pub fn upload<O: Ops>(ops: &mut O, values: &[f32]) -> O::Buf {
    upload_as(ops, values, Precision::Activation)
}

/// A buffer that starts with `values`.
pub fn upload_as<O: Ops>(ops: &mut O, values: &[f32], precision: Precision) -> O::Buf {
    let mut buf = ops.buf(values.len(), precision).expect("a buffer");
    ops.write(values, &mut buf).expect("room");
    buf
}

/// Activations of NaN.
pub fn poisoned<O: Ops>(ops: &mut O, elements: usize) -> O::Buf {
    poisoned_as(ops, elements, Precision::Activation)
}

/// A buffer of NaN.
pub fn poisoned_as<O: Ops>(ops: &mut O, elements: usize, precision: Precision) -> O::Buf {
    upload_as(ops, &vec![f32::NAN; elements], precision)
}

/// A weight `[rows, cols]` of `values`.
pub fn weight<O: Ops>(ops: &mut O, values: &[f32], cols: usize, dtype: DType) -> O::Weight {
    let bytes = elements(values, dtype);
    let rows = values.len() / cols;
    let view = WeightView { dtype, rows, cols, stride: cols, bytes: &bytes };
    ops.weight(&[view], dtype).expect("a weight")
}

/// Values as stored elements.
pub fn elements(values: &[f32], dtype: DType) -> Vec<u8> {
    let element = |value: &f32| match dtype {
        DType::F32 => value.to_le_bytes().to_vec(),
        DType::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
        DType::Bf16 => bf16::from_f32(*value).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(element).collect()
}
