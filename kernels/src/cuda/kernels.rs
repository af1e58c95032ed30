//! Every kernel by name, with the struct it takes.

use crate::error::Result;

use super::add_rms_norm::AddRmsNormParams;
use super::attention::{AttentionParams, TensorCores};
use super::device::Kernel;
use super::embed::EmbedParams;
use super::gemm_stream::GemmStream;
use super::head_norm::HeadNormParams;
use super::lora::ByRows;
use super::lora_decode::LoraDecode;
use super::lora_gated::LoraGated;
use super::lora_long_expand::LoraLongExpand;
use super::lora_long_norm::LoraLongNorm;
use super::lora_long_shrink::LoraLongShrink;
use super::lora_rows::LoraRows;
use super::peer::PeerKernels;
use super::pick_rows::PickRowsParams;
use super::program::Programs;
use super::rms_norm::RmsNormParams;
use super::rope_kv_store::RopeKvStoreParams;
use super::round::RoundParams;
use super::sample::ChooseParams;
use super::silu_mul::SiluMulParams;

/// The kernels of one element type on one device.
pub struct Kernels {
    pub add_rms_norm: Kernel<AddRmsNormParams>,
    pub add_rms_norm_many: Kernel<AddRmsNormParams>,
    /// By lanes that hold one position (8, 16, 32), and by heads at once (1, 4).
    pub attention_rows: [[Kernel<AttentionParams>; 2]; 3],
    /// By head width; empty for f32.
    pub attention_tensor: Vec<TensorCores>,
    pub choose: Kernel<ChooseParams>,
    pub embed: Kernel<EmbedParams>,
    /// Not for f32, nor for cards before Hopper.
    pub gemm_stream: Option<GemmStream>,
    pub head_norm: Kernel<HeadNormParams>,
    /// Not for f32.
    pub lora_decode: Option<LoraDecode>,
    pub lora_expand: ByRows,
    /// Not for f32.
    pub lora_gated: Option<LoraGated>,
    /// Not for f32.
    pub lora_long_expand: Option<LoraLongExpand>,
    /// Not for f32.
    pub lora_long_norm: Option<LoraLongNorm>,
    /// Not for f32.
    pub lora_long_shrink: Option<LoraLongShrink>,
    /// Not for f32.
    pub lora_rows: Option<LoraRows>,
    pub lora_shrink: ByRows,
    pub peer: PeerKernels,
    pub pick_rows: Kernel<PickRowsParams>,
    pub rms_norm: Kernel<RmsNormParams>,
    pub rope_kv_store: Kernel<RopeKvStoreParams>,
    pub round: Kernel<RoundParams>,
    pub silu_mul: Kernel<SiluMulParams>,
}

impl Kernels {
    pub fn new(programs: &Programs) -> Result<Self> {
        let rows = |one, four| -> Result<[Kernel<AttentionParams>; 2]> {
            let file = "attention_rows";
            Ok([Kernel::new(programs, file, one)?, Kernel::new(programs, file, four)?])
        };
        let by_rows = |file, one, eight| -> Result<ByRows> {
            let (one, eight) =
                (Kernel::new(programs, file, one), Kernel::new(programs, file, eight));
            Ok(ByRows { one: one?, eight: eight? })
        };
        Ok(Self {
            add_rms_norm: Kernel::new(programs, "add_rms_norm", "add_rms_norm")?,
            add_rms_norm_many: Kernel::new(programs, "add_rms_norm", "add_rms_norm_many")?,
            attention_rows: [
                rows("attention_rows_8_1", "attention_rows_8_4")?,
                rows("attention_rows_16_1", "attention_rows_16_4")?,
                rows("attention_rows_32_1", "attention_rows_32_4")?,
            ],
            attention_tensor: TensorCores::all(programs)?,
            choose: Kernel::new(programs, "choose", "choose")?,
            embed: Kernel::new(programs, "embed", "embed")?,
            gemm_stream: GemmStream::new(programs)?,
            head_norm: Kernel::new(programs, "head_norm", "head_norm")?,
            lora_decode: LoraDecode::new(programs)?,
            lora_expand: by_rows("lora_expand", "lora_expand_1", "lora_expand_8")?,
            lora_gated: LoraGated::new(programs)?,
            lora_long_expand: LoraLongExpand::new(programs)?,
            lora_long_norm: LoraLongNorm::new(programs)?,
            lora_long_shrink: LoraLongShrink::new(programs)?,
            lora_rows: LoraRows::new(programs)?,
            lora_shrink: by_rows("lora_shrink", "lora_shrink_1", "lora_shrink_8")?,
            peer: PeerKernels::new(programs)?,
            pick_rows: Kernel::new(programs, "pick_rows", "pick_rows")?,
            rms_norm: Kernel::new(programs, "rms_norm", "rms_norm")?,
            rope_kv_store: Kernel::new(programs, "rope_kv_store", "rope_kv_store")?,
            round: Kernel::new(programs, "round", "round_to_element")?,
            silu_mul: Kernel::new(programs, "silu_mul", "silu_mul")?,
        })
    }
}
