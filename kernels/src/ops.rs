//! The contract of a backend: everything that one rank computes.
//!
//! Matrices are row-major. `rows` counts rows of the batch; a buffer may be longer than what an
//! operation writes. Activations have the element type that suits the backend (f32 on the CPU, the
//! model's own on a GPU); sums are taken in f32 and in an order that depends on neither the batch
//! nor the clock, so a row computed alone equals the same row computed in a batch, bit for bit.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use contract::adapter::{Exchange, Slot};
use contract::step::{Answer, Batch};
use contract::tensor::DType;

use crate::error::{Error, Result};
use crate::lora::{SiteShape, SlotPairs};

mod attention;

pub use attention::{Attend, CacheShape, HeadNorm, Heads};

/// Rows of a weight in host memory, possibly columns of a wider matrix.
#[derive(Clone, Copy, Debug)]
pub struct WeightView<'a> {
    /// Element type of `bytes`.
    pub dtype: DType,
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// Elements from the start of a row to the start of the next.
    pub stride: usize,
    /// Little-endian elements, starting at the first row's first element. A view with rows but no
    /// bytes stands for zeros.
    pub bytes: &'a [u8],
}

impl<'a> WeightView<'a> {
    /// The elements of one row; `None` stands for zeros.
    pub fn row(&self, row: usize) -> Option<&'a [u8]> {
        if self.bytes.is_empty() {
            return None;
        }
        let start = row * self.stride * self.dtype.bytes();
        Some(&self.bytes[start..][..self.cols * self.dtype.bytes()])
    }
}

/// What a new activation buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Activations between layers.
    Activation,
    /// Logits and shrunk activations: f32 everywhere.
    Full,
}

/// Activations that can be copied within a backend.
pub trait Copied {
    /// Replaces the first `elements` by those of `from`.
    fn copy_from(&mut self, from: &Self, elements: usize) -> Result<()>;
}

impl Copied for Vec<f32> {
    fn copy_from(&mut self, from: &Self, elements: usize) -> Result<()> {
        self[..elements].copy_from_slice(&from[..elements]);
        Ok(())
    }
}

/// The memory of the device that a rank computes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// The device, in words.
    pub device: String,
    /// Below 2^24: the same for all ranks on one device, and hardly ever for others.
    pub identity: u32,
    /// All of it, in bytes.
    pub total: u64,
    /// What is free now.
    pub free: u64,
}

/// How much a step has operations compute.
pub trait Rows {
    /// Rows of activations: the batch's, and behind them the padding of a backend that knows few
    /// sizes. Nothing is written to the cache for padding.
    fn rows(&self) -> usize;

    /// Rows that [`Ops::pick_rows`] finds for the batch's queries, padding included.
    fn picked(&self) -> usize;
}

impl Rows for Arc<Batch> {
    fn rows(&self) -> usize {
        self.tokens.len()
    }

    fn picked(&self) -> usize {
        self.queries.len()
    }
}

