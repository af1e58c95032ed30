//! Launches `argmax.cu`, and answers what it cannot.
//!
//! The largest logit of every row is found where the logits are, and comes back as one token a row.
//! Every draw that is not greedy, and every question about logprobs, brings its row of logits to
//! the host, where all backends sample alike.

use contract::step::{Answer, Batch};
use contract::tensor::DType;

use crate::error::Result;
use crate::ops::LogitsLayout;
use crate::sampling::{self, wants_largest};

use super::device::{Device, Grid, to_u32};
use super::download::Download;
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

/// The tokens of the largest logits, on the device and on their way back.
pub struct Tokens {
    device: Memory,
    host: Download,
}

impl Tokens {
    /// Room for `rows`.
    pub fn new(device: &Device, rows: usize) -> Result<Self> {
        let bytes = rows * size_of::<u32>();
        Ok(Self {
            device: Memory::zeroed(&device.stream, bytes, "sampled tokens")?,
            host: Download::new(&device.context, bytes)?,
        })
    }

    /// Waits for the stream, and reads the tokens of the first `rows`.
    fn read(&mut self, device: &Device, rows: usize) -> Result<Vec<u32>> {
        let bytes = self.host.read(&device.stream, &self.device, rows * size_of::<u32>())?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }
}

/// Answers the queries from `first` on, as many as there are rows of logits; [`argmax`] is done.
pub fn sample(
    device: &Device,
    tokens: &mut Tokens,
    logits: &Buf,
    layout: &LogitsLayout,
    (batch, first): (&Batch, usize),
) -> Result<Vec<Answer>> {
    let queries = &batch.queries[first..];
    let queries = &queries[..queries.len().min(layout.rows)];
    let largest = match queries.iter().any(wants_largest) {
        true => tokens.read(device, queries.len())?,
        false => Vec::new(),
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

/// Finds the token with the largest logit of every row.
pub fn argmax(
    device: &Device,
    tokens: &mut Tokens,
    logits: &Buf,
    layout: &LogitsLayout,
) -> Result<()> {
    let LogitsLayout { parts, rows, part_width, vocab } = *layout;
    let params = ArgmaxParams {
        logits: logits.address(DType::F32, parts * rows * part_width),
        tokens: tokens.device.address(),
        parts: to_u32(parts),
        rows: to_u32(rows),
        part_width: to_u32(part_width),
        vocab: to_u32(vocab),
    };
    device.launch(&device.kernels.argmax, Grid::of(rows, 1024), &params)
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
