//! Which requests the engine takes, and what it says to the others.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use adapters::catalogue::{Catalogue, Entry, Unavailable};
use contract::request::Request;

use crate::load::{Queued, Shared};
use crate::metrics::Metrics;

/// Why a request got no ticket. The messages are for the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Try again later.
    #[error("{queued} requests wait already, and at most {queue_max} may; try again later")]
    QueueFull {
        /// Requests that wait.
        queued: usize,
        /// As many as may.
        queue_max: usize,
    },
    /// The server is about to stop.
    #[error("the server is shutting down and takes no more requests")]
    Draining,
    /// No such adapter.
    #[error("there is no adapter `{name}`")]
    UnknownAdapter {
        /// What was asked for.
        name: String,
    },
    /// The adapter is there but unfit to be served.
    #[error("adapter `{name}`: {reason}")]
    AdapterRefused {
        /// What was asked for.
        name: String,
        /// Why not.
        reason: String,
    },
    /// There is nothing to go on from.
    #[error("the prompt has no tokens; it needs at least one")]
    EmptyPrompt,
    /// The base does not have this token.
    #[error("token {token} is not in the vocabulary, which has {vocab} tokens")]
    UnknownToken {
        /// In the prompt, the stop tokens or the logit bias.
        token: u32,
        /// Tokens that the base has.
        vocab: usize,
    },
    /// Prompt and output do not fit together.
    #[error(
        "the prompt has {prompt} tokens and {max_tokens} more were asked for; together at most \
         {context_max} are possible"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens to generate.
        max_tokens: usize,
        /// Longest sequence.
        context_max: usize,
    },
    /// The ranks are lost.
    #[error("the server cannot go on: {message}")]
    Dead {
        /// What happened.
        message: String,
    },
}

/// What requests are checked against, on the thread of the caller.
pub struct Door {
    pub shared: Arc<Shared>,
    pub catalogue: Arc<Catalogue>,
    pub metrics: Arc<Metrics>,
    pub queue_max: usize,
    pub vocab: usize,
    pub context_max: usize,
}

impl Door {
    /// Checks a request, finds its adapter and takes a place in the queue.
    pub fn enter(&self, request: &Request) -> Result<(Option<Arc<Entry>>, Queued), SubmitError> {
        if self.shared.dead.get().is_some() {
            return Err(self.dead());
        }
        if self.shared.draining.load(Ordering::Relaxed) {
            return Err(SubmitError::Draining);
        }
        self.check_length(request)?;
        self.check_tokens(request)?;
        let adapter = request.adapter.as_deref().map(|name| self.adapter(name)).transpose()?;
        let queued = Queued::take(&self.shared, self.queue_max);
        Ok((adapter, queued.map_err(|queued| self.queue_full(queued))?))
    }

    /// There is no room, with `queued` requests waiting.
    pub fn queue_full(&self, queued: usize) -> SubmitError {
        self.metrics.rejected.get_or_create(&[("reason", "max_num_queued_reqs")]).inc();
        SubmitError::QueueFull { queued, queue_max: self.queue_max }
    }

    /// The engine is gone.
    pub fn dead(&self) -> SubmitError {
        let message = self.shared.dead.get().cloned();
        SubmitError::Dead { message: message.unwrap_or_else(|| "the engine stopped".into()) }
    }

    fn check_length(&self, request: &Request) -> Result<(), SubmitError> {
        let (prompt, max_tokens) = (request.prompt.len(), request.max_tokens as usize);
        let context_max = self.context_max;
        match prompt {
            0 => Err(SubmitError::EmptyPrompt),
            _ if prompt + max_tokens > context_max => {
                Err(SubmitError::TooLong { prompt, max_tokens, context_max })
            }
            _ => Ok(()),
        }
    }

    /// The ranks index by token: one that the base does not have must not get there.
    fn check_tokens(&self, request: &Request) -> Result<(), SubmitError> {
        let sampling = &request.sampling;
        let biased = sampling.logit_bias.iter().map(|(token, _)| token);
        let mut tokens = request.prompt.iter().chain(&sampling.stop_tokens).chain(biased);
        let vocab = self.vocab;
        match tokens.find(|token| **token as usize >= vocab) {
            Some(&token) => Err(SubmitError::UnknownToken { token, vocab }),
            None => Ok(()),
        }
    }

    fn adapter(&self, name: &str) -> Result<Arc<Entry>, SubmitError> {
        self.catalogue.get(name).map_err(|error| {
            let name = name.to_owned();
            match error {
                Unavailable::Unknown => SubmitError::UnknownAdapter { name },
                Unavailable::Refused(refused) => {
                    SubmitError::AdapterRefused { name, reason: refused.reason.to_string() }
                }
            }
        })
    }
}
