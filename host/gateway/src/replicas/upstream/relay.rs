//! The answer of an upstream to one choice, read event by event.

use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use contract::policy::completion::End;
use contract::request::Scored;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use crate::answer::finish::Finish;
use crate::answer::source::{News, Next};
use crate::error::ApiError;
use crate::replicas::upstream::client::Reply;

/// Longest line of a stream.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Says what an upstream says. Dropping it closes the connection, which cancels the choice there.
pub struct Relay {
    reply: Reply,
    /// Read, and not a whole line yet.
    rest: BytesMut,
    /// Came in before somebody asked.
    first: Option<News>,
    /// Tokens told so far.
    told: u32,
    cached_tokens: u32,
    finish: Option<Finish>,
    end_tokens: Vec<u32>,
    /// Some news are on their way to the caller: no other replica can take over.
    begun: bool,
    /// Told after the news that came before it.
    failure: Option<ApiError>,
    over: bool,
    _place: Option<OwnedSemaphorePermit>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    text: String,
    finish_reason: Option<String>,
    #[serde(default)]
    stop_reason: Value,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    completion_tokens: u32,
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    cached_tokens: Option<u32>,
}

impl Relay {
    /// Reads `reply`, and gives `place` back at its end.
    pub fn new(reply: Reply, place: Option<OwnedSemaphorePermit>, end_tokens: &[u32]) -> Self {
        Self {
            reply,
            rest: BytesMut::new(),
            first: None,
            told: 0,
            cached_tokens: 0,
            finish: None,
            end_tokens: end_tokens.to_vec(),
            begun: false,
            failure: None,
            over: false,
            _place: place,
        }
    }

    /// Waits for the first news, and keeps them for [`Relay::poll_next`].
    pub async fn first(&mut self) -> Result<(), ApiError> {
        match std::future::poll_fn(|context| self.poll_next(context)).await {
            Some(news) => self.first = Some(news?),
            None => return Err(broken("it said nothing")),
        }
        Ok(())
    }

    /// Asks for news. They stay in the connection while nobody does, which holds the upstream up
    /// and not this server's memory.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Next> {
        if let Some(first) = self.first.take() {
            self.begun = true;
            return Poll::Ready(Some(Ok(first)));
        }
        if self.over {
            return Poll::Ready(None);
        }
        let mut news = News::default();
        let polled = self.poll_news(context, &mut news);
        news.cached_tokens = self.cached_tokens;
        let fresh = !news.text.is_empty() || !news.tokens.is_empty();
        let next = match polled {
            Poll::Pending if fresh => Ok(news),
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(finish)) => Ok(News { finish: Some(finish), ..news }),
            Poll::Ready(Err(error)) if fresh && self.begun => {
                self.failure = Some(error);
                Ok(news)
            }
            Poll::Ready(Err(error)) => Err(error),
        };
        self.over = !matches!(next, Ok(News { finish: None, .. }));
        Poll::Ready(Some(next))
    }

    /// Adds what came in to `news`, until there is no more for now or the choice has ended.
    fn poll_news(
        &mut self,
        context: &mut Context<'_>,
        news: &mut News,
    ) -> Poll<Result<Finish, ApiError>> {
        if let Some(failure) = self.failure.take() {
            return Poll::Ready(Err(failure));
        }
        loop {
            while let Some(line) = self.line() {
                if self.read(&line, news)? {
                    return Poll::Ready(self.last());
                }
            }
            match ready!(self.reply.poll_data(context)) {
                Some(Ok(data)) => self.rest.extend_from_slice(&data),
                Some(Err(error)) if self.finish.is_none() => {
                    return Poll::Ready(Err(broken(&error)));
                }
                Some(Err(_)) | None => return Poll::Ready(self.last()),
            }
            if self.rest.len() > LINE_BYTES_MAX && !self.rest.contains(&b'\n') {
                return Poll::Ready(Err(broken("a line of its stream is too long")));
            }
        }
    }

    /// The next whole line.
    fn line(&mut self) -> Option<BytesMut> {
        let end = self.rest.iter().position(|byte| *byte == b'\n')?;
        let line = self.rest.split_to(end);
        self.rest.advance(1);
        Some(line)
    }

    /// Adds what a line says. True: it was the last.
    fn read(&mut self, line: &[u8], news: &mut News) -> Result<bool, ApiError> {
        let Some(data) = line.trim_ascii_end().strip_prefix(b"data:") else { return Ok(false) };
        let data = data.trim_ascii_start();
        if data == b"[DONE]" {
            return Ok(true);
        }
        let event: Event = serde_json::from_slice(data)
            .map_err(|error| broken(&format!("an event cannot be read: {error}")))?;
        if let Some(error) = event.error {
            return Err(broken(error["message"].as_str().unwrap_or("it failed")));
        }
        let counted = event.usage.map(|usage| self.count(&usage, news)).is_some();
        for choice in event.choices {
            // A server that does not count as it goes: its events are mostly single tokens.
            if !counted && !choice.text.is_empty() {
                self.tell(self.told + 1, news);
            }
            news.text += &choice.text;
            if let Some(reason) = choice.finish_reason {
                self.finish = Some(self.end(&reason, choice.stop_reason)?);
            }
        }
        Ok(false)
    }

    fn count(&mut self, usage: &Usage, news: &mut News) {
        let details = usage.prompt_tokens_details.as_ref();
        let cached = details.and_then(|details| details.cached_tokens);
        self.cached_tokens = cached.unwrap_or(self.cached_tokens);
        self.tell(usage.completion_tokens, news);
    }

    /// Tokens are counted only: requests that show them run elsewhere.
    fn tell(&mut self, total: u32, news: &mut News) {
        let more = total.saturating_sub(self.told);
        news.tokens.extend((0..more).map(|_| Scored::default()));
        self.told += more;
    }

    fn end(&self, reason: &str, stop_reason: Value) -> Result<Finish, ApiError> {
        let own = stop_reason
            .as_u64()
            .is_some_and(|token| self.end_tokens.iter().any(|end| u64::from(*end) == token));
        let stop_reason = if own { Value::Null } else { stop_reason };
        match reason {
            "stop" => Ok(Finish { end: End::Stop, stop_reason }),
            "length" => Ok(Finish::plain(End::Length)),
            "content_filter" => Ok(Finish::plain(End::Policy)),
            other => Err(broken(&format!("it ended with `{other}`"))),
        }
    }

    /// The stream has ended: well, if it had said how.
    fn last(&mut self) -> Result<Finish, ApiError> {
        self.finish.take().ok_or_else(|| broken("it broke off"))
    }
}

fn broken(message: &str) -> ApiError {
    ApiError::Upstream(message.to_owned())
}
