//! Holds a configuration to the schema that its plugin describes, before the plugin sees it.
//!
//! The schema is a guest's word, so checking it is bounded like all that guests do: in steps, with
//! expressions that take linear time, and without fetching anything. It may use that part of JSON
//! Schema (2020-12) which describes configurations; a keyword that is not known here is refused and
//! not ignored, so that nothing passes which its author meant to keep out.

mod rules;
mod words;

use serde_json::Value;

use crate::load::LoadError;
use crate::schema::rules::Checker;

/// Largest schema.
const SCHEMA_BYTES: usize = 256 << 10;
/// Problems that are told at once.
const PROBLEMS: usize = 8;

/// Why a check came to no end.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Unusable {
    #[error("it has the keyword {0:?}, which this server does not know")]
    Keyword(String),
    #[error("{0} leads nowhere within it; \"#/$defs/...\" would do")]
    Reference(Value),
    #[error("{keyword} = {value} means nothing")]
    Value { keyword: String, value: Value },
    #[error("it takes too long to check; does it refer to itself?")]
    Endless,
}

/// Checks `config` against `schema`, which is empty where a plugin describes none. The error has
/// every problem with its key, the value there and what would do.
pub(crate) fn check(schema: &str, config: &Value) -> Result<(), LoadError> {
    if schema.trim().is_empty() {
        return Ok(());
    }
    let problems = problems(schema, config).map_err(LoadError::Schema)?;
    let told: Vec<_> = problems.iter().take(PROBLEMS).map(ToString::to_string).collect();
    if told.is_empty() { Ok(()) } else { Err(LoadError::Config(told.join("; "))) }
}

