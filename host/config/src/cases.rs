//! Other TOML than deployments: the case files of those who write plugins.

use serde_json::Value;

use crate::check::json;

/// TOML as JSON; dates become texts. The error shows where the text is wrong.
pub fn read(text: &str) -> Result<Value, String> {
    toml::from_str(text).map(json).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_objects_and_errors_say_where() {
        let value = read("a = 1\n[[case]]\nname = 'x'").unwrap();
        assert_eq!(value["case"][0]["name"], "x");
        assert!(read("a = ").unwrap_err().contains("line 1"));
    }
}
