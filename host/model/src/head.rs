//! From the residual stream to answers: the final norm, the LM head and sampling.

use collective::comm::Comm;
use contract::counts::Purpose;
use contract::step::{Answer, Batch, Query};
use kernels::ops::{LogitsLayout, Ops, Precision};

use crate::error::Result;
use crate::loader::Loader;
use crate::pass::{Activations, Pass};
use crate::vocabulary::Vocabulary;

/// Rows of logits in memory at once: enough to read the LM head rarely, few enough to be small.
const CHUNK_ROWS: usize = 64;

/// What answers the queries of a batch.
pub struct Head<O: Ops> {
    norm: O::Weight,
    eps: f32,
    hidden: usize,
    vocab: usize,
    chunk_rows: usize,
    /// Rows of the residual stream that queries ask about.
    picked: O::Buf,
    /// Logits of this rank's tokens, and of all ranks' one after the other.
    part: O::Buf,
    whole: O::Buf,
}

impl<O: Ops> Head<O> {
    pub fn load(loader: &mut Loader<'_, O>, width: usize) -> Result<Self> {
        let (config, ranks) = (loader.blueprint.config, loader.ranks);
        let chunk_rows = CHUNK_ROWS.min(loader.blueprint.rows_max);
        let part = chunk_rows * width;
        Ok(Self {
            norm: loader.norm(&config.final_norm())?,
            eps: config.norm_eps,
            hidden: config.shape.hidden,
            vocab: config.shape.vocab,
            chunk_rows,
            picked: loader.ops.buf(chunk_rows * config.shape.hidden, Precision::Activation)?,
            part: loader.ops.buf(part, Precision::Full)?,
            whole: loader.ops.buf(if ranks == 1 { 0 } else { part * ranks }, Precision::Full)?,
        })
    }

    /// Answers all queries on the first rank; on the others nothing.
    pub fn forward<C: Comm<O::Buf>>(
        &mut self,
        pass: &mut Pass<'_, O, C>,
        act: &mut Activations<O>,
        vocabulary: &Vocabulary<O>,
        batch: &Batch,
    ) -> Result<Vec<Answer>> {
        let mut answers = Vec::new();
        let chunks = batch.queries.chunks(self.chunk_rows).enumerate();
        for (index, queries) in chunks {
            let rows = queries.len();
            self.pick(pass, act, queries)?;
            vocabulary.logits(pass.ops, &act.hidden, rows, &mut self.part)?;
            self.gather(pass, rows * vocabulary.cut.width)?;
            if pass.comm.rank() == 0 {
                let (parts, part_width) = (pass.comm.ranks(), vocabulary.cut.width);
                let layout = LogitsLayout { parts, rows, part_width, vocab: self.vocab };
                let logits = if parts == 1 { &self.part } else { &self.whole };
                answers.extend(pass.ops.sample(logits, &layout, batch, index * self.chunk_rows)?);
            }
        }
        Ok(answers)
    }

    /// Normalises the rows that `queries` ask about into `act.hidden`.
    fn pick<C: Comm<O::Buf>>(
        &mut self,
        pass: &mut Pass<'_, O, C>,
        act: &mut Activations<O>,
        queries: &[Query],
    ) -> Result<()> {
        let rows: Vec<u32> = queries.iter().map(|query| query.row).collect();
        pass.ops.pick_rows(&act.residual, self.hidden, &rows, &mut self.picked)?;
        Ok(pass.ops.rms_norm(&self.picked, &self.norm, self.eps, rows.len(), &mut act.hidden)?)
    }

    fn gather<C: Comm<O::Buf>>(
        &mut self,
        pass: &mut Pass<'_, O, C>,
        elements: usize,
    ) -> Result<()> {
        if pass.comm.ranks() > 1 {
            pass.comm.all_gather(&self.part, &mut self.whole, elements, Purpose::Base)?;
        }
        Ok(())
    }
}
