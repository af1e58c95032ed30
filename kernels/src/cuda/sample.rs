//! Launches `choose.cu`, and answers what it does not.
//!
//! Draws come back as one token a row, and the next step may find its input in them. What else is
//! asked, about logprobs, brings its row of logits to the host, where all backends answer alike.

use contract::step::{Answer, Batch};
use contract::tensor::DType;

use crate::error::{Error, Result};
use crate::ops::LogitsLayout;
use crate::sampling;
use crate::sampling::device::{DRAW_WORDS, on_device};

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

/// Queries of the largest step: as many sequences run at once nowhere.
const QUERIES_MAX: usize = 1 << 16;

/// The tokens that the last step drew, by query, and those of two steps on their way back.
pub struct Tokens {
    device: Memory,
    /// The next to be used first.
    hosts: [Download; 2],
    /// How many of them are on their way.
    under_way: usize,
}

impl Tokens {
    /// Room for any step.
    pub fn new(device: &Device) -> Result<Self> {
        let bytes = QUERIES_MAX * size_of::<u32>();
        let host = || Download::new(&device.context, bytes);
        Ok(Self {
            device: Memory::zeroed(&device.stream, bytes, "sampled tokens")?,
            hosts: [host()?, host()?],
            under_way: 0,
        })
    }

    /// Where they lie. They stay until the next step draws.
    pub fn address(&self) -> u64 {
        self.device.address()
    }

    /// Starts to bring back those of the first `queries`.
    pub fn fetch(&mut self, device: &Device, queries: usize) -> Result<()> {
        assert!(self.under_way < 2, "three steps are under way: this is a bug");
        self.hosts[0].start(&device.stream, &self.device, queries * size_of::<u32>())?;
        self.hosts.swap(0, 1);
        self.under_way += 1;
        Ok(())
    }

    /// Whether the oldest ones on their way are there.
    pub fn is_fetched(&self) -> Result<bool> {
        self.hosts[usize::from(self.under_way == 1)].is_there()
    }

    /// Waits for the oldest ones on their way.
    pub fn fetched(&mut self) -> Result<Vec<u32>> {
        let oldest = &mut self.hosts[usize::from(self.under_way == 1)];
        self.under_way -= 1;
        Ok(words(oldest.bytes()?))
    }

    /// Waits for the stream, and reads the tokens up to the query `end`, while none are under way.
    fn read(&mut self, device: &Device, end: usize) -> Result<Vec<u32>> {
        let mut bytes = vec![0; end * size_of::<u32>()];
        self.device.read(&device.stream, 0, &mut bytes)?;
        Ok(words(&bytes))
    }
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
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
    if first + rows > QUERIES_MAX {
        return Err(Error::Device(format!("a step of over {QUERIES_MAX} queries")));
    }
    let params = ChooseParams {
        logits: logits.address(DType::F32, parts * rows * part_width),
        tokens: tokens.address() + (first * size_of::<u32>()) as u64,
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
        true => tokens.read(device, first + queries.len())?,
        false => Vec::new(),
    };
    let answer = |(row, query)| match on_device(query) {
        Some(_) => Ok(Answer { token: drawn[first + row], ..Answer::default() }),
        None => {
            let own = own_logits(device, logits, layout, row)?;
            let one = LogitsLayout { rows: 1, ..*layout };
            let mut answers = sampling::sample(&own, &one, batch, first + row);
            Ok(answers.pop().expect("one row has one answer: this is a bug"))
        }
    };
    queries.iter().enumerate().map(answer).collect()
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
