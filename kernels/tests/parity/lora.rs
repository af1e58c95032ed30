//! Shrink and expand of mixed batches.

use std::ops::Range;
use std::sync::Arc;

use contract::adapter::{Exchange, LocalPair, PairShape, Slot};
use contract::step::{Batch, Choice, Query, Segment, Span};
use contract::tensor::DType;
use kernels::lora::{SiteShape, SlotPairs};
use kernels::ops::{Ops, Precision, Rows};

use crate::bench::{Bench, Case, Random, poisoned_as, upload, upload_as};

/// Consecutive rows with one adapter, or none: slot and number of rows.
pub type Share = (Option<u32>, u32);

/// Which adapter each row has, by the mixes of Punica's tests; `None` is the base.
const MIXES: [(&str, &[Share]); 6] = [
    ("base only", &[(None, 5)]),
    ("identical", &[(Some(1), 9)]),
    (
        "distinct",
        &[(None, 2), (Some(0), 1), (Some(1), 1), (Some(2), 1), (Some(3), 1), (Some(4), 1)],
    ),
    ("uniform", &[(Some(0), 3), (Some(2), 3), (Some(3), 3), (None, 3)]),
    ("skewed", &[(Some(2), 37), (Some(4), 1), (None, 1), (Some(3), 2)]),
    ("empty segments", &[(None, 0), (Some(3), 0), (Some(0), 4), (Some(1), 0)]),
];

/// Ranks that take part in an all-gather.
const PARTS: usize = 3;

/// Two targets of 96 and 40 columns over an input of 120, and the pairs that five slots hold for
/// them: lora rank of shrink, blocks of A, blocks of B. Slot 4 is loaded twice.
const TARGETS: [usize; 2] = [96, 40];
const INPUT: usize = 120;

/// The same where targets and inputs are wide enough for tiles, and rows many enough.
const WIDE_TARGETS: [usize; 2] = [192, 128];
const WIDE_INPUT: usize = 1320;
const WIDE_SLOTS: [[Option<(usize, usize, usize)>; 2]; 5] = [
    [Some((1, 1, 1)), Some((6, 1, 2))],
    [Some((16, 1, 1)), None],
    [Some((12, 1, 3)), Some((64, 1, 1))],
    [None, Some((33, 1, 1))],
    [Some((24, 1, 3)), Some((48, 1, 2))],
];
const WIDE_MIX: &[Share] =
    &[(Some(4), 150), (None, 2), (Some(0), 1), (Some(3), 17), (Some(2), 40), (Some(1), 64)];
const SLOTS: [[Option<(usize, usize, usize)>; 2]; 5] = [
    [Some((1, 1, 1)), Some((2, 1, 1))],
    [Some((16, 1, 1)), None],
    [Some((12, 4, 2)), Some((5, 1, 1))],
    [None, Some((256, 1, 1))],
    [Some((24, 8, 8)), Some((8, 2, 4))],
];

pub fn check<O: Ops>(bench: &mut Bench<O>) {
    check_wide(bench);
    for exchange in [Exchange::None, Exchange::Reduce, Exchange::Gather] {
        let slots = SLOTS.map(|pairs| {
            let mut pair = |target: usize| {
                let outputs = (target, TARGETS[target]);
                let pair = pairs[target]?;
                Some(local_pair(&mut bench.random, (INPUT, outputs), pair, exchange))
            };
            vec![pair(0), pair(1)]
        });
        for (mix, segments) in MIXES {
            let rows: u32 = segments.iter().map(|(_, rows)| rows).sum();
            let x = bench.random.values(rows as usize * INPUT);
            let y = bench.random.values(rows as usize * TARGETS.iter().sum::<usize>());
            for dtype in bench.dtypes() {
                for decode in [false, true] {
                    let (slots, segments) = (slots.to_vec(), segments.to_vec());
                    let (x, y) = (x.clone(), y.clone());
                    let targets = TARGETS;
                    let lora = Lora { slots, segments, x, y, exchange, dtype, decode, targets };
                    let name = format!("lora {mix}, {exchange:?}, {dtype}, decode {decode}");
                    let together = bench.agree(&name, dtype, &lora);
                    for row in (0..rows as usize).step_by(3) {
                        let alone = lora.row(row).run(&mut bench.backend);
                        let width = alone.len();
                        bench.same(&name, &alone, &together[row * width..][..width]);
                    }
                }
            }
        }
    }
}

/// A row alone takes another way than many rows do, so it has other bits.
fn check_wide<O: Ops>(bench: &mut Bench<O>) {
    let exchange = Exchange::None;
    let slots = WIDE_SLOTS.map(|pairs| {
        let mut pair = |target: usize| {
            let outputs = (target, WIDE_TARGETS[target]);
            Some(local_pair(&mut bench.random, (WIDE_INPUT, outputs), pairs[target]?, exchange))
        };
        vec![pair(0), pair(1)]
    });
    let rows: u32 = WIDE_MIX.iter().map(|(_, rows)| rows).sum();
    let x = bench.random.values(rows as usize * WIDE_INPUT);
    let y = bench.random.values(rows as usize * WIDE_TARGETS.iter().sum::<usize>());
    for dtype in bench.dtypes() {
        for decode in [false, true] {
            let (slots, segments) = (slots.to_vec(), WIDE_MIX.to_vec());
            let (x, y, targets) = (x.clone(), y.clone(), WIDE_TARGETS);
            let lora = Lora { slots, segments, x, y, exchange, dtype, decode, targets };
            bench.agree(&format!("lora wide, {dtype}, decode {decode}"), dtype, &lora);
        }
    }
}

