//! From the normalised residual stream to answers: the LM head and sampling.

use collective::comm::Comm;
use contract::counts::Purpose;
use contract::step::{Answer, Batch};
use kernels::ops::{LogitsLayout, Ops, Precision, Rows};

use crate::error::Result;
use crate::loader::Loader;
use crate::pass::{Activations, Pass};
use crate::vocabulary::Vocabulary;

/// What answers the queries of a batch.
pub struct Head<O: Ops> {
    vocab: usize,
    chunk_rows: usize,
    /// Normalised rows that queries ask about.
    picked: O::Buf,
    /// Logits of this rank's tokens, and of all ranks' one after the other.
    part: O::Buf,
    whole: O::Buf,
}

impl<O: Ops> Head<O> {
    pub fn load(loader: &mut Loader<'_, O>, width: usize) -> Result<Self> {
        let (config, ranks) = (loader.blueprint.config, loader.ranks);
        let chunk_rows = O::LOGIT_ROWS.min(loader.blueprint.rows_max);
        let part = chunk_rows * width;
        Ok(Self {
            vocab: config.shape.vocab,
            chunk_rows,
            picked: loader.ops.buf(chunk_rows * config.shape.hidden, Precision::Activation)?,
            part: loader.ops.buf(part, Precision::Full)?,
            whole: loader.ops.buf(if ranks == 1 { 0 } else { part * ranks }, Precision::Full)?,
        })
    }

    /// Starts on the first chunk of queries: what a step launches before anything is read back.
    pub fn start<C: Comm<O>>(
        &mut self,
        pass: &mut Pass<'_, O, C>,
        act: &Activations<O>,
        vocabulary: &Vocabulary<O>,
    ) -> Result<()> {
        self.launch(pass, act, vocabulary, 0)
    }

    /// Launches all other chunks: nothing is read back, as tokens are all that is asked.
    pub fn rest<C: Comm<O>>(
        &mut self,
        pass: &mut Pass<'_, O, C>,
        act: &Activations<O>,
        vocabulary: &Vocabulary<O>,
        queries: usize,
    ) -> Result<()> {
        let mut chunks = (0..queries).step_by(self.chunk_rows).skip(1);
        chunks.try_for_each(|first| self.launch(pass, act, vocabulary, first))
    }

    /// Answers all queries on the first rank, on the others nothing; the first chunk is under way.
    pub fn answer<C: Comm<O>>(
        &mut self,
        pass: &mut Pass<'_, O, C>,
        act: &Activations<O>,
        vocabulary: &Vocabulary<O>,
        batch: &Batch,
    ) -> Result<Vec<Answer>> {
        let mut answers = Vec::new();
        for first in (0..batch.queries.len()).step_by(self.chunk_rows) {
            if first > 0 {
                self.launch(pass, act, vocabulary, first)?;
            }
            if pass.comm.rank() == 0 {
                let layout = self.layout(pass, vocabulary, first);
                let logits = if layout.parts == 1 { &self.part } else { &self.whole };
                answers.extend(pass.ops.sample(logits, &layout, batch, first)?);
            }
        }
        Ok(answers)
    }

    /// Logits for the chunk of queries from `first` on, and what is chosen from them.
    fn launch<C: Comm<O>>(
        &mut self,
        pass: &mut Pass<'_, O, C>,
        act: &Activations<O>,
        vocabulary: &Vocabulary<O>,
        first: usize,
    ) -> Result<()> {
        let layout = self.layout(pass, vocabulary, first);
        if layout.rows == 0 {
            return Ok(());
        }
        let (asked, rows) = (first..first + layout.rows, layout.rows);
        pass.ops.pick_rows(&act.hidden, act.width, pass.step, asked, &mut self.picked)?;
        vocabulary.logits(pass.ops, &self.picked, rows, &mut self.part)?;
        self.gather(pass, layout.rows * layout.part_width)?;
        // On every rank, as all of them need what is drawn for the next step: equal logits are
        // chosen from equally.
        let logits = if layout.parts == 1 { &self.part } else { &self.whole };
        Ok(pass.ops.choose(logits, &layout, pass.step, first)?)
    }

    fn layout<C: Comm<O>>(
        &self,
        pass: &Pass<'_, O, C>,
        vocabulary: &Vocabulary<O>,
        first: usize,
    ) -> LogitsLayout {
        LogitsLayout {
            parts: pass.comm.ranks(),
            rows: (pass.step.picked() - first).min(self.chunk_rows),
            part_width: vocabulary.cut.width,
            vocab: self.vocab,
        }
    }

    fn gather<C: Comm<O>>(&mut self, pass: &mut Pass<'_, O, C>, elements: usize) -> Result<()> {
        if pass.comm.ranks() > 1 {
            pass.comm.all_gather(&self.part, &mut self.whole, elements, Purpose::Base)?;
        }
        Ok(())
    }
}
