//! What a folder's files say about tokens and sampling.

use serde_json::json;

use crate::text::tests::fixture::{Folder, byte_level};
use crate::text::{DefaultSampling, TextError};

#[test]
fn a_folder_needs_a_tokenizer_and_nothing_else() {
    let missing = Folder::new().open().err().unwrap();
    assert!(matches!(&missing, TextError::Read { path, .. } if path.ends_with("tokenizer.json")));
    let text = byte_level().open().unwrap();
    assert_eq!(text.end_tokens(), [0; 0]);
    assert_eq!(text.default_sampling(), DefaultSampling::default());
    assert_eq!((text.vocab(), text.bos()), (3 + 256 + 6, None));
}

#[test]
fn end_tokens_are_gathered_from_every_file() {
    let folder = byte_level()
        .with("generation_config.json", r#"{"eos_token_id": [7, 5]}"#)
        .with("config.json", r#"{"eos_token_id": 7}"#)
        .with("tokenizer_config.json", r#"{"eos_token": {"content": "<|end of turn|>"}}"#);
    assert_eq!(folder.open().unwrap().end_tokens(), [2, 5, 7]);
}

#[test]
fn sampling_comes_from_the_generation_config() {
    let file = r#"{"temperature": 0.5, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.05}"#;
    let text = byte_level().with("generation_config.json", file).open().unwrap();
    let wanted = DefaultSampling {
        temperature: Some(0.5),
        top_p: Some(0.9),
        top_k: Some(20),
        min_p: None,
        repetition_penalty: Some(1.05),
    };
    assert_eq!(text.default_sampling(), wanted);
}

#[test]
fn a_malformed_file_is_named() {
    for file in ["tokenizer.json", "config.json", "generation_config.json"] {
        let error = byte_level().with(file, "{\"a\": ").open().err().unwrap();
        assert!(error.to_string().contains(file), "{error}");
    }
}

#[test]
fn truncation_left_over_from_training_is_ignored() {
    // The fixture's tokenizer.json truncates to two tokens.
    let text = byte_level().open().unwrap();
    assert_eq!(text.encode(&"<s>".repeat(5), false).unwrap(), [1; 5]);
}

#[test]
fn the_beginning_token_is_known_by_its_text() {
    let config = json!({"bos_token": "<s>"}).to_string();
    let text = byte_level().with("tokenizer_config.json", &config).open().unwrap();
    assert_eq!(text.bos(), Some(1));
}
