//! The file of API keys: `[[key]]` tables with a `tenant` and a `key`.

use std::path::Path;

use serde::Deserialize;

use crate::settings::ApiKey;

/// Shorter keys can be guessed.
const KEY_CHARS_MIN: usize = 16;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    key: Vec<RawKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKey {
    tenant: String,
    key: String,
}

/// Reads the keys; the error says what is wrong and never shows a key.
pub fn read(path: &Path) -> Result<Vec<ApiKey>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    // The parser's own message would quote the line, and with it the secret.
    let file: KeyFile = toml::from_str(&text)
        .map_err(|_| "expected [[key]] tables, each with a tenant and a key".to_owned())?;
    if file.key.is_empty() {
        return Err("no [[key]] in it".to_owned());
    }
    file.key.into_iter().map(checked).collect()
}

fn checked(raw: RawKey) -> Result<ApiKey, String> {
    if raw.key.chars().count() < KEY_CHARS_MIN {
        return Err(format!(
            "the key of tenant {:?} is shorter than {KEY_CHARS_MIN} characters",
            raw.tenant
        ));
    }
    Ok(ApiKey { tenant: raw.tenant, key: raw.key })
}
