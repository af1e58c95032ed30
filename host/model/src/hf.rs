//! A Hugging Face `config.json` as a checked model configuration.

mod raw;

use std::fs;
use std::path::Path;

use contract::base::BaseShape;
use contract::tensor::DType;

use crate::error::{Error, Result};
use crate::rope::{Rope, Scaling};

use raw::{Raw, RawRope};

/// Everything about a base model that its forward pass depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Dimensions.
    pub shape: BaseShape,
    /// The family it belongs to.
    pub architecture: Architecture,
    /// Element type of the checkpoint; f32 where the file does not say.
    pub dtype: DType,
    /// Longest context in tokens that the model was made for.
    pub positions_max: usize,
    /// Added to the mean square by every normalisation.
    pub norm_eps: f32,
    /// Position embedding.
    pub rope: Rope,
    /// A token sees this many positions, itself included; `None` sees all before it.
    pub window: Option<usize>,
    /// The LM head is the embedding.
    pub tied: bool,
    /// Which linear layers have a bias.
    pub bias: Biases,
    /// Query and key heads are normalised one by one.
    pub head_norm: bool,
}

/// Which linear layers have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Biases {
    /// Queries, keys and values.
    pub qkv: bool,
    /// Attention output.
    pub output: bool,
    /// All three of the feed-forward block.
    pub mlp: bool,
}

/// A family of models that share their code in transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2, 3 and 3.x, and what was made like them.
    Llama,
    /// Llama with a sliding window.
    Mistral,
    /// Qwen 2 and 2.5: biased queries, keys and values.
    Qwen2,
    /// Qwen 3: normalised query and key heads.
    Qwen3,
}

impl Architecture {
    const ALL: [Self; 4] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    /// The name of its class in transformers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    fn parse(names: &[String]) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|known| names == [known.name()]);
        known.ok_or_else(|| {
            let supported = Self::ALL.map(Self::name).join(", ");
            format!("architectures is {names:?}; supported are {supported}")
        })
    }
}

impl ModelConfig {
    /// Reads `config.json` in the model's `folder`. What is not supported is refused by name.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = fs::read_to_string(&path).map_err(Error::unreadable(&path))?;
        Self::parse(&text).map_err(|why| Error::unusable(&path, why))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let raw = Raw::parse(text)?;
        let architecture = Architecture::parse(&raw.architectures)?;
        Ok(Self {
            shape: shape(&raw)?,
            architecture,
            dtype: dtype(&raw)?,
            positions_max: raw.max_position_embeddings,
            norm_eps: raw.rms_norm_eps,
            rope: rope(&raw)?,
            window: window(&raw, architecture)?,
            tied: raw.tie_word_embeddings,
            bias: biases(&raw, architecture),
            head_norm: architecture == Architecture::Qwen3,
        })
    }
}

fn shape(raw: &Raw) -> Result<BaseShape, String> {
    let heads = raw.num_attention_heads;
    let shape = BaseShape {
        hidden: raw.hidden_size,
        intermediate: raw.intermediate_size,
        layers: raw.num_hidden_layers,
        heads,
        kv_heads: raw.num_key_value_heads.unwrap_or(heads),
        head_dim: raw.head_dim.unwrap_or(raw.hidden_size / heads.max(1)),
        vocab: raw.vocab_size,
    };
    let BaseShape { hidden, intermediate, layers, heads, kv_heads, head_dim, vocab } = shape;
    if [hidden, intermediate, layers, heads, kv_heads, head_dim, vocab].contains(&0) {
        return Err(format!("a size is 0 in {shape:?}"));
    }
    if !heads.is_multiple_of(kv_heads) {
        return Err(format!("{heads} attention heads cannot share {kv_heads} key/value heads"));
    }
    if !head_dim.is_multiple_of(2) {
        return Err(format!("head_dim is {head_dim}; rotary embeddings need an even one"));
    }
    Ok(shape)
}

fn dtype(raw: &Raw) -> Result<DType, String> {
    let Some(name) = raw.dtype() else { return Ok(DType::F32) };
    DType::parse(name.trim_start_matches("torch."))
        .ok_or_else(|| format!("dtype is {name:?}; supported are float32, float16 and bfloat16"))
}

fn biases(raw: &Raw, architecture: Architecture) -> Biases {
    let Raw { attention_bias, mlp_bias, .. } = *raw;
    match architecture {
        Architecture::Llama => {
            Biases { qkv: attention_bias, output: attention_bias, mlp: mlp_bias }
        }
        Architecture::Mistral => Biases { qkv: false, output: false, mlp: false },
        Architecture::Qwen2 => Biases { qkv: true, output: false, mlp: false },
        Architecture::Qwen3 => Biases { qkv: attention_bias, output: attention_bias, mlp: false },
    }
}

/// The window of all layers. Where the file leaves one out, transformers takes 4096.
fn window(raw: &Raw, architecture: Architecture) -> Result<Option<usize>, String> {
    let window = raw.sliding_window.unwrap_or(Some(4096));
    let windowed = match (architecture, &raw.layer_types) {
        (Architecture::Llama, None) => 0,
        (Architecture::Mistral, None) => raw.num_hidden_layers,
        (_, Some(types)) => types.iter().filter(|name| *name == "sliding_attention").count(),
        (_, None) if !raw.use_sliding_window => 0,
        (_, None) => raw.num_hidden_layers.saturating_sub(raw.max_window_layers),
    };
    match windowed {
        0 => Ok(None),
        all if all == raw.num_hidden_layers => Ok(window),
        some => Err(format!(
            "{some} of {} layers have a sliding window; supported are all layers or none",
            raw.num_hidden_layers
        )),
    }
}

fn rope(raw: &Raw) -> Result<Rope, String> {
    let plain = RawRope::default();
    let rope = raw.rope().unwrap_or(&plain);
    let theta = rope.rope_theta.or(raw.rope_theta).unwrap_or(10_000.0);
    let scaling = scaling(rope)?;
    if rope.partial_rotary_factor.is_some_and(|part| part != 1.0) {
        return Err("partial_rotary_factor is not 1; only whole heads can be rotated".to_owned());
    }
    if let Some(key) = rope.rest.keys().next() {
        return Err(format!("rope parameter {key:?} is not supported"));
    }
    Ok(Rope { theta, scaling })
}

fn scaling(rope: &RawRope) -> Result<Scaling, String> {
    let kind = rope.kind();
    let need = |name: &str, value: Option<f64>| {
        value.ok_or_else(|| format!("rope type {kind} needs {name}"))
    };
    let original = rope.original_max_position_embeddings;
    match kind {
        "default" => Ok(Scaling::None),
        "linear" => Ok(Scaling::Linear { factor: need("factor", rope.factor)? }),
        "llama3" => Ok(Scaling::Llama3 {
            factor: need("factor", rope.factor)?,
            low: need("low_freq_factor", rope.low_freq_factor)?,
            high: need("high_freq_factor", rope.high_freq_factor)?,
            original: need("original_max_position_embeddings", original)?,
        }),
        other => Err(format!("rope type is {other:?}; supported are default, linear and llama3")),
    }
}

#[cfg(test)]
mod tests;
