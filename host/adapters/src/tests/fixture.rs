//! PEFT folders for tests, the goldens among them, and the maths of their tensors in f64.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use contract::base::{BaseShape, Projection};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cut::{Group, PlainSharding};
use crate::manifest;
use crate::site::Site;
use crate::weights;

/// The base that `goldens/llama` and `goldens/bad-adapters` are made for.
pub const LLAMA: BaseShape = base(64, 96, [8, 4, 8]);

pub const fn base(
    hidden: usize,
    intermediate: usize,
    [heads, kv_heads, head_dim]: [usize; 3],
) -> BaseShape {
    BaseShape { hidden, intermediate, layers: 2, heads, kv_heads, head_dim, vocab: 101 }
}

pub fn group(base: BaseShape, ranks: usize) -> Group {
    Group { base, ranks, plain_sharding: PlainSharding::Replicated }
}

pub fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/goldens")
}

/// A PEFT folder that is gone when the test ends.
pub struct Folder {
    dir: TempDir,
    pub config: Value,
    pub tensors: BTreeMap<String, Stored>,
}

/// A tensor in memory.
#[derive(Clone)]
pub struct Stored {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// How an adapter's factors are stored: blocks of A and of B for each projection.
pub type Layout = fn(Projection, usize) -> [usize; 2];

pub const PLAIN: Layout = |_, _| [1, 1];
pub const BLOCKS: Layout = |projection, blocks| match projection {
    Projection::O | Projection::Down => [blocks, 1],
    _ => [1, blocks],
};
pub const REVERSED: Layout = |projection, blocks| {
    let [a, b] = BLOCKS(projection, blocks);
    [b, a]
};

impl Folder {
    /// An adapter on every module with random factors and `lora_alpha` 16.
    pub fn new(base: &BaseShape, rank: usize, layout: Layout, blocks: usize) -> Self {
        let names = |side: usize| {
            let diagonal = |it: &Projection| layout(*it, 2)[side] > 1;
            let projections = Projection::ALL.into_iter().filter(diagonal);
            projections.map(Projection::path).collect::<Vec<_>>()
        };
        let (a, b) = (names(0), names(1));
        let declared = (!a.is_empty() || !b.is_empty()).then(
            || json!({"nblocks": blocks, "target_modules_bd_a": a, "target_modules_bd_b": b}),
        );
        let config = json!({
            "peft_type": "LORA", "r": rank, "lora_alpha": 16, "bias": "none",
            "target_modules": Projection::ALL.map(Projection::path), "use_bdlora": declared,
        });
        let mut tensors = BTreeMap::new();
        for site in Site::all(base) {
            let (input, output) = base.features(site.projection);
            let [a, b] = layout(site.projection, blocks);
            let name = |side: &str| format!("base_model.model.{site}.{side}.weight");
            tensors.insert(name("lora_A"), Stored::random([rank, input / a], tensors.len()));
            tensors.insert(name("lora_B"), Stored::random([output, rank / b], tensors.len()));
        }
        Self { dir: TempDir::new().unwrap(), config, tensors }
    }

    /// Replaces keys of the config.
    pub fn with(mut self, edits: Value) -> Self {
        self.config.as_object_mut().unwrap().extend(edits.as_object().unwrap().clone());
        self
    }

    /// Writes both files and names the folder.
    pub fn write(&self) -> &Path {
        self.write_as(Dtype::F32)
    }

    /// Writes both files with tensors of another type.
    pub fn write_as(&self, dtype: Dtype) -> &Path {
        let encoded: Vec<_> = self
            .tensors
            .iter()
            .map(|(name, it)| (name, it.shape.clone(), encode(&it.values, dtype)))
            .collect();
        let views = encoded.iter().map(|(name, shape, bytes)| {
            (name.as_str(), TensorView::new(dtype, shape.clone(), bytes).unwrap())
        });
        self.put(weights::FILE, &serialize(views, None).unwrap());
        self.put(manifest::FILE, self.config.to_string().as_bytes());
        self.dir.path()
    }

    /// Writes one file.
    pub fn put(&self, file: &str, bytes: &[u8]) {
        fs::write(self.dir.path().join(file), bytes).unwrap();
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Stored {
    /// Uniform in -1 to 1; the same for the same seed.
    pub fn random<const N: usize>(shape: [usize; N], seed: usize) -> Self {
        let mut state = seed as u64 + 1;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let values = (0..shape.iter().product::<usize>()).map(next).collect();
        Self { shape: shape.to_vec(), values }
    }
}

fn encode(values: &[f32], dtype: Dtype) -> Vec<u8> {
    let encoded = values.iter().map(|value| match dtype {
        Dtype::F32 => value.to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f32(*value).to_le_bytes().to_vec(),
        other => panic!("no test writes {other:?}"),
    });
    encoded.flatten().collect()
}

fn decode(bytes: &[u8], dtype: Dtype) -> Vec<f64> {
    let size = dtype.bitsize() / 8;
    let decoded = bytes.chunks_exact(size).map(|it| match dtype {
        Dtype::F32 => f64::from(f32::from_le_bytes(it.try_into().unwrap())),
        Dtype::F16 => f16::from_le_bytes(it.try_into().unwrap()).to_f64(),
        Dtype::BF16 => bf16::from_le_bytes(it.try_into().unwrap()).to_f64(),
        other => panic!("no test reads {other:?}"),
    });
    decoded.collect()
}

/// A dense matrix, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    pub rows: usize,
    pub columns: usize,
    pub values: Vec<f64>,
}

impl Matrix {
    pub fn zero(rows: usize, columns: usize) -> Self {
        Self { rows, columns, values: vec![0.0; rows * columns] }
    }

    pub fn at(&mut self, row: usize, column: usize) -> &mut f64 {
        &mut self.values[row * self.columns + column]
    }

    pub fn times(&self, right: &Self) -> Self {
        let mut product = Self::zero(self.rows, right.columns);
        for row in 0..self.rows {
            for inner in 0..self.columns {
                let left = self.values[row * self.columns + inner];
                for column in 0..right.columns {
                    *product.at(row, column) += left * right.values[inner * right.columns + column];
                }
            }
        }
        product
    }
}

/// `torch.block_diag(*torch.chunk(values, blocks))`: how PEFT makes a compact factor dense.
pub fn block_diag(values: &[f64], rows: usize, columns: usize) -> Matrix {
    let stored = values.len() / rows;
    let blocks = columns / stored;
    let mut dense = Matrix::zero(rows, columns);
    for row in 0..rows {
        let block = row / (rows / blocks);
        for column in 0..stored {
            *dense.at(row, block * stored + column) = values[row * stored + column];
        }
    }
    dense
}

/// `B A` of every module in a weights file, without scaling.
pub fn products(folder: &Path, base: &BaseShape) -> BTreeMap<Site, Matrix> {
    let bytes = fs::read(folder.join(weights::FILE)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut products = BTreeMap::new();
    for site in Site::all(base) {
        let name = |side: &str| format!("base_model.model.{site}.{side}.weight");
        let Ok(a) = file.tensor(&name("lora_A")) else { continue };
        let b = file.tensor(&name("lora_B")).unwrap();
        let (input, output) = base.features(site.projection);
        let rank = a.shape()[0];
        let a = block_diag(&decode(a.data(), a.dtype()), rank, input);
        let b = block_diag(&decode(b.data(), b.dtype()), output, rank);
        products.insert(site, b.times(&a));
    }
    products
}
