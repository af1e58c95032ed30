//! How PEFT matches module paths: suffixes, and regular expressions in three dialects of anchoring.
//!
//! The rules are those of peft 0.21, `get_pattern_key` and `check_target_module_exists`. Paths are
//! those inside the Hugging Face model, `model.layers.0.self_attn.q_proj`.

use fancy_regex::Regex;
use serde::Deserialize;
use serde_json::Value;

use crate::error::AdapterError;

/// `rank_pattern` or `alpha_pattern`: the first key that matches gives a module its value.
#[derive(Debug)]
pub struct Patterns<T>(Vec<(Regex, T)>);

impl<T> Patterns<T> {
    /// Keys in the order of the file, each matched like `(.*\.)?(key)$` from the path's start.
    pub fn new(keys: impl IntoIterator<Item = (String, T)>) -> Result<Self, AdapterError> {
        let compiled = keys
            .into_iter()
            .map(|(key, value)| Ok((regex(&key, &format!(r"\A(.*\.)?({key})$"))?, value)));
        Ok(Self(compiled.collect::<Result<_, AdapterError>>()?))
    }

    /// The value for a module, if any key matches.
    pub fn get(&self, module: &str) -> Result<Option<&T>, AdapterError> {
        for (regex, value) in &self.0 {
            if matches(regex, module)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }
}

/// Which modules an adapter was trained on.
#[derive(Debug)]
pub struct Targets {
    names: Names,
    exclude: Option<Names>,
    layers: Option<Layers>,
}

/// The keys of `adapter_config.json` that choose modules.
#[derive(Debug, Deserialize)]
pub struct TargetKeys {
    target_modules: Option<OneOrMany<String>>,
    exclude_modules: Option<OneOrMany<String>>,
    layers_to_transform: Option<OneOrMany<usize>>,
    layers_pattern: Option<OneOrMany<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

impl Targets {
    /// Compiles the keys; `target_modules` has to be there.
    pub fn new(keys: TargetKeys) -> Result<Self, AdapterError> {
        let Some(names) = keys.target_modules else {
            return Err(AdapterError::Value {
                key: "target_modules".to_owned(),
                value: Value::Null.to_string(),
                would_do: "a list of module names or a regular expression",
            });
        };
        Ok(Self {
            names: Names::new(names)?,
            exclude: keys.exclude_modules.map(Names::new).transpose()?,
            layers: Layers::new(keys.layers_to_transform, keys.layers_pattern)?,
        })
    }

    /// Whether a module was trained.
    pub fn contain(&self, module: &str) -> Result<bool, AdapterError> {
        if let Some(exclude) = &self.exclude
            && exclude.matched(module)?.is_some()
        {
            return Ok(false);
        }
        match (self.names.matched(module)?, &self.layers) {
            (Some(Matched::Suffix), Some(layers)) => layers.contain(module),
            (matched, _) => Ok(matched.is_some()),
        }
    }

    /// What the config says, for messages.
    pub fn describe(&self) -> String {
        match &self.names {
            Names::Listed(names) => format!("{names:?}"),
            Names::Pattern(regex) => format!("{:?}", regex.as_str()),
            Names::AllLinear => "all-linear".to_owned(),
        }
    }
}

/// `target_modules` or `exclude_modules`.
#[derive(Debug)]
enum Names {
    /// Whole paths, or what stands behind a dot at a path's end.
    Listed(Vec<String>),
    /// Has to match the whole path.
    Pattern(Regex),
    /// Every linear layer but the head: in these models, those of the decoder blocks.
    AllLinear,
}

/// How a path was found; PEFT looks at layer numbers after a match by suffix only.
enum Matched {
    Whole,
    Suffix,
}

impl Names {
    fn new(names: OneOrMany<String>) -> Result<Self, AdapterError> {
        Ok(match names {
            OneOrMany::Many(names) => Self::Listed(names),
            OneOrMany::One(name) if name.eq_ignore_ascii_case("all-linear") => Self::AllLinear,
            OneOrMany::One(name) => Self::Pattern(regex(&name, &format!(r"\A(?:{name})\z"))?),
        })
    }

    fn matched(&self, module: &str) -> Result<Option<Matched>, AdapterError> {
        let suffix = |name: &String| {
            module.strip_suffix(name.as_str()).is_some_and(|path| path.ends_with('.'))
        };
        Ok(match self {
            Self::Listed(names) if names.iter().any(|name| name == module) => Some(Matched::Whole),
            Self::Listed(names) => names.iter().any(suffix).then_some(Matched::Suffix),
            Self::Pattern(regex) => matches(regex, module)?.then_some(Matched::Whole),
            Self::AllLinear => module.contains(".layers.").then_some(Matched::Whole),
        })
    }
}

/// `layers_to_transform` and `layers_pattern`.
#[derive(Debug)]
struct Layers {
    indices: Vec<usize>,
    /// Any of them finds the number of a layer in its first group.
    patterns: Vec<Regex>,
}

impl Layers {
    fn new(
        indices: Option<OneOrMany<usize>>,
        patterns: Option<OneOrMany<String>>,
    ) -> Result<Option<Self>, AdapterError> {
        let indices = indices.map(OneOrMany::into_vec).unwrap_or_default();
        let mut patterns = patterns.map(OneOrMany::into_vec).unwrap_or_default();
        patterns.retain(|pattern| !pattern.is_empty());
        if patterns.is_empty() {
            patterns.push("[^.]*".to_owned());
        }
        let compiled = patterns
            .iter()
            .map(|pattern| regex(pattern, &format!(r"\A(?:.*?\.)?{pattern}\.(?<index>\d+)\.")));
        let patterns = compiled.collect::<Result<_, _>>()?;
        Ok((!indices.is_empty()).then_some(Self { indices, patterns }))
    }

