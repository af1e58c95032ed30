//! The CUDA backend: kernels compiled at run time for the card that is found.
//!
//! Nothing of CUDA is needed to build this: driver, NVRTC and cuBLASLt are looked for when a device
//! is opened, and [`found`] says whether they and a device are there. A rank has a stream of its
//! own, on which all its work is in order; ranks may share a device. Every kernel in `kernels/cuda`
//! has a launcher here of the same name, and both lay out the struct that it takes.
//!
//! Activations, weights, caches and adapters of one backend have one element type; logits, shrunk
//! activations, normalisation weights and the rope table are f32. Sums are in f32 and in a fixed
//! order, but products of cuBLASLt take another order for another number of rows: a row computed
//! alone equals the same row in a batch to rounding, not to the bit.

mod found;
mod status;
mod program;
mod device;
mod kernels;
mod memory;
mod pieces;
mod upload;
mod download;
mod weight;
mod index;
mod step;
mod embed;
mod rms_norm;
mod add_rms_norm;
mod adapted;
mod factors;
mod gemm;
mod gemm_stream;
mod beside;
mod head_norm;
mod cache;
mod rope_kv_store;
mod attention;
mod attend;
mod silu_mul;
mod round;
mod pick_rows;
mod lora;
mod lora_shrink;
mod lora_expand;
mod lora_decode;
mod lora_rows;
mod lora_long;
mod lora_gated;
mod lora_long_expand;
mod lora_long_norm;
mod lora_long_shrink;
mod sample;
mod graph;
mod idle;
mod link;
mod nccl;
mod nccl_join;
mod peer;
mod peer_area;
mod peer_reduce_norm;
mod bandwidth;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use contract::adapter::{Exchange, Slot};
use contract::step::{Answer, Batch};
use contract::tensor::DType;

use crate::error::{Error, Result};
use crate::lora::{SiteShape, SlotPairs};
use crate::ops::{
    Attend, CacheShape, DeviceMemory, HeadNorm, Heads, LogitsLayout, Ops, Precision, WeightView,
};
use crate::sampling::device::on_device;

use attention::Scratch;
use cache::Cache;
use device::Device;
use factors::Factors;
use gemm::{Form, Gemm};
use graph::Graphs;
use idle::Idle;
use index::IndexPool;
use lora::Site;
use sample::Tokens;
use step::{ALIKE_ROWS_MAX, Step};
use upload::Upload;
use weight::Weight;

pub use bandwidth::bandwidth;
pub use found::{Found, WhyNot, found};
pub use graph::Graph;
pub use link::{Link, State, Stop};
pub use memory::Buf;
pub use nccl::{Nccl, NcclEnd, NcclName, Place, nccl_version};
pub use peer::{Peer, RANKS_MAX as PEERS_MAX};
pub use peer_area::{PeerArea, reaches};

/// The backend of one rank on one device.
pub struct Cuda {
    gemm: Gemm,
    scratch: Scratch,
    /// Products whose inputs are in splits, for attention to add up.
    splits: Buf,
    factors: Factors,
    graphs: Graphs,
    /// Whether a pair with an exchange was ever loaded: graphs don't serve those.
    exchanges: bool,
    tokens: Tokens,
    idle: Idle,
    indices: IndexPool,
    upload: Upload,
    device: Arc<Device>,
}

impl Cuda {
    /// Opens a device for a model of `dtype`. Compiled kernels are kept in the folder `cache`.
    pub fn open(ordinal: usize, dtype: DType, cache: Option<&Path>) -> Result<Self> {
        let devices = found().map_err(|why| Error::Device(why.to_string()))?;
        if !devices.iter().any(|device| device.ordinal == ordinal) {
            let names = devices.iter().map(|device| format!("{} {}", device.ordinal, device.name));
            let names = names.collect::<Vec<_>>().join(", ");
            return Err(Error::Device(format!("there is no device {ordinal}: found {names}")));
        }
        let device = Arc::new(Device::open(ordinal, dtype, cache)?);
        Ok(Self {
            gemm: Gemm::new(&device)?,
            scratch: Scratch::new(&device.stream)?,
            splits: attend::splits(&device)?,
            factors: Factors::new(&device)?,
            graphs: Graphs::default(),
            exchanges: false,
            tokens: Tokens::new(&device)?,
            idle: Idle::default(),
            indices: IndexPool::new(&device.stream)?,
            upload: Upload::new(&device.stream)?,
            device,
        })
    }

