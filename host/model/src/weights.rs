//! Where a model's weights come from, and parts of its tensors.

use std::ops::Range;
use std::path::Path;

use contract::tensor::DType;
use kernels::ops::WeightView;
use memmap2::Mmap;

use crate::checkpoint::Checkpoint;
use crate::dummy::Dummy;
use crate::error::Result;
use crate::hf::ModelConfig;
use crate::tensors::Tensor;

/// The weights of one model, read by all ranks at once.
pub struct Weights(Source);

enum Source {
    Checkpoint(Checkpoint),
    Dummy(Dummy),
}

impl Weights {
    /// Opens the safetensors of `folder` and checks that they are what `config` describes.
    pub fn open(folder: &Path, config: &ModelConfig) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        checkpoint.check(&config.tensors())?;
        Ok(Self(Source::Checkpoint(checkpoint)))
    }

    /// Random weights for any config: the same matrices whatever the number of ranks.
    pub fn dummy(seed: u64, dtype: DType) -> Self {
        Self(Source::Dummy(Dummy { seed, dtype }))
    }

    /// Some rows and columns of a tensor.
    pub(crate) fn part(
        &self,
        tensor: &Tensor,
        rows: Range<usize>,
        cols: Range<usize>,
    ) -> Result<Part> {
        let (dtype, bytes, stride) = match &self.0 {
            Source::Checkpoint(checkpoint) => {
                let (dtype, map) = checkpoint.map(tensor, rows.clone())?;
                (dtype, Bytes::Mapped { map, start: cols.start * dtype.bytes() }, tensor.cols())
            }
            Source::Dummy(dummy) => {
                let made = dummy.part(tensor, rows.clone(), cols.clone());
                (dummy.dtype, Bytes::Made(made), cols.len())
            }
        };
        Ok(Part { dtype, rows: rows.len(), cols: cols.len(), stride, bytes })
    }
}

/// Rows and columns of a tensor, held until a backend has taken them.
pub struct Part {
    dtype: DType,
    rows: usize,
    cols: usize,
    stride: usize,
    bytes: Bytes,
}

enum Bytes {
    /// Whole rows of a file, from the first wanted column on.
    Mapped {
        map: Mmap,
        start: usize,
    },
    Made(Vec<u8>),
}

impl Part {
    /// The part as backends read it.
    pub fn view(&self) -> WeightView<'_> {
        let Self { dtype, rows, cols, stride, .. } = *self;
        let bytes = match &self.bytes {
            Bytes::Mapped { map, start } => &map[*start..],
            Bytes::Made(made) => made,
        };
        WeightView { dtype, rows, cols, stride, bytes }
    }
}