fn problems(schema: &str, config: &Value) -> Result<Vec<rules::Problem>, String> {
    if schema.len() > SCHEMA_BYTES {
        let bytes = schema.len();
        return Err(format!("it has {bytes} bytes, {SCHEMA_BYTES} may be"));
    }
    let schema: Value = serde_json::from_str(schema).map_err(|error| error.to_string())?;
    Checker::new(&schema).check(config).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(schema: Value, config: Value) -> String {
        check(&schema.to_string(), &config).map_or_else(|e| e.to_string(), |()| "fits".to_owned())
    }

    #[test]
    fn every_problem_has_its_key_its_value_and_what_would_do() {
        let rule = json!({
            "type": "object", "additionalProperties": false, "required": ["adapter"],
            "properties": {
                "adapter": { "type": "string" },
                "percent": { "type": "integer", "minimum": 0, "maximum": 100 },
                "side": { "oneOf": [{ "const": "left" }, { "const": "right" }] },
                "size": { "enum": ["s", "m"] },
            },
        });
        let schema = json!({
            "$defs": { "Rule": rule }, "type": "object",
            "properties": { "rules": { "type": "array", "items": { "$ref": "#/$defs/Rule" } } },
        });
        let with = |rule: Value| said(schema.clone(), json!({ "rules": [rule] }));
        assert_eq!(with(json!({ "adapter": "a", "percent": 5, "side": "left" })), "fits");
        for (rule, problem) in [
            (
                json!({ "adapter": "a", "percent": 300 }),
                "config.rules[0].percent = 300: at most 100 would do",
            ),
            (
                json!({ "adapter": "a", "percent": "x" }),
                "config.rules[0].percent = \"x\": a whole number would do",
            ),
            (
                json!({ "adapter": "a", "percnt": 5 }),
                "config.rules[0].percnt = 5: there is no such key; adapter, percent, side or size \
                 would do",
            ),
            (json!({}), "config.rules[0].adapter is missing; a text would do"),
            (
                json!({ "adapter": "a", "size": "l" }),
                "config.rules[0].size = \"l\": \"s\" or \"m\" would do",
            ),
            (
                json!({ "adapter": "a", "side": "up" }),
                "config.rules[0].side = \"up\": \"left\" or \"right\" would do",
            ),
        ] {
            let expected = format!("it refuses its configuration: {problem}");
            assert_eq!(with(rule), expected);
        }
        let two = with(json!({ "percent": -1, "adapter": 1 }));
        assert!(two.contains("adapter = 1") && two.contains("at least 0"), "{two}");
    }

    #[test]
    fn a_key_is_named_as_an_operator_would_write_it() {
        let schema = json!({ "additionalProperties": { "type": ["boolean", "null"] } });
        let text = said(schema, json!({ "x y": 1 }));
        assert!(text.contains("config.\"x y\" = 1: true or false or nothing would do"), "{text}");
    }

    #[test]
    fn no_schema_fits_all_and_a_schema_that_is_none_is_told() {
        assert!(check("", &json!({ "a": 1 })).is_ok());
        for (schema, why) in [
            ("{", "EOF"),
            ("{\"type\": \"number or so\"}", "type = \"number or so\" means nothing"),
            ("{\"additionalProperties\": {\"pattern\": \"(\"}}", "pattern = \"(\" means nothing"),
            ("{\"dependentSchemas\": {}}", "the keyword \"dependentSchemas\""),
        ] {
            let error = check(schema, &json!({ "a": "b" })).unwrap_err().to_string();
            assert!(error.contains("no JSON Schema") && error.contains(why), "{schema}: {error}");
        }
    }

    #[test]
    fn what_other_languages_write_is_understood() {
        let schema = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Config",
            "allOf": [{ "type": "object" }], "not": { "required": ["both"] },
            "properties": {
                "weight": { "type": "number", "exclusiveMinimum": 0, "default": 1.0 },
                "tags": { "type": "array", "items": { "type": "string", "pattern": "^[a-z]+$" },
                    "minItems": 1, "maxItems": 2, "uniqueItems": true },
                "pair": { "prefixItems": [{ "type": "string" }, { "type": "integer" }],
                    "items": false },
                "limits": { "propertyNames": { "maxLength": 3 }, "additionalProperties": false,
                    "patternProperties": { "^[a-z]+$": { "type": "integer" } } },
                "mode": { "anyOf": [
                    { "type": "string", "minLength": 2, "maxLength": 3 },
                    { "type": "object", "properties": { "kind": { "const": "x" } },
                        "required": ["kind"] },
                ] },
            },
        });
        assert_eq!(
            said(schema.clone(), json!({ "weight": 2, "tags": ["a"], "mode": "ab" })),
            "fits"
        );
        for (config, expected) in [
            (json!({ "weight": 0 }), "config.weight = 0: more than 0 would do"),
            (json!({ "tags": [] }), "config.tags = []: 1 or more items would do"),
            (json!({ "tags": ["a", "b", "c"] }), "2 or fewer items would do"),
            (
                json!({ "tags": ["a", "a"] }),
                "config.tags = [\"a\",\"a\"]: items that differ would do",
            ),
            (json!({ "tags": ["A"] }), "config.tags[0] = \"A\": a text like /^[a-z]+$/ would do"),
            (json!({ "mode": { "kind": 1 } }), "config.mode.kind = 1: \"x\" would do"),
            (json!({ "mode": "abcd" }), "config.mode = \"abcd\": 3 or fewer characters would do"),
            (json!({ "pair": ["a", "b"] }), "config.pair[1] = \"b\": a whole number would do"),
            (json!({ "pair": ["a", 1, 2] }), "config.pair[2] may not be there"),
            (json!({ "limits": { "a": "b" } }), "config.limits.a = \"b\": a whole number would do"),
            (json!({ "limits": { "A": 1 } }), "config.limits.A = 1: there is no such key"),
            (json!({ "limits": { "long": 1 } }), "a key of config.limits = \"long\": 3 or fewer"),
            (json!({ "both": 1 }), "config = {\"both\":1}: it may not be like this"),
        ] {
            let text = said(schema.clone(), config);
            assert!(text.contains(expected), "no {expected} in {text}");
        }
    }

    #[test]
    fn schemas_that_never_end_are_refused() {
        let fan = |to: usize| {
            let next = json!({ "$ref": format!("#/$defs/{to}") });
            json!({ "allOf": [next, next] })
        };
        let mut defs: serde_json::Map<_, _> =
            (0..40).map(|i| (i.to_string(), fan(i + 1))).collect();
        defs.insert("40".into(), json!(true));
        for schema in [
            json!({ "$ref": "#" }),
            json!({ "anyOf": [{ "not": { "$ref": "#" } }] }),
            json!({ "$defs": defs, "$ref": "#/$defs/0" }),
            json!({ "$ref": "https://example.com/schema.json" }),
            json!({ "properties": { "a": true }, "$ref": "#/properties/b" }),
        ] {
            let text = said(schema, json!({}));
            assert!(text.contains("no JSON Schema that can be used"), "{text}");
        }
        let list = json!({ "properties": { "next": { "$ref": "#" }, "a": { "type": "null" } } });
        let text = said(list, json!({ "next": { "next": { "a": 1 } } }));
        assert!(text.contains("config.next.next.a = 1: nothing would do"), "{text}");
    }
}
