//! Look at what comes out, while it is written.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use config::settings::Limits;
use contract::policy::asked::Asked;
use contract::policy::chunk::{Filter, Released};
use contract::policy::hook::Hook;
use contract::policy::subject::Subject;
use contract::policy::verdict::Denied;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::bindings::exports::drystone::policy::on_chunk as wit;
use crate::chain::{Chain, Chains};
use crate::check;
use crate::guest::Ambient;
use crate::instance::Instance;
use crate::json::bytes;
use crate::plugin::{Plugin, Said};
use crate::question::{Question, ambient, request};
use crate::quiet::clean;

/// Text of one choice that a plugin may hold; it is room for the longest hold-back.
const PENDING_BYTES: usize = 16 << 10;
/// Most that a plugin may keep between two chunks.
const STATE_BYTES: usize = 4 << 10;

/// Asks about one piece of one choice.
pub(crate) struct OnChunk<'a> {
    pub(crate) chunk: wit::Chunk,
    pub(crate) ambient: &'a Ambient,
}

impl Question for OnChunk<'_> {
    const HOOK: Hook = Hook::OnChunk;
    /// With what the guest keeps until the next piece.
    type Answer = (wit::Verdict, Vec<u8>);
    type Verdict = (wit::Verdict, Vec<u8>);

    fn ambient(&self) -> Ambient {
        self.ambient.clone()
    }

    async fn ask(&self, instance: &mut Instance) -> wasmtime::Result<Option<Self::Answer>> {
        let Some(hook) = &instance.hooks.on_chunk else { return Ok(None) };
        let verdict = hook.call_on_chunk(&mut instance.store, &self.chunk).await?;
        Ok(Some((verdict, instance.end().state)))
    }

    fn check(&self, answer: Self::Answer, limits: &Limits) -> Result<Self::Verdict, String> {
        if answer.1.len() > STATE_BYTES {
            let bytes = answer.1.len();
            return Err(format!("it keeps {bytes} bytes of state, {STATE_BYTES} may be"));
        }
        match &answer.0 {
            wit::Verdict::Pass => {}
            wit::Verdict::Replace(text) => check::size([&**text], limits.output_bytes)?,
            wit::Verdict::Stop(wit::Ending { text, reason }) => {
                check::size([&**text, reason], limits.output_bytes)?;
            }
            wit::Verdict::Hold if self.chunk.pending.len() > PENDING_BYTES => {
                let bytes = self.chunk.pending.len();
                return Err(format!("it holds {bytes} bytes, {PENDING_BYTES} may be"));
            }
            wit::Verdict::Hold => {}
        }
        Ok(answer)
    }

    fn input(&self) -> Value {
        json!({
            "request": self.ambient.request.as_deref(), "chunk": self.chunk,
            "released": self.ambient.released.last(usize::MAX), "state": bytes(&self.ambient.state),
        })
    }
}

/// The plugins that the text of one choice passes, one after the other.
struct Pipeline {
    chains: Arc<Chains>,
    choice: u32,
    stages: Vec<Stage>,
    shadows: Vec<Arc<Shadow>>,
}

/// One plugin's part of a pipeline.
struct Stage {
    plugin: Arc<Plugin>,
    /// Text that came and was not released.
    pending: String,
    /// Bytes that were released.
    released: u64,
    /// Verdicts that made another text of it.
    changes: u64,
    /// What the guest sees besides.
    ambient: Ambient,
}

/// A plugin whose verdicts do not count. It gets the text that reaches its place in the chain,
/// keeps what it holds back, and is asked elsewhere, in order.
struct Shadow {
    /// Stages before it.
    place: usize,
    stage: Mutex<Stage>,
    /// It missed a piece, so that it knows nothing of the rest.
    lost: AtomicBool,
}

impl Chains {
    /// What the text of `choice` passes; `None` where nobody looks.
    pub(crate) fn filter(
        self: &Arc<Self>,
        chain: Chain,
        subject: &Subject,
        choice: u32,
    ) -> Option<Box<dyn Filter>> {
        if chain.is_empty() {
            return None;
        }
        let request = Arc::new(request(subject));
        let stage = |plugin: &Arc<Plugin>| Stage {
            plugin: plugin.clone(),
            pending: String::new(),
            released: 0,
            changes: 0,
            ambient: Ambient { request: Some(request.clone()), ..ambient(subject) },
        };
        let shadow = |(place, plugin)| {
            let (stage, lost) = (Mutex::new(stage(plugin)), AtomicBool::new(false));
            Arc::new(Shadow { place, stage, lost })
        };
        Some(Box::new(Pipeline {
            chains: self.clone(),
            choice,
            stages: self.enforced(chain).map(stage).collect(),
            shadows: self.shadowed(chain).map(shadow).collect(),
        }))
    }
}

impl Filter for Pipeline {
    fn push<'a>(&'a mut self, piece: &'a str, last: bool) -> Asked<'a, Result<Released, Denied>> {
        if piece.is_empty() && !last {
            return Asked::now(Ok(Released::default()));
        }
        Asked::later(self.pass(piece, last))
    }
}

