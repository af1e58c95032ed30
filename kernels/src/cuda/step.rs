//! A batch's index data, brought to the device in one copy.

use std::sync::Arc;

use contract::adapter::Slot;
use contract::step::Batch;
use cudarc::driver::CudaStream;

use crate::error::Result;

use super::attention::ROWS_OF_TILE;
use super::memory::Memory;
use super::upload::{Pinned, bytes_of};

/// What kernels look up about the rows of a batch: device addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Index {
    pub tokens: u64,
    pub positions: u64,
    /// Which span each row belongs to.
    pub row_span: u64,
    /// [`SpanEntry`], one a sequence.
    pub spans: u64,
    /// Block tables, end to end.
    pub blocks: u64,
}

const _: () = assert!(size_of::<Index>() == 40);

/// First row, rows, and start of the block table of a sequence.
type SpanEntry = [u32; 3];

/// Slot, first row and rows of a segment that has an adapter.
type SegmentEntry = [u32; 3];

/// A batch as the kernels need it. Its memory is used again once it is dropped.
pub struct Step {
    pub index: Index,
    pub rows: usize,
    /// Positions of the rows, for what the host decides.
    pub batch: Arc<Batch>,
    /// Rows that are alone in their span: decode.
    pub singles: Work,
    /// `(span, first row)` of up to [`ROWS_OF_TILE`] rows of longer spans: prefill.
    pub tiles: Work,
    pub segments: Segments,
    _memory: Arc<Indices>,
}

/// A list on the device, and how long it is.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    pub address: u64,
    pub count: usize,
}

/// The segments that have an adapter: their slots and rows, and a copy on the device.
pub struct Segments {
    pub address: u64,
    pub entries: Vec<(Slot, u32)>,
    pub rows_max: u32,
}

impl Step {
    pub fn new(pool: &mut IndexPool, batch: &Arc<Batch>) -> Result<Self> {
        let mut words = Words::default();
        let tokens = words.add(&batch.tokens);
        let positions = words.add(&batch.positions);
        let row_span = words.add(&row_span(batch));
        let spans = words.add(spans(batch).as_flattened());
        let blocks: Vec<u32> = batch.blocks.iter().map(|block| block.0).collect();
        let blocks = words.add(&blocks);
        let (singles, tiles) = (singles(batch), tiles(batch));
        let (singles_at, tiles_at) = (words.add(&singles), words.add(tiles.as_flattened()));
        let segments = segments(batch);
        let segments_at = words.add(segments.as_flattened());
        let memory = pool.upload(&words.0)?;
        let at = |word: usize| memory.device.address() + 4 * word as u64;
        Ok(Self {
            index: Index {
                tokens: at(tokens),
                positions: at(positions),
                row_span: at(row_span),
                spans: at(spans),
                blocks: at(blocks),
            },
            rows: batch.tokens.len(),
            batch: Arc::clone(batch),
            singles: Work { address: at(singles_at), count: singles.len() },
            tiles: Work { address: at(tiles_at), count: tiles.len() },
            segments: Segments {
                address: at(segments_at),
                entries: segments.iter().map(|[slot, _, rows]| (Slot(*slot), *rows)).collect(),
                rows_max: segments.iter().map(|[.., rows]| *rows).max().unwrap_or(0),
            },
            _memory: memory,
        })
    }
}

fn row_span(batch: &Batch) -> Vec<u32> {
    let spans = (0..).zip(&batch.spans);
    spans.flat_map(|(at, span)| span.rows.clone().map(move |_| at)).collect()
}

fn spans(batch: &Batch) -> Vec<SpanEntry> {
    let entry = |span: &contract::step::Span| {
        [span.rows.start, span.rows.end - span.rows.start, span.blocks.start]
    };
    batch.spans.iter().map(entry).collect()
}

fn singles(batch: &Batch) -> Vec<u32> {
    let spans = batch.spans.iter().filter(|span| span.rows.len() == 1);
    spans.map(|span| span.rows.start).collect()
}

