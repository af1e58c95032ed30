//! From the operator's configuration to the author's type.

use serde::de::DeserializeOwned;

/// The configuration of a plugin that takes none.
#[crate::config]
#[derive(Clone, Copy, Debug, Default)]
pub struct NoConfig {}

/// Reads a configuration. The error names the key that is wrong.
pub(crate) fn read<C: DeserializeOwned>(json: &str) -> Result<C, String> {
    let json = if matches!(json.trim(), "" | "null") { "{}" } else { json };
    let mut reader = serde_json::Deserializer::from_str(json);
    serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let why = error.inner().to_string();
        // The place is one in the JSON that the server made; nobody wrote that.
        let why = why.rsplit_once(" at line ").map_or(why.as_str(), |(why, _)| why);
        match error.path().to_string().as_str() {
            "." => format!("config: {why}"),
            path => format!("config.{path}: {why}"),
        }
    })
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
    fn unknown_keys_are_refused() {
        let error = read::<Config>(r#"{"rules": [{"percnt": 3}]}"#).unwrap_err();
        assert_eq!(error, "config.rules[0].percnt: unknown field `percnt`, expected `percent`");
        let error = read::<NoConfig>(r#"{"rules": []}"#).unwrap_err();
        assert!(error.contains("unknown field `rules`"), "{error}");
    }
}
