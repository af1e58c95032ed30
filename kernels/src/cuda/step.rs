//! A batch's index data, brought to the device in one copy.

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;

use contract::adapter::Slot;
use contract::step::Batch;

use crate::error::Result;
use crate::ops::Rows;
use crate::sampling::device::{DRAW_WORDS, Draws};

use super::attention::{ROWS_OF_TILE, chunks_of};
use super::index::{IndexPool, Indices, Words};
use super::lora_decode::ROWS;

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

/// Slot, first row and rows of a segment; [`NO_SLOT`] where it has no adapter.
type SegmentEntry = [u32; 3];
const NO_SLOT: u32 = u32::MAX;

/// A batch as the kernels need it. Its memory is used again once it is dropped.
pub struct Step {
    pub index: Index,
    /// Padding included.
    pub rows: usize,
    /// What steps that the same graph serves have in common; `None` where none does.
    pub alike: Option<Alike>,
    /// Positions of the rows, for what the host decides.
    pub batch: Arc<Batch>,
    /// Rows that are alone in their span: decode.
    pub singles: Work,
    /// `(span, first row)` of up to [`ROWS_OF_TILE`] rows of longer spans: prefill.
    pub tiles: Work,
    pub segments: Segments,
    /// Rows of the queries.
    pub picked: Work,
    /// How each query's token is drawn, on the device.
    pub draws: u64,
    _memory: Option<Arc<Indices>>,
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
    /// Of how many there are, on the device.
    pub count: u64,
    /// Those too that have no adapter, behind the others, and the padding: in steps alike.
    pub all: Option<Listed>,
    pub entries: Vec<Segment>,
}

/// A list of segments on the device, and where it says of how many.
#[derive(Clone, Copy, Debug)]
pub struct Listed {
    pub address: u64,
    pub count: u64,
}

/// Consecutive rows with one adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub slot: Slot,
    pub row: u32,
    pub rows: u32,
}

/// Neighbouring segments that one launch serves, by their places in [`Segments::entries`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub segments: Range<usize>,
    pub rows_max: u32,
}

impl Step {
    /// Decode is padded to a size that a graph is kept for, if that is no more than `rows_max`.
    pub fn new(pool: &mut IndexPool, batch: &Arc<Batch>, rows_max: usize) -> Result<Self> {
        match Alike::of(batch, rows_max) {
            Some(alike) => Self::padded(pool, batch, alike),
            None => Self::exact(pool, batch),
        }
    }

    /// At the addresses of all steps alike: only what changes from step to step is at the end.
    fn padded(pool: &mut IndexPool, batch: &Arc<Batch>, alike: Alike) -> Result<Self> {
        let (mut words, rows) = (Words::default(), alike.rows);
        let tokens = words.add_padded(&tokens(batch), rows, 0);
        let positions = words.add_padded(&batch.positions, rows, PADDING);
        let each: Vec<u32> = (0..rows as u32).collect();
        let each = words.add(&each);
        let spans = words.add_padded(spans(batch).as_flattened(), 3 * rows, 0);
        let (segments, others) = (pieces(&segments(batch)), pieces(&segments_without(batch, rows)));
        let all = [segments.as_slice(), &others].concat();
        let count = words.add(&[segments.len() as u32]);
        let segments_at = words.add_padded(segments.as_flattened(), 3 * rows, 0);
        let count_all = words.add(&[all.len() as u32]);
        let all_at = words.add_padded(all.as_flattened(), 3 * rows, 0);
        let draws = words.add_padded(&[], rows * DRAW_WORDS, 0);
        let blocks = words.add_all(batch.blocks.iter().map(|block| block.0));
        add_draws(&mut words, draws, Draws::new(batch, rows));
        let start = pool.upload_decode(&words.0)?;
        let at = |word: usize| start + 4 * word as u64;
        Ok(Self {
            index: Index {
                tokens: at(tokens),
                positions: at(positions),
                row_span: at(each),
                spans: at(spans),
                blocks: at(blocks),
            },
            rows,
            alike: Some(alike),
            batch: Arc::clone(batch),
            singles: Work { address: at(each), count: rows },
            tiles: Work { address: 0, count: 0 },
            segments: Segments {
                all: Some(Listed { address: at(all_at), count: at(count_all) }),
                ..Segments::new(at(segments_at), at(count), &segments)
            },
            picked: Work { address: at(each), count: rows },
            draws: at(draws),
            _memory: None,
        })
    }

    fn exact(pool: &mut IndexPool, batch: &Arc<Batch>) -> Result<Self> {
        let mut words = Words::default();
        let tokens = words.add(&tokens(batch));
        let positions = words.add(&batch.positions);
        let row_span = words.add(&row_span(batch));
        let spans = words.add(spans(batch).as_flattened());
        let blocks = words.add_all(batch.blocks.iter().map(|block| block.0));
        let (singles, tiles) = (singles(batch), tiles(batch));
        let (singles_at, tiles_at) = (words.add(&singles), words.add(tiles.as_flattened()));
        let segments = segments(batch);
        let count = words.add(&[segments.len() as u32]);
        let segments_at = words.add(segments.as_flattened());
        let picked = words.add_all(batch.queries.iter().map(|query| query.row));
        let draws = words.add_padded(&[], batch.queries.len() * DRAW_WORDS, 0);
        add_draws(&mut words, draws, Draws::new(batch, batch.queries.len()));
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
            alike: None,
            batch: Arc::clone(batch),
            singles: Work { address: at(singles_at), count: singles.len() },
            tiles: Work { address: at(tiles_at), count: tiles.len() },
            segments: Segments::new(at(segments_at), at(count), &segments),
            picked: Work { address: at(picked), count: batch.queries.len() },
            draws: at(draws),
            _memory: Some(memory),
        })
    }
}

