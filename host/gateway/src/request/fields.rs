//! The fields of a request body, taken one by one so that a wrong one is told by name and value.
//!
//! A derived struct would say `invalid type: string "hot", expected f32 at line 1 column 40`. Here
//! a field is kept as raw JSON until somebody asks for it and says in words what it must be.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::ApiError;

/// Longest piece of a wrong value that a message shows, in characters.
const SHOWN_MAX: usize = 60;

/// A JSON object whose values have not been looked at. Of a repeated name the last one counts.
pub struct Fields<'a> {
    values: HashMap<String, &'a RawValue>,
}

impl<'a> Fields<'a> {
    /// Checks that `body` is JSON and an object.
    pub fn parse(body: &'a [u8]) -> Result<Self, ApiError> {
        let values =
            serde_json::from_slice(body).map_err(|error| ApiError::Json(error.to_string()));
        Ok(Self { values: values? })
    }

    /// The value of `name` if it is there and not null. `wanted` says in words what `fits` checks.
    pub fn get<T: Deserialize<'a>>(
        &self,
        name: &'static str,
        wanted: &str,
        fits: impl Fn(&T) -> bool,
    ) -> Result<Option<T>, ApiError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        match serde_json::from_str::<T>(raw) {
            Ok(value) if fits(&value) => Ok(Some(value)),
            _ => Err(ApiError::invalid(name, shown(raw), wanted)),
        }
    }

    /// A switch, off unless it is set.
    pub fn flag(&self, name: &'static str) -> Result<bool, ApiError> {
        Ok(self.switch(name)?.unwrap_or(false))
    }

    /// A switch whose meaning when absent is the caller's to decide.
    pub fn switch(&self, name: &'static str) -> Result<Option<bool>, ApiError> {
        self.get(name, "true or false", |_| true)
    }

    /// The JSON text of `name` if it is there and not null.
    pub fn raw(&self, name: &str) -> Option<&'a str> {
        self.values.get(name).map(|raw| raw.get()).filter(|raw| *raw != "null")
    }
}

/// The beginning of a wrong value, as the caller wrote it.
fn shown(raw: &str) -> String {
    match raw.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}...", &raw[..end]),
        None => raw.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &str) -> String {
        let fields = Fields::parse(body.as_bytes()).expect("an object");
        let fits = |value: &f32| (0.0..=2.0).contains(value);
        let error = fields.get("temperature", "a number from 0 to 2", fits);
        error.expect_err("a wrong value").to_string()
    }

    #[test]
    fn a_wrong_value_is_told_by_name_value_and_range() {
        let wanted = "it must be a number from 0 to 2";
        for found in ["\"hot\"", "2.5", "[1]", "1e99"] {
            let body = format!("{{\"temperature\": {found}}}");
            assert_eq!(message(&body), format!("`temperature` is {found}; {wanted}"));
        }
        let long = message(&format!("{{\"temperature\": \"{}\"}}", "ä".repeat(1000)));
        assert!(long.chars().count() < 150, "{long}");
    }

    #[test]
    fn malformed_json_says_where() {
        let error =
            |body: &str| Fields::parse(body.as_bytes()).err().expect("an error").to_string();
        assert!(
            error("{\"a\": 1,\n  b}").contains("line 2 column 3"),
            "{}",
            error("{\"a\": 1,\n  b}")
        );
        assert!(error("[1]").contains("JSON object"), "{}", error("[1]"));
        assert!(error("").contains("line 1 column 0"), "{}", error(""));
    }

    #[test]
    fn null_is_absent_and_the_last_of_a_name_counts() {
        let fields = Fields::parse(br#"{"echo": null, "n": 1, "n": 2}"#).expect("an object");
        assert_eq!(fields.switch("echo").expect("null"), None);
        assert_eq!(fields.get("n", "a number", |_: &u32| true).expect("a number"), Some(2));
    }
}
