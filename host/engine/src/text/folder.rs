//! The files of a Hugging Face folder that concern text.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use crate::text::template::Template;
use crate::text::{DefaultSampling, TextError};

/// A folder's JSON files, read; a file that does not exist reads as an empty object.
pub struct Folder {
    path: PathBuf,
    tokenizer_config: Value,
    generation_config: Value,
    config: Value,
    template_file: Option<String>,
}

impl Folder {
    pub fn read(path: &Path) -> Result<Self, TextError> {
        Ok(Self {
            path: path.to_owned(),
            tokenizer_config: json(&path.join("tokenizer_config.json"))?,
            generation_config: json(&path.join("generation_config.json"))?,
            config: json(&path.join("config.json"))?,
            template_file: text(&path.join("chat_template.jinja"))?,
        })
    }

    /// The tokenizer, with padding and truncation off: both are left over from training.
    pub fn tokenizer(&self) -> Result<Tokenizer, TextError> {
        let path = self.path.join("tokenizer.json");
        let bytes =
            fs::read(&path).map_err(|source| TextError::Read { path: path.clone(), source })?;
        let malformed = |error: tokenizers::Error| TextError::Malformed {
            path: path.clone(),
            message: error.to_string(),
        };
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(malformed)?;
        tokenizer.with_truncation(None).map_err(malformed)?;
        tokenizer.with_padding(None);
        Ok(tokenizer)
    }

    /// `chat_template.jinja`, or else what `tokenizer_config.json` holds: one template, or several
    /// by name, of which `default` counts.
    pub fn template(&self) -> Result<Option<Template>, TextError> {
        let held = &self.tokenizer_config["chat_template"];
        let named = held.as_array().into_iter().flatten();
        let default = named.filter(|entry| entry["name"] == "default").map(|it| &it["template"]);
        let source = self.template_file.as_deref();
        let source = source.or(held.as_str()).or(default.filter_map(Value::as_str).next());
        let Some(source) = source else { return Ok(None) };
        Template::new(source, self.special_tokens()).map(Some)
    }

    /// `bos_token`, `eos_token` and the like, as the template's variables.
    pub fn special_tokens(&self) -> Map<String, Value> {
        let entries = self.tokenizer_config.as_object().into_iter().flatten();
        entries
            .filter(|(name, _)| name.ends_with("_token"))
            .filter_map(|(name, token)| Some((name.clone(), Value::from(token_text(token)?))))
            .collect()
    }

    /// The token that begins a sequence.
    pub fn bos(&self, tokenizer: &Tokenizer) -> Option<u32> {
        let named = token_text(&self.tokenizer_config["bos_token"]);
        let named = named.and_then(|text| tokenizer.token_to_id(text));
        named.or_else(|| u32::try_from(self.config["bos_token_id"].as_u64()?).ok())
    }

    /// Every end of sequence that any of the three files names.
    pub fn end_tokens(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let ids = [&self.generation_config, &self.config]
            .into_iter()
            .flat_map(|file| one_or_many(&file["eos_token_id"]))
            .filter_map(|id| u32::try_from(id.as_u64()?).ok());
        let named = token_text(&self.tokenizer_config["eos_token"]);
        let named = named.and_then(|text| tokenizer.token_to_id(text));
        let mut tokens: Vec<u32> = ids.chain(named).collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }

    pub fn default_sampling(&self) -> DefaultSampling {
        let number = |key: &str| self.generation_config[key].as_f64().map(|value| value as f32);
        let top_k = self.generation_config["top_k"].as_u64();
        DefaultSampling {
            temperature: number("temperature"),
            top_p: number("top_p"),
            top_k: top_k.and_then(|top_k| u32::try_from(top_k).ok()),
            min_p: number("min_p"),
            repetition_penalty: number("repetition_penalty"),
        }
    }
}

/// A token is written as its text or as `{"content": text, ..}`.
fn token_text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

fn one_or_many(value: &Value) -> &[Value] {
    match value {
        Value::Null => &[],
        Value::Array(values) => values,
        one => std::slice::from_ref(one),
    }
}

fn json(path: &Path) -> Result<Value, TextError> {
    let Some(text) = text(path)? else { return Ok(Value::Null) };
    serde_json::from_str(&text)
        .map_err(|error| TextError::Malformed { path: path.to_owned(), message: error.to_string() })
}

fn text(path: &Path) -> Result<Option<String>, TextError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TextError::Read { path: path.to_owned(), source }),
    }
}
