//! Text from tokens as they come, never half a character.

use std::sync::Arc;

use crate::text::Text;
use crate::text::pieces::Replace;

/// The text of one sequence, a token at a time.
pub struct Detokenizer {
    text: Arc<Text>,
    skip_special: bool,
    decoding: Decoding,
}

enum Decoding {
    /// Bytes that may be the start of a character; at most three.
    Bytes { held: Vec<u8>, replace: Replace },
    /// State of tokenizers' own stream.
    Stream { tokens: Vec<u32>, prefix: String, prefix_tokens: usize },
}

impl Detokenizer {
    /// Follows a sequence from its first output token on.
    pub fn new(text: Arc<Text>, skip_special: bool) -> Self {
        let decoding = match text.pieces().exact() {
            Some(replace) => Decoding::Bytes { held: Vec::new(), replace },
            None => {
                Decoding::Stream { tokens: Vec::new(), prefix: String::new(), prefix_tokens: 0 }
            }
        };
        Self { text, skip_special, decoding }
    }

    /// Appends what `token` adds to the text to `out`; what may be part of a character is held
    /// back until its rest comes.
    pub fn push(&mut self, token: u32, out: &mut String) {
        match &mut self.decoding {
            Decoding::Bytes { held, replace } => {
                let pieces = self.text.pieces();
                if !(self.skip_special && pieces.is_special(token)) {
                    append(held, pieces.bytes(token), *replace, out);
                }
            }
            Decoding::Stream { tokens, prefix, prefix_tokens } => {
                let step = tokenizers::tokenizer::step_decode_stream(
                    self.text.tokenizer(),
                    vec![token],
                    self.skip_special,
                    tokens,
                    prefix,
                    prefix_tokens,
                );
                match step {
                    Ok(piece) => out.push_str(&piece.unwrap_or_default()),
                    // The token changed earlier text, which was sent long since: go on from it.
                    Err(_) => {
                        tokens.drain(..tokens.len() - 1);
                        prefix.clear();
                        *prefix_tokens = 0;
                        out.push_str(&self.text.decode(tokens, self.skip_special));
                    }
                }
            }
        }
    }

    /// Appends what is still held back; it will not become a character any more.
    pub fn finish(&mut self, out: &mut String) {
        match &mut self.decoding {
            Decoding::Bytes { held, replace } => {
                let count = if *replace == Replace::Byte { held.len() } else { held.len().min(1) };
                held.clear();
                out.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, count));
            }
            Decoding::Stream { tokens, prefix, .. } => {
                let whole = self.text.decode(tokens, self.skip_special);
                out.push_str(whole.strip_prefix(prefix.as_str()).unwrap_or_default());
                tokens.clear();
            }
        }
    }
}

/// Appends `held` and `bytes` to `out` as far as they are whole characters; the rest is held.
fn append(held: &mut Vec<u8>, bytes: &[u8], replace: Replace, out: &mut String) {
    if held.is_empty() {
        let kept = decode(bytes, replace, out);
        held.extend_from_slice(&bytes[kept..]);
    } else {
        held.extend_from_slice(bytes);
        let kept = decode(held, replace, out);
        held.drain(..kept);
    }
}

/// Appends the characters of `bytes` to `out` and says how many bytes they took; what is left may
/// be the start of a character.
fn decode(bytes: &[u8], replace: Replace, out: &mut String) -> usize {
    let mut at = 0;
    loop {
        let error = match std::str::from_utf8(&bytes[at..]) {
            Ok(valid) => {
                out.push_str(valid);
                return bytes.len();
            }
            Err(error) => error,
        };
        let valid = at + error.valid_up_to();
        out.push_str(std::str::from_utf8(&bytes[at..valid]).unwrap_or_default());
        let Some(wrong) = error.error_len() else { return valid };
        let count = if replace == Replace::Byte { wrong } else { 1 };
        out.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, count));
        at = valid + wrong;
    }
}
