//! `adapter_config.json`: raw as PEFT writes it, and checked.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::AdapterError;
use crate::patterns::{Patterns, TargetKeys, Targets};
use crate::site::Side;

/// The file's name in a PEFT folder.
pub const FILE: &str = "adapter_config.json";

/// What an adapter is, as far as its config says.
#[derive(Debug)]
pub struct Manifest {
    /// The modules that it was trained on.
    pub targets: Targets,
    blocks: Option<Blocks>,
    rank: usize,
    alpha: f64,
    rank_stabilized: bool,
    ranks: Patterns<usize>,
    alphas: Patterns<f64>,
}

/// `use_bdlora`, checked.
#[derive(Debug)]
struct Blocks {
    /// Blocks of every block-diagonal factor.
    count: usize,
    /// Modules whose path contains one of these have a block-diagonal A.
    a: Vec<String>,
    /// Modules whose path contains one of these have a block-diagonal B.
    b: Vec<String>,
    strict: bool,
}

/// The file as it is, without the keys that change nothing.
#[derive(Deserialize)]
struct Raw {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    use_rslora: Option<bool>,
    rank_pattern: Option<Map<String, Value>>,
    alpha_pattern: Option<Map<String, Value>>,
    use_bdlora: Option<RawBlocks>,
    init_lora_weights: Option<Value>,
    #[serde(flatten)]
    targets: TargetKeys,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
struct RawBlocks {
    target_modules_bd_a: Option<Vec<String>>,
    target_modules_bd_b: Option<Vec<String>>,
    #[serde(default = "one")]
    nblocks: usize,
    /// Older files leave it out.
    match_strict: Option<bool>,
}

fn one() -> usize {
    1
}

impl Manifest {
    /// Reads the file's text.
    pub fn parse(text: &[u8]) -> Result<Self, AdapterError> {
        let raw: Raw = serde_json::from_slice(text)?;
        check("peft_type", &raw.peft_type, raw.peft_type == "LORA", "LORA")?;
        refuse_unsupported(&raw.rest)?;
        refuse_base_changes(raw.init_lora_weights.as_ref())?;
        let ranks: Vec<(String, usize)> = values(raw.rank_pattern)?;
        for rank in ranks.iter().map(|(_, rank)| *rank).chain([raw.r]) {
            check("r", &rank, rank > 0, "a rank of 1 or more")?;
        }
        Ok(Self {
            targets: Targets::new(raw.targets)?,
            blocks: raw.use_bdlora.map(Blocks::new).transpose()?,
            rank: raw.r,
            alpha: raw.lora_alpha,
            rank_stabilized: raw.use_rslora.unwrap_or(false),
            ranks: Patterns::new(ranks)?,
            alphas: Patterns::new(values(raw.alpha_pattern)?)?,
        })
    }

    /// The full lora rank of a module.
    pub fn rank(&self, module: &str) -> Result<usize, AdapterError> {
        Ok(*self.ranks.get(module)?.unwrap_or(&self.rank))
    }

    /// What a module's output is multiplied by: `alpha / r`, or `alpha / sqrt(r)` for rsLoRA
    /// (arXiv 2312.03732), with the module's own alpha and full lora rank.
    pub fn scaling(&self, module: &str) -> Result<f64, AdapterError> {
        let rank = self.rank(module)? as f64;
        let alpha = *self.alphas.get(module)?.unwrap_or(&self.alpha);
        Ok(if self.rank_stabilized { alpha / rank.sqrt() } else { alpha / rank })
    }

    /// Which factor of a module is block-diagonal, and in how many blocks, if any is.
    pub fn blocks(&self, module: &str) -> Result<Option<(Side, usize)>, AdapterError> {
        let Some(blocks) = &self.blocks else { return Ok(None) };
        Ok(blocks.side(module)?.map(|side| (side, blocks.count)))
    }
}

impl Blocks {
    fn new(raw: RawBlocks) -> Result<Self, AdapterError> {
        check("use_bdlora.nblocks", &raw.nblocks, raw.nblocks > 0, "1 or more")?;
        let (a, b) = (raw.target_modules_bd_a, raw.target_modules_bd_b);
        let blocks = Self {
            count: raw.nblocks,
            a: a.unwrap_or_default(),
            b: b.unwrap_or_default(),
            strict: raw.match_strict.unwrap_or(true),
        };
        match blocks.a.iter().find(|pattern| blocks.b.contains(pattern)) {
            Some(both) => Err(overlap(both, both, both)),
            None => Ok(blocks),
        }
    }

