//! The fast CPU backend: SIMD chosen at run time, weights in panels, sums in a fixed order.

mod simd;
mod isa;
mod workers;
mod lines;
mod format;
mod panels;
mod tile;
mod pack;
#[cfg(target_arch = "x86_64")]
mod amx;
mod gemm;
mod weight;
mod elementwise;
mod cache;
mod attention;
mod dot;
mod lora;
mod bandwidth;

use std::ops::Range;
use std::sync::Arc;

use contract::adapter::{Exchange, Slot};
use contract::step::{Answer, Batch};
use contract::tensor::DType;

use crate::error::Result;
use crate::lora::{SiteShape, SlotPairs};
use crate::ops::{CacheShape, HeadNorm, Heads, LogitsLayout, Ops, Precision, WeightView};
use crate::sampling;

use cache::Cache;
use gemm::{Onto, Scratch, gemm};
use lora::Site;
use weight::Weight;
use workers::Workers;

pub use bandwidth::bandwidth;
pub use isa::Isa;

/// The fast backend of one rank.
pub struct Cpu {
    workers: Workers,
    scratch: Scratch,
}

impl Cpu {
    /// A backend with `threads` threads of its own and the best instruction set found; one thread
    /// is the caller's.
    pub fn new(threads: usize) -> Result<Self> {
        Self::with_isa(threads, Isa::best())
    }

    /// A backend with a given instruction set.
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Self> {
        Ok(Self { workers: Workers::new(threads, isa)?, scratch: Scratch::default() })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.workers.isa
    }
}

impl Ops for Cpu {
    type Buf = Vec<f32>;
    type Weight = Weight;
    type Cache = Cache;
    type Site = Site;
    type Step = Arc<Batch>;

    fn buf(&mut self, elements: usize, _precision: Precision) -> Result<Vec<f32>> {
        Ok(vec![0.0; elements])
    }

    fn write(&mut self, values: &[f32], buf: &mut Vec<f32>) -> Result<()> {
        buf[..values.len()].copy_from_slice(values);
        Ok(())
    }

    fn read(&mut self, buf: &Vec<f32>, elements: usize) -> Result<Vec<f32>> {
        Ok(buf[..elements].to_vec())
    }

    fn weight(&mut self, parts: &[WeightView<'_>], dtype: DType) -> Result<Weight> {
        Weight::stack(parts, dtype)
    }

    fn cache(&mut self, shape: CacheShape) -> Result<Cache> {
        Cache::new(shape)
    }

    fn site(&mut self, shape: SiteShape, dtype: DType) -> Result<Site> {
        Ok(Site::new(shape, dtype))
    }

    fn site_load(&mut self, site: &mut Site, pairs: &SlotPairs<'_>) -> Result<()> {
        site.load(pairs)
    }

    fn site_unload(&mut self, site: &mut Site, slot: Slot) {
        site.unload(slot);
    }

    fn step(&mut self, batch: &Arc<Batch>, _rows_max: usize) -> Result<Arc<Batch>> {
        Ok(Arc::clone(batch))
    }

    fn embed(
        &mut self,
        table: &Weight,
        first: u32,
        step: &Arc<Batch>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        elementwise::embed(&self.workers, table, first, &step.tokens, out);
        Ok(())
    }

    fn rms_norm(
        &mut self,
        x: &Vec<f32>,
        weight: &Weight,
        eps: f32,
        rows: usize,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let weight = weight.vector();
        elementwise::rms_norm(&self.workers, x, weight, eps, &mut out[..rows * weight.len()]);
        Ok(())
    }

    fn add_rms_norm(
        &mut self,
        residual: &mut Vec<f32>,
        weight: &Weight,
        eps: f32,
        rows: usize,
        hidden: &mut Vec<f32>,
    ) -> Result<()> {
        let elements = rows * weight.vector().len();
        elementwise::add(&self.workers, hidden, &mut residual[..elements]);
        self.rms_norm(residual, weight, eps, rows, hidden)
    }

    fn gemm(
        &mut self,
        x: &Vec<f32>,
        weight: &Weight,
        bias: Option<&Weight>,
        rows: usize,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let x: Vec<&[f32]> = x.chunks_exact(weight.cols()).take(rows).collect();
        let onto = bias.map_or(Onto::Zero, |bias| Onto::Bias(bias.vector()));
        let out = &mut out[..rows * weight.rows()];
        weight.with_panels(|weight| gemm(&self.workers, &x, weight, onto, out, &mut self.scratch))
    }

    fn head_norm(
        &mut self,
        qkv: &mut Vec<f32>,
        heads: &Heads,
        norm: &HeadNorm<'_, Weight>,
        rows: usize,
    ) -> Result<()> {
        elementwise::head_norm(&self.workers, &mut qkv[..rows * heads.fused()], heads, norm);
        Ok(())
    }

    fn rope_kv_store(
        &mut self,
        qkv: &mut Vec<f32>,
        heads: &Heads,
        table: &Weight,
        step: &Arc<Batch>,
        cache: &mut Cache,
    ) -> Result<()> {
        elementwise::rope(&self.workers, qkv, heads, table, &step.positions);
        attention::kv_store(qkv, heads, step, cache);
        Ok(())
    }

    fn attention(
        &mut self,
        qkv: &Vec<f32>,
        heads: &Heads,
        step: &Arc<Batch>,
        cache: &Cache,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        attention::attention(&self.workers, qkv, heads, step, cache, out);
        Ok(())
    }

    fn silu_mul(
        &mut self,
        gate_up: &Vec<f32>,
        width: usize,
        rows: usize,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        elementwise::silu_mul(&self.workers, gate_up, width, &mut out[..rows * width]);
        Ok(())
    }

    fn pick_rows(
        &mut self,
        x: &Vec<f32>,
        width: usize,
        step: &Arc<Batch>,
        picked: Range<usize>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let rows: Vec<u32> = step.queries[picked].iter().map(|query| query.row).collect();
        elementwise::pick_rows(x, width, &rows, out);
        Ok(())
    }

    fn lora_len(&self, site: &Site, step: &Arc<Batch>, exchange: Exchange) -> usize {
        lora::len(site, step, exchange)
    }

    fn lora_shrink(
        &mut self,
        x: &Vec<f32>,
        site: &Site,
        step: &Arc<Batch>,
        exchange: Exchange,
        h: &mut Vec<f32>,
    ) -> Result<()> {
        lora::shrink(&self.workers, x, site, (step, exchange), h);
        Ok(())
    }

    fn lora_expand(
        &mut self,
        h: &Vec<f32>,
        site: &Site,
        step: &Arc<Batch>,
        exchange: Exchange,
        y: &mut Vec<f32>,
    ) -> Result<()> {
        lora::expand(&self.workers, h, site, (step, exchange), y);
        Ok(())
    }

    fn sample(
        &mut self,
        logits: &Vec<f32>,
        layout: &LogitsLayout,
        batch: &Batch,
        first: usize,
    ) -> Result<Vec<Answer>> {
        Ok(sampling::sample(logits, layout, batch, first))
    }
}
