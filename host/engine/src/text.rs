//! A model folder's text side: tokenizer, chat template, end tokens and default sampling.

pub mod detokenize;
mod folder;
mod pieces;
pub mod stop;
mod template;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use crate::text::folder::Folder;
use crate::text::pieces::Pieces;
use crate::text::template::Template;

/// Why text could not be read, encoded or rendered.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file of the model folder is missing or cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the model folder is not what it should be.
    #[error("{path}: {message}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        message: String,
    },
    /// The tokenizer refused a text.
    #[error("the text cannot be tokenized: {0}")]
    Encode(String),
    /// Chat was asked of a model without a chat template.
    #[error("the model has no chat template; send `chat_template` or use completions")]
    NoTemplate,
    /// The chat template does not take these messages; the message is the template's own where it
    /// raised one.
    #[error("the chat template refused the messages: {0}")]
    Template(String),
}

/// A conversation to render with the chat template.
#[derive(Clone, Debug, Default)]
pub struct ChatPrompt {
    /// `{"role", "content", ..}` as the caller sent them.
    pub messages: Vec<Value>,
    /// Tools that the model may call, as the template shows them.
    pub tools: Option<Vec<Value>>,
    /// End with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Leave the last message open, so that the model goes on with it.
    pub continue_final_message: bool,
    /// Used in place of the model's own template.
    pub chat_template: Option<String>,
    /// Further variables for the template.
    pub kwargs: Map<String, Value>,
}

/// What `generation_config.json` says about sampling; holds where a request says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DefaultSampling {
    /// See [`contract::sampling::Sampling::temperature`].
    pub temperature: Option<f32>,
    /// See [`contract::sampling::Sampling::top_p`].
    pub top_p: Option<f32>,
    /// See [`contract::sampling::Sampling::top_k`].
    pub top_k: Option<u32>,
    /// See [`contract::sampling::Sampling::min_p`].
    pub min_p: Option<f32>,
    /// See [`contract::sampling::Sampling::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
}

/// Text in and out of one base model. Everything is read at [`Text::open`]; all else is pure.
pub struct Text {
    tokenizer: Tokenizer,
    pieces: Pieces,
    template: Option<Template>,
    end_tokens: Vec<u32>,
    bos: Option<u32>,
    default_sampling: DefaultSampling,
}

impl Text {
    /// Reads `tokenizer.json` and, where they exist, `tokenizer_config.json`,
    /// `chat_template.jinja`, `generation_config.json` and `config.json`.
    pub fn open(folder: &Path) -> Result<Self, TextError> {
        let folder = Folder::read(folder)?;
        let tokenizer = folder.tokenizer()?;
        Ok(Self {
            pieces: Pieces::of(&tokenizer),
            template: folder.template()?,
            end_tokens: folder.end_tokens(&tokenizer),
            bos: folder.bos(&tokenizer),
            default_sampling: folder.default_sampling(),
            tokenizer,
        })
    }

    /// Tokens of a text, with the tokenizer's own framing (a leading BOS, mostly) or without.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        let encoding = self.tokenizer.encode_fast(text, add_special);
        let encoding = encoding.map_err(|error| TextError::Encode(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of a whole sequence of tokens; unknown tokens have none, and so has a sequence that the
    /// decoder refuses.
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> String {
        self.tokenizer.decode(tokens, skip_special).unwrap_or_default()
    }

    /// Text of one token as it stands inside a sequence; bytes that are no whole character are
    /// replaced.
    pub fn token_text(&self, token: u32) -> String {
        String::from_utf8_lossy(self.token_bytes(token)).into_owned()
    }

    /// Bytes of one token as it stands inside a sequence; empty for an unknown token.
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        self.pieces.bytes(token)
    }

    /// The prompt of a conversation. Encode it without special tokens: the template writes its own.
    pub fn chat(&self, prompt: &ChatPrompt) -> Result<String, TextError> {
        let template = self.template.as_ref().ok_or(TextError::NoTemplate)?;
        template.render(prompt)
    }

    /// Tokens that end a sequence unless the caller ignores them, ascending.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// Sampling for requests that leave it open.
    pub fn default_sampling(&self) -> DefaultSampling {
        self.default_sampling
    }

    /// Number of tokens that the tokenizer knows: the highest and one. The base may have more rows.
    pub fn vocab(&self) -> usize {
        self.pieces.len()
    }

    /// The token that begins a sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// What [`detokenize::Detokenizer`] reads.
    pub(crate) fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// What [`detokenize::Detokenizer`] reads when the decoder is of an unknown kind.
    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
}
