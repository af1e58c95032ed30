//! Where the text of a choice comes from, and what it passes on its way out.

use std::future::{Future, poll_fn};
use std::mem;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use contract::policy::chunk::Filter;
use contract::policy::completion::End;
use contract::request::{Progress, Scored};
use engine::handle::Ticket;

use crate::answer::finish::Finish;
use crate::error::ApiError;
use crate::replicas::upstream::Relay;

/// News of a choice since the last time somebody looked.
#[derive(Debug, Default)]
pub struct News {
    /// Text to append to what came before.
    pub text: String,
    /// Tokens behind it, in order.
    pub tokens: Vec<Scored>,
    /// Logprobs of the prompt, once, when asked for.
    pub prompt: Option<Vec<Scored>>,
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: u32,
    /// Set on the last ones.
    pub finish: Option<Finish>,
}

impl News {
    /// Adds what came after.
    pub fn append(&mut self, later: Self) {
        self.text += &later.text;
        self.tokens.extend(later.tokens);
        self.prompt = self.prompt.take().or(later.prompt);
        self.cached_tokens = later.cached_tokens;
        self.finish = later.finish;
    }
}

/// What a source says next; `None` after the end.
pub type Next = Option<Result<News, ApiError>>;

/// Says the text of one choice. Dropping it cancels the choice.
pub enum Source {
    /// A sequence of a local engine.
    Local(Ticket),
    /// A choice of an upstream.
    Upstream(Box<Relay>),
    /// What a policy says in place of a model.
    Said(Option<String>),
    /// Another source behind a filter.
    Filtered(Filtered),
}

impl Source {
    /// A choice of an upstream.
    pub fn upstream(relay: Relay) -> Self {
        Self::Upstream(Box::new(relay))
    }

    /// This source behind `filter`.
    pub fn filtered(self, filter: Option<Box<dyn Filter>>) -> Self {
        match filter {
            None => self,
            Some(filter) => {
                Self::Filtered(Filtered::Idle(Box::new(Behind { source: self, filter })))
            }
        }
    }

    /// Asks for news. News merge while nobody asks.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Next> {
        match self {
            Self::Local(ticket) => pin!(ticket.next()).poll(context).map(|next| next.map(news)),
            Self::Upstream(relay) => relay.poll_next(context),
            Self::Said(text) => Poll::Ready(text.take().map(said)),
            Self::Filtered(filtered) => filtered.poll_next(context),
        }
    }

    /// Waits for news.
    pub async fn next(&mut self) -> Next {
        poll_fn(|context| self.poll_next(context)).await
    }
}

fn news(progress: Progress) -> Result<News, ApiError> {
    let Progress { text, tokens, prompt, cached_tokens, finish } = progress;
    Ok(News { text, tokens, prompt, cached_tokens, finish: finish.map(Finish::of).transpose()? })
}

fn said(text: String) -> Result<News, ApiError> {
    Ok(News { text, finish: Some(Finish::plain(End::Stop)), ..News::default() })
}

/// Puts `news` through `filter`, which may end the choice.
pub async fn release(filter: &mut dyn Filter, mut news: News) -> Result<News, ApiError> {
    let last = news.finish.is_some();
    if news.text.is_empty() && !last {
        return Ok(news);
    }
    let released = filter.push(&news.text, last).await?;
    news.text = released.text;
    if released.stopped {
        news.finish = Some(Finish::plain(End::Policy));
    }
    Ok(news)
}

/// A source and its filter.
pub struct Behind {
    source: Source,
    filter: Box<dyn Filter>,
}

type Work = Pin<Box<dyn Future<Output = (Box<Behind>, Next)> + Send>>;

/// The future holds both from one piece to the next: made anew at every poll, it would lose a guest
/// half-way.
pub enum Filtered {
    /// Nobody asked since the last news.
    Idle(Box<Behind>),
    /// Waits for the source, then for the filter.
    Busy(Work),
    /// The last news are out.
    Over,
}

impl Filtered {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Next> {
        let mut work = match mem::replace(self, Self::Over) {
            Self::Idle(behind) => behind.work(),
            Self::Busy(work) => work,
            Self::Over => return Poll::Ready(None),
        };
        let Poll::Ready((behind, next)) = work.as_mut().poll(context) else {
            *self = Self::Busy(work);
            return Poll::Pending;
        };
        if let Some(Ok(News { finish: None, .. })) = &next {
            *self = Self::Idle(behind);
        }
        Poll::Ready(next)
    }
}

impl Behind {
    fn work(self: Box<Self>) -> Work {
        Box::pin(self.next())
    }

    async fn next(mut self: Box<Self>) -> (Box<Self>, Next) {
        let next = match self.source.next().await {
            Some(Ok(news)) => Some(release(&mut *self.filter, news).await),
            end => end,
        };
        (self, next)
    }
}
