//! The specification of every operation: plain loops, f32 sums, one file a concern.
//!
//! Nothing here is fast and everything is meant to be read. Weights, caches and pairs are rounded
//! to their element type when they are stored and read back as f32.

mod tensor;
mod embed;
mod norm;
mod linear;
mod rope;
mod attention;
mod activation;
mod lora;

use std::ops::Range;
use std::sync::Arc;

use contract::adapter::{Exchange, Slot};
use contract::step::{Answer, Batch};
use contract::tensor::DType;

use crate::error::Result;
use crate::lora::{SiteShape, SlotPairs};
use crate::ops::{CacheShape, HeadNorm, Heads, LogitsLayout, Ops, Precision, WeightView};
use crate::sampling;

use attention::Cache;
use lora::Site;
use tensor::Tensor;

/// The backend that the others are held to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Ops for Reference {
    type Buf = Vec<f32>;
    type Weight = Tensor;
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

    fn weight(&mut self, parts: &[WeightView<'_>], dtype: DType) -> Result<Tensor> {
        Ok(Tensor::stack(parts, dtype))
    }

    fn cache(&mut self, shape: CacheShape) -> Result<Cache> {
        Ok(Cache::new(shape))
    }

    fn site(&mut self, shape: SiteShape, dtype: DType) -> Result<Site> {
        Ok(Site::new(shape, dtype))
    }

    fn site_load(&mut self, site: &mut Site, pairs: &SlotPairs<'_>) -> Result<()> {
        site.load(pairs);
        Ok(())
    }

    fn site_unload(&mut self, site: &mut Site, slot: Slot) {
        site.unload(slot);
    }

    fn step(&mut self, batch: &Arc<Batch>, _rows_max: usize) -> Result<Arc<Batch>> {
        Ok(Arc::clone(batch))
    }

    fn embed(
        &mut self,
        table: &Tensor,
        first: u32,
        step: &Arc<Batch>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        embed::embed(table, first, &step.tokens, out);
        Ok(())
    }

    fn rms_norm(
        &mut self,
        x: &Vec<f32>,
        weight: &Tensor,
        eps: f32,
        rows: usize,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        norm::rms_norm(x, weight, eps, rows, out);
        Ok(())
    }

    fn add_rms_norm(
        &mut self,
        residual: &mut Vec<f32>,
        weight: &Tensor,
        eps: f32,
        rows: usize,
        hidden: &mut Vec<f32>,
    ) -> Result<()> {
        activation::add(hidden, rows * weight.cols, residual);
        norm::rms_norm(residual, weight, eps, rows, hidden);
        Ok(())
    }

    fn gemm(
        &mut self,
        x: &Vec<f32>,
        weight: &Tensor,
        bias: Option<&Tensor>,
        rows: usize,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        linear::gemm(x, weight, bias, rows, out);
        Ok(())
    }

    fn head_norm(
        &mut self,
        qkv: &mut Vec<f32>,
        heads: &Heads,
        norm: &HeadNorm<'_, Tensor>,
        rows: usize,
    ) -> Result<()> {
        norm::head_norm(qkv, heads, norm, rows);
        Ok(())
    }

    fn rope_kv_store(
        &mut self,
        qkv: &mut Vec<f32>,
        heads: &Heads,
        table: &Tensor,
        step: &Arc<Batch>,
        cache: &mut Cache,
    ) -> Result<()> {
        rope::rope(qkv, heads, table, &step.positions);
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
        attention::attention(qkv, heads, step, cache, out);
        Ok(())
    }

    fn silu_mul(
        &mut self,
        gate_up: &Vec<f32>,
        width: usize,
        rows: usize,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        activation::silu_mul(gate_up, width, rows, out);
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
        embed::pick_rows(x, width, &rows, out);
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
        lora::shrink(x, site, step, exchange, h);
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
        lora::expand(h, site, step, exchange, y);
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