/// One backend on one rank.
pub trait Ops: Send + 'static {
    /// Rows of logits in memory at once: enough to read the LM head rarely, few enough to be small.
    const LOGIT_ROWS: usize = 64;

    /// Whether what [`Ops::choose`] drew can be fetched, and is found by [`Ops::embed`] in the next
    /// step, for the tokens that are pending there.
    const FOLLOWS: bool = false;

    /// Activations.
    type Buf: Send;
    /// A weight matrix `[out, in]`, or a vector `[1, n]`.
    type Weight: Send + Sync;
    /// Keys and values of one layer.
    type Cache: Send;
    /// Adapter pairs of one site, all slots.
    type Site: Send;
    /// The index data of a batch, where the backend needs it.
    type Step: Rows;

    /// How much memory the device has left; `None` where that is the host's.
    fn memory(&mut self) -> Result<Option<DeviceMemory>> {
        Ok(None)
    }

    /// A zeroed buffer of `elements`.
    fn buf(&mut self, elements: usize, precision: Precision) -> Result<Self::Buf>;

    /// Writes `values` to the start of a buffer.
    fn write(&mut self, values: &[f32], buf: &mut Self::Buf) -> Result<()>;

    /// The first `elements` of a buffer.
    fn read(&mut self, buf: &Self::Buf, elements: usize) -> Result<Vec<f32>>;

    /// A weight of the views' rows, one view below the other, kept as `dtype`.
    fn weight(&mut self, parts: &[WeightView<'_>], dtype: DType) -> Result<Self::Weight>;

    /// An empty cache.
    fn cache(&mut self, shape: CacheShape) -> Result<Self::Cache>;

    /// An empty site whose pairs are kept as `dtype`.
    fn site(&mut self, shape: SiteShape, dtype: DType) -> Result<Self::Site>;

    /// Fills one slot of a site; its former content is gone.
    fn site_load(&mut self, site: &mut Self::Site, pairs: &SlotPairs<'_>) -> Result<()>;

    /// Empties one slot of a site and frees its memory.
    fn site_unload(&mut self, site: &mut Self::Site, slot: Slot);

    /// Brings a batch's index data to where the operations need it. With padding it has at most
    /// `rows_max` rows, or as many as the batch.
    fn step(&mut self, batch: &Arc<Batch>, rows_max: usize) -> Result<Self::Step>;

    /// Has `work` launch what a step computes. A backend may record it and, for steps alike, start
    /// what it recorded instead; so `work` launches the same operations on the same buffers for
    /// every step of as many rows with or without adapters, and reads nothing back.
    fn launch<E: From<Error>>(
        &mut self,
        _step: &Self::Step,
        mut work: impl FnMut(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        work(self)
    }

    /// `out[row] = table[token - first]`; zeros where the token is not in this rank's table.
    fn embed(
        &mut self,
        table: &Self::Weight,
        first: u32,
        step: &Self::Step,
        out: &mut Self::Buf,
    ) -> Result<()>;

    /// `out = x / rms(x) * weight`, with `eps` added to the mean square.
    fn rms_norm(
        &mut self,
        x: &Self::Buf,
        weight: &Self::Weight,
        eps: f32,
        rows: usize,
        out: &mut Self::Buf,
    ) -> Result<()>;

    /// `residual += hidden`, and then `hidden = residual / rms(residual) * weight`.
    fn add_rms_norm(
        &mut self,
        residual: &mut Self::Buf,
        weight: &Self::Weight,
        eps: f32,
        rows: usize,
        hidden: &mut Self::Buf,
    ) -> Result<()>;

    /// `out = x weight^T (+ bias)`, `x` `[rows, in]`, `out` `[rows, out]`.
    fn gemm(
        &mut self,
        x: &Self::Buf,
        weight: &Self::Weight,
        bias: Option<&Self::Weight>,
        rows: usize,
        out: &mut Self::Buf,
    ) -> Result<()>;

    /// [`Ops::gemm`] with the weight of a gate and of what it lets through, and then
    /// [`Ops::silu_mul`]: `out` is `[rows, width]`. What is left in `gate_up` is the backend's own
    /// affair.
    fn gemm_silu_mul(
        &mut self,
        x: &Self::Buf,
        weight: &Self::Weight,
        (rows, width): (usize, usize),
        gate_up: &mut Self::Buf,
        out: &mut Self::Buf,
    ) -> Result<()> {
        self.gemm(x, weight, None, rows, gate_up)?;
        self.silu_mul(gate_up, width, rows, out)
    }

    /// [`Ops::gemm`] of all rows of a step, with what its adapters add where no exchange is needed:
    /// [`Ops::lora_shrink`] and [`Ops::lora_expand`], `h` being in between. Some row has such a
    /// pair.
    fn adapted_gemm(
        &mut self,
        x: &Self::Buf,
        (weight, bias): (&Self::Weight, Option<&Self::Weight>),
        (site, step, h): (&Self::Site, &Self::Step, &mut Self::Buf),
        out: &mut Self::Buf,
    ) -> Result<()> {
        self.lora_shrink(x, site, step, Exchange::None, h)?;
        self.gemm(x, weight, bias, step.rows(), out)?;
        self.lora_expand(h, site, step, Exchange::None, out)
    }

    /// [`Ops::gemm`], and [`Ops::add_rms_norm`] of its result.
    fn gemm_add_rms_norm(
        &mut self,
        x: &Self::Buf,
        (weight, bias): (&Self::Weight, Option<&Self::Weight>),
        (residual, norm, eps): (&mut Self::Buf, &Self::Weight, f32),
        rows: usize,
        hidden: &mut Self::Buf,
    ) -> Result<()> {
        self.gemm(x, weight, bias, rows, hidden)?;
        self.add_rms_norm(residual, norm, eps, rows, hidden)
    }

    /// [`Ops::adapted_gemm`], and [`Ops::add_rms_norm`] of its result.
    fn adapted_gemm_add_rms_norm(
        &mut self,
        x: &Self::Buf,
        weight: (&Self::Weight, Option<&Self::Weight>),
        (site, step, h): (&Self::Site, &Self::Step, &mut Self::Buf),
        (residual, norm, eps): (&mut Self::Buf, &Self::Weight, f32),
        hidden: &mut Self::Buf,
    ) -> Result<()> {
        self.adapted_gemm(x, weight, (site, step, h), hidden)?;
        self.add_rms_norm(residual, norm, eps, step.rows(), hidden)
    }

    /// [`Ops::adapted_gemm`] with the weight of a gate and of what it lets through, and then
    /// [`Ops::silu_mul`], as [`Ops::gemm_silu_mul`] has it.
    fn adapted_gemm_silu_mul(
        &mut self,
        x: &Self::Buf,
        (weight, width): (&Self::Weight, usize),
        (site, step, h): (&Self::Site, &Self::Step, &mut Self::Buf),
        gate_up: &mut Self::Buf,
        out: &mut Self::Buf,
    ) -> Result<()> {
        self.lora_shrink(x, site, step, Exchange::None, h)?;
        self.gemm(x, weight, None, step.rows(), gate_up)?;
        self.lora_expand_silu_mul(h, site, step, (gate_up, width), out)
    }

    /// Normalises every query and key head of fused rows by itself.
    fn head_norm(
        &mut self,
        qkv: &mut Self::Buf,
        heads: &Heads,
        norm: &HeadNorm<'_, Self::Weight>,
        rows: usize,
    ) -> Result<()>;

    /// Rotates the query and key heads of fused rows (rotate-half, as Hugging Face does) by
    /// `table[position]`, whose rows are `[cos(dim / 2) | sin(dim / 2)]` in f32, and writes keys
    /// and values into the cache. What is left of the keys in `qkv` is the backend's own affair.
    fn rope_kv_store(
        &mut self,
        qkv: &mut Self::Buf,
        heads: &Heads,
        table: &Self::Weight,
        step: &Self::Step,
        cache: &mut Self::Cache,
    ) -> Result<()>;

    /// Causal attention of every row over its sequence's cached positions, its own included.
    /// `out` is `[rows, queries * dim]`.
    fn attention(
        &mut self,
        qkv: &Self::Buf,
        heads: &Heads,
        step: &Self::Step,
        cache: &Self::Cache,
        out: &mut Self::Buf,
    ) -> Result<()>;

    /// [`Ops::rope_kv_store`] and then [`Ops::attention`]: what is left in `qkv` is the backend's
    /// own affair.
    fn rope_attention(
        &mut self,
        qkv: &mut Self::Buf,
        heads: &Heads,
        table: &Self::Weight,
        step: &Self::Step,
        cache: &mut Self::Cache,
        out: &mut Self::Buf,
    ) -> Result<()> {
        self.rope_kv_store(qkv, heads, table, step, cache)?;
        self.attention(qkv, heads, step, cache, out)
    }

    /// [`Ops::gemm`] to queries, keys and values, and [`Ops::rope_attention`] of them.
    fn gemm_rope_attention(
        &mut self,
        x: &Self::Buf,
        (weight, bias): (&Self::Weight, Option<&Self::Weight>),
        step: &Self::Step,
        attend: Attend<'_, Self>,
    ) -> Result<()> {
        let Attend { heads, table, cache, qkv, out } = attend;
        self.gemm(x, weight, bias, step.rows(), qkv)?;
        self.rope_attention(qkv, heads, table, step, cache, out)
    }

    /// [`Ops::adapted_gemm`] to queries, keys and values, and [`Ops::rope_attention`] of them.
    fn adapted_gemm_rope_attention(
        &mut self,
        x: &Self::Buf,
        weight: (&Self::Weight, Option<&Self::Weight>),
        (site, step, h): (&Self::Site, &Self::Step, &mut Self::Buf),
        attend: Attend<'_, Self>,
    ) -> Result<()> {
        let Attend { heads, table, cache, qkv, out } = attend;
        self.adapted_gemm(x, weight, (site, step, h), qkv)?;
        self.rope_attention(qkv, heads, table, step, cache, out)
    }

    /// `out = silu(gate) * up`, rows of `gate_up` are `[gate(width) | up(width)]`.
    fn silu_mul(
        &mut self,
        gate_up: &Self::Buf,
        width: usize,
        rows: usize,
        out: &mut Self::Buf,
    ) -> Result<()>;

    /// `out[i] = x[row of query picked.start + i]`, rows of `width`, for the queries `picked`.
    fn pick_rows(
        &mut self,
        x: &Self::Buf,
        width: usize,
        step: &Self::Step,
        picked: Range<usize>,
        out: &mut Self::Buf,
    ) -> Result<()>;

    /// Rows of shrunk activations to have room for, where batches have `rows_max` at most, each of
    /// a multiple of 8.
    fn shrunk_rows(rows_max: usize) -> usize {
        rows_max
    }

    /// Elements that `lora_shrink` writes for this step and kind of exchange; 0 means that no row
    /// has such a pair. Equal on all ranks. Without an exchange, their order is the backend's own.
    fn lora_len(&self, site: &Self::Site, step: &Self::Step, exchange: Exchange) -> usize;

    /// `h = x A^T` for every row and every pair of its slot that has this exchange, ragged as
    /// [`crate::lora`] says.
    fn lora_shrink(
        &mut self,
        x: &Self::Buf,
        site: &Self::Site,
        step: &Self::Step,
        exchange: Exchange,
        h: &mut Self::Buf,
    ) -> Result<()>;

    /// `y += h B^T` for the same rows and pairs. After [`Exchange::Gather`], `h` is the ranks'
    /// shrunk activations one after the other, each `lora_len` long; a pair's lora rank is theirs
    /// put side by side.
    fn lora_expand(
        &mut self,
        h: &Self::Buf,
        site: &Self::Site,
        step: &Self::Step,
        exchange: Exchange,
        y: &mut Self::Buf,
    ) -> Result<()>;

    /// [`Ops::lora_expand`] of pairs without an exchange to a gate and what it lets through,
    /// `width` columns of each, and then [`Ops::silu_mul`] of all rows. What is left in `gate_up`
    /// is the backend's own affair.
    fn lora_expand_silu_mul(
        &mut self,
        h: &Self::Buf,
        site: &Self::Site,
        step: &Self::Step,
        (gate_up, width): (&mut Self::Buf, usize),
        out: &mut Self::Buf,
    ) -> Result<()> {
        self.lora_expand(h, site, step, Exchange::None, gate_up)?;
        self.silu_mul(gate_up, width, step.rows(), out)
    }

    /// Starts choosing a token for every row of logits, as far as the backend does it where the
    /// logits are: the part of [`Ops::sample`] that reads nothing back.
    fn choose(
        &mut self,
        _logits: &Self::Buf,
        _layout: &LogitsLayout,
        _step: &Self::Step,
        _first: usize,
    ) -> Result<()> {
        Ok(())
    }

    /// Where [`Self::FOLLOWS`]: starts to bring back what [`Ops::choose`] drew for the step's
    /// `queries`, which is all that they ask. No more than two steps are under way.
    fn fetch(&mut self, _queries: usize) -> Result<()> {
        Ok(())
    }

    /// Whether the tokens of the oldest step under way are there.
    fn is_fetched(&mut self) -> Result<bool> {
        Ok(true)
    }

    /// Waits for the tokens of the oldest step under way.
    fn fetched(&mut self) -> Result<Vec<u32>> {
        Ok(Vec::new())
    }

    /// Has steps from now on tell how long the device stood idle before them, where it can.
    fn time_idle(&mut self) -> Result<()> {
        Ok(())
    }

    /// How long the device stood idle before the oldest step that was not asked about. Its results
    /// are there.
    fn idle(&mut self) -> Result<Option<Duration>> {
        Ok(None)
    }

    /// Answers the queries from `first` on, as many as `layout.rows` or as are left, after
    /// [`Ops::choose`] for the same ones. `logits` is `[parts][rows][part_width]` in f32, as an
    /// all-gather over ranks leaves it; columns from `vocab` on are padding.
    fn sample(
        &mut self,
        logits: &Self::Buf,
        layout: &LogitsLayout,
        batch: &Batch,
        first: usize,
    ) -> Result<Vec<Answer>>;
}

/// How gathered logits lie in memory.
#[derive(Clone, Copy, Debug)]
pub struct LogitsLayout {
    /// Ranks that contributed.
    pub parts: usize,
    /// Rows of logits.
    pub rows: usize,
    /// Tokens of one rank.
    pub part_width: usize,
    /// Tokens in all.
    pub vocab: usize,
}