/// The last rows of a sequence see the most, so their tiles come first.
fn tiles(batch: &Batch) -> Vec<[u32; 2]> {
    let spans = (0..).zip(&batch.spans).filter(|(_, span)| span.rows.len() > 1);
    let tile = |(at, span): (u32, &contract::step::Span)| {
        let firsts = span.rows.clone().step_by(ROWS_OF_TILE).rev();
        firsts.map(move |row| [at, row]).collect::<Vec<_>>()
    };
    spans.flat_map(tile).collect()
}

fn segments(batch: &Batch) -> Vec<SegmentEntry> {
    let entry = |segment: &contract::step::Segment| {
        Some([segment.slot?.0, segment.rows.start, segment.rows.end - segment.rows.start])
    };
    batch.segments.iter().filter_map(entry).collect()
}

/// Lists of words, each at a multiple of 16 bytes.
#[derive(Default)]
struct Words(Vec<u32>);

impl Words {
    /// Where the list starts.
    fn add(&mut self, list: &[u32]) -> usize {
        let start = self.0.len().next_multiple_of(4);
        self.0.resize(start, 0);
        self.0.extend_from_slice(list);
        start
    }
}

/// Index data on the device, and the pinned memory that it came through.
pub struct Indices {
    pub device: Memory,
    host: Pinned,
}

/// Index memory that is used again when nobody holds it any more, so that a batch like the last one
/// finds its data at the same addresses.
pub struct IndexPool {
    stream: Arc<CudaStream>,
    held: Vec<Arc<Indices>>,
}

impl IndexPool {
    pub fn new(stream: &Arc<CudaStream>) -> Self {
        Self { stream: Arc::clone(stream), held: Vec::new() }
    }

    /// Copies `words` to memory that is the caller's until it drops it.
    pub fn upload(&mut self, words: &[u32]) -> Result<Arc<Indices>> {
        let bytes = bytes_of(words);
        let at = self.free(bytes.len())?;
        let indices = Arc::get_mut(&mut self.held[at]).expect("nobody holds it: this is a bug");
        indices.host.bytes()?[..bytes.len()].copy_from_slice(bytes);
        indices.host.send(&self.stream, bytes.len(), indices.device.address())?;
        Ok(Arc::clone(&self.held[at]))
    }

    /// One that nobody holds and that has room; made if there is none.
    fn free(&mut self, bytes: usize) -> Result<usize> {
        let free = self.held.iter_mut().position(|held| Arc::get_mut(held).is_some());
        let at = free.unwrap_or(self.held.len());
        if free.is_some_and(|at| self.held[at].host.len() >= bytes) {
            return Ok(at);
        }
        let room = bytes.next_power_of_two().max(4096);
        let made = Arc::new(Indices {
            device: Memory::zeroed(&self.stream, room, "index data")?,
            host: Pinned::new(self.stream.context(), room)?,
        });
        if at == self.held.len() {
            self.held.push(made);
        } else {
            self.held[at] = made;
        }
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use contract::step::{BlockId, Segment, Span};

    use super::*;

    #[test]
    fn a_batch_is_sorted_into_decode_and_prefill() {
        let batch = Batch {
            tokens: vec![0; 133],
            spans: vec![
                Span { rows: 0..1, blocks: 0..2 },
                Span { rows: 1..131, blocks: 2..12 },
                Span { rows: 131..132, blocks: 12..13 },
                Span { rows: 132..133, blocks: 13..14 },
            ],
            blocks: (0..14).map(BlockId).collect(),
            segments: vec![
                Segment { slot: None, rows: 0..1 },
                Segment { slot: Some(Slot(7)), rows: 1..131 },
                Segment { slot: None, rows: 131..133 },
            ],
            ..Batch::default()
        };
        assert_eq!(singles(&batch), [0, 131, 132]);
        assert_eq!(tiles(&batch), [[1, 129], [1, 65], [1, 1]]);
        assert_eq!(segments(&batch), [[7, 1, 130]]);
        assert_eq!(row_span(&batch)[130..], [1, 2, 3]);
        assert_eq!(spans(&batch)[1], [1, 130, 2]);
    }

    #[test]
    fn lists_start_where_16_byte_loads_may() {
        let mut words = Words::default();
        assert_eq!([words.add(&[1, 2, 3, 4, 5]), words.add(&[6]), words.add(&[7])], [0, 8, 12]);
    }
}
