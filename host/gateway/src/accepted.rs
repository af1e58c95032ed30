//! A call that was let in, from then until its answer has ended.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use contract::policy::Policy;
use contract::policy::completion::{Completion, End};
use contract::policy::subject::{Route, Subject};
use tokio::time::Instant;

use crate::gate::Call;
use crate::places::Place;

/// The status that servers log for a caller who did not wait for one.
const CLIENT_CLOSED: u16 = 499;

/// What is known about an accepted call. Clones are the same call; when the last is dropped the
/// policy is told what the call came to, whichever way it ended.
#[derive(Clone)]
pub struct Accepted(Arc<Inner>);

struct Inner {
    policy: Arc<dyn Policy>,
    call: Call,
    max_tokens: Option<u32>,
    /// Held until the answer has ended.
    _place: Option<Place>,
    state: Mutex<State>,
}

struct State {
    subject: Arc<Subject>,
    completion: Completion,
}

impl Accepted {
    /// A call about `subject`, whose choices may have `max_tokens` each, at `place` among those of
    /// its tenant.
    pub fn new(
        policy: Arc<dyn Policy>,
        call: Call,
        subject: Subject,
        max_tokens: Option<u32>,
        place: Option<Place>,
    ) -> Self {
        let state = State { subject: Arc::new(subject), completion: Completion::default() };
        Self(Arc::new(Inner { policy, call, max_tokens, _place: place, state: Mutex::new(state) }))
    }

    /// Its name and deadline.
    pub fn call(&self) -> &Call {
        &self.0.call
    }

    /// Tokens to generate for each choice at most: what was asked for, bounded by what is allowed.
    pub fn bound(&self, asked: Option<u32>) -> Option<u32> {
        let allowed = self.0.max_tokens;
        asked.map_or(allowed, |asked| Some(asked.min(allowed.unwrap_or(asked))))
    }

    /// What it is about, as far as that is known.
    pub fn subject(&self) -> Arc<Subject> {
        Arc::clone(&self.state().subject)
    }

    /// Adds to what it is about. Copies nothing unless somebody keeps a [`Accepted::subject`].
    pub fn learn(&self, add: impl FnOnce(&mut Subject)) {
        add(Arc::make_mut(&mut self.state().subject));
    }

    /// Adds to what it came to.
    pub fn note(&self, add: impl FnOnce(&mut Completion)) {
        add(&mut self.state().completion);
    }

    /// Notes the status of the answer.
    pub fn answered(&self, status: StatusCode) {
        self.note(|completion| completion.status = status.as_u16());
    }

    /// Notes the time of the first token.
    pub fn first_token(&self) {
        let elapsed = self.0.call.arrived.elapsed();
        self.note(|completion| completion.first_token = completion.first_token.or(Some(elapsed)));
    }

    /// Notes how the answer ended, unless that is known.
    pub fn ended(&self, end: End) {
        self.note(|completion| completion.end = completion.end.or(Some(end)));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state.subject.route == Route::Other {
            return;
        }
        let mut completion = std::mem::take(&mut state.completion);
        completion.total = self.call.arrived.elapsed();
        if completion.status == 0 {
            // Nobody was there to see a status: the time was up, or the caller had gone.
            let late = Instant::now() >= self.call.deadline.at;
            let (status, end) = match late {
                true => (StatusCode::REQUEST_TIMEOUT.as_u16(), End::Failed),
                false => (CLIENT_CLOSED, End::Cancelled),
            };
            completion.status = status;
            completion.end = completion.end.or(Some(end));
        }
        self.policy.on_complete(&state.subject, completion);
    }
}
