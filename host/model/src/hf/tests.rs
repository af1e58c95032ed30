//! Configs as they are published, as they are written by both generations of transformers, and
//! ones to refuse.

use serde_json::{Value, json};

use super::*;

/// Llama 3.1 8B as published.
fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "mlp_bias": false,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3"
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "vocab_size": 128256
    })
}

fn with(mut config: Value, changes: Value) -> Value {
    let changes = changes.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(changes);
    config
}

fn parse(config: &Value) -> ModelConfig {
    ModelConfig::parse(&config.to_string()).unwrap()
}

fn refusal(changes: Value) -> String {
    ModelConfig::parse(&with(llama(), changes).to_string()).unwrap_err()
}

#[test]
fn a_published_config_is_read() {
    let config = parse(&llama());
    assert_eq!(config.shape.head_dim, 128);
    assert_eq!((config.shape.kv_heads, config.dtype), (8, DType::Bf16));
    assert_eq!((config.rope.theta, config.window), (500_000.0, None));
    let llama3 = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
    assert_eq!(config.rope.scaling, llama3);
}

#[test]
fn both_generations_of_transformers_mean_the_same() {
    let mut newer = llama();
    let keys = newer.as_object_mut().unwrap();
    let mut rope = keys.remove("rope_scaling").unwrap();
    rope["rope_theta"] = keys.remove("rope_theta").unwrap();
    keys.remove("torch_dtype");
    let newer = with(newer, json!({ "rope_parameters": rope, "dtype": "bfloat16" }));
    assert_eq!(parse(&newer), parse(&llama()));

    let older = json!({ "rope_scaling": { "type": "linear", "factor": 2.0 } });
    let older = parse(&with(llama(), older));
    assert_eq!(older.rope.scaling, Scaling::Linear { factor: 2.0 });
}

#[test]
fn biases_and_head_norms_follow_the_architecture() {
    let of = |name: &str, changes: Value| {
        let config = with(llama(), json!({ "architectures": [name] }));
        let config = parse(&with(config, changes));
        (config.bias.qkv, config.bias.output, config.bias.mlp, config.head_norm)
    };
    let biased = json!({ "attention_bias": true, "mlp_bias": true });
    assert_eq!(of("LlamaForCausalLM", json!({})), (false, false, false, false));
    assert_eq!(of("LlamaForCausalLM", biased), (true, true, true, false));
    assert_eq!(of("MistralForCausalLM", json!({})), (false, false, false, false));
    assert_eq!(of("Qwen2ForCausalLM", json!({})), (true, false, false, false));
    assert_eq!(of("Qwen3ForCausalLM", json!({})), (false, false, false, true));
}

#[test]
fn a_window_is_for_all_layers_or_none() {
    let of = |name: &str, changes: Value| {
        let config = with(llama(), json!({ "architectures": [name], "num_hidden_layers": 2 }));
        ModelConfig::parse(&with(config, changes).to_string()).map(|config| config.window)
    };
    assert_eq!(of("MistralForCausalLM", json!({})), Ok(Some(4096)));
    assert_eq!(of("MistralForCausalLM", json!({ "sliding_window": null })), Ok(None));
    assert_eq!(of("MistralForCausalLM", json!({ "sliding_window": 7 })), Ok(Some(7)));
    let off = json!({ "sliding_window": 7, "use_sliding_window": false });
    assert_eq!(of("Qwen2ForCausalLM", off), Ok(None));
    let later = json!({ "sliding_window": 7, "use_sliding_window": true });
    assert_eq!(of("Qwen2ForCausalLM", later), Ok(None), "the first 28 layers have none");
    let on = json!({ "sliding_window": 7, "use_sliding_window": true, "max_window_layers": 0 });
    assert_eq!(of("Qwen2ForCausalLM", on), Ok(Some(7)));
    let types = json!({ "layer_types": ["sliding_attention", "full_attention"] });
    let mixed = of("Qwen3ForCausalLM", types).unwrap_err();
    assert_eq!(mixed, "1 of 2 layers have a sliding window; supported are all layers or none");
}

#[test]
fn what_changes_the_maths_is_refused_by_name() {
    let cases = [
        (json!({ "architectures": ["Gemma2ForCausalLM"] }), "Gemma2ForCausalLM"),
        (json!({ "architectures": [] }), "architectures is []"),
        (json!({ "quantization_config": { "bits": 4 } }), "quantization_config"),
        (json!({ "final_logit_softcapping": 30.0 }), "final_logit_softcapping is 30.0"),
        (json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor is 0.5"),
        (json!({ "hidden_act": "gelu" }), "hidden_act is \"gelu\""),
        (json!({ "torch_dtype": "float8_e4m3fn" }), "float8_e4m3fn"),
        (json!({ "rope_scaling": { "type": "yarn", "factor": 4.0 } }), "rope type is \"yarn\""),
        (json!({ "rope_scaling": { "type": "linear" } }), "needs factor"),
        (json!({ "rope_parameters": { "full_attention": {} } }), "full_attention"),
        (json!({ "num_key_value_heads": 5 }), "cannot share 5"),
        (json!({ "num_hidden_layers": 0 }), "a size is 0"),
        (json!({ "head_dim": 127 }), "head_dim is 127"),
    ];
    for (changes, expected) in cases {
        let why = refusal(changes);
        assert!(why.contains(expected), "{why:?} does not say {expected:?}");
    }
}

#[test]
fn a_missing_size_and_broken_json_are_named() {
    let mut config = llama();
    config.as_object_mut().unwrap().remove("hidden_size");
    let why = ModelConfig::parse(&config.to_string()).unwrap_err();
    assert!(why.contains("hidden_size"), "{why}");
    assert!(ModelConfig::parse("{\"architectures\":").is_err());
}