    fn contain(&self, module: &str) -> Result<bool, AdapterError> {
        for pattern in &self.patterns {
            let captures = pattern.captures(module).map_err(|error| costly(pattern, &error))?;
            if let Some(index) = captures.as_ref().and_then(|captures| captures.name("index")) {
                return Ok(index.as_str().parse().is_ok_and(|index| self.indices.contains(&index)));
            }
        }
        Ok(false)
    }
}

fn regex(key: &str, anchored: &str) -> Result<Regex, AdapterError> {
    Regex::new(anchored).map_err(|error| AdapterError::Value {
        key: "a pattern".to_owned(),
        value: format!("{key:?} ({error})"),
        would_do: "a regular expression",
    })
}

fn matches(regex: &Regex, module: &str) -> Result<bool, AdapterError> {
    regex.is_match(module).map_err(|error| costly(regex, &error))
}

/// Backtracking is bounded; a pattern that hits the bound is no better than a wrong one.
fn costly(regex: &Regex, error: &fancy_regex::Error) -> AdapterError {
    AdapterError::Value {
        key: "a pattern".to_owned(),
        value: format!("{:?} ({error})", regex.as_str()),
        would_do: "a regular expression without nested repetition",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q1: &str = "model.layers.1.self_attn.q_proj";

    fn targets(json: &str) -> Targets {
        Targets::new(serde_json::from_str(json).unwrap()).unwrap()
    }

    fn contains(json: &str, module: &str) -> bool {
        targets(json).contain(module).unwrap()
    }

    fn pattern_matches(key: &str, module: &str) -> bool {
        Patterns::new([(key.to_owned(), ())]).unwrap().get(module).unwrap().is_some()
    }

    #[test]
    fn pattern_keys_match_whole_dotted_tails() {
        for key in ["q_proj", "self_attn.q_proj", Q1, r"^model\.layers\.1\..*", "[qk]_proj"] {
            assert!(pattern_matches(key, Q1), "{key}");
        }
        for key in ["proj", "_proj", "self_attn", "layers.0.self_attn.q_proj", "^self_attn.q_proj"]
        {
            assert!(!pattern_matches(key, Q1), "{key}");
        }
    }

    #[test]
    fn the_first_pattern_in_the_file_wins() {
        let keys = [("self_attn.q_proj".to_owned(), 1), ("q_proj".to_owned(), 2)];
        assert_eq!(Patterns::new(keys).unwrap().get(Q1).unwrap(), Some(&1));
    }

    #[test]
    fn lists_match_suffixes_and_strings_match_whole_paths() {
        assert!(contains(r#"{"target_modules": ["q_proj"]}"#, Q1));
        assert!(!contains(r#"{"target_modules": ["proj"]}"#, Q1));
        assert!(contains(r#"{"target_modules": ".*q_proj"}"#, Q1));
        assert!(!contains(r#"{"target_modules": "q_proj"}"#, Q1));
        assert!(contains(r#"{"target_modules": ".*\\.(?!k)[a-z]_proj"}"#, Q1), "lookahead");
        assert!(contains(r#"{"target_modules": "all-linear"}"#, Q1));
        assert!(!contains(r#"{"target_modules": "all-linear"}"#, "lm_head"));
    }

    #[test]
    fn excluded_modules_and_other_layers_are_not_targeted() {
        let with = |more: &str| format!(r#"{{"target_modules": ["q_proj"], {more}}}"#);
        assert!(!contains(&with(r#""exclude_modules": ["self_attn.q_proj"]"#), Q1));
        assert!(!contains(&with(r#""exclude_modules": ".*1.*""#), Q1));
        assert!(contains(&with(r#""layers_to_transform": [0, 1]"#), Q1));
        assert!(contains(&with(r#""layers_to_transform": []"#), Q1));
        assert!(!contains(&with(r#""layers_to_transform": 0"#), Q1));
        let pattern = |name| format!(r#""layers_to_transform": 1, "layers_pattern": "{name}""#);
        assert!(contains(&with(&pattern("layers")), Q1));
        assert!(!contains(&with(&pattern("blocks")), Q1));
    }

    #[test]
    fn a_bad_pattern_is_quoted() {
        let error = Patterns::new([("(q_proj".to_owned(), 1)]).unwrap_err().to_string();
        assert!(error.contains("\"(q_proj\""), "{error}");
    }

    #[test]
    fn a_pattern_that_backtracks_without_end_is_refused() {
        let targets = targets(r#"{"target_modules": "(?=(.*)*)(.*.*)*(.*.*)*\\1x"}"#);
        let error = targets.contain(Q1).unwrap_err().to_string();
        assert!(error.contains("nested repetition"), "{error}");
    }
}
