//! Model folders written for a test.

use std::fs;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::text::{Text, TextError};

/// A folder that goes away with its owner.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn with(self, file: &str, content: &str) -> Self {
        fs::write(self.0.path().join(file), content).unwrap();
        self
    }

    pub fn open(&self) -> Result<Text, TextError> {
        Text::open(self.0.path())
    }
}

/// A folder with a tokenizer of this vocabulary and decoder. `special` are its first tokens.
fn tokenizer(special: &[&str], vocab: &[String], decoder: &Value) -> Folder {
    let all = special.iter().map(|token| (*token).to_owned()).chain(vocab.iter().cloned());
    let ids: Map<String, Value> = all.enumerate().map(|(id, token)| (token, json!(id))).collect();
    let added = special.iter().enumerate().map(|(id, content)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    });
    let file = json!({
        "version": "1.0",
        "truncation": {"max_length": 2, "stride": 0, "strategy": "LongestFirst",
            "direction": "Right"},
        "padding": null, "added_tokens": added.collect::<Vec<_>>(), "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": "<unk>"},
    });
    Folder::new().with("tokenizer.json", &file.to_string())
}

pub fn open(folder: &Folder) -> Arc<Text> {
    Arc::new(folder.open().unwrap())
}

/// All 256 bytes in GPT-2's alphabet, then some longer tokens.
pub fn byte_level() -> Folder {
    let printable = |byte: &u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let others = (0..256).filter(|byte| !printable(byte)).zip(0x100..).map(|(_, at)| at);
    let letters = (0..256).filter(printable).chain(others).filter_map(char::from_u32);
    let longer = ["Ġthe", "ĠcafÃ©", "âĤ¬", "ðŁĺ", "ĊĊ", "ä½łå¥½"].map(str::to_owned);
    let vocab: Vec<String> = letters.map(String::from).chain(longer).collect();
    let decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
        "use_regex": true});
    tokenizer(&["<unk>", "<s>", "<|end of turn|>"], &vocab, &decoder)
}

/// Words with a metaspace, and every byte as `<0x..>`, decoded as Llama 2 does.
pub fn byte_fallback() -> Folder {
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    tokenizer(&["<unk>", "<s>", "</s>"], &pieces(), &decoder)
}

/// The same vocabulary with the plain metaspace decoder.
pub fn metaspace() -> Folder {
    let decoder = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
        "split": false});
    tokenizer(&["<unk>", "<s>", "</s>"], &pieces(), &decoder)
}

/// A decoder that looks at neighbours, so that no table of pieces can stand in for it.
pub fn word_piece() -> Folder {
    let words = ["play", "##ing", "##s", "chess", ".", "was", "##é", "don", "'", "t"];
    let decoder = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    tokenizer(&["<unk>", "[CLS]"], &words.map(str::to_owned), &decoder)
}

fn pieces() -> Vec<String> {
    let words = ["▁the", "▁a", "b", "é", "▁▁", "▁", "世界", "ing"].map(str::to_owned);
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    words.into_iter().chain(bytes).collect()
}