impl Rows for Step {
    fn rows(&self) -> usize {
        self.rows
    }

    fn picked(&self) -> usize {
        self.picked.count
    }
}

/// Writes draws to the room that was made for them, and their edits behind everything.
fn add_draws(words: &mut Words, at: usize, mut draws: Draws) {
    let edits = words.add(&draws.edits);
    draws.part(edits - at);
    words.0[at..][..draws.draws.len()].copy_from_slice(&draws.draws);
}

/// The same rows in segments of as many as `lora_decode.cuh` takes.
fn pieces(segments: &[SegmentEntry]) -> Vec<SegmentEntry> {
    let cut = |[slot, row, rows]: &SegmentEntry| {
        let (slot, end) = (*slot, row + rows);
        let firsts = (*row..end).step_by(ROWS);
        firsts.map(move |row| [slot, row, (end - row).min(ROWS as u32)]).collect::<Vec<_>>()
    };
    segments.iter().flat_map(cut).collect()
}

impl Segments {
    fn new(address: u64, count: u64, entries: &[SegmentEntry]) -> Self {
        let entries = entries.iter().map(Segment::new).collect();
        Self { address, count, all: None, entries }
    }

    /// The longest runs of those that `belongs` names by their places.
    pub fn runs(&self, belongs: impl Fn(usize) -> bool) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for at in (0..self.entries.len()).filter(|at| belongs(*at)) {
            let rows = self.entries[at].rows;
            match runs.last_mut().filter(|run| run.segments.end == at) {
                Some(run) => {
                    run.segments.end += 1;
                    run.rows_max = run.rows_max.max(rows);
                }
                None => runs.push(Run { segments: at..at + 1, rows_max: rows }),
            }
        }
        runs
    }
}

impl Segment {
    fn new([slot, row, rows]: &SegmentEntry) -> Self {
        Self { slot: Slot(*slot), row: *row, rows: *rows }
    }
}

/// What steps of decode have in common that one recorded graph serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Alike {
    /// Rows, with padding.
    pub rows: usize,
    /// Chunks that a row's attention is cut into, at most.
    pub chunks: usize,
    /// Whether a row has an adapter.
    pub adapted: bool,
}

/// On a token that the step before draws, whose query the rest is (`params.cuh`).
const PENDING: u32 = 1 << 31;

/// The tokens as kernels take them.
fn tokens(batch: &Batch) -> Vec<u32> {
    let mut tokens = batch.tokens.clone();
    for pending in &batch.pending {
        tokens[pending.row as usize] = PENDING | pending.query;
    }
    tokens
}

/// Position of a row that pads a step (`params.cuh`).
const PADDING: u32 = u32::MAX;

/// Rows of the largest step that a graph serves.
pub const ALIKE_ROWS_MAX: usize = 256;

impl Alike {
    /// `None` where a sequence has more than one row, or a row no query or more than one.
    fn of(batch: &Batch, rows_max: usize) -> Option<Self> {
        let rows = batch.tokens.len();
        let asked = (0..).zip(&batch.queries).all(|(row, query)| query.row == row);
        let decode = batch.spans.len() == rows && batch.queries.len() == rows && asked;
        let sizes_max = rows_max.min(ALIKE_ROWS_MAX);
        if !decode || rows == 0 || rows > sizes_max {
            return None;
        }
        let last = batch.positions.iter().max().map_or(0, |last| *last as usize);
        Some(Self {
            rows: size(rows).min(sizes_max),
            chunks: chunks_of(last + 1).next_power_of_two(),
            adapted: batch.segments.iter().any(|segment| segment.slot.is_some()),
        })
    }
}

