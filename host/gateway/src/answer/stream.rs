//! An answer as server-sent events while its choices are written.
//!
//! The stream is a response body that asks the engine for news whenever the connection can take
//! more: news merge while it cannot, so a slow reader costs neither memory nor the engine's time.
//! Dropping the body drops the tickets, which cancels the sequences.

use std::convert::Infallible;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use contract::policy::completion::End;
use contract::request::Scored;
use hyper::body::{Body, Frame};
use serde_json::Value;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::answer::form::{Shape, Stream};
use crate::answer::frame::{Frames, Piece};
use crate::answer::logprobs::{self, Columns};
use crate::answer::opened::{self, Opened};
use crate::answer::source::{News, Source};
use crate::answer::tally::Tally;
use crate::error::ApiError;

/// How often a stream is looked at; one that said nothing since the last time gets a comment.
const QUIET_MAX: Duration = Duration::from_secs(15);

/// The body of a streamed answer.
pub struct EventStream {
    opened: Opened,
    stream: Stream,
    frames: Frames,
    choices: Vec<Choice>,
    tally: Tally,
    alarm: Pin<Box<Sleep>>,
    /// Nothing was said since the alarm was set.
    quiet: bool,
    over: bool,
}

struct Choice {
    /// Gone when the choice has ended.
    source: Option<Source>,
    begun: bool,
    columns: Columns,
}

impl EventStream {
    /// Streams `opened` as `stream` says.
    pub fn new(mut opened: Opened, stream: Stream) -> Self {
        Self {
            stream,
            frames: Frames::new(&opened.head, opened.form.shape),
            choices: mem::take(&mut opened.choices).into_iter().map(Choice::new).collect(),
            tally: Tally::new(&opened),
            alarm: Box::pin(sleep_until(opened.deadline.at.min(Instant::now() + QUIET_MAX))),
            opened,
            quiet: true,
            over: false,
        }
    }

    /// Writes what every choice has ready.
    fn take_news(&mut self, context: &mut Context<'_>) -> Result<(), ApiError> {
        for at in 0..self.choices.len() {
            while let Some(source) = &mut self.choices[at].source {
                match source.poll_next(context) {
                    Poll::Ready(Some(news)) => self.write(at, &news?),
                    Poll::Ready(None) => return Err(ApiError::Failed("the engine stopped".into())),
                    Poll::Pending => break,
                }
            }
        }
        if self.choices.iter().all(|choice| choice.source.is_none()) {
            self.end();
        }
        Ok(())
    }

    fn write(&mut self, at: usize, news: &News) {
        self.quiet = false;
        let begun = mem::replace(&mut self.choices[at].begun, true);
        self.tally.count(at, !begun, news);
        if !begun {
            self.begin(at);
        }
        self.go_on(at, news);
        self.tally.ended(at, news);
        if news.finish.is_some() {
            self.choices[at].source = None;
        }
    }

    /// What stands before the first token: the role of a message, the echo of a prompt.
    fn begin(&mut self, at: usize) {
        let usage = self.usage_so_far();
        let Opened { form, prompts, n, .. } = &self.opened;
        let prompt = &prompts[at / n];
        let mut ids = form.token_ids.then_some(&*prompt.tokens);
        if form.shape == Shape::Chat {
            let prompt_token_ids = ids.take();
            let piece = Piece { index: at, role: true, prompt_token_ids, ..Piece::default() };
            self.frames.piece(&piece, usage.as_ref());
        }
        let text = prompt.echo.as_deref().unwrap_or_default();
        if !text.is_empty() || ids.is_some() {
            let piece = Piece { index: at, text, prompt_token_ids: ids, ..Piece::default() };
            self.frames.piece(&piece, usage.as_ref());
        }
    }

    /// Text and tokens since the last piece; nothing while a character or stop text is incomplete.
    fn go_on(&mut self, at: usize, news: &News) {
        let form = &self.opened.form;
        let scores_due = (form.logprobs || form.token_ids) && !news.tokens.is_empty();
        if news.text.is_empty() && news.finish.is_none() && !scores_due {
            return;
        }
        let ids = || news.tokens.iter().map(|scored| scored.token).collect();
        let piece = Piece {
            index: at,
            text: &news.text,
            token_ids: form.token_ids.then(ids),
            logprobs: form.logprobs.then(|| self.choices[at].logprobs(&self.opened, &news.tokens)),
            finish: news.finish.as_ref(),
            ..Piece::default()
        };
        self.frames.piece(&piece, self.usage_so_far().as_ref());
    }

    /// What goes with every event once a usage was asked for: null until the end, as OpenAI has it.
    fn usage_so_far(&self) -> Option<Value> {
        match self.stream {
            Stream { usage_always: true, .. } => Some(self.tally.usage.json()),
            Stream { usage: true, .. } => Some(Value::Null),
            Stream { .. } => None,
        }
    }

    fn end(&mut self) {
        if self.stream.usage {
            self.frames.usage(&self.tally.usage.json());
        }
        self.frames.done();
        self.over = true;
    }

    /// Tells a failure, and cancels what still runs.
    fn fail(&mut self, error: &ApiError) {
        tracing::warn!(id = self.opened.head.id, %error, "a stream failed");
        self.opened.accepted.ended(End::Failed);
        self.choices.clear();
        self.frames.error(&error.body());
        self.frames.done();
        self.over = true;
    }

    /// Ends a stream that takes too long, and breaks a long silence.
    fn mind_the_clock(&mut self, context: &mut Context<'_>) {
        while !self.over && self.alarm.as_mut().poll(context).is_ready() {
            let deadline = self.opened.deadline;
            if Instant::now() >= deadline.at {
                return self.fail(&ApiError::Timeout(deadline.limit));
            }
            if mem::replace(&mut self.quiet, true) {
                self.frames.keep_alive();
            }
            self.alarm.as_mut().reset(deadline.at.min(Instant::now() + QUIET_MAX));
        }
    }
}

impl Choice {
    fn new(opened: opened::Choice) -> Self {
        let source = Some(opened.source.filtered(opened.filter));
        Self { source, begun: false, columns: Columns::default() }
    }

    fn logprobs(&mut self, opened: &Opened, tokens: &[Scored]) -> Value {
        let text = &*opened.text;
        match opened.form.shape {
            Shape::Chat => logprobs::chat(text, tokens),
            Shape::Text => {
                let rows = tokens.iter().map(|scored| (scored.token, Some(scored)));
                self.columns.next(text, rows)
            }
        }
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        if !self.over {
            self.opened.accepted.ended(End::Cancelled);
        }
    }
}

impl Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if !self.over
            && let Err(error) = self.take_news(context)
        {
            self.fail(&error);
        }
        self.mind_the_clock(context);
        match self.frames.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None if self.over => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}