pub fn local_pair(
    random: &mut Random,
    (input, (target, outputs)): (usize, (usize, usize)),
    (rank, a_blocks, b_blocks): (usize, usize, usize),
    exchange: Exchange,
) -> LocalPair {
    // Some pairs add to a part of their target only.
    let output = if rank == 5 && target == 1 { 8..32 } else { 0..outputs };
    let expand_rank = if exchange == Exchange::Gather { rank * PARTS } else { rank };
    let shape =
        PairShape { input, output, shrink_rank: rank, expand_rank, a_blocks, b_blocks, exchange };
    let (a, b) = (random.values(shape.a_len()), random.values(shape.b_len()));
    LocalPair { shape, a, b }
}

/// Shrink, the exchange as other ranks would answer it, expand.
#[derive(Clone)]
pub struct Lora {
    pub slots: Vec<Vec<Option<LocalPair>>>,
    pub segments: Vec<Share>,
    pub x: Vec<f32>,
    pub y: Vec<f32>,
    pub exchange: Exchange,
    pub dtype: DType,
    /// Every row is a sequence of its own: a backend may have other ways for those.
    pub decode: bool,
    pub targets: [usize; 2],
}

impl Lora {
    pub fn rows(&self) -> usize {
        self.segments.iter().map(|(_, rows)| *rows as usize).sum()
    }

    pub fn input(&self) -> usize {
        self.x.len() / self.rows()
    }

    /// The same with one row only.
    fn row(&self, row: usize) -> Self {
        let slots = self.segments.iter().flat_map(|(slot, rows)| (0..*rows).map(move |_| *slot));
        let slot = slots.clone().nth(row).expect("a row of some segment");
        let (width, input) = (self.y.len() / slots.count(), self.input());
        Self {
            segments: vec![(slot, 1)],
            x: self.x[row * input..][..input].to_vec(),
            y: self.y[row * width..][..width].to_vec(),
            ..self.clone()
        }
    }

    pub fn batch(&self) -> Arc<Batch> {
        let mut end = 0;
        let segments = self.segments.iter().map(|(slot, rows)| {
            let rows: Range<u32> = end..end + rows;
            end = rows.end;
            Segment { slot: slot.map(Slot), rows }
        });
        let segments = segments.collect();
        let mut batch = Batch { tokens: vec![0; end as usize], segments, ..Batch::default() };
        if self.decode {
            let query = |row| Query { row, choice: Choice::Given(0), top_logprobs: None };
            batch.positions = vec![0; end as usize];
            batch.spans = (0..end).map(|row| Span { rows: row..row + 1, blocks: 0..0 }).collect();
            batch.queries = (0..end).map(query).collect();
        }
        Arc::new(batch)
    }

    pub fn site<O: Ops>(&self, ops: &mut O) -> O::Site {
        let (input, targets) = (self.input(), self.targets.to_vec());
        let shape = SiteShape { input, targets, slots: SLOTS.len() };
        let mut site = ops.site(shape, self.dtype).expect("a site");
        let mut load = |slot: usize, content: usize| {
            let pairs = self.slots[content].iter().map(Option::as_ref).collect();
            let pairs = SlotPairs { slot: Slot(slot as u32), pairs };
            ops.site_load(&mut site, &pairs).expect("room");
        };
        load(4, 3);
        (0..SLOTS.len()).for_each(|slot| load(slot, slot));
        site
    }
}

impl Case for Lora {
    fn run<O: Ops>(&self, ops: &mut O) -> Vec<f32> {
        let site = self.site(ops);
        let step = ops.step(&self.batch(), self.rows() + 3).expect("a step");
        let none_such = [Exchange::None, Exchange::Reduce, Exchange::Gather]
            .into_iter()
            .find(|e| *e != self.exchange);
        assert_eq!(ops.lora_len(&site, &step, none_such.expect("another")), 0);

        let len = ops.lora_len(&site, &step, self.exchange);
        // A row that pads the step is nobody's: it may hold anything.
        let padded = |values: &[f32], width: usize| {
            let mut padded = values.to_vec();
            padded.resize(step.rows() * width, f32::NAN);
            padded
        };
        let x = upload(ops, &padded(&self.x, self.input()));
        let mut h = poisoned_as(ops, len.max(1), Precision::Full);
        ops.lora_shrink(&x, &site, &step, self.exchange, &mut h).expect("lora_shrink");
        let mut h = ops.read(&h, len).expect("the shrunk activations");
        assert!(self.decode || h.iter().all(|h| h.is_finite()), "every element is written");
        if self.exchange == Exchange::Gather {
            let parts = (1..=PARTS).flat_map(|part| h.iter().map(move |h| h / part as f32));
            h = parts.collect();
        }
        let width = self.targets.iter().sum();
        let (h, mut y) =
            (upload_as(ops, &h, Precision::Full), upload(ops, &padded(&self.y, width)));
        ops.lora_expand(&h, &site, &step, self.exchange, &mut y).expect("lora_expand");
        ops.read(&y, self.y.len()).expect("the output")
    }
}
