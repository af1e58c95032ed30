//! How problems are worded: as the other errors of a deployment.

use serde_json::Value;

/// Longest value that is shown.
const SHOWN: usize = 80;

/// `a, b or c would do`.
pub(super) fn would_do(options: &[String]) -> String {
    match options {
        [] => String::new(),
        [one] => format!("{one} would do"),
        [first @ .., last] => format!("{} or {last} would do", first.join(", ")),
    }
}

/// What `type` names, in words.
pub(super) fn kinds(types: &Value) -> Vec<String> {
    let kind = |name: &Value| {
        Some(match name.as_str()? {
            "string" => "a text",
            "integer" => "a whole number",
            "number" => "a number",
            "boolean" => "true or false",
            "array" => "a list",
            "object" => "a table",
            _ => "nothing",
        })
    };
    let names = types.as_array().map_or(std::slice::from_ref(types), Vec::as_slice);
    names.iter().filter_map(kind).map(str::to_owned).collect()
}

/// The values of alternatives that are nothing but values.
pub(super) fn constants(alternatives: &Value) -> Vec<String> {
    let of = |part: &Value| match (part.get("const"), part["enum"].as_array()) {
        (Some(value), _) => Some(vec![short(value)]),
        (None, Some(values)) => Some(values.iter().map(short).collect()),
        _ => None,
    };
    let all: Option<Vec<_>> = alternatives.as_array().into_iter().flatten().map(of).collect();
    all.unwrap_or_default().concat()
}

/// A key below a table, in quotes where TOML wants them.
pub(super) fn dotted(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    match !name.is_empty() && name.chars().all(bare) {
        true => format!(".{name}"),
        false => format!(".{name:?}"),
    }
}

/// A value as JSON, or its beginning.
pub(super) fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
