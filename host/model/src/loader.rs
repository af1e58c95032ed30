//! One rank's part of every tensor, brought to its backend.

use std::slice;

use contract::base::Projection;
use contract::tensor::DType;
use kernels::ops::{Ops, WeightView};

use crate::blueprint::Blueprint;
use crate::error::Result;
use crate::tensors::Tensor;
use crate::vocabulary::VocabularyCut;
use crate::weights::Part;

/// Brings one rank's part of a model to its backend.
pub struct Loader<'a, O: Ops> {
    pub ops: &'a mut O,
    pub rank: usize,
    pub ranks: usize,
    /// Blocks of the KV cache.
    pub blocks: usize,
    pub blueprint: Blueprint<'a>,
}

impl<O: Ops> Loader<'_, O> {
    /// This rank's shards of some projections, one below the other in one matrix.
    pub fn linear(&mut self, layer: usize, projections: &[Projection]) -> Result<O::Weight> {
        let Blueprint { config, weights, dtype, .. } = self.blueprint;
        let tensors: Vec<_> = projections.iter().map(|p| config.weight(layer, *p)).collect();
        let part = |(tensor, projection): (&Tensor, &Projection)| {
            let shard = config.shape.shard(*projection, self.rank, self.ranks);
            weights.part(tensor, shard.output, shard.input)
        };
        let parts = tensors.iter().zip(projections).map(part).collect::<Result<Vec<_>>>()?;
        let views: Vec<_> = parts.iter().map(Part::view).collect();
        let weight = self.ops.weight(&views, dtype)?;
        self.advance(&tensors);
        Ok(weight)
    }

    /// This rank's biases of some projections, side by side in one vector.
    pub fn bias(&mut self, layer: usize, projections: &[Projection]) -> Result<Option<O::Weight>> {
        let Blueprint { config, weights, .. } = self.blueprint;
        let (mut bytes, mut dtype) = (Vec::new(), DType::F32);
        for projection in projections {
            let Some(tensor) = config.bias(layer, *projection) else { return Ok(None) };
            let shard = config.shape.shard(*projection, self.rank, self.ranks);
            let part = weights.part(&tensor, 0..1, shard.output)?;
            dtype = part.view().dtype;
            bytes.extend_from_slice(part.view().row(0).expect("a part has bytes: this is a bug"));
            self.advance(&[tensor]);
        }
        self.vector(dtype, &bytes).map(Some)
    }

    /// A normalisation's weights, whole on every rank.
    pub fn norm(&mut self, tensor: &Tensor) -> Result<O::Weight> {
        let part = self.blueprint.weights.part(tensor, 0..1, 0..tensor.cols())?;
        let weight = self.ops.weight(&[part.view()], DType::F32)?;
        self.advance(slice::from_ref(tensor));
        Ok(weight)
    }

    /// This rank's rows of a `[vocab, hidden]` matrix. Zero rows make up for a vocabulary that does
    /// not divide.
    pub fn vocabulary(&mut self, tensor: &Tensor, cut: &VocabularyCut) -> Result<O::Weight> {
        let cols = tensor.cols();
        let part = self.blueprint.weights.part(tensor, cut.tokens.clone(), 0..cols)?;
        let rows = cut.width - cut.tokens.len();
        let padding = WeightView { rows, bytes: &[], ..part.view() };
        let weight = self.ops.weight(&[part.view(), padding], self.blueprint.dtype)?;
        self.advance(slice::from_ref(tensor));
        Ok(weight)
    }

    /// A vector of little-endian elements.
    fn vector(&mut self, dtype: DType, bytes: &[u8]) -> Result<O::Weight> {
        let cols = bytes.len() / dtype.bytes();
        let view = WeightView { dtype, rows: 1, cols, stride: cols, bytes };
        Ok(self.ops.weight(&[view], DType::F32)?)
    }

    /// Every rank reads its share of a tensor, so it reports its share.
    fn advance(&self, tensors: &[Tensor]) {
        let elements: usize = tensors.iter().map(Tensor::elements).sum();
        let bytes = elements * self.blueprint.dtype.bytes() / self.ranks;
        self.blueprint.progress.advance(bytes as u64);
    }
}
