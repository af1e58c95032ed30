//! The model shapes that can be measured.

use contract::base::BaseShape;
use model::hf::ModelConfig;
use serde_json::json;

use crate::Failure;
use crate::cli::Shape;

/// The model configuration of a shape, read the way any other model's is.
pub fn config(shape: Shape) -> Result<ModelConfig, Failure> {
    let BaseShape { hidden, intermediate, layers, heads, kv_heads, head_dim, vocab } =
        dimensions(shape);
    let text = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
    });
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("config.json"), text.to_string())?;
    Ok(ModelConfig::read(folder.path())?)
}

/// Ranks that the shape is one of.
pub const fn ranks(shape: Shape) -> usize {
    match shape {
        Shape::Llama70bTp8 => 8,
        Shape::Llama1b | Shape::Llama100m | Shape::Llama8b => 1,
    }
}

const fn dimensions(shape: Shape) -> BaseShape {
    match shape {
        Shape::Llama1b => BaseShape {
            hidden: 2048,
            intermediate: 5632,
            layers: 22,
            heads: 32,
            kv_heads: 4,
            head_dim: 64,
            vocab: 32000,
        },
        Shape::Llama100m => BaseShape {
            hidden: 768,
            intermediate: 2048,
            layers: 12,
            heads: 12,
            kv_heads: 4,
            head_dim: 64,
            vocab: 32000,
        },
        Shape::Llama8b => BaseShape {
            hidden: 4096,
            intermediate: 14336,
            layers: 32,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            vocab: 128_256,
        },
        Shape::Llama70bTp8 => BaseShape {
            hidden: 8192,
            intermediate: 28672 / 8,
            layers: 80,
            heads: 64 / 8,
            kv_heads: 1,
            head_dim: 128,
            vocab: 128_256 / 8,
        },
    }
}
