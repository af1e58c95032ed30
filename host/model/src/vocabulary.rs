//! The embedding and the LM head, cut along the vocabulary.

use std::ops::Range;

use collective::comm::Comm;
use contract::counts::Purpose;
use kernels::ops::Ops;

use crate::error::Result;
use crate::loader::Loader;
use crate::pass::{Activations, NormWeights, Pass};
use crate::tensors::Norm;

/// The tokens of one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VocabularyCut {
    /// Tokens; the last ranks may have fewer than `width`, or none.
    pub tokens: Range<usize>,
    /// Rows of every rank's matrices.
    pub width: usize,
}

impl VocabularyCut {
    pub fn new(vocab: usize, rank: usize, ranks: usize) -> Self {
        let width = vocab.div_ceil(ranks);
        let at = |rank: usize| (rank * width).min(vocab);
        Self { tokens: at(rank)..at(rank + 1), width }
    }
}

/// Embedding and LM head of one rank.
pub struct Vocabulary<O: Ops> {
    pub cut: VocabularyCut,
    embedding: O::Weight,
    /// `None` where it is the embedding.
    head: Option<O::Weight>,
    /// Of the first layer's attention.
    norm: NormWeights<O>,
    hidden: usize,
}

impl<O: Ops> Vocabulary<O> {
    pub fn load(loader: &mut Loader<'_, O>) -> Result<Self> {
        let config = loader.blueprint.config;
        let cut = VocabularyCut::new(config.shape.vocab, loader.rank, loader.ranks);
        let embedding = loader.vocabulary(&config.embedding(), &cut)?;
        let head = if config.tied { None } else { Some(loader.vocabulary(&config.head(), &cut)?) };
        let norm = NormWeights::load(loader, &config.norm(0, Norm::Attention))?;
        Ok(Self { cut, embedding, head, norm, hidden: config.shape.hidden })
    }

    /// Starts the residual stream with the embeddings of the batch's tokens (every rank looks up
    /// its own, an all-reduce adds them), and normalises it for the first layer.
    pub fn embed<C: Comm<O>>(
        &self,
        pass: &mut Pass<'_, O, C>,
        act: &mut Activations<O>,
    ) -> Result<()> {
        let Activations { residual, hidden, .. } = act;
        pass.ops.embed(&self.embedding, self.cut.tokens.start as u32, pass.step, residual)?;
        pass.comm.all_reduce_sum(residual, pass.rows * self.hidden, Purpose::Base)?;
        let NormWeights { weight, eps } = &self.norm;
        Ok(pass.ops.rms_norm(residual, weight, *eps, pass.rows, hidden)?)
    }

    /// Logits of this rank's tokens.
    pub fn logits(&self, ops: &mut O, x: &O::Buf, rows: usize, out: &mut O::Buf) -> Result<()> {
        Ok(ops.gemm(x, self.head.as_ref().unwrap_or(&self.embedding), None, rows, out)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cuts_cover_the_vocabulary_in_order() {
        for (vocab, ranks) in [(101, 4), (32000, 2), (9, 8), (3, 8)] {
            let cuts = (0..ranks).map(|rank| VocabularyCut::new(vocab, rank, ranks));
            let tokens: Vec<_> = cuts.clone().flat_map(|cut| cut.tokens).collect();
            assert_eq!(tokens, (0..vocab).collect::<Vec<_>>());
            assert!(cuts.clone().all(|cut| cut.tokens.len() <= cut.width));
            assert!(cuts.enumerate().all(|(rank, cut)| {
                cut.tokens.is_empty() || cut.tokens.start == rank * cut.width
            }));
        }
    }
}
