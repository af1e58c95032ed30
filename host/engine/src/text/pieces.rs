//! The bytes of every token, for decoders that write each token the same wherever it stands.
//!
//! Nearly all models decode this way: byte-level BPE (Llama 3, Qwen), and SentencePiece's
//! metaspace with byte fallback (Llama 2, Mistral). Decoding a token is then a copy from a table.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde::Deserialize;
use tokenizers::Tokenizer;

/// What [`char::REPLACEMENT_CHARACTER`] stands for in text that is not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// One for each part that could begin a character, like `String::from_utf8_lossy`.
    Part,
    /// One for each byte, like tokenizers' byte fallback.
    Byte,
}

/// The bytes of every token as it stands inside a sequence.
pub struct Pieces {
    bytes: Vec<u8>,
    /// `bytes[ends[t - 1]..ends[t]]` are those of token `t`.
    ends: Vec<u32>,
    special: Vec<bool>,
    exact: Option<Replace>,
}

impl Pieces {
    pub fn of(tokenizer: &Tokenizer) -> Self {
        let vocab = tokenizer.get_vocab(true);
        let len = vocab.values().max().map_or(0, |highest| *highest as usize + 1);
        let writing = Writing::of(tokenizer);
        let mut pieces = Self {
            bytes: Vec::new(),
            ends: Vec::with_capacity(len),
            special: Vec::with_capacity(len),
            exact: writing.as_ref().map(Writing::replace),
        };
        let writing = writing.unwrap_or_else(Writing::plain);
        for token in 0..len as u32 {
            let text = tokenizer.id_to_token(token).unwrap_or_default();
            pieces.bytes.extend(writing.bytes(&text));
            pieces.ends.push(pieces.bytes.len() as u32);
            pieces.special.push(tokenizer.get_added_vocabulary().is_special_token(&text));
        }
        pieces
    }

    /// Bytes of one token; empty if there is no such token.
    pub fn bytes(&self, token: u32) -> &[u8] {
        let token = token as usize;
        let Some(&end) = self.ends.get(token) else { return &[] };
        let start = if token == 0 { 0 } else { self.ends[token - 1] };
        &self.bytes[start as usize..end as usize]
    }

    /// Whether `skip_special_tokens` leaves it out.
    pub fn is_special(&self, token: u32) -> bool {
        self.special.get(token as usize).copied().unwrap_or(false)
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether the bytes of a sequence are those of its tokens, end to end, and if so how it
    /// replaces what is not UTF-8. `None`: the decoder is of a kind not known here.
    pub fn exact(&self) -> Option<Replace> {
        self.exact
    }
}

/// One of tokenizers' decoders, as `tokenizer.json` writes it.
#[derive(Deserialize)]
#[serde(tag = "type")]
enum Decoder {
    Sequence {
        decoders: Vec<Decoder>,
    },
    ByteLevel,
    ByteFallback,
    Metaspace {
        replacement: char,
    },
    Replace {
        pattern: Pattern,
        content: String,
    },
    Fuse,
    Strip {
        stop: usize,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
enum Pattern {
    String(String),
    Regex(serde::de::IgnoredAny),
}

/// How the text of a token becomes bytes: steps in order.
struct Writing {
    steps: Vec<Decoder>,
}

impl Writing {
    /// `None` where a token's bytes depend on its neighbours. What a decoder does to the first
    /// token alone counts as "does not depend": output never starts a text, it follows a prompt.
    fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let json = serde_json::to_value(tokenizer.get_decoder()?).ok()?;
        let mut steps = Vec::new();
        flatten(serde_json::from_value(json).ok()?, &mut steps);
        let mut fused = false;
        let known = steps.iter().all(|step| match step {
            Decoder::Fuse => {
                fused = true;
                true
            }
            Decoder::Strip { stop } => fused && *stop == 0,
            Decoder::Replace { pattern: Pattern::String(_), .. } => !fused,
            Decoder::ByteLevel | Decoder::ByteFallback | Decoder::Metaspace { .. } => !fused,
            Decoder::Replace { .. } | Decoder::Sequence { .. } | Decoder::Other => false,
        });
        known.then_some(Self { steps })
    }

    /// Tokens as they are spelt in the vocabulary.
    fn plain() -> Self {
        Self { steps: Vec::new() }
    }

    fn replace(&self) -> Replace {
        let fallback = self.steps.iter().any(|step| matches!(step, Decoder::ByteFallback));
        if fallback { Replace::Byte } else { Replace::Part }
    }

    fn bytes(&self, token: &str) -> Vec<u8> {
        let mut text = token.to_owned();
        for step in &self.steps {
            match step {
                Decoder::ByteLevel => return byte_level(&text),
                Decoder::ByteFallback => {
                    if let Some(byte) = fallback_byte(&text) {
                        return vec![byte];
                    }
                }
                Decoder::Metaspace { replacement } => text = text.replace(*replacement, " "),
                Decoder::Replace { pattern: Pattern::String(pattern), content } => {
                    text = text.replace(pattern, content);
                }
                _ => {}
            }
        }
        text.into_bytes()
    }
}

fn flatten(decoder: Decoder, into: &mut Vec<Decoder>) {
    match decoder {
        Decoder::Sequence { decoders } => {
            decoders.into_iter().for_each(|decoder| flatten(decoder, into));
        }
        one => into.push(one),
    }
}

/// `<0xE2>` is the byte E2.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Byte-level tokens are spelt in GPT-2's alphabet; a token with any other character stands for
/// itself.
fn byte_level(token: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(|c| BYTE_OF.get(&c).copied()).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 onwards.
static BYTE_OF: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let themselves = (0..=255u8).filter(printable).map(|byte| (char::from(byte), byte));
    let others = (0..=255u8).filter(|byte| !printable(byte));
    let shifted = others.zip(0x100u32..).filter_map(|(byte, at)| Some((char::from_u32(at)?, byte)));
    themselves.chain(shifted).collect()
});
