//! The forward pass of one rank: launched first, answered later, so that the next step can be
//! launched in between.

use std::sync::Arc;

use collective::comm::Comm;
use contract::counts::Purpose;
use contract::step::{Answer, Batch, Query, StepOutput};
use kernels::ops::{Ops, Rows};

use crate::error::{Error, Result};
use crate::pass::Pass;
use crate::rank::Rank;

/// A step that was launched.
pub enum Started<S> {
    /// The tokens that the device drew are on their way; they are all that was asked.
    Drawn,
    /// The host has to look at the logits: nothing is launched before it has.
    Asked(S, Arc<Batch>),
    /// Its answers.
    Answered(Vec<Answer>),
}

impl<O: Ops, C: Comm<O>> Rank<O, C> {
    /// Launches one step. Nothing waits for the device: what the host has to answer is answered
    /// when it is asked for.
    pub fn start(&mut self, batch: &Arc<Batch>) -> Result<()> {
        let batch = &self.resolve(batch)?;
        let step = self.launch(batch)?;
        let started = if !O::FOLLOWS {
            Started::Answered(self.sample(&step, batch)?)
        } else if batch.queries.iter().all(Query::is_followed) {
            self.draw(&step, batch.queries.len())?
        } else {
            Started::Asked(step, Arc::clone(batch))
        };
        self.started.push_back(started);
        Ok(())
    }

    /// Steps whose answers nobody took yet.
    pub fn in_flight(&self) -> usize {
        self.started.len()
    }

    /// Whether the oldest step in flight has its answers.
    pub fn is_done(&mut self) -> Result<bool> {
        match self.started.front() {
            Some(Started::Drawn) => Ok(self.ops.is_fetched()?),
            _ => Ok(true),
        }
    }

    /// The answers of the oldest step in flight, when they are there. The first rank returns them,
    /// the others none.
    pub fn answer(&mut self) -> Result<StepOutput> {
        let answers = match self.started.pop_front() {
            Some(Started::Drawn) => {
                let answer = |token| Answer { token, ..Answer::default() };
                self.ops.fetched()?.into_iter().map(answer).collect()
            }
            Some(Started::Asked(step, batch)) => self.sample(&step, &batch)?,
            Some(Started::Answered(answers)) => answers,
            None => Vec::new(),
        };
        self.comm.settle(!self.started.is_empty())?;
        // Only the first rank has waited for its device.
        let idle = if self.comm.rank() == 0 { self.ops.idle()? } else { None };
        Ok(StepOutput { answers, idle, ..StepOutput::default() })
    }

    /// From now on, steps tell how long the first rank's device stood idle before them.
    pub fn time_idle(&mut self) -> Result<()> {
        match self.comm.rank() {
            0 => Ok(self.ops.time_idle()?),
            _ => Ok(()),
        }
    }

    /// The batch with the tokens that were pending, where the device does not put them in place.
    fn resolve(&self, batch: &Arc<Batch>) -> Result<Arc<Batch>> {
        if batch.pending.is_empty() || O::FOLLOWS {
            return Ok(Arc::clone(batch));
        }
        if self.comm.ranks() > 1 {
            let why = "pending tokens: on this backend only one of several ranks knows them";
            return Err(Error::Step(why.to_owned()));
        }
        let mut resolved = (**batch).clone();
        for pending in &batch.pending {
            let token = self.drawn.get(pending.query as usize).copied();
            let why = || Error::Step(format!("query {} was not asked", pending.query));
            resolved.tokens[pending.row as usize] = token.ok_or_else(why)?;
        }
        Ok(Arc::new(resolved))
    }

    fn launch(&mut self, batch: &Arc<Batch>) -> Result<O::Step> {
        let rows_max = if self.may_be_recorded(batch) { self.rows_max } else { 0 };
        let step = self.ops.step(batch, rows_max)?;
        let collectives = self.collectives();
        let Self { ops, comm, vocabulary, layers, head, rope, activations, shrunk, .. } = self;
        let adapted = batch.segments.iter().any(|segment| segment.slot.is_some());
        let mut runs = 0;
        comm.meet()?;
        let launched = ops.launch(&step, |ops| -> Result<()> {
            // Where it is launched twice, the second time is a recording.
            comm.record(runs > 0);
            runs += 1;
            let shrunk = adapted.then_some(&mut *shrunk);
            let mut pass = Pass { ops, comm, step: &step, rows: step.rows(), shrunk, rope };
            vocabulary.embed(&mut pass, activations)?;
            layers.iter_mut().try_for_each(|layer| layer.forward(&mut pass, activations))?;
            head.start(&mut pass, activations, vocabulary)
        });
        comm.record(false);
        launched?;
        if runs == 0 {
            comm.count(Purpose::Base, collectives);
        }
        comm.meet()?;
        Ok(step)
    }

    /// Launches all draws of a step. The first rank brings them back; all have them for the next.
    fn draw(&mut self, step: &O::Step, queries: usize) -> Result<Started<O::Step>> {
        let Self { ops, comm, vocabulary, head, rope, activations, .. } = self;
        let mut pass = Pass { ops, comm, step, rows: step.rows(), shrunk: None, rope };
        head.rest(&mut pass, activations, vocabulary, queries)?;
        if self.comm.rank() > 0 {
            return Ok(Started::Answered(Vec::new()));
        }
        self.ops.fetch(queries)?;
        Ok(Started::Drawn)
    }

    /// Waits for the device, and answers on the host what it has to.
    fn sample(&mut self, step: &O::Step, batch: &Batch) -> Result<Vec<Answer>> {
        let Self { ops, comm, vocabulary, head, rope, activations, .. } = self;
        let mut pass = Pass { ops, comm, step, rows: step.rows(), shrunk: None, rope };
        let answers = head.answer(&mut pass, activations, vocabulary, batch)?;
        self.drawn.clear();
        self.drawn.extend(answers.iter().map(|answer| answer.token));
        Ok(answers)
    }

    /// Whether a graph may be recorded for steps like this one. An adapter's own exchange is as
    /// long as the batch's adapters make it, so it cannot be part of one. All ranks come to the
    /// same answer, as they must: a replayed collective meets none that is launched by itself.
    fn may_be_recorded(&self, batch: &Batch) -> bool {
        let slots = batch.segments.iter().filter_map(|segment| segment.slot);
        slots.into_iter().all(|slot| !self.exchanging.contains(&slot))
    }

    /// Of a recorded step: one for the embedding, two a layer, one for the logits.
    fn collectives(&self) -> u64 {
        2 * self.layers.len() as u64 + 2
    }
}
