//! The schema of a configuration: [JSON Schema](https://json-schema.org/draft/2020-12/schema) as
//! `describe` hands it out.
//!
//! It is put together by a few `push_str`, and not by a library that can do more, because it is
//! part of every plugin: with `schemars` in it a plugin is twice as large and takes twice as long
//! to load.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// A type that says what values it can be read from. `#[config]` writes this for structs and
/// enums; for a type with a `Deserialize` of its own it is written by hand:
///
/// ```
/// # use drystone_sdk::schema::Schema;
/// struct Percent(u8);
///
/// impl Schema for Percent {
///     fn keywords(out: &mut String) {
///         out.push_str(r#""type":"integer","minimum":0,"maximum":100"#);
///     }
/// }
/// ```
pub trait Schema {
    /// The keyword `description` with its value and a comma, or nothing.
    const DESCRIPTION: &'static str = "";

    /// Writes the other keywords of the type, as they stand between the braces of an object.
    fn keywords(out: &mut String);
}

/// The schema of `T` as a document.
pub fn document<T: Schema>() -> String {
    let mut out = String::from(r#"{"$schema":"https://json-schema.org/draft/2020-12/schema","#);
    out.push_str(T::DESCRIPTION);
    T::keywords(&mut out);
    out.push('}');
    out
}

/// Writes the schema of `T` as an object.
fn object<T: Schema>(out: &mut String) {
    out.push('{');
    out.push_str(T::DESCRIPTION);
    T::keywords(out);
    out.push('}');
}

macro_rules! schema {
    ($keywords:literal: $($type:ty),+) => {
        $(impl Schema for $type {
            fn keywords(out: &mut String) {
                out.push_str($keywords);
            }
        })+
    };
}

schema!(r#""type":"boolean""#: bool);
schema!(r#""type":"string""#: String);
schema!(r#""type":"string","minLength":1,"maxLength":1"#: char);
schema!(r#""type":"number""#: f32, f64);
schema!(r#""type":"integer","minimum":0,"maximum":255"#: u8);
schema!(r#""type":"integer","minimum":0,"maximum":65535"#: u16);
schema!(r#""type":"integer","minimum":0,"maximum":4294967295"#: u32);
schema!(r#""type":"integer","minimum":0"#: u64, usize);
schema!(r#""type":"integer","minimum":-128,"maximum":127"#: i8);
schema!(r#""type":"integer","minimum":-32768,"maximum":32767"#: i16);
schema!(r#""type":"integer","minimum":-2147483648,"maximum":2147483647"#: i32);
schema!(r#""type":"integer""#: i64, isize);

impl<T: Schema> Schema for Box<T> {
    fn keywords(out: &mut String) {
        T::keywords(out);
    }
}

impl<T: Schema> Schema for Option<T> {
    fn keywords(out: &mut String) {
        let mut own = String::new();
        T::keywords(&mut own);
        let named = own.strip_prefix(r#""type":""#).and_then(|rest| rest.split_once('"'));
        match named {
            Some((name, rest)) => out.extend([r#""type":[""#, name, r#"","null"]"#, rest]),
            None => out.extend([r#""anyOf":[{"#, &own, r#"},{"type":"null"}]"#]),
        }
    }
}

fn array<T: Schema>(out: &mut String) {
    out.push_str(r#""type":"array","items":"#);
    object::<T>(out);
}

fn map<T: Schema>(out: &mut String) {
    out.push_str(r#""type":"object","additionalProperties":"#);
    object::<T>(out);
}

macro_rules! collection {
    ($write:ident: $($(#[$meta:meta])? [$($generic:ident),*] $type:ty),+) => {
        $(impl<T: Schema $(, $generic)*> Schema for $type {
            fn keywords(out: &mut String) {
                $write::<T>(out);
            }
        })+
    };
}

collection!(array: [] Vec<T>, [] BTreeSet<T>, [S] HashSet<T, S>);
collection!(map: [] BTreeMap<String, T>, [S] HashMap<String, T, S>);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::{Schema, document};

    #[expect(dead_code, reason = "what is read is looked at as text")]
    /// "Quoted" \ and over
    /// two lines.
    #[crate::config]
    #[derive(Debug)]
    struct Config {
        /// The rules.
        rules: Vec<Rule>,
        weight: Option<f32>,
        #[serde(default)]
        by_name: BTreeMap<String, u8>,
        #[serde(rename = "kind", default = "first")]
        first: Way,
        way: Option<Way>,
    }

    #[crate::config]
    #[derive(Debug)]
    #[serde(default, rename_all = "kebab-case")]
    struct Rule {
        most_words: i8,
    }

    impl Default for Rule {
        fn default() -> Self {
            Self { most_words: 3 }
        }
    }

    #[expect(dead_code, reason = "what is read is looked at as text")]
    #[crate::config]
    #[derive(Debug)]
    #[serde(rename_all = "snake_case")]
    enum Way {
        First,
        ByHash(u32),
        Weighted { by: String },
    }

    fn first() -> Way {
        Way::First
    }

    fn schema<T: Schema>() -> Value {
        serde_json::from_str(&document::<T>()).unwrap()
    }

    #[test]
    fn a_struct_is_an_object_that_has_no_other_keys() {
        let schema = schema::<Config>();
        assert_eq!(schema["additionalProperties"], json!(false));
        assert_eq!(schema["description"], "\"Quoted\" \\ and over two lines.");
        assert_eq!(schema["required"], json!(["rules"]));
        let properties = &schema["properties"];
        assert_eq!(properties["rules"]["description"], "The rules.");
        assert_eq!(properties["weight"]["type"], json!(["number", "null"]));
        let way = &properties["way"]["anyOf"];
        assert_eq!(
            (&way[0]["oneOf"][0]["const"], &way[1]["type"]),
            (&json!("first"), &json!("null"))
        );
        assert_eq!(properties["by_name"]["additionalProperties"]["maximum"], 255);
        let rule = &properties["rules"]["items"];
        assert_eq!(rule["properties"]["most-words"]["minimum"], -128);
        assert_eq!(rule["required"], json!([]));
    }

    #[test]
    fn the_names_are_those_that_serde_reads() {
        let read = crate::configuration::read::<Config>;
        let config = read(r#"{"rules": [{"most-words": 2}], "kind": {"by_hash": 7}}"#).unwrap();
        assert_eq!(
            format!("{:?} {:?}", config.rules[0], config.first),
            "Rule { most_words: 2 } ByHash(7)"
        );
        assert!(read(r#"{"rules": [], "kind": {"weighted": {"by": "x"}}}"#).is_ok());
        assert!(read(r#"{"rules": [{"most_words": 2}]}"#).is_err());
    }

    #[test]
    fn an_enum_is_one_of_its_variants() {
        let way = &schema::<Config>()["properties"]["kind"];
        assert_eq!(way["oneOf"][0], json!({ "const": "first" }));
        assert_eq!(way["oneOf"][1]["properties"]["by_hash"]["type"], "integer");
        assert_eq!(way["oneOf"][1]["required"], json!(["by_hash"]));
        let weighted = &way["oneOf"][2]["properties"]["weighted"];
        assert_eq!(weighted["properties"]["by"]["type"], "string");
        assert_eq!(weighted["required"], json!(["by"]));
    }
}