impl Pipeline {
    /// What one stage releases is the next one's piece. Where a stage stops, that is the last.
    async fn pass(&mut self, piece: &str, last: bool) -> Result<Released, Denied> {
        let (mut text, mut stopped) = (Cow::Borrowed(piece), false);
        for place in 0..=self.stages.len() {
            let ends = last || stopped;
            if text.is_empty() && !ends {
                break;
            }
            self.shadow(place, &text, ends);
            let Some(stage) = self.stages.get_mut(place) else { break };
            let next = stage.push(self.choice, &text, ends).await?;
            (text, stopped) = (Cow::Owned(next.text), stopped || next.stopped);
        }
        Ok(Released { text: text.into_owned(), stopped })
    }

    /// Has the shadows of a place look at what reaches it.
    fn shadow(&self, place: usize, piece: &str, last: bool) {
        for shadow in self.shadows.iter().filter(|shadow| shadow.place == place) {
            if shadow.lost.load(Ordering::Relaxed) {
                continue;
            }
            let look = shadow.clone().look(self.choice, piece.to_owned(), last);
            if !self.chains.later(look) {
                shadow.lost.store(true, Ordering::Relaxed);
            }
        }
    }
}

impl Shadow {
    /// Asks, and counts a verdict that would have changed the text.
    async fn look(self: Arc<Self>, choice: u32, piece: String, last: bool) {
        let mut stage = self.stage.lock().await;
        let before = stage.changes;
        if stage.push(choice, &piece, last).await.is_err() {
            self.lost.store(true, Ordering::Relaxed);
        }
        if stage.changes != before {
            stage.plugin.hook_metrics[Hook::OnChunk as usize].differences.inc();
        }
    }
}

impl Stage {
    async fn push(&mut self, choice: u32, piece: &str, last: bool) -> Result<Released, Denied> {
        self.pending.push_str(piece);
        let pending = std::mem::take(&mut self.pending);
        let chunk = wit::Chunk { choice, pending, released: self.released, last };
        let question = OnChunk { chunk, ambient: &self.ambient };
        let said = self.plugin.hear(&question).await;
        self.pending = question.chunk.pending;
        let (text, hold_back, stopped) = match said {
            Said::Verdict((verdict, state)) => {
                self.ambient.state = state;
                self.decide(verdict, last)
            }
            // As if the plugin were not there: nothing waits for it.
            Said::Nothing | Said::Builtin => (std::mem::take(&mut self.pending), 0, false),
            Said::Refused(denied) => return Err(denied),
        };
        Ok(self.release(text, hold_back, stopped))
    }

    /// The text that takes the place of the pending one, how many of its characters stay, and
    /// whether this is the end.
    fn decide(&mut self, verdict: wit::Verdict, last: bool) -> (String, usize, bool) {
        let pending = std::mem::take(&mut self.pending);
        self.changes += u64::from(changes(&verdict, &pending));
        let hold_back = if last { 0 } else { self.plugin.hold_back() };
        match verdict {
            wit::Verdict::Pass => (pending, hold_back, false),
            wit::Verdict::Replace(text) => (text, hold_back, false),
            // After the last piece nothing can be waited for.
            wit::Verdict::Hold if last => (pending, 0, false),
            wit::Verdict::Hold => (pending, usize::MAX, false),
            wit::Verdict::Stop(wit::Ending { text, reason }) => {
                let (plugin, reason) = (&*self.plugin.settings.name, clean(&reason));
                tracing::info!(plugin, "the plugin ended a choice: {reason}");
                (text, 0, true)
            }
        }
    }

    fn release(&mut self, mut text: String, hold_back: usize, stopped: bool) -> Released {
        self.pending = text.split_off(held_from(&text, hold_back));
        self.released += text.len() as u64;
        self.ambient.released.push(&text);
        Released { text, stopped }
    }
}

/// Whether a verdict makes another text of what is pending.
fn changes(verdict: &wit::Verdict, pending: &str) -> bool {
    match verdict {
        wit::Verdict::Pass | wit::Verdict::Hold => false,
        wit::Verdict::Replace(text) => text != pending,
        wit::Verdict::Stop(_) => true,
    }
}

/// Where the last `characters` of `text` begin.
fn held_from(text: &str, characters: usize) -> usize {
    if text.is_ascii() {
        return text.len().saturating_sub(characters);
    }
    if characters == 0 {
        return text.len();
    }
    text.char_indices().rev().nth(characters - 1).map_or(0, |(at, _)| at)
}

impl Plugin {
    /// Characters of an answer that wait for more.
    fn hold_back(&self) -> usize {
        self.current.load().as_ref().map_or(0, |generation| generation.hold_back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_held_in_whole_characters() {
        assert_eq!(held_from("abc", 0), 3);
        assert_eq!(held_from("abc", 2), 1);
        assert_eq!(held_from("aéx", 2), 1);
        assert_eq!(held_from("é", 5), 0);
        assert_eq!(held_from("", 1), 0);
        assert_eq!(held_from("abc", usize::MAX), 0);
    }
}
