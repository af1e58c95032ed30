//! The keys of `config.json` as they are written, and the ones that must not be.

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// Keys that change the maths, with the value that does not, if there is one.
const NEUTRAL: &[(&str, Option<f64>)] = &[
    ("attention_multiplier", None),
    ("attn_logit_softcapping", None),
    ("embedding_multiplier", Some(1.0)),
    ("final_logit_softcapping", None),
    ("logit_scale", Some(1.0)),
    ("logits_scaling", Some(1.0)),
    ("no_rope_layers", None),
    ("partial_rotary_factor", Some(1.0)),
    ("quantization_config", None),
    ("residual_multiplier", Some(1.0)),
];

/// What is read of `config.json`; absent keys have the defaults that transformers gives them.
#[derive(Deserialize)]
pub struct Raw {
    #[serde(default)]
    pub architectures: Vec<String>,
    #[serde(default)]
    pub attention_bias: bool,
    dtype: Option<String>,
    pub head_dim: Option<usize>,
    pub hidden_size: usize,
    #[serde(default = "hidden_act")]
    hidden_act: String,
    pub intermediate_size: usize,
    pub layer_types: Option<Vec<String>>,
    pub max_position_embeddings: usize,
    #[serde(default = "max_window_layers")]
    pub max_window_layers: usize,
    #[serde(default)]
    pub mlp_bias: bool,
    pub num_attention_heads: usize,
    pub num_hidden_layers: usize,
    pub num_key_value_heads: Option<usize>,
    #[serde(default = "rms_norm_eps")]
    pub rms_norm_eps: f32,
    rope_parameters: Option<RawRope>,
    rope_scaling: Option<RawRope>,
    pub rope_theta: Option<f64>,
    /// Absent is not null here.
    #[serde(default, deserialize_with = "present")]
    pub sliding_window: Option<Option<usize>>,
    #[serde(default)]
    pub tie_word_embeddings: bool,
    torch_dtype: Option<String>,
    #[serde(default)]
    pub use_sliding_window: bool,
    pub vocab_size: usize,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// The parameters of rotary embeddings.
#[derive(Default, Deserialize)]
pub struct RawRope {
    pub factor: Option<f64>,
    pub high_freq_factor: Option<f64>,
    pub low_freq_factor: Option<f64>,
    pub original_max_position_embeddings: Option<f64>,
    pub partial_rotary_factor: Option<f64>,
    pub rope_theta: Option<f64>,
    rope_type: Option<String>,
    r#type: Option<String>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Raw {
    pub fn parse(text: &str) -> Result<Self, String> {
        let raw: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let offence = NEUTRAL.iter().find(|(key, neutral)| !raw.is_neutral(key, *neutral));
        if let Some((key, neutral)) = offence {
            let only = neutral.map_or("null".to_owned(), |neutral| neutral.to_string());
            return Err(format!("{key} is {}; supported is only {only}", raw.rest[*key]));
        }
        if raw.hidden_act != "silu" {
            return Err(format!("hidden_act is {:?}; supported is silu", raw.hidden_act));
        }
        Ok(raw)
    }

    /// transformers 5 writes `dtype`, before it was `torch_dtype`.
    pub fn dtype(&self) -> Option<&str> {
        self.dtype.as_deref().or(self.torch_dtype.as_deref())
    }

    /// transformers 5 writes `rope_parameters`, before it was `rope_scaling`.
    pub fn rope(&self) -> Option<&RawRope> {
        self.rope_parameters.as_ref().or(self.rope_scaling.as_ref())
    }

    fn is_neutral(&self, key: &str, neutral: Option<f64>) -> bool {
        let value = self.rest.get(key).unwrap_or(&Value::Null);
        value.is_null() || (neutral.is_some() && value.as_f64() == neutral)
    }
}

impl RawRope {
    pub fn kind(&self) -> &str {
        self.rope_type.as_deref().or(self.r#type.as_deref()).unwrap_or("default")
    }
}

fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<usize>>, D::Error> {
    Option::deserialize(from).map(Some)
}

fn hidden_act() -> String {
    "silu".to_owned()
}

fn max_window_layers() -> usize {
    28
}

fn rms_norm_eps() -> f32 {
    1e-6
}