    /// Patterns match anywhere in the path, so `layers.0.` is one.
    fn side(&self, module: &str) -> Result<Option<Side>, AdapterError> {
        let find = |patterns: &[String]| {
            patterns.iter().find(|pattern| module.contains(pattern.as_str())).cloned()
        };
        match (find(&self.a), find(&self.b)) {
            (Some(a), Some(b)) => Err(overlap(module, &a, &b)),
            (Some(_), None) => Ok(Some(Side::A)),
            (None, Some(_)) => Ok(Some(Side::B)),
            (None, None) if self.strict => {
                Err(AdapterError::Unmatched { module: module.to_owned() })
            }
            (None, None) => Ok(None),
        }
    }
}

fn overlap(module: &str, a: &str, b: &str) -> AdapterError {
    AdapterError::Overlap { module: module.to_owned(), a: a.to_owned(), b: b.to_owned() }
}

/// Keys that change what is computed, or what is trained besides the factors. Every `use_*` key is
/// one too: PEFT names its variants so, and one that we don't know must not be passed over.
const UNSUPPORTED: &[&str] = &[
    "alora_invocation_tokens",
    "arrow_config",
    "bias",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
];

fn refuse_unsupported(rest: &Map<String, Value>) -> Result<(), AdapterError> {
    let acts = |key: &str| UNSUPPORTED.contains(&key) || key.starts_with("use_");
    match rest.iter().find(|(key, value)| acts(key) && !is_off(value)) {
        Some((key, value)) => {
            Err(AdapterError::Unsupported { key: key.clone(), value: value.to_string() })
        }
        None => Ok(()),
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text == "none",
        Value::Array(items) => items.is_empty(),
        Value::Object(keys) => keys.is_empty(),
        _ => false,
    }
}

/// Other ways to start (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) subtract the factors' first product
/// from the base weights. On the untouched base such an adapter would be wrong, silently.
fn refuse_base_changes(init: Option<&Value>) -> Result<(), AdapterError> {
    const HARMLESS: &[&str] = &["gaussian", "eva", "orthogonal", "mica"];
    match init {
        Some(Value::String(name)) if !HARMLESS.contains(&name.to_lowercase().as_str()) => {
            Err(AdapterError::BaseChanged(name.clone()))
        }
        _ => Ok(()),
    }
}

fn check(
    key: &str,
    value: &impl ToString,
    holds: bool,
    would_do: &'static str,
) -> Result<(), AdapterError> {
    match holds {
        true => Ok(()),
        false => Err(AdapterError::Value { key: key.into(), value: value.to_string(), would_do }),
    }
}

/// The values of a pattern map, in the order of the file.
fn values<T: serde::de::DeserializeOwned>(
    patterns: Option<Map<String, Value>>,
) -> Result<Vec<(String, T)>, AdapterError> {
    let typed = |(key, value)| Ok((key, serde_json::from_value(value)?));
    patterns.unwrap_or_default().into_iter().map(typed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q0: &str = "model.layers.0.self_attn.q_proj";

    /// A plain config with some keys replaced or added.
    fn parse(edits: Value) -> Result<Manifest, AdapterError> {
        let mut config = serde_json::json!({
            "peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"],
            "bias": "none", "use_dora": false, "modules_to_save": null, "loftq_config": {},
            "init_lora_weights": true, "revision": "main",
        });
        config.as_object_mut().unwrap().extend(edits.as_object().unwrap().clone());
        Manifest::parse(config.to_string().as_bytes())
    }

    #[track_caller]
    fn assert_refused(edits: Value, fragments: &[&str]) {
        let error = parse(edits).unwrap_err().to_string();
        for fragment in fragments {
            assert!(error.contains(fragment), "{fragment:?} is not in {error:?}");
        }
    }

    #[test]
    fn scaling_uses_the_modules_own_rank_and_alpha() {
        let patterns = serde_json::json!({
            "use_rslora": true, "r": 8, "lora_alpha": 8,
            "rank_pattern": {"down_proj": 4, "layers.0.self_attn.q_proj": 16},
            "alpha_pattern": {"up_proj": 4},
        });
        let manifest = parse(patterns).unwrap();
        let scaling = |module: &str| manifest.scaling(module).unwrap();
        assert_eq!(scaling(Q0), 2.0);
        assert_eq!(scaling("model.layers.1.mlp.down_proj"), 4.0);
        assert!((scaling("model.layers.1.mlp.up_proj") - 2f64.sqrt()).abs() < 1e-12);
        assert!((scaling("model.layers.1.self_attn.q_proj") - 8f64.sqrt()).abs() < 1e-12);
        assert_eq!(parse(serde_json::json!({})).unwrap().scaling(Q0).unwrap(), 2.0);
    }

    #[test]
    fn what_changes_the_maths_is_refused_by_name() {
        use serde_json::json;
        assert_refused(json!({"use_dora": true}), &["use_dora = true"]);
        assert_refused(json!({"use_qalora": true}), &["use_qalora"]);
        assert_refused(json!({"use_something_new": {"depth": 2}}), &["use_something_new"]);
        assert_refused(json!({"bias": "lora_only"}), &["bias = \"lora_only\""]);
        assert_refused(json!({"modules_to_save": ["norm"]}), &["modules_to_save", "norm"]);
        assert_refused(json!({"target_parameters": ["experts.up"]}), &["target_parameters"]);
        assert_refused(json!({"init_lora_weights": "pissa_niter_4"}), &["pissa_niter_4", "base"]);
    }

    #[test]
    fn what_changes_nothing_is_ignored() {
        let harmless = serde_json::json!({
            "eva_config": {"rho": 2.0}, "init_lora_weights": "eva", "lora_dropout": 0.1,
            "megatron_core": "megatron.core", "qalora_group_size": 16, "added_tomorrow": true,
            "modules_to_save": [], "fan_in_fan_out": false,
        });
        assert!(parse(harmless).is_ok());
    }

    #[test]
    fn senseless_values_are_named() {
        use serde_json::json;
        assert_refused(json!({"r": 0}), &["r = 0", "1 or more"]);
        assert_refused(json!({"rank_pattern": {"q_proj": 0}}), &["r = 0"]);
        assert_refused(json!({"rank_pattern": {"q_proj": "four"}}), &["four"]);
        assert_refused(json!({"r": -3}), &["-3"]);
        assert_refused(json!({"peft_type": "LOHA"}), &["peft_type = LOHA", "LORA"]);
        assert_refused(json!({"target_modules": null}), &["target_modules = null"]);
        assert_refused(json!({"use_bdlora": {"nblocks": 0}}), &["nblocks = 0"]);
        assert_refused(json!({"use_bdlora": {"nblocks": [2]}}), &["sequence"]);
    }

    #[test]
    fn lists_of_blocks_match_anywhere_in_the_path_and_never_both() {
        let blocks = |a: &str, b: &str, strict: Option<bool>| {
            let lists = serde_json::json!({
                "nblocks": 2, "match_strict": strict,
                "target_modules_bd_a": [a], "target_modules_bd_b": [b],
            });
            parse(serde_json::json!({ "use_bdlora": lists }))
        };
        let of = |a, b, strict| blocks(a, b, strict).unwrap().blocks(Q0);
        assert_eq!(of("o_proj", "self_attn.q", None).unwrap(), Some((Side::B, 2)));
        assert_eq!(of("layers.0.", "up_proj", None).unwrap(), Some((Side::A, 2)));
        assert_eq!(of("o_proj", "up_proj", Some(false)).unwrap(), None);
        let unmatched = of("o_proj", "up_proj", None).unwrap_err().to_string();
        assert!(unmatched.contains(Q0) && unmatched.contains("match_strict"), "{unmatched}");
        let both = of("layers.0", "q_proj", Some(true)).unwrap_err().to_string();
        assert!(both.contains("layers.0") && both.contains("q_proj"), "{both}");
        assert!(blocks("q_proj", "q_proj", None).is_err(), "PEFT refuses equal patterns at once");
    }
}
