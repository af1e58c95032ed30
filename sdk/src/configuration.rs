//! From the operator's configuration to the author's type.

use serde::de::DeserializeOwned;

/// The configuration of a plugin that takes none.
#[crate::config]
#[derive(Clone, Copy, Debug, Default)]
pub struct NoConfig {}

/// Reads a configuration. The error names the key that is wrong.
pub(crate) fn read<C: DeserializeOwned>(json: &str) -> Result<C, String> {
    let json = if matches!(json.trim(), "" | "null") { "{}" } else { json };
    serde_json::from_str(json).map_err(|error| {
        let (place, why) = (place(json, offset(json, &error)), error.to_string());
        // Where it is in the JSON that the server made, nobody knows who did not write that.
        let why = why.rsplit_once(" at line ").map_or(why.as_str(), |(why, _)| why);
        format!("config{place}: {why}")
    })
}

/// Bytes that had been read when it went wrong.
fn offset(json: &str, error: &serde_json::Error) -> usize {
    let before = json.split_inclusive('\n').take(error.line().saturating_sub(1));
    before.map(str::len).sum::<usize>() + error.column()
}

/// What the first bytes of a JSON text lead to, as `.rules[0].percent`. This is a scan for the one
/// text that is wrong; to keep the place while reading doubles the code of every type.
fn place(json: &str, bytes: usize) -> String {
    let mut levels: Vec<Level<'_>> = Vec::new();
    let (mut at, mut key_follows) = (0, false);
    while let Some(byte) = json.as_bytes().get(at).filter(|_| at < bytes) {
        match byte {
            b'{' => levels.push(Level::Key("")),
            b'[' => levels.push(Level::Index(0)),
            b'}' | b']' => drop(levels.pop()),
            b',' => {
                if let Some(Level::Index(index)) = levels.last_mut() {
                    *index += 1;
                }
            }
            b'"' => {
                let end = string_end(json, at);
                if let (Some(Level::Key(key)), true) = (levels.last_mut(), key_follows) {
                    *key = json.get(at + 1..end - 1).unwrap_or_default();
                }
                at = end - 1;
            }
            _ => {}
        }
        key_follows = matches!(byte, b'{' | b',') || key_follows && byte.is_ascii_whitespace();
        at += 1;
    }
    levels.iter().map(Level::step).collect()
}

/// Where a value is in what surrounds it.
enum Level<'a> {
    Key(&'a str),
    Index(usize),
}

impl Level<'_> {
    fn step(&self) -> String {
        match self {
            Self::Key("") => String::new(),
            Self::Key(key) => format!(".{key}"),
            Self::Index(index) => format!("[{index}]"),
        }
    }
}

/// Just behind the string that begins at `start`.
fn string_end(json: &str, start: usize) -> usize {
    let mut escaped = false;
    let ends = json.as_bytes().iter().enumerate().skip(start + 1).find(|(_, byte)| {
        let ends = **byte == b'"' && !escaped;
        escaped = **byte == b'\\' && !escaped;
        ends
    });
    ends.map_or(json.len(), |(at, _)| at) + 1
}

#[cfg(test)]
mod tests {
    use super::{NoConfig, read};

    #[crate::config]
    #[derive(Debug)]
    struct Config {
        rules: Vec<Rule>,
    }

    #[crate::config]
    #[derive(Debug)]
    struct Rule {
        percent: u8,
    }

    #[test]
    fn a_configuration_is_read() {
        let config: Config = read(r#"{"rules": [{"percent": 5}]}"#).unwrap();
        assert_eq!(config.rules[0].percent, 5);
        read::<NoConfig>("").unwrap();
    }

    #[test]
    fn an_error_names_the_key() {
        let error = read::<Config>(r#"{"rules": [{"percent": 300}]}"#).unwrap_err();
        assert_eq!(error, "config.rules[0].percent: invalid value: integer `300`, expected u8");
    }

    #[test]
    fn the_place_is_found_past_other_values() {
        let error = |json| read::<Config>(json).unwrap_err();
        let rules = "{\n \"rules\": [{\"percent\": 1}, {\"percent\" : \"a, \\\"{[\"}]}";
        assert!(error(rules).starts_with("config.rules[1].percent: invalid type: string"));
        assert_eq!(
            error(r#"{"rules": [{"percent": 1}, {}]}"#),
            "config.rules[1]: missing field `percent`"
        );
        assert_eq!(error("{}"), "config: missing field `rules`");
        assert!(error(r#"{"rules": 5}"#).starts_with("config.rules: invalid type: integer `5`"));
        assert!(error("[").starts_with("config"));
        assert!(error(r#"{"rules"#).starts_with("config"));
    }

    #[test]
    fn unknown_keys_are_refused() {
        let error = read::<Config>(r#"{"rules": [{"percnt": 3}]}"#).unwrap_err();
        assert_eq!(error, "config.rules[0].percnt: unknown field `percnt`, expected `percent`");
        let error = read::<NoConfig>(r#"{"rules": []}"#).unwrap_err();
        assert!(error.contains("unknown field `rules`"), "{error}");
    }
}
