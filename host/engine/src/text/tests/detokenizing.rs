//! Text from tokens as they come is the text of the whole.

use std::iter;
use std::sync::Arc;

use proptest::prelude::*;

use crate::text::Text;
use crate::text::detokenize::Detokenizer;
use crate::text::tests::fixture::{byte_fallback, byte_level, metaspace, open, word_piece};

fn streamed(text: &Arc<Text>, tokens: &[u32], skip_special: bool) -> String {
    let mut detokenizer = Detokenizer::new(Arc::clone(text), skip_special);
    let mut out = String::new();
    tokens.iter().for_each(|token| detokenizer.push(*token, &mut out));
    detokenizer.finish(&mut out);
    out
}

/// What `tokens` add to a text that begins with `first`, by tokenizers' own decoder.
fn decoded(text: &Text, first: u32, tokens: &[u32], skip_special: bool) -> String {
    let all: Vec<u32> = iter::once(first).chain(tokens.iter().copied()).collect();
    let begun = text.decode(&all[..1], skip_special);
    let whole = text.decode(&all, skip_special);
    whole.strip_prefix(&begun).expect("decoding goes on from the first token").to_owned()
}

fn id(text: &Text, token: &str) -> u32 {
    text.tokenizer().token_to_id(token).unwrap()
}

/// Bytes as tokens of a byte-fallback vocabulary.
fn fallback_bytes(text: &Text, bytes: &[u8]) -> Vec<u32> {
    bytes.iter().map(|byte| id(text, &format!("<0x{byte:02X}>"))).collect()
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(300))]

    /// Any bytes at all, half of them no UTF-8: replaced as tokenizers replaces them.
    #[test]
    fn byte_level_streams_are_exact(tokens in prop::collection::vec(0..270u32, 0..40), skip: bool) {
        let text = open(&byte_level());
        prop_assert_eq!(streamed(&text, &tokens, skip), text.decode(&tokens, skip));
    }

    /// Words, and characters spelt in bytes, whole or cut off.
    ///
    /// A word follows each character, because tokenizers replaces a whole run of bytes for one bad
    /// character in it, when a stream has already shown the good ones before.
    #[test]
    fn byte_fallback_streams_are_exact(
        parts in prop::collection::vec((any::<char>(), 3..11u32, 1..=4usize), 0..20),
    ) {
        let text = open(&byte_fallback());
        let mut tokens = Vec::new();
        for (character, word, kept) in parts {
            let bytes = character.to_string().into_bytes();
            tokens.extend(fallback_bytes(&text, &bytes[..kept.min(bytes.len())]));
            tokens.push(word);
        }
        let wanted = decoded(&text, id(&text, "b"), &tokens, true);
        prop_assert_eq!(streamed(&text, &tokens, true), wanted);
    }

    #[test]
    fn metaspace_streams_are_exact(tokens in prop::collection::vec(0..60u32, 0..30), skip: bool) {
        let text = open(&metaspace());
        let wanted = decoded(&text, id(&text, "b"), &tokens, skip);
        prop_assert_eq!(streamed(&text, &tokens, skip), wanted);
    }
}

#[test]
fn a_character_is_shown_when_its_last_byte_has_come() {
    let text = open(&byte_level());
    let mut detokenizer = Detokenizer::new(Arc::clone(&text), true);
    let mut shown = Vec::new();
    for token in ["ðŁĺ", "Ģ", "!"] {
        let mut out = String::new();
        detokenizer.push(id(&text, token), &mut out);
        shown.push(out);
    }
    assert_eq!(shown, ["", "😀", "!"]);
}

#[test]
fn a_character_cut_off_by_the_end_is_replaced() {
    let text = open(&byte_level());
    assert_eq!(streamed(&text, &[id(&text, "Ġthe"), id(&text, "ðŁĺ")], true), " the\u{FFFD}");
    let text = open(&byte_fallback());
    let cut = fallback_bytes(&text, &"😀".as_bytes()[..2]);
    assert_eq!(streamed(&text, &cut, true), "\u{FFFD}\u{FFFD}");
}

#[test]
fn output_keeps_the_space_that_parts_it_from_the_prompt() {
    for folder in [byte_fallback(), metaspace()] {
        let text = open(&folder);
        assert_eq!(streamed(&text, &[id(&text, "▁the")], true), " the");
    }
}

#[test]
fn unknown_decoders_fall_back_to_tokenizers() {
    let text = open(&word_piece());
    let words = ["play", "##ing", "chess", "was", "."];
    let tokens = words.map(|token| id(&text, token));
    assert_eq!(streamed(&text, &tokens, true), "playing chess was.");
    assert_eq!(text.decode(&tokens, true), "playing chess was.");
}

#[test]
fn a_token_that_changes_earlier_text_does_not_silence_those_after_it() {
    let text = open(&word_piece());
    // WordPiece's clean-up joins "don ' t" when the "t" comes; "don '" is out by then.
    let tokens = ["don", "'", "t", "play", "chess"].map(|token| id(&text, token));
    let shown = streamed(&text, &tokens, true);
    assert!(shown.starts_with("don") && shown.ends_with("t play chess"), "{shown:?}");
}

#[test]
fn unknown_tokens_have_no_text() {
    let text = open(&byte_level());
    assert_eq!(streamed(&text, &[u32::MAX, id(&text, "Ġthe")], true), " the");
    assert_eq!(text.token_bytes(u32::MAX), b"");
}

#[test]
fn bytes_of_single_tokens_join_to_characters() {
    let text = open(&byte_level());
    let bytes = [text.token_bytes(id(&text, "ðŁĺ")), text.token_bytes(id(&text, "Ģ"))].concat();
    assert_eq!(bytes, "😀".as_bytes());
    assert_eq!(text.token_text(id(&text, "ĠcafÃ©")), " café");
    assert_eq!(text.token_text(id(&text, "<|end of turn|>")), "<|end of turn|>");
}