/// The least number of rows, from this one on, that graphs are recorded for: padding costs at most
/// a fifth of a large step.
fn size(rows: usize) -> usize {
    match rows {
        0..=4 => rows.next_power_of_two(),
        5..=64 => rows.next_multiple_of(8),
        65..=128 => rows.next_multiple_of(16),
        _ => rows.next_multiple_of(32),
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

/// Those that see the most come first, of all sequences: a card is done when its last block is.
fn tiles(batch: &Batch) -> Vec<[u32; 2]> {
    let spans = (0..).zip(&batch.spans).filter(|(_, span)| span.rows.len() > 1);
    let tile = |(at, span): (u32, &contract::step::Span)| {
        span.rows.clone().step_by(ROWS_OF_TILE).map(move |row| [at, row])
    };
    let mut tiles: Vec<_> = spans.flat_map(tile).collect();
    tiles.sort_by_key(|[_, row]| Reverse(batch.positions[*row as usize]));
    tiles
}

fn segments(batch: &Batch) -> Vec<SegmentEntry> {
    let segments = batch.segments.iter().filter(|segment| !segment.rows.is_empty());
    segments.filter_map(|segment| Some(entry(segment.slot?.0, segment))).collect()
}

/// Those that have no adapter, and what the batch is padded with to so many rows.
fn segments_without(batch: &Batch, rows: usize) -> Vec<SegmentEntry> {
    let segments = batch.segments.iter().filter(|segment| !segment.rows.is_empty());
    let without = segments.filter(|segment| segment.slot.is_none());
    let own = batch.tokens.len();
    let padding = (own < rows).then(|| [NO_SLOT, own as u32, (rows - own) as u32]);
    without.map(|segment| entry(NO_SLOT, segment)).chain(padding).collect()
}

fn entry(slot: u32, segment: &contract::step::Segment) -> SegmentEntry {
    [slot, segment.rows.start, segment.rows.end - segment.rows.start]
}

#[cfg(test)]
mod tests {
    use contract::step::{BlockId, Segment, Span};

    use super::*;

    #[test]
    fn a_batch_is_sorted_into_decode_and_prefill() {
        let positions = [4].into_iter().chain(0..130).chain([9, 9]).chain(100..103);
        let batch = Batch {
            tokens: vec![0; 136],
            positions: positions.collect(),
            spans: vec![
                Span { rows: 0..1, blocks: 0..2 },
                Span { rows: 1..131, blocks: 2..12 },
                Span { rows: 131..132, blocks: 12..13 },
                Span { rows: 132..133, blocks: 13..14 },
                Span { rows: 133..136, blocks: 14..24 },
            ],
            blocks: (0..24).map(BlockId).collect(),
            segments: vec![
                Segment { slot: None, rows: 0..1 },
                Segment { slot: Some(Slot(7)), rows: 1..131 },
                Segment { slot: None, rows: 131..136 },
            ],
            ..Batch::default()
        };
        assert_eq!(singles(&batch), [0, 131, 132]);
        assert_eq!(tiles(&batch), [[1, 129], [4, 133], [1, 1]]);
        assert_eq!(segments(&batch), [[7, 1, 130]]);
        let without = [[NO_SLOT, 0, 1], [NO_SLOT, 131, 5], [NO_SLOT, 136, 8]];
        assert_eq!(segments_without(&batch, 136), without[..2]);
        assert_eq!(segments_without(&batch, 144), without);
        assert_eq!(row_span(&batch)[130..], [1, 2, 3, 4, 4, 4]);
        assert_eq!(spans(&batch)[1], [1, 130, 2]);
    }

    #[test]
    fn segments_that_do_not_belong_part_runs() {
        let segments = Segments::new(0, 0, &[[0, 0, 4], [1, 4, 9], [2, 13, 300], [0, 313, 1]]);
        let runs = segments.runs(|at| segments.entries[at].rows < 100);
        let run = |segments, rows_max| Run { segments, rows_max };
        assert_eq!(runs, [run(0..2, 9), run(3..4, 1)]);
        assert_eq!(segments.runs(|_| false), []);
    }

    #[test]
    fn pending_tokens_name_the_query_that_draws_them() {
        let pending = |row, query| contract::step::Pending { row, query };
        let pending = vec![pending(0, 2), pending(2, 0)];
        let batch = Batch { tokens: vec![0, 7, 0], pending, ..Batch::default() };
        assert_eq!(tokens(&batch), [PENDING | 2, 7, PENDING]);
    }

    fn decode(rows: u32, position: u32) -> Batch {
        let choice = contract::step::Choice::Given(0);
        let query = |row| contract::step::Query { row, choice: choice.clone(), top_logprobs: None };
        Batch {
            tokens: vec![0; rows as usize],
            positions: vec![position; rows as usize],
            spans: (0..rows).map(|row| Span { rows: row..row + 1, blocks: 0..1 }).collect(),
            queries: (0..rows).map(query).collect(),
            ..Batch::default()
        }
    }

    #[test]
    fn steps_of_decode_are_alike_and_others_are_not() {
        let of = |rows, position, rows_max| Alike::of(&decode(rows, position), rows_max);
        let alike = |rows, chunks| Some(Alike { rows, chunks, adapted: false });
        assert_eq!(
            [of(1, 0, 9), of(3, 383, 9), of(7, 384, 64)],
            [alike(1, 1), alike(4, 1), alike(8, 2)]
        );
        assert_eq!([of(70, 9000, 999), of(7, 900, 7)], [alike(80, 16), alike(7, 4)]);
        assert_eq!([of(8, 0, 7), of(257, 0, 999), of(0, 0, 9)], [None; 3]);
        let mut prefill = decode(3, 5);
        prefill.spans.pop();
        assert_eq!(Alike::of(&prefill, 9), None);
        let mut unasked = decode(3, 5);
        unasked.queries.remove(0);
        assert_eq!(Alike::of(&unasked, 9), None);
    }
}
