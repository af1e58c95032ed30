//! Gives every answer of a step to its sequence.

use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use contract::step::{Answer, StepOutput};
use slab::Slab;

use crate::metrics::Metrics;
use crate::scheduler::{Scheduler, Share};
use crate::stream::Stream;
use crate::text::Text;

/// What streams need to settle, and what comes of it for the engine.
pub struct Settling {
    /// Knows the base's own ends of sequence.
    pub text: Arc<Text>,
    /// Where times and ends are counted.
    pub metrics: Arc<Metrics>,
    /// When the step was done.
    pub now: Instant,
    /// Readers to wake when all is settled: woken between, they would contend with the engine.
    pub wakers: Vec<Waker>,
    /// Streams that ended and wait to be retired.
    pub ended: usize,
    /// Scratch for text.
    pub piece: String,
    /// Scratch for the part of it that is shown.
    pub shown: String,
}

impl Settling {
    /// Nothing settled.
    pub fn new(text: Arc<Text>, metrics: Arc<Metrics>) -> Self {
        Self {
            text,
            metrics,
            now: Instant::now(),
            wakers: Vec::new(),
            ended: 0,
            piece: String::new(),
            shown: String::new(),
        }
    }

    /// Settles a step: advances its sequences and hands them their answers.
    pub fn settle(
        &mut self,
        shares: &[Share],
        output: StepOutput,
        scheduler: &mut Scheduler,
        streams: &mut Slab<Box<Stream>>,
    ) {
        self.now = Instant::now();
        let mut answers = output.answers.into_iter();
        let mut drawn = 0;
        for share in shares {
            let scores: Vec<Answer> = answers.by_ref().take(share.scores).collect();
            let answer = if share.draws { answers.next() } else { None };
            let token = answer.as_ref().map(|answer| answer.token);
            let sequence = scheduler.settle(share, token);
            if sequence.over {
                continue;
            }
            let stream = &mut streams[sequence.key];
            stream.prompt_scores(scores);
            if share.end() == sequence.request.prompt.len() {
                stream.prompt_done(self);
            }
            if let Some(answer) = answer {
                stream.token(answer, self);
                drawn += 1;
            }
        }
        self.metrics.generation_tokens.inc_by(drawn);
        self.wake();
    }

    /// Wakes the readers that got news.
    pub fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }
}
