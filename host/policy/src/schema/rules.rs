//! The rules of a schema, applied to a configuration.

use std::fmt;

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use super::Unusable;
use super::words::{constants, dotted, kinds, short, would_do};

/// Schemas that one check may look at.
const STEPS: usize = 100_000;
/// What an expression costs, in the same measure.
const EXPRESSION: usize = 1000;
/// References that may lead to each other; more is a circle.
const DEPTH: usize = 128;
/// Keywords that bind nobody.
const NOTES: [&str; 14] = [
    "$schema",
    "$id",
    "$defs",
    "definitions",
    "$comment",
    "title",
    "description",
    "default",
    "examples",
    "format",
    "deprecated",
    "readOnly",
    "writeOnly",
    "required",
];

/// What is wrong with one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// Where, as an operator would write it.
    key: String,
    /// The rest of the line.
    what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.key, self.what)
    }
}

type Found = Result<Vec<Problem>, Unusable>;

/// Applies a schema.
pub(super) struct Checker<'a> {
    root: &'a Value,
    steps: usize,
    depth: usize,
}

/// A value and where it is.
#[derive(Clone, Copy)]
struct At<'a> {
    key: &'a str,
    value: &'a Value,
}

impl At<'_> {
    /// That it is wrong, and what would do.
    fn wrong(self, options: &[String]) -> Vec<Problem> {
        let what = format!(" = {}: {}", short(self.value), would_do(options));
        vec![Problem { key: self.key.to_owned(), what }]
    }

    /// That nobody asked for it, and what would do.
    fn unknown(self, known: Option<&Map<String, Value>>) -> Problem {
        let known: Vec<_> = known.into_iter().flatten().map(|(name, _)| name.clone()).collect();
        let remedy = if known.is_empty() { "" } else { "; " };
        let remedy = remedy.to_owned() + &would_do(&known);
        let what = format!(" = {}: there is no such key{remedy}", short(self.value));
        Problem { key: self.key.to_owned(), what }
    }
}

impl<'a> Checker<'a> {
    pub(super) fn new(root: &'a Value) -> Self {
        Self { root, steps: STEPS, depth: DEPTH }
    }

    /// Everything that is wrong with `config`.
    pub(super) fn check(mut self, config: &Value) -> Found {
        self.apply(self.root, At { key: "config", value: config })
    }

    /// Applies all keywords of one schema.
    fn apply(&mut self, schema: &'a Value, at: At<'_>) -> Found {
        self.steps = self.steps.checked_sub(1).ok_or(Unusable::Endless)?;
        let schema = match schema {
            Value::Bool(true) => return Ok(Vec::new()),
            Value::Object(schema) => schema,
            _ => return Ok(vec![Problem { key: at.key.into(), what: " may not be there".into() }]),
        };
        self.depth = self.depth.checked_sub(1).ok_or(Unusable::Endless)?;
        // A value of another type would break rules that are about its own.
        let mut found = match schema.get("type") {
            Some(types) => typed(types, at)?,
            None => Vec::new(),
        };
        if found.is_empty() {
            for (keyword, rule) in schema.iter().filter(|(keyword, _)| *keyword != "type") {
                found.extend(self.keyword(schema, keyword, rule, at)?);
            }
        }
        self.depth += 1;
        Ok(found)
    }

    fn keyword(
        &mut self,
        schema: &'a Map<String, Value>,
        keyword: &str,
        rule: &'a Value,
        at: At<'_>,
    ) -> Found {
        match (keyword, at.value) {
            ("required", Value::Object(fields)) => Ok(missing(schema, rule, fields, at)),
            (note, _) if NOTES.contains(&note) || note.starts_with("x-") => Ok(Vec::new()),
            ("$ref", _) => self.apply(target(self.root, rule)?, at),
            ("enum" | "const", value) => {
                let options = rule.as_array().filter(|_| keyword == "enum");
                let options = options.map_or(std::slice::from_ref(rule), Vec::as_slice);
                if options.contains(value) {
                    return Ok(Vec::new());
                }
                Ok(at.wrong(&options.iter().map(short).collect::<Vec<_>>()))
            }
            ("allOf", _) => self.all(rule, at),
            ("anyOf", _) => self.some(rule, at, false),
            ("oneOf", _) => self.some(rule, at, true),
            ("not", _) => Ok(match self.apply(rule, at)?.is_empty() {
                true => vec![Problem {
                    key: at.key.to_owned(),
                    what: format!(" = {}: it may not be like this", short(at.value)),
                }],
                false => Vec::new(),
            }),
            ("properties" | "patternProperties" | "additionalProperties", _) => {
                self.fields(schema, keyword, rule, at)
            }
            ("propertyNames", _) => self.names(rule, at),
            ("prefixItems" | "items", _) => self.items(schema, keyword, rule, at),
            ("pattern", Value::String(text)) => {
                let fits = self.expression(keyword, rule)?.is_match(text);
                let like = format!("a text like /{}/", rule.as_str().unwrap_or_default());
                Ok(if fits { Vec::new() } else { at.wrong(&[like]) })
            }
            ("pattern", _) => Ok(Vec::new()),
            _ => measured(keyword, rule, at),
        }
    }

