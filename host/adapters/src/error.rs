//! Why an adapter is refused.

use std::io;

/// Why an adapter cannot be served. The message is for callers too: it names the thing, what was
/// found and what would do, and no path of this machine.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A file of the folder is missing or cannot be read.
    #[error("{file}: {source}{hint}")]
    Read {
        /// Which file.
        file: &'static str,
        /// What the system said.
        source: io::Error,
        /// What would do, or nothing.
        hint: &'static str,
    },
    /// A file is larger than such a file can sensibly be.
    #[error("{file}: {bytes} bytes, at most {bytes_max} are read")]
    TooLarge {
        /// Which file, or part of one.
        file: &'static str,
        /// Its size.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// `adapter_config.json` is not JSON, or a key is missing or of the wrong type.
    #[error("adapter_config.json: {0}")]
    Config(#[from] serde_json::Error),
    /// A key of `adapter_config.json` has a value without a meaning.
    #[error("adapter_config.json: {key} = {value}; {would_do} would do")]
    Value {
        /// The key.
        key: String,
        /// What was found.
        value: String,
        /// What would be accepted.
        would_do: &'static str,
    },
    /// A PEFT feature that changes what is computed and is not supported.
    #[error(
        "adapter_config.json: {key} = {value} is not supported; \
         LoRA, rsLoRA and BD-LoRA on linear layers of decoder blocks are"
    )]
    Unsupported {
        /// The key.
        key: String,
        /// What was found.
        value: String,
    },
    /// An initialisation that changes the base weights as well.
    #[error(
        "adapter_config.json: init_lora_weights = {0} also changes the base model; save the \
         adapter with path_initial_model_for_weight_conversion to make it a plain one"
    )]
    BaseChanged(String),
    /// The adapter targets a module outside the decoder blocks.
    #[error("target_modules: {0} is targeted; only q, k, v, o, gate, up and down_proj can be")]
    Target(&'static str),
    /// No module of the model is targeted.
    #[error("target_modules: {0} names no module of the model, such as model.layers.0.mlp.up_proj")]
    NothingTargeted(String),
    /// The weights are no safetensors file, or not all of one.
    #[error("adapter_model.safetensors is not a whole safetensors file: {0}")]
    Format(String),
    /// A tensor has a type that is not supported.
    #[error("tensor {tensor} is stored as {found}; F32, F16 or BF16 would do")]
    DType {
        /// The tensor.
        tensor: String,
        /// Its type as safetensors names it.
        found: String,
    },
    /// A tensor that is not a factor of any module.
    #[error(
        "tensor {tensor} belongs to nothing; \
         base_model.model.{{module}}.lora_A.weight and .lora_B.weight would do"
    )]
    UnknownTensor {
        /// The tensor.
        tensor: String,
    },
    /// A factor for a module that the model does not have.
    #[error("{module} has tensors, but is no q, k, v, o, gate, up or down_proj of a decoder block")]
    UnknownModule {
        /// Path of the module.
        module: String,
    },
    /// A factor for a decoder block that the model does not have.
    #[error("{module} has tensors, but the model has {layers} layers, 0 to {}", layers - 1)]
    UnknownLayer {
        /// Path of the module.
        module: String,
        /// Decoder blocks of the model.
        layers: usize,
    },
    /// A factor for a module that the config does not target.
    #[error("{module} has tensors, but adapter_config.json does not target it")]
    Untargeted {
        /// Path of the module.
        module: String,
    },
    /// A targeted module lacks a factor or both.
    #[error("{module} is targeted and has no {missing}")]
    Incomplete {
        /// Path of the module.
        module: String,
        /// What is missing.
        missing: &'static str,
    },
    /// A module matches both lists of a block-diagonal config.
    #[error("use_bdlora: {module} matches both {a:?} in target_modules_bd_a and {b:?} in .._bd_b")]
    Overlap {
        /// Path of the module, or the pattern that stands in both lists.
        module: String,
        /// The pattern of the first list.
        a: String,
        /// The pattern of the second list.
        b: String,
    },
    /// A module matches no list of a block-diagonal config that is strict.
    #[error("use_bdlora: {module} matches neither list; add it or set match_strict to false")]
    Unmatched {
        /// Path of the module.
        module: String,
    },
    /// A block-diagonal factor cannot have this many blocks.
    #[error("{module}: {what} {size} is not divisible by nblocks {blocks}")]
    Indivisible {
        /// Path of the module.
        module: String,
        /// Which size.
        what: &'static str,
        /// Its value.
        size: usize,
        /// Blocks in the config.
        blocks: usize,
    },
    /// A tensor does not have the shape that the model and the config ask for.
    #[error("{module}: {factor} has shape {found:?}; {would_do} would do")]
    Shape {
        /// Path of the module.
        module: String,
        /// `lora_A` or `lora_B`.
        factor: &'static str,
        /// The shape on disk.
        found: Vec<usize>,
        /// Shapes that would be accepted, and why these.
        would_do: String,
    },
    /// A tensor has infinite or undefined elements, or gets them by scaling.
    #[error("tensor {tensor} has elements that are not finite")]
    NotFinite {
        /// The tensor.
        tensor: String,
    },
    /// The adapter alone is larger than the memory for all of them.
    #[error("takes {bytes} bytes of host memory; adapters.host_gib allows {bytes_max}")]
    HostMemory {
        /// What it takes over all ranks.
        bytes: usize,
        /// What there is.
        bytes_max: usize,
    },
    /// The weights are not those that were meant.
    #[error("adapter_model.safetensors has the SHA-256 {found}; {wanted} was asked for")]
    Sha256 {
        /// Of the file.
        found: String,
        /// What it should be.
        wanted: String,
    },
    /// The folder now holds an adapter of other dimensions than when it was added.
    #[error("has other dimensions on disk than when it was added; load it again or restart")]
    Changed,
}
