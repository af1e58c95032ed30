//! Launches `argmax.cu`, and answers what it cannot.
//!
//! Greedy draws come back as one token a row. Every other draw, and every question about logprobs,
//! brings its row of logits to the host, where all backends sample alike.

use contract::step::{Answer, Batch};
use contract::tensor::DType;

use crate::error::Result;
use crate::ops::LogitsLayout;
use crate::sampling::{self, wants_largest};

use super::device::{Device, Grid, to_u32};
use super::memory::{Buf, Memory};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ArgmaxParams {
    logits: u64,
    tokens: u64,
    parts: u32,
    rows: u32,
    part_width: u32,
    vocab: u32,
}

const _: () = assert!(size_of::<ArgmaxParams>() == 32);

/// Answers `batch.queries[first..][..layout.rows]`; `tokens` is memory for one token a row, which
/// grows with the rows.
pub fn sample(
    device: &Device,
    tokens: &mut Memory,
    logits: &Buf,
    layout: &LogitsLayout,
    (batch, first): (&Batch, usize),
) -> Result<Vec<Answer>> {
    let queries = &batch.queries[first..][..layout.rows];
    let largest = if queries.iter().any(wants_largest) {
        argmax(device, tokens, logits, layout)?
    } else {
        Vec::new()
    };
    let rows = queries.iter().enumerate();
    let answer = |(row, query)| {
        if wants_largest(query) {
            return Ok(Answer { token: largest[row], ..Answer::default() });
        }
        let own = own_logits(device, logits, layout, row)?;
        let one = LogitsLayout { rows: 1, ..*layout };
        let mut answers = sampling::sample(&own, &one, batch, first + row);
        Ok(answers.pop().expect("one row has one answer: this is a bug"))
    };
    rows.map(answer).collect()
}

/// The token with the largest logit of every row.
fn argmax(
    device: &Device,
    tokens: &mut Memory,
    logits: &Buf,
    layout: &LogitsLayout,
) -> Result<Vec<u32>> {
    let LogitsLayout { parts, rows, part_width, vocab } = *layout;
    if tokens.bytes() < rows * size_of::<u32>() {
        *tokens = Memory::zeroed(&device.stream, rows * size_of::<u32>(), "sampled tokens")?;
    }
    let params = ArgmaxParams {
        logits: logits.address(DType::F32, parts * rows * part_width),
        tokens: tokens.address(),
        parts: to_u32(parts),
        rows: to_u32(rows),
        part_width: to_u32(part_width),
        vocab: to_u32(vocab),
    };
    device.launch(&device.kernels.argmax, Grid::of(rows, 1024), &params)?;
    let mut bytes = vec![0; rows * size_of::<u32>()];
    tokens.read(&device.stream, 0, &mut bytes)?;
    let words = bytes.as_chunks::<4>().0.iter();
    Ok(words.map(|word| u32::from_le_bytes(*word)).collect())
}

/// One row's logits of all parts, one after the other.
fn own_logits(
    device: &Device,
    logits: &Buf,
    layout: &LogitsLayout,
    row: usize,
) -> Result<Vec<f32>> {
    let LogitsLayout { parts, rows, part_width, .. } = *layout;
    let part =
        |part: usize| logits.read(&device.stream, (part * rows + row) * part_width, part_width);
    let pieces = (0..parts).map(part).collect::<Result<Vec<_>>>()?;
    Ok(pieces.concat())
}