    fn fields(
        &mut self,
        schema: &'a Map<String, Value>,
        keyword: &str,
        rule: &'a Value,
        at: At<'_>,
    ) -> Found {
        let Value::Object(fields) = at.value else { return Ok(Vec::new()) };
        let known = schema.get("properties").and_then(Value::as_object);
        let patterns = self.patterns(schema)?;
        let mut found = Vec::new();
        for (name, value) in fields {
            let key = format!("{}{}", at.key, dotted(name));
            let at = At { key: &key, value };
            let named = known.and_then(|known| known.get(name));
            let like: Vec<_> = patterns.iter().filter(|it| it.0.is_match(name)).collect();
            match keyword {
                "properties" => {
                    found.extend(named.map_or(Ok(Vec::new()), |it| self.apply(it, at))?)
                }
                "patternProperties" => {
                    for (_, part) in like {
                        found.extend(self.apply(part, at)?);
                    }
                }
                _ if named.is_some() || !like.is_empty() => {}
                _ if *rule == Value::Bool(false) => found.push(at.unknown(known)),
                _ => found.extend(self.apply(rule, at)?),
            }
        }
        Ok(found)
    }

    /// The expressions of `patternProperties`, with what stands under each.
    fn patterns(
        &mut self,
        schema: &'a Map<String, Value>,
    ) -> Result<Vec<(Regex, &'a Value)>, Unusable> {
        let patterns = schema.get("patternProperties").and_then(Value::as_object);
        let patterns = patterns.into_iter().flatten();
        let compiled = patterns.map(|(pattern, part)| {
            let pattern = Value::from(&**pattern);
            Ok((self.expression("patternProperties", &pattern)?, part))
        });
        compiled.collect()
    }

    fn names(&mut self, rule: &'a Value, at: At<'_>) -> Found {
        let mut found = Vec::new();
        for name in at.value.as_object().into_iter().flatten().map(|(name, _)| name) {
            let (key, value) = (format!("a key of {}", at.key), Value::from(&**name));
            found.extend(self.apply(rule, At { key: &key, value: &value })?);
        }
        Ok(found)
    }

    /// `prefixItems` has a schema for each of the first items, `items` one for all others.
    fn items(
        &mut self,
        schema: &'a Map<String, Value>,
        keyword: &str,
        rule: &'a Value,
        at: At<'_>,
    ) -> Found {
        let first = schema.get("prefixItems").and_then(Value::as_array);
        let first = first.map_or(&[][..], Vec::as_slice);
        let mut found = Vec::new();
        for (index, value) in at.value.as_array().into_iter().flatten().enumerate() {
            let part = match (first.get(index), keyword) {
                (Some(part), "prefixItems") => part,
                (None, "items") => rule,
                _ => continue,
            };
            let key = format!("{}[{index}]", at.key);
            found.extend(self.apply(part, At { key: &key, value })?);
        }
        Ok(found)
    }

    fn expression(&mut self, keyword: &str, rule: &Value) -> Result<Regex, Unusable> {
        self.steps = self.steps.checked_sub(EXPRESSION).ok_or(Unusable::Endless)?;
        let compiled =
            rule.as_str().map(|text| RegexBuilder::new(text).size_limit(1 << 18).build());
        compiled
            .and_then(Result::ok)
            .ok_or_else(|| Unusable::Value { keyword: keyword.to_owned(), value: rule.clone() })
    }

    fn all(&mut self, rule: &'a Value, at: At<'_>) -> Found {
        let mut found = Vec::new();
        for part in rule.as_array().into_iter().flatten() {
            found.extend(self.apply(part, at)?);
        }
        Ok(found)
    }

    /// At least one of the alternatives, or exactly one.
    fn some(&mut self, rule: &'a Value, at: At<'_>, one: bool) -> Found {
        let mut failed = Vec::new();
        let mut fit = 0;
        for part in rule.as_array().into_iter().flatten() {
            match self.apply(part, at)? {
                problems if problems.is_empty() => fit += 1,
                problems => failed.push(problems),
            }
        }
        match fit {
            0 => Ok(nearest(rule, failed, at)),
            1 => Ok(Vec::new()),
            _ if one => Ok(at.wrong(&[format!("what fits one of {fit} alternatives, not all,")])),
            _ => Ok(Vec::new()),
        }
    }
}

