//! What every layer needs to run a batch.

use collective::comm::Comm;
use contract::counts::Purpose;
use kernels::ops::{Ops, Precision};

use crate::error::Result;
use crate::loader::Loader;
use crate::lora::Shrunk;
use crate::tensors::Tensor;

/// One forward pass on one rank.
pub struct Pass<'a, O: Ops, C: Comm<O>> {
    pub ops: &'a mut O,
    pub comm: &'a mut C,
    pub step: &'a O::Step,
    /// Rows of the batch.
    pub rows: usize,
    /// Where shrunk activations go; `None` if no row has an adapter.
    pub shrunk: Option<&'a mut Shrunk<O>>,
    /// `[positions, head_dim]`.
    pub rope: &'a O::Weight,
}

impl<O: Ops, C: Comm<O>> Pass<'_, O, C> {
    /// The residual stream takes up the sum of what the ranks have in `act.hidden`, and what comes
    /// next finds it there, normalised. This is the all-reduce of a [`crate::linear::RowLinear`].
    pub fn add_norm(&mut self, act: &mut Activations<O>, norm: &NormWeights<O>) -> Result<()> {
        let Activations { residual, hidden, width, .. } = act;
        let (norm, shape) = ((&norm.weight, norm.eps), (self.rows, *width));
        let (ops, why) = (&mut *self.ops, Purpose::Base);
        Ok(self.comm.all_reduce_add_rms_norm(ops, residual, norm, shape, hidden, why)?)
    }
}

/// A normalisation of the residual stream (RMSNorm, arXiv 1910.07467).
pub struct NormWeights<O: Ops> {
    pub weight: O::Weight,
    pub eps: f32,
}

impl<O: Ops> NormWeights<O> {
    pub fn load(loader: &mut Loader<'_, O>, tensor: &Tensor) -> Result<Self> {
        Ok(Self { weight: loader.norm(tensor)?, eps: loader.blueprint.config.norm_eps })
    }
}

/// Widths of the activations of one rank.
#[derive(Clone, Copy, Debug)]
pub struct Widths {
    pub hidden: usize,
    /// Fused queries, keys and values, or fused gate and up: whichever is wider.
    pub fused: usize,
    /// Attended heads, or the activated feed-forward features: whichever is wider.
    pub inner: usize,
}

/// The activations of one rank, reused by every layer and pass.
pub struct Activations<O: Ops> {
    /// The residual stream.
    pub residual: O::Buf,
    /// A block's normalised input, and then this rank's part of what it adds to the stream.
    pub hidden: O::Buf,
    /// Of a row of both.
    pub width: usize,
    pub fused: O::Buf,
    pub inner: O::Buf,
}

impl<O: Ops> Activations<O> {
    pub fn new(ops: &mut O, rows_max: usize, widths: Widths) -> Result<Self> {
        let mut buf = |width| ops.buf(rows_max * width, Precision::Activation);
        Ok(Self {
            residual: buf(widths.hidden)?,
            hidden: buf(widths.hidden)?,
            width: widths.hidden,
            fused: buf(widths.fused)?,
            inner: buf(widths.inner)?,
        })
    }
}
