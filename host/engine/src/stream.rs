//! One sequence as its owner sees it: draws become text, until something ends it.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use contract::request::{Finish, Request, Scored};
use contract::sampling::Sampling;
use contract::step::Answer;

use crate::load::{Open, Queued};
use crate::mailbox::Writer;
use crate::metrics::{Metrics, finish_label};
use crate::scheduler::Admission;
use crate::settle::Settling;
use crate::text::Text;
use crate::text::detokenize::Detokenizer;
use crate::text::stop::StopWatch;

/// The output side of one sequence.
pub struct Stream {
    writer: Writer,
    detokenizer: Detokenizer,
    stops: StopWatch,
    include_stop: bool,
    sampling: Arc<Sampling>,
    max_tokens: u32,
    prompt_tokens: usize,
    drawn: u32,
    /// Logprobs of the prompt so far; `None` when not asked for, or told.
    prompt_scores: Option<Vec<Scored>>,
    times: Times,
    ended: bool,
    /// Its place in the queue, until it is first admitted.
    queued: Option<Queued>,
    _open: Open,
}

struct Times {
    submitted: Instant,
    /// The last token, once there is one.
    token: Option<Instant>,
}

impl Stream {
    /// A stream for `request`, whose stop texts it takes.
    pub fn new(
        request: &mut Request,
        text: &Arc<Text>,
        writer: Writer,
        places: (Queued, Open),
    ) -> Self {
        Self {
            writer,
            detokenizer: Detokenizer::new(Arc::clone(text), request.skip_special_tokens),
            stops: StopWatch::new(mem::take(&mut request.stop), request.include_stop),
            include_stop: request.include_stop,
            sampling: Arc::clone(&request.sampling),
            max_tokens: request.max_tokens,
            prompt_tokens: request.prompt.len(),
            drawn: 0,
            prompt_scores: request.prompt_logprobs.map(|_| Vec::new()),
            times: Times { submitted: Instant::now(), token: None },
            ended: false,
            queued: Some(places.0),
            _open: places.1,
        }
    }

    /// Whether there is nothing left to do for it: it finished, or its owner went away.
    pub fn is_over(&self) -> bool {
        self.ended || self.writer.is_abandoned()
    }

    /// Takes note of an admission; the first one leaves the queue.
    pub fn admitted(&mut self, admission: &Admission, metrics: &Metrics) {
        if self.queued.take().is_some() {
            self.writer.cached_tokens(admission.cached as u32);
            metrics.prefix_queries.inc_by(admission.tokens as u64);
            metrics.prefix_hits.inc_by(admission.cached as u64);
            metrics.queue_seconds.observe(self.times.submitted.elapsed().as_secs_f64());
            metrics.prompt_tokens.inc_by(self.prompt_tokens as u64);
        }
    }

    /// Takes logprobs of the next tokens of the prompt.
    pub fn prompt_scores(&mut self, answers: impl IntoIterator<Item = Answer>) {
        if let Some(scores) = &mut self.prompt_scores {
            scores.extend(answers.into_iter().map(scored));
        }
    }

    /// The whole prompt is computed: tells its logprobs, and ends if no token was asked for.
    pub fn prompt_done(&mut self, settling: &mut Settling) {
        if let Some(scores) = self.prompt_scores.take() {
            settling.wakers.extend(self.writer.prompt(scores));
        }
        if self.max_tokens == 0 {
            self.finish(Finish::Length, settling);
        }
    }

    /// Takes the next token.
    pub fn token(&mut self, answer: Answer, settling: &mut Settling) {
        self.drawn += 1;
        self.time_token(settling);
        settling.shown.clear();
        let finish = self.show(answer.token, settling);
        settling.wakers.extend(self.writer.token(scored(answer), &settling.shown));
        if let Some(finish) = finish {
            self.finish(finish, settling);
        }
    }

    /// Ends it, unless it has ended.
    pub fn finish(&mut self, finish: Finish, settling: &mut Settling) {
        if self.ended {
            return;
        }
        settling.metrics.finished.get_or_create(&finish_label(&finish)).inc();
        let elapsed = self.times.submitted.elapsed();
        settling.metrics.request_seconds.observe(elapsed.as_secs_f64());
        settling.metrics.request_prompt_tokens.observe(self.prompt_tokens as f64);
        settling.metrics.request_generation_tokens.observe(f64::from(self.drawn));
        settling.wakers.extend(self.writer.finish(finish));
        settling.ended += 1;
        self.ended = true;
    }

    /// Its sequence is gone; counts it if nobody waited for its end.
    pub fn close(self, metrics: &Metrics) {
        if !self.ended {
            metrics.finished.get_or_create(&[("finished_reason", "abort")]).inc();
        }
    }

    /// Appends what a token adds to the text to `shown`, and says whether it is the last.
    fn show(&mut self, token: u32, settling: &mut Settling) -> Option<Finish> {
        let Settling { piece, shown, text, .. } = settling;
        let ends = self.sampling.stop_tokens.contains(&token);
        if self.stops.is_idle() && !ends && self.drawn < self.max_tokens {
            self.detokenizer.push(token, shown);
            return None;
        }
        piece.clear();
        if !ends || self.include_stop {
            self.detokenizer.push(token, piece);
        }
        let finish = if ends {
            Some(Finish::StopToken((!text.end_tokens().contains(&token)).then_some(token)))
        } else {
            (self.drawn == self.max_tokens).then_some(Finish::Length)
        };
        if finish.is_some() {
            self.detokenizer.finish(piece);
        }
        if self.drawn <= self.sampling.min_tokens {
            shown.push_str(piece);
        } else if let Some(stop) = self.stops.push(piece, shown) {
            return Some(Finish::StopText(stop));
        }
        if finish.is_some() {
            self.stops.finish(shown);
        }
        finish
    }

    fn time_token(&mut self, settling: &Settling) {
        let now = settling.now;
        match self.times.token.replace(now) {
            None => {
                let since = now.duration_since(self.times.submitted);
                settling.metrics.first_token_seconds.observe(since.as_secs_f64());
            }
            Some(before) => {
                let since = now.duration_since(before);
                settling.metrics.inter_token_seconds.observe(since.as_secs_f64());
            }
        }
    }
}

fn scored(answer: Answer) -> Scored {
    Scored { token: answer.token, logprob: answer.logprob, place: answer.place, top: answer.top }
}
