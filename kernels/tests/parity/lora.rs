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

type Slots = [[Option<(usize, usize, usize)>; 2]; 5];
const SLOTS: Slots = [
    [Some((1, 1, 1)), Some((2, 1, 1))],
    [Some((16, 1, 1)), None],
    [Some((12, 4, 2)), Some((5, 1, 1))],
    [None, Some((256, 1, 1))],
    [Some((24, 8, 8)), Some((8, 2, 4))],
];

/// One mix at a site of its own.
struct Mixed {
    name: &'static str,
    input: usize,
    targets: [usize; 2],
    slots: Slots,
    mix: &'static [Share],
}

/// Targets and inputs that are wide enough for tiles, and rows many enough.
const WIDE: Mixed = Mixed {
    name: "wide",
    input: 1320,
    targets: [192, 128],
    slots: [
        [Some((1, 1, 1)), Some((6, 1, 2))],
        [Some((16, 1, 1)), None],
        [Some((12, 1, 3)), Some((64, 1, 1))],
        [None, Some((33, 1, 1))],
        [Some((24, 1, 3)), Some((48, 1, 2))],
    ],
    mix: &[(Some(4), 150), (None, 2), (Some(0), 1), (Some(3), 17), (Some(2), 40), (Some(1), 64)],
};

/// Long segments of few lora ranks, whose factors a GPU keeps in registers, between others.
const FEW: Mixed = Mixed {
    name: "few",
    input: 192,
    targets: [576, 576],
    slots: [
        [Some((16, 1, 1)), Some((8, 1, 1))],
        [Some((8, 2, 1)), Some((16, 1, 1))],
        [Some((16, 1, 1)), Some((24, 1, 1))],
        [Some((16, 1, 2)), Some((16, 1, 2))],
        [None, Some((8, 1, 1))],
    ],
    mix: &[
        (Some(0), 300),
        (None, 9),
        (Some(1), 257),
        (Some(2), 256),
        (Some(0), 12),
        (Some(3), 265),
        (Some(4), 256),
        (Some(1), 323),
    ],
};

/// Segments that a GPU computes as products between others that it does not: as they are short, or
/// a lora rank is odd (slot 3), or such a one before them leaves them where no product can start.
/// One lora rank is large (slot 0).
const LONG: Mixed = Mixed {
    name: "long",
    input: 320,
    targets: [128, 128],
    slots: [
        [Some((24, 1, 1)), Some((96, 1, 1))],
        [Some((16, 1, 2)), Some((64, 1, 8))],
        [Some((40, 1, 1)), Some((16, 2, 1))],
        [Some((12, 1, 1)), Some((8, 1, 1))],
        [None, Some((64, 8, 1))],
    ],
    mix: &[
        (Some(2), 1),
        (Some(0), 300),
        (None, 70),
        (Some(1), 256),
        (Some(3), 270),
        (Some(4), 257),
        (Some(2), 290),
        (Some(3), 1),
        (Some(0), 259),
        (Some(1), 40),
    ],
};

pub fn check<O: Ops>(bench: &mut Bench<O>) {
    [WIDE, LONG, FEW].iter().for_each(|mixed| check_mixed(bench, mixed));
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
fn check_mixed<O: Ops>(bench: &mut Bench<O>, mixed: &Mixed) {
    let exchange = Exchange::None;
    let Mixed { name, input, targets, mix, .. } = *mixed;
    let slots = mixed.slots.map(|pairs| {
        let mut pair = |target: usize| {
            let outputs = (target, targets[target]);
            Some(local_pair(&mut bench.random, (input, outputs), pairs[target]?, exchange))
        };
        vec![pair(0), pair(1)]
    });
    let rows: u32 = mix.iter().map(|(_, rows)| rows).sum();
    let x = bench.random.values(rows as usize * input);
    let y = bench.random.values(rows as usize * targets.iter().sum::<usize>());
    for dtype in bench.dtypes() {
        for decode in [false, true] {
            let (slots, segments) = (slots.to_vec(), mix.to_vec());
            let (x, y) = (x.clone(), y.clone());
            let lora = Lora { slots, segments, x, y, exchange, dtype, decode, targets };
            bench.agree(&format!("lora {name}, {dtype}, decode {decode}"), dtype, &lora);
            if targets[0] == targets[1] {
                let name = format!("gated lora {name}, {dtype}, decode {decode}");
                bench.agree(&name, dtype, &Gated(lora));
            }
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
    let output = match (rank, target) {
        (5, 1) => 8..32,
        (40, 0) => 16..80,
        _ => 0..outputs,
    };
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
        self.site_of(ops, self.input())
    }

    /// The same where `x` says nothing of how many inputs there are.
    pub fn site_of<O: Ops>(&self, ops: &mut O, input: usize) -> O::Site {
        // One that nobody writes is none.
        let targets = self.targets.into_iter().filter(|outputs| *outputs > 0).collect();
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

/// Adapters of a gate and of what it lets through, and the activation behind them.
struct Gated(Lora);

impl Case for Gated {
    fn run<O: Ops>(&self, ops: &mut O) -> Vec<f32> {
        let lora = &self.0;
        let (site, width) = (lora.site(ops), lora.targets[0]);
        let step = ops.step(&lora.batch(), lora.rows() + 3).expect("a step");
        let len = ops.lora_len(&site, &step, lora.exchange);
        let (x, mut y) = (upload(ops, &lora.x), upload(ops, &lora.y));
        let mut h = poisoned_as(ops, len, Precision::Full);
        ops.lora_shrink(&x, &site, &step, lora.exchange, &mut h).expect("lora_shrink");
        let mut out = poisoned_as(ops, lora.rows() * width, Precision::Activation);
        let done = ops.lora_expand_silu_mul(&h, &site, &step, (&mut y, width), &mut out);
        done.expect("lora_expand_silu_mul");
        ops.read(&out, lora.rows() * width).expect("the output")
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
