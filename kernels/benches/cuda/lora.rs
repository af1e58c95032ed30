//! Shrink and expand for batches of different adapters.

use std::sync::Arc;

use contract::adapter::{Exchange, LocalPair, PairShape, Slot};
use contract::step::{Batch, Choice, Query, Segment, Span};
use contract::tensor::DType;
use kernels::cuda::Cuda;
use kernels::error::Result;
use kernels::lora::{SiteShape, SlotPairs};
use kernels::ops::{Ops, Precision, Rows};

use crate::{activations, line, time};

/// Sites of the 8B shape: inputs, and the outputs of each target.
const SITES: [(&str, usize, &[usize]); 4] = [
    ("qkv", 4096, &[4096, 1024, 1024]),
    ("o", 4096, &[4096]),
    ("gate_up", 4096, &[14336, 14336]),
    ("down", 14336, &[4096]),
];

const ADAPTERS: usize = 32;

/// Batches of no more rows are decode: a sequence has one row.
const DECODE_ROWS_MAX: u32 = 64;

/// Sites of one kind, as many as make the adapters outgrow the cache.
const COPIES: usize = 8;

/// Lora rank, and rows of each adapter in the batch: decode of different adapters, decode of one,
/// prefill of one and of several.
const CASES: [(usize, &[u32]); 7] = [
    (16, &[1; 32]),
    (64, &[1; 32]),
    (16, &[1]),
    (16, &[64]),
    (16, &[2048]),
    (64, &[2048; 2]),
    (64, &[128; 16]),
];

pub fn run(cuda: &mut Cuda) -> Result<()> {
    for (name, input, targets) in SITES {
        for rank in [16, 64] {
            let sites = sites(cuda, input, targets, rank)?;
            for (_, segments) in CASES.into_iter().filter(|(of, _)| *of == rank) {
                measure(cuda, (name, input, targets, rank), &sites, segments)?;
            }
        }
    }
    Ok(())
}

type SiteOf = <Cuda as Ops>::Site;

fn measure(
    cuda: &mut Cuda,
    (name, input, targets, rank): (&str, usize, &[usize], usize),
    sites: &[SiteOf],
    segments: &[u32],
) -> Result<()> {
    let rows = segments.iter().sum::<u32>() as usize;
    let step = cuda.step(&batch(segments), rows.next_multiple_of(8))?;
    let (outputs, none) = (targets.iter().sum::<usize>(), Exchange::None);
    let padded = step.rows();
    let (x, mut y) = (activations(cuda, padded * input)?, activations(cuda, padded * outputs)?);
    let mut h = cuda.buf(Cuda::shrunk_rows(rows) * rank * targets.len(), Precision::Full)?;
    let shrink = time(cuda, sites.len(), |cuda| {
        sites.iter().try_for_each(|site| cuda.lora_shrink(&x, site, &step, none, &mut h))
    })?;
    let expand = time(cuda, sites.len(), |cuda| {
        sites.iter().try_for_each(|site| cuda.lora_expand(&h, site, &step, none, &mut y))
    })?;
    let case = format!("rank {rank}, {} x {} rows", segments.len(), segments[0]);
    // Of many rows, what they shrink from and add to is more than the factors.
    let (factors, element) = (segments.len() * rank, DType::Bf16.bytes());
    let (from, to) = (rows * input, 2 * rows * outputs);
    line(
        &format!("shrink {name} {case}"),
        shrink,
        (factors * input * targets.len() + from) * element,
    );
    line(&format!("expand {name} {case}"), expand, (factors * outputs + to) * element);
    if let [width, _] = *targets {
        let mut out = activations(cuda, padded * width)?;
        let gated = time(cuda, sites.len(), |cuda| {
            sites.iter().try_for_each(|site| {
                cuda.lora_expand_silu_mul(&h, site, &step, (&mut y, width), &mut out)
            })
        })?;
        let bytes = (factors * outputs + rows * (outputs + width)) * element;
        line(&format!("expand, silu_mul {name} {case}"), gated, bytes);
    }
    Ok(())
}

fn sites(cuda: &mut Cuda, input: usize, targets: &[usize], rank: usize) -> Result<Vec<SiteOf>> {
    let pairs: Vec<_> = targets.iter().map(|outputs| pair(input, *outputs, rank)).collect();
    let mut made = Vec::new();
    for _ in 0..COPIES {
        let shape = SiteShape { input, targets: targets.to_vec(), slots: ADAPTERS };
        let mut site = cuda.site(shape, DType::Bf16)?;
        for slot in 0..ADAPTERS as u32 {
            let pairs = pairs.iter().map(Some).collect();
            cuda.site_load(&mut site, &SlotPairs { slot: Slot(slot), pairs })?;
        }
        made.push(site);
    }
    Ok(made)
}

fn pair(input: usize, outputs: usize, rank: usize) -> LocalPair {
    let shape = PairShape {
        input,
        output: 0..outputs,
        shrink_rank: rank,
        expand_rank: rank,
        a_blocks: 1,
        b_blocks: 1,
        exchange: Exchange::None,
    };
    let values = |count: usize| (0..count).map(|i| (i % 251) as f32 / 3e4).collect();
    LocalPair { a: values(shape.a_len()), b: values(shape.b_len()), shape }
}

fn batch(segments: &[u32]) -> Arc<Batch> {
    let mut end = 0;
    let segment = |(slot, rows): (u32, &u32)| {
        let start = end;
        end += rows;
        Segment { slot: Some(Slot(slot)), rows: start..end }
    };
    let segments: Vec<_> = (0..).zip(segments).map(segment).collect();
    let mut batch = Batch { tokens: vec![0; end as usize], segments, ..Batch::default() };
    if end <= DECODE_ROWS_MAX {
        let query = |row| Query { row, choice: Choice::Given(0), top_logprobs: None };
        batch.spans = (0..end).map(|row| Span { rows: row..row + 1, blocks: 0..0 }).collect();
        batch.queries = (0..end).map(query).collect();
    }
    Arc::new(batch)
}
