//! One plugin of the deployment: its generations, and how it is asked.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use config::settings::{Mode, Plugin as Settings};
use contract::policy::hook::{Hook, OnError};
use contract::policy::verdict::Denied;

use crate::breaker::Breaker;
use crate::failure::Failure;
use crate::gate::Gate;
use crate::generation::Generation;
use crate::guest::Services;
use crate::json;
use crate::metrics::{HookMetrics, PluginMetrics};
use crate::question::Question;
use crate::record::Recorder;

/// One plugin of the deployment.
pub(crate) struct Plugin {
    pub(crate) settings: Settings,
    /// The generation that is asked; none where the plugin is disabled.
    pub(crate) current: ArcSwapOption<Generation>,
    pub(crate) history: Mutex<History>,
    pub(crate) metrics: PluginMetrics,
    /// By [`Hook`] as an index.
    pub(crate) hook_metrics: [HookMetrics; Hook::ALL.len()],
    /// What generations inherit.
    pub(crate) services: Services,
    pub(crate) calls: Gate,
    pub(crate) recorder: Option<Recorder>,
    /// Held while a new generation is made.
    pub(crate) deploying: Mutex<()>,
}

/// What came before the present generation.
#[derive(Default)]
pub(crate) struct History {
    /// Swaps so far.
    pub(crate) number: u64,
    pub(crate) previous: Option<Arc<Generation>>,
    pub(crate) last_error: Option<String>,
}

/// What a plugin has to say about a request.
pub(crate) enum Said<V> {
    /// This.
    Verdict(V),
    /// Nothing: it is not there, or failed open.
    Nothing,
    /// It failed, and the server's own answer holds.
    Builtin,
    /// It failed, and the request may not go on.
    Refused(Denied),
}

impl Plugin {
    /// Asks, and does what the operator wants done with a failure.
    pub(crate) async fn hear<Q: Question>(&self, question: &Q) -> Said<Q::Verdict> {
        match self.ask(question).await {
            Ok(Some(verdict)) => Said::Verdict(verdict),
            Ok(None) => Said::Nothing,
            Err(failure) => match self.settings.on_error[Q::HOOK as usize] {
                OnError::Closed => Said::Refused(failure.refusal()),
                OnError::Open => Said::Nothing,
                OnError::Fallback => Said::Builtin,
            },
        }
    }

    /// Asks, and counts what came of it. `None`: it does not answer this hook.
    pub(crate) async fn ask<Q: Question>(
        &self,
        question: &Q,
    ) -> Result<Option<Q::Verdict>, Failure> {
        let Some(generation) = self.current.load_full() else { return Ok(None) };
        if !generation.answers(Q::HOOK) {
            return Ok(None);
        }
        let start = Instant::now();
        let result = if generation.breaker.allows(start) {
            self.call(&generation, question).await
        } else {
            Err(Failure::Quarantined)
        };
        self.account(&generation.breaker, Q::HOOK, start, result.as_ref().err());
        result
    }

    /// One call. Where it fails, or nobody waits for it any more, its instance is not used again.
    async fn call<Q: Question>(
        &self,
        generation: &Generation,
        question: &Q,
    ) -> Result<Option<Q::Verdict>, Failure> {
        let _place = self.calls.enter().ok_or(Failure::Concurrency)?;
        let mut instance = generation.pool.take().await?;
        instance.begin(question.ambient(), self.settings.limits.cpu);
        let time = self.settings.limits.cpu;
        let recipe = generation.pool.recipe();
        let answer = match recipe.within(time, || question.ask(&mut instance)).await {
            Ok(answer) => answer,
            Err(failure) => {
                generation.pool.retire(instance);
                return Err(failure);
            }
        };
        instance.end();
        generation.pool.park(instance);
        let Some(answer) = answer else { return Ok(None) };
        self.record(question, &answer);
        question.check(answer, &self.settings.limits).map(Some).map_err(Failure::Invalid)
    }

    fn record<Q: Question>(&self, question: &Q, answer: &Q::Answer) {
        let Some(recorder) = &self.recorder else { return };
        if let Ok(answer) = json::verdict(Q::HOOK, answer) {
            let seen = question.ambient();
            let input = json::input(question.input(), &seen, &self.settings.allow);
            recorder.keep(&self.settings.name, Q::HOOK, &input, &answer);
        }
    }

    fn account(&self, breaker: &Breaker, hook: Hook, start: Instant, failure: Option<&Failure>) {
        let metrics = &self.hook_metrics[hook as usize];
        metrics.seconds.observe(start.elapsed().as_secs_f64());
        match failure {
            Some(failure) => {
                metrics.failed(failure.kind());
                self.report(breaker, hook, failure);
            }
            None => {
                metrics.ok.inc();
                if breaker.is_open() {
                    breaker.succeeded();
                    self.metrics.quarantined.set(breaker.is_open().into());
                }
            }
        }
    }

    fn report(&self, breaker: &Breaker, hook: Hook, failure: &Failure) {
        let (plugin, hook) = (&*self.settings.name, hook.name());
        // One line when it began is enough.
        if *failure == Failure::Quarantined {
            return;
        }
        tracing::warn!(plugin, hook, kind = failure.kind(), "the plugin failed: {failure}");
        if failure.is_its_own() && breaker.failed(Instant::now()) {
            self.metrics.quarantined.set(1);
            tracing::error!(plugin, "the plugin failed too often and is quarantined");
        }
    }

    /// Whether its answers count.
    pub(crate) fn mode(&self) -> Mode {
        self.settings.mode
    }

    /// Whether it is asked at `hook`.
    pub(crate) fn answers(&self, hook: Hook) -> bool {
        self.current.load().as_ref().is_some_and(|generation| generation.answers(hook))
    }

    /// Whether it may look at the texts of requests.
    pub(crate) fn reads_messages(&self) -> bool {
        self.settings.allow.messages && self.current.load().is_some()
    }

    pub(crate) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().expect("nothing panics while it reads or writes")
    }
}