/// What to say where no alternative fits.
fn nearest(rule: &Value, failed: Vec<Vec<Problem>>, at: At<'_>) -> Vec<Problem> {
    let options = constants(rule);
    if !options.is_empty() {
        return at.wrong(&options);
    }
    // The one that got furthest is the one that was meant; of equals, one whose type is right.
    let of_a_kind = |problems: &Vec<Problem>| {
        let types = ["a text", "a whole", "a number", "true or", "a list", "a table", "nothing"];
        let what = &problems[0].what;
        problems[0].key == at.key && types.iter().any(|word| what.contains(&format!(": {word}")))
    };
    let depth = |problems: &Vec<Problem>| problems[0].key.len();
    let mut failed = failed.into_iter().filter(|problems| !problems.is_empty()).collect::<Vec<_>>();
    failed.sort_by_key(|problems| (of_a_kind(problems), std::cmp::Reverse(depth(problems))));
    failed.into_iter().next().unwrap_or_else(|| at.wrong(&["nothing".to_owned()]))
}

fn typed(types: &Value, at: At<'_>) -> Found {
    let names = types.as_array().map_or(std::slice::from_ref(types), Vec::as_slice);
    let is = |name: &Value| {
        Some(match name.as_str()? {
            "string" => at.value.is_string(),
            "integer" => at.value.as_f64().is_some_and(|number| number.fract() == 0.0),
            "number" => at.value.is_number(),
            "boolean" => at.value.is_boolean(),
            "array" => at.value.is_array(),
            "object" => at.value.is_object(),
            "null" => at.value.is_null(),
            _ => return None,
        })
    };
    let fits: Option<Vec<_>> = names.iter().map(is).collect();
    match fits {
        None => Err(Unusable::Value { keyword: "type".into(), value: types.clone() }),
        Some(fits) if fits.contains(&true) => Ok(Vec::new()),
        Some(_) => Ok(at.wrong(&kinds(types))),
    }
}

fn missing(
    schema: &Map<String, Value>,
    rule: &Value,
    fields: &Map<String, Value>,
    at: At<'_>,
) -> Vec<Problem> {
    let names = rule.as_array().into_iter().flatten().filter_map(Value::as_str);
    let missing = names.filter(|name| !fields.contains_key(*name));
    let problem = |name: &str| {
        let part = schema.get("properties").map(|parts| &parts[name]["type"]);
        let kinds = part.map(kinds).unwrap_or_default();
        let remedy =
            if kinds.is_empty() { String::new() } else { format!("; {}", would_do(&kinds)) };
        Problem { key: format!("{}{}", at.key, dotted(name)), what: format!(" is missing{remedy}") }
    };
    missing.map(problem).collect()
}

/// Keywords that compare a measure of the value with a number.
fn measured(keyword: &str, rule: &Value, at: At<'_>) -> Found {
    let bad = || Unusable::Value { keyword: keyword.to_owned(), value: rule.clone() };
    if keyword == "uniqueItems" {
        let items = at.value.as_array().map_or(&[][..], Vec::as_slice);
        let twice = (1..items.len()).any(|i| items[..i].contains(&items[i]));
        let wrong = twice && *rule == Value::Bool(true);
        return Ok(if wrong { at.wrong(&["items that differ".to_owned()]) } else { Vec::new() });
    }
    let limit = || rule.as_f64().ok_or_else(bad);
    let number = at.value.as_f64();
    let count = |count: Option<usize>| count.map(|count| count as f64);
    let characters = count(at.value.as_str().map(|text| text.chars().count()));
    let items = count(at.value.as_array().map(Vec::len));
    let keys = count(at.value.as_object().map(Map::len));
    let (measure, fits, remedy): (_, fn(f64, f64) -> bool, _) = match keyword {
        "minimum" => (number, |a, b| a >= b, format!("at least {rule}")),
        "maximum" => (number, |a, b| a <= b, format!("at most {rule}")),
        "exclusiveMinimum" => (number, |a, b| a > b, format!("more than {rule}")),
        "exclusiveMaximum" => (number, |a, b| a < b, format!("less than {rule}")),
        "multipleOf" => (number, |a, b| (a / b).fract() == 0.0, format!("a multiple of {rule}")),
        "minLength" => (characters, |a, b| a >= b, format!("{rule} or more characters")),
        "maxLength" => (characters, |a, b| a <= b, format!("{rule} or fewer characters")),
        "minItems" => (items, |a, b| a >= b, format!("{rule} or more items")),
        "maxItems" => (items, |a, b| a <= b, format!("{rule} or fewer items")),
        "minProperties" => (keys, |a, b| a >= b, format!("{rule} or more keys")),
        "maxProperties" => (keys, |a, b| a <= b, format!("{rule} or fewer keys")),
        _ => return Err(Unusable::Keyword(keyword.to_owned())),
    };
    let limit = limit()?;
    let fits = measure.is_none_or(|measure| fits(measure, limit));
    Ok(if fits { Vec::new() } else { at.wrong(&[remedy]) })
}

/// What a reference means.
fn target<'a>(root: &'a Value, reference: &Value) -> Result<&'a Value, Unusable> {
    let pointer = reference.as_str().and_then(|text| text.strip_prefix('#'));
    let found = pointer.and_then(|pointer| root.pointer(pointer));
    found.ok_or_else(|| Unusable::Reference(reference.clone()))
}
