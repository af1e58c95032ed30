//! Launches `choose.cu`, and answers what it does not.
//!
//! Draws come back as one token a row. What else is asked, about logprobs, brings its row of logits
//! to the host, where all backends answer alike.

use contract::step::{Answer, Batch};
use contract::tensor::DType;

use crate::error::Result;
use crate::ops::LogitsLayout;
use crate::sampling::device::{DRAW_WORDS, UNDECIDED, on_device};
use crate::sampling::{self, draw_by_weight};

use super::device::{Device, Grid, to_u32};
use super::download::Download;
use super::memory::{Buf, Memory};
use super::step::Step;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ChooseParams {
    logits: u64,
    tokens: u64,
    draws: u64,
    rows: u32,
    part_width: u32,
    vocab: u32,
    padding: u32,
}

const _: () = assert!(size_of::<ChooseParams>() == 40);

/// The tokens drawn, on the device and on their way back.
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

/// Draws a token for every row of logits, those of the step's queries from `first` on.
pub fn choose(
    device: &Device,
    tokens: &mut Tokens,
    logits: &Buf,
    layout: &LogitsLayout,
    (step, first): (&Step, usize),
) -> Result<()> {
    let LogitsLayout { parts, rows, part_width, vocab } = *layout;
    let params = ChooseParams {
        logits: logits.address(DType::F32, parts * rows * part_width),
        tokens: tokens.device.address(),
        draws: step.draws + (first * DRAW_WORDS * size_of::<u32>()) as u64,
        rows: to_u32(rows),
        part_width: to_u32(part_width),
        vocab: to_u32(vocab),
        padding: 0,
    };
    device.launch(&device.kernels.choose, Grid::of(rows, 1024), &params)
}

/// Answers the queries from `first` on, as many as there are rows of logits, after [`choose`].
pub fn sample(
    device: &Device,
    tokens: &mut Tokens,
    logits: &Buf,
    layout: &LogitsLayout,
    (batch, first): (&Batch, usize),
) -> Result<Vec<Answer>> {
    let queries = &batch.queries[first..];
    let queries = &queries[..queries.len().min(layout.rows)];
    let drawn = match queries.iter().any(|query| on_device(query).is_some()) {
        true => tokens.read(device, queries.len())?,
        false => Vec::new(),
    };
    let answer = |(row, query)| match on_device(query) {
        Some(_) if drawn[row] != UNDECIDED => Ok(Answer { token: drawn[row], ..Answer::default() }),
        Some(draw) => {
            let token =
                draw_by_weight(draw, &own_logits(device, logits, layout, row)?[..layout.vocab]);
            Ok(Answer { token, ..Answer::default() })
        }
        None => {
            let own = own_logits(device, logits, layout, row)?;
            let one = LogitsLayout { rows: 1, ..*layout };
            let mut answers = sampling::sample(&own, &one, batch, first + row);
            Ok(answers.pop().expect("one row has one answer: this is a bug"))
        }
    };
    queries.iter().enumerate().map(answer).collect()
}

/// One row's logits of all parts, one after the other; or its weights, where a draw was left.
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