    /// Waits for all that was launched, and says whether it went well.
    pub fn synchronize(&mut self) -> Result<()> {
        self.device.synchronize()
    }
}

impl Ops for Cuda {
    type Buf = Buf;
    type Weight = Weight;
    type Cache = Cache;
    type Site = Site;
    type Step = Step;

    const LOGIT_ROWS: usize = ALIKE_ROWS_MAX;
    const FOLLOWS: bool = true;

    fn memory(&mut self) -> Result<Option<DeviceMemory>> {
        self.device.memory().map(Some)
    }

    fn buf(&mut self, elements: usize, precision: Precision) -> Result<Buf> {
        // It may take the place of one that a graph was recorded with.
        self.forget_graphs()?;
        let dtype = match precision {
            Precision::Activation => self.device.dtype,
            Precision::Full => DType::F32,
        };
        Buf::new(&self.device.stream, elements, dtype)
    }

    fn write(&mut self, values: &[f32], buf: &mut Buf) -> Result<()> {
        buf.write(&mut self.upload, values)
    }

    fn read(&mut self, buf: &Buf, elements: usize) -> Result<Vec<f32>> {
        buf.read(&self.device.stream, 0, elements)
    }

    fn weight(&mut self, parts: &[WeightView<'_>], dtype: DType) -> Result<Weight> {
        let types = (dtype, self.device.dtype);
        Weight::stack(&self.device.stream, &mut self.upload, parts, types)
    }

    fn cache(&mut self, shape: CacheShape) -> Result<Cache> {
        Cache::new(&self.device.stream, shape, self.device.dtype)
    }

    fn site(&mut self, shape: SiteShape, dtype: DType) -> Result<Site> {
        Site::new(&self.device, shape, dtype)
    }

    fn site_load(&mut self, site: &mut Site, pairs: &SlotPairs<'_>) -> Result<()> {
        if site.load(&self.device, &mut self.upload, pairs)? {
            self.forget_graphs()?;
        }
        self.exchanges |= site.exchanges;
        Ok(())
    }

    fn site_unload(&mut self, site: &mut Site, slot: Slot) {
        site.unload(slot);
    }

    fn step(&mut self, batch: &Arc<Batch>, rows_max: usize) -> Result<Step> {
        let adapted = batch.segments.iter().any(|segment| segment.slot.is_some());
        let served = !adapted || (!self.exchanges && self.device.kernels.lora_decode.is_some());
        Step::new(&mut self.indices, batch, if served { rows_max } else { 0 })
    }

    fn launch<E: From<Error>>(
        &mut self,
        step: &Step,
        mut work: impl FnMut(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.idle.begin(&self.device)?;
        match step.alike {
            Some(alike) => self.launch_alike(alike, work)?,
            None => work(self)?,
        }
        Ok(self.idle.end(&self.device)?)
    }

    fn embed(&mut self, table: &Weight, first: u32, step: &Step, out: &mut Buf) -> Result<()> {
        embed::embed(&self.device, (table, first), &self.tokens, step, out)
    }

    fn rms_norm(
        &mut self,
        x: &Buf,
        weight: &Weight,
        eps: f32,
        rows: usize,
        out: &mut Buf,
    ) -> Result<()> {
        rms_norm::rms_norm(&self.device, x, weight, eps, 0..rows, out)
    }

    fn add_rms_norm(
        &mut self,
        residual: &mut Buf,
        weight: &Weight,
        eps: f32,
        rows: usize,
        hidden: &mut Buf,
    ) -> Result<()> {
        add_rms_norm::add_rms_norm(&self.device, residual, (weight, eps), rows, hidden)
    }

    fn gemm(
        &mut self,
        x: &Buf,
        weight: &Weight,
        bias: Option<&Weight>,
        rows: usize,
        out: &mut Buf,
    ) -> Result<()> {
        self.finish_norm()?;
        self.gemm.run(&self.device, rows, gemm::Operands { x, weight, bias, out })
    }

    fn gemm_silu_mul(
        &mut self,
        x: &Buf,
        weight: &Weight,
        (rows, width): (usize, usize),
        gate_up: &mut Buf,
        out: &mut Buf,
    ) -> Result<()> {
        let mut operands = gemm::Operands { x, weight, bias: None, out };
        let form = Form { norm: self.factors.left(), ..Form::gated(rows) };
        if self.gemm.stream(&self.device, form, &mut operands, None)?.is_some() {
            self.factors.are_used();
            return Ok(());
        }
        self.gemm(x, weight, None, rows, gate_up)?;
        self.silu_mul(gate_up, width, rows, out)
    }

    fn adapted_gemm(
        &mut self,
        x: &Buf,
        weight: (&Weight, Option<&Weight>),
        adapters: (&Site, &Step, &mut Buf),
        out: &mut Buf,
    ) -> Result<()> {
        self.finish_norm()?;
        self.adapted_product(x, weight, adapters, out)
    }

    fn gemm_add_rms_norm(
        &mut self,
        x: &Buf,
        (weight, bias): (&Weight, Option<&Weight>),
        (residual, norm, eps): (&mut Buf, &Weight, f32),
        rows: usize,
        hidden: &mut Buf,
    ) -> Result<()> {
        self.add_norm(x, (weight, bias), (residual, norm, eps), rows, hidden)
    }

    fn adapted_gemm_add_rms_norm(
        &mut self,
        x: &Buf,
        weight: (&Weight, Option<&Weight>),
        adapters: (&Site, &Step, &mut Buf),
        norm: (&mut Buf, &Weight, f32),
        hidden: &mut Buf,
    ) -> Result<()> {
        self.adapted_add_norm(x, weight, adapters, norm, hidden)
    }

    fn adapted_gemm_silu_mul(
        &mut self,
        x: &Buf,
        (weight, width): (&Weight, usize),
        (site, step, h): (&Site, &Step, &mut Buf),
        gate_up: &mut Buf,
        out: &mut Buf,
    ) -> Result<()> {
        self.adapted_gated(x, (weight, width), (site, step, h), gate_up, out)
    }

    fn head_norm(
        &mut self,
        qkv: &mut Buf,
        heads: &Heads,
        norm: &HeadNorm<'_, Weight>,
        rows: usize,
    ) -> Result<()> {
        head_norm::head_norm(&self.device, qkv, heads, norm, rows)
    }

    fn rope_kv_store(
        &mut self,
        qkv: &mut Buf,
        heads: &Heads,
        table: &Weight,
        step: &Step,
        cache: &mut Cache,
    ) -> Result<()> {
        rope_kv_store::rope_kv_store(&self.device, qkv, (heads, table), step, cache)
    }

    fn attention(
        &mut self,
        qkv: &Buf,
        heads: &Heads,
        step: &Step,
        cache: &Cache,
        out: &mut Buf,
    ) -> Result<()> {
        let fused = attention::Fused::Whole(qkv);
        let operands = attention::Operands { fused, table: None, cache, out };
        attention::attention(&self.device, &mut self.scratch, heads, step, operands)
    }

    fn rope_attention(
        &mut self,
        qkv: &mut Buf,
        heads: &Heads,
        table: &Weight,
        step: &Step,
        cache: &mut Cache,
        out: &mut Buf,
    ) -> Result<()> {
        self.rope_attend(step, Attend { heads, table, cache, qkv, out })
    }

    fn gemm_rope_attention(
        &mut self,
        x: &Buf,
        weight: (&Weight, Option<&Weight>),
        step: &Step,
        attend: Attend<'_, Self>,
    ) -> Result<()> {
        self.project_and_attend(x, weight, (step, None), attend)
    }

    fn adapted_gemm_rope_attention(
        &mut self,
        x: &Buf,
        weight: (&Weight, Option<&Weight>),
        (site, step, h): (&Site, &Step, &mut Buf),
        attend: Attend<'_, Self>,
    ) -> Result<()> {
        self.project_and_attend(x, weight, (step, Some((site, h))), attend)
    }

    fn silu_mul(&mut self, gate_up: &Buf, width: usize, rows: usize, out: &mut Buf) -> Result<()> {
        silu_mul::silu_mul(&self.device, gate_up, width, 0..rows, out)
    }

    fn pick_rows(
        &mut self,
        x: &Buf,
        width: usize,
        step: &Step,
        picked: Range<usize>,
        out: &mut Buf,
    ) -> Result<()> {
        self.finish_norm()?;
        pick_rows::pick_rows(&self.device, x, width, (step, picked), out)
    }

    fn shrunk_rows(rows_max: usize) -> usize {
        rows_max.max(rows_max.min(ALIKE_ROWS_MAX) * lora_decode::SPLITS_MAX)
    }

    fn lora_len(&self, site: &Site, step: &Step, exchange: Exchange) -> usize {
        site.len(step, exchange)
    }

    fn lora_shrink(
        &mut self,
        x: &Buf,
        site: &Site,
        step: &Step,
        exchange: Exchange,
        h: &mut Buf,
    ) -> Result<()> {
        self.finish_norm()?;
        lora_shrink::lora_shrink((&self.device, &mut self.gemm), x, site, step, exchange, h)
    }

    fn lora_expand(
        &mut self,
        h: &Buf,
        site: &Site,
        step: &Step,
        exchange: Exchange,
        y: &mut Buf,
    ) -> Result<()> {
        lora_expand::lora_expand((&self.device, &mut self.gemm), h, site, step, exchange, y)
    }

    fn lora_expand_silu_mul(
        &mut self,
        h: &Buf,
        site: &Site,
        step: &Step,
        gate_up: (&mut Buf, usize),
        out: &mut Buf,
    ) -> Result<()> {
        let tools = (&*self.device, &mut self.gemm);
        lora_gated::lora_expand_silu_mul(tools, h, (site, step), gate_up, out)
    }

    fn choose(
        &mut self,
        logits: &Buf,
        layout: &LogitsLayout,
        step: &Step,
        first: usize,
    ) -> Result<()> {
        let mut queries = step.batch.queries[first..].iter().take(layout.rows);
        match step.alike.is_some() || queries.any(|query| on_device(query).is_some()) {
            true => sample::choose(&self.device, &mut self.tokens, logits, layout, (step, first)),
            false => Ok(()),
        }
    }

    fn fetch(&mut self, queries: usize) -> Result<()> {
        self.tokens.fetch(&self.device, queries)
    }

    fn time_idle(&mut self) -> Result<()> {
        self.idle.turn_on();
        Ok(())
    }

    fn idle(&mut self) -> Result<Option<Duration>> {
        self.idle.before_oldest()
    }

    fn is_fetched(&mut self) -> Result<bool> {
        self.tokens.is_fetched()
    }

    fn fetched(&mut self) -> Result<Vec<u32>> {
        self.tokens.fetched()
    }

    fn sample(
        &mut self,
        logits: &Buf,
        layout: &LogitsLayout,
        batch: &Batch,
        first: usize,
    ) -> Result<Vec<Answer>> {
        sample::sample(&self.device, &mut self.tokens, logits, layout, (batch, first))
    }
}
