//! What a request asks of the engine, whichever route it came by.

use std::sync::Arc;

use contract::policy::verdict::Admission;
use contract::request::Request;
use contract::sampling::Sampling;
use engine::handle::{Engine, Ticket};
use engine::text::Text;

use crate::answer::form::Form;
use crate::error::ApiError;
use crate::request::fields::Fields;
use crate::request::{sampling, unsupported};

/// Choices of one request at most, over all its prompts.
pub const CHOICES_MAX: usize = 256;
/// Stop texts at most, and the longest one in bytes.
pub const STOPS_MAX: usize = 64;
pub const STOP_BYTES_MAX: usize = 1024;
/// Tokens that logprobs name at most beside the drawn one.
pub const LOGPROBS_MAX: u32 = 20;

/// Prompts, how to go on from them, and the form of the answer.
pub struct Job {
    /// Never empty.
    pub prompts: Vec<Prompt>,
    /// Choices of each prompt.
    pub n: usize,
    /// How each choice goes on.
    pub manner: Manner,
    /// Logprobs of the output: how many of the likeliest tokens to name.
    pub logprobs: Option<u32>,
    /// Logprobs of the prompt, likewise.
    pub prompt_logprobs: Option<u32>,
    /// What the answer shows, and how it travels.
    pub form: Form,
}

/// Where a choice starts.
pub struct Prompt {
    /// As the engine gets them.
    pub tokens: Arc<[u32]>,
    /// Text that the answer begins with, when the prompt is to be echoed.
    pub echo: Option<String>,
}

/// The fields that both routes share and that the engine acts on.
pub struct Manner {
    /// What acts on logits.
    pub sampling: Arc<Sampling>,
    /// Seed of a prompt's first choice; its others count on from it. Random when absent.
    pub seed: Option<i64>,
    /// Tokens to generate at most; as many as there is room for when absent.
    pub max_tokens: Option<u32>,
    /// Texts that end a choice.
    pub stop: Vec<String>,
    /// Leave the stop text in the output.
    pub include_stop: bool,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
}

/// Who asks, for [`Job::submit`].
pub struct Asker<'a> {
    /// Name of the request.
    pub id: &'a str,
    /// The adapter's served name; `None` is the base.
    pub adapter: Option<String>,
    /// Seed of the first choice of a request that brings none.
    pub random: u64,
    /// How it waits.
    pub admission: Admission,
}

impl Job {
    /// Tokens that a choice may have at most, in a context of `context_max`.
    pub fn max_tokens(&self, context_max: usize) -> u32 {
        let longest = self.prompts.iter().map(|prompt| prompt.tokens.len()).max();
        let room = context_max.saturating_sub(longest.unwrap_or_default()) as u32;
        self.manner.max_tokens.unwrap_or(room)
    }

    /// Hands every choice to the engine, in the order of their indices, or none.
    pub fn submit(&self, engine: &Engine, asker: &Asker<'_>) -> Result<Vec<Ticket>, ApiError> {
        let requests = self.requests(asker, engine.context_max()).into_iter();
        requests.map(|request| Ok(engine.submit(request)?)).collect()
    }

    /// What every choice asks, in the order of their indices.
    pub fn requests(&self, asker: &Asker<'_>, context_max: usize) -> Vec<Request> {
        let indices = 0..self.prompts.len() * self.n;
        indices.map(|index| self.request(index, asker, context_max)).collect()
    }

    fn request(&self, index: usize, asker: &Asker<'_>, context_max: usize) -> Request {
        let manner = &self.manner;
        let prompt = &self.prompts[index / self.n].tokens;
        // At least one: a prompt that leaves no room is refused for its length.
        let room = context_max.saturating_sub(prompt.len()).max(1) as u32;
        let seed = match manner.seed {
            Some(seed) => (seed as u64).wrapping_add((index % self.n) as u64),
            None => asker.random.wrapping_add(index as u64),
        };
        Request {
            id: format!("{}-{index}", asker.id),
            adapter: asker.adapter.clone(),
            priority: asker.admission.priority,
            prompt: prompt.clone(),
            sampling: manner.sampling.clone(),
            seed,
            max_tokens: manner.max_tokens.unwrap_or(room),
            stop: manner.stop.clone(),
            include_stop: manner.include_stop,
            skip_special_tokens: manner.skip_special_tokens,
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
        }
    }
}

impl Manner {
    /// Reads the shared fields, and refuses those that cannot be served. `max_tokens` is what
    /// holds when the request does not say.
    pub fn read(
        fields: &Fields<'_>,
        text: &Text,
        max_tokens: Option<u32>,
    ) -> Result<Self, ApiError> {
        unsupported::refuse(fields)?;
        let sampling = sampling::read(fields, text)?;
        let max_tokens = self::max_tokens(fields)?.or(max_tokens);
        if let Some(max) = max_tokens.filter(|&max| max < sampling.min_tokens) {
            let wanted = format!("at most `max_tokens`, which is {max}");
            return Err(ApiError::invalid("min_tokens", sampling.min_tokens, &wanted));
        }
        Ok(Self {
            sampling: Arc::new(sampling),
            seed: fields.get("seed", "a whole number of 64 bits", |_| true)?,
            max_tokens,
            stop: stop(fields)?,
            include_stop: fields.flag("include_stop_str_in_output")?,
            skip_special_tokens: fields.switch("skip_special_tokens")?.unwrap_or(true),
        })
    }
}

/// OpenAI renamed `max_tokens`; the newer name wins.
fn max_tokens(fields: &Fields<'_>) -> Result<Option<u32>, ApiError> {
    let read = |name| fields.get(name, "a whole number from 0", |_: &u32| true);
    let (new, old) = (read("max_completion_tokens")?, read("max_tokens")?);
    Ok(new.or(old))
}

/// One text or a list of them.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Texts {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Many(texts) => texts,
        }
    }
}

fn stop(fields: &Fields<'_>) -> Result<Vec<String>, ApiError> {
    let wanted = format!(
        "a text or a list of at most {STOPS_MAX} texts, each of 1 to {STOP_BYTES_MAX} bytes"
    );
    let fits = |stop: &Texts| {
        let texts = stop.as_slice();
        texts.len() <= STOPS_MAX && texts.iter().all(|t| (1..=STOP_BYTES_MAX).contains(&t.len()))
    };
    let stop = fields.get("stop", &wanted, fits)?;
    Ok(stop.map_or_else(Vec::new, |stop| stop.as_slice().to_vec()))
}

/// How many choices each of `prompts` gets; of those there are 1 to [`CHOICES_MAX`].
pub fn choices(fields: &Fields<'_>, prompts: usize) -> Result<usize, ApiError> {
    let most = CHOICES_MAX / prompts;
    let wanted = match prompts {
        1 => format!("a whole number from 1 to {most}"),
        _ => format!("a whole number from 1 to {most} with {prompts} prompts"),
    };
    Ok(fields.get("n", &wanted, |n| (1..=most).contains(n))?.unwrap_or(1))
}

/// A number of tokens to name beside the drawn one.
pub fn logprobs(fields: &Fields<'_>, name: &'static str) -> Result<Option<u32>, ApiError> {
    let wanted = format!("a whole number from 0 to {LOGPROBS_MAX}");
    fields.get(name, &wanted, |&count| count <= LOGPROBS_MAX)
}
