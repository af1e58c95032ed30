//! A sum over ranks, the residual and the norm at once: the bits of one after the other.

use kernels::ops::WeightView;

use super::*;

/// `(rows, width)`: one row and many, odd rows, rows of which a thread takes one pack, two, and
/// more; sums in one shot and in two.
const SHAPES: [(usize, usize); 12] = [
    (1, 8),
    (3, 1001),
    (2, 17),
    (5, 264),
    (1, 4096),
    (33, 896),
    (64, 4096),
    (7, 5120),
    (64, 8192),
    (2, 20_000),
    (37, 12_288),
    (300, 2048),
];

/// Of all ranks.
const EPS: f32 = 1e-5;

/// What goes in and comes out on one rank.
struct Rows {
    residual: Buf,
    hidden: Buf,
    shape: (usize, usize),
}

impl Rows {
    /// NaN lies behind both.
    fn new<L: Link>(rank: &mut Rank<L>, (rows, width): (usize, usize), step: f32) -> Self {
        let (own, elements) = (rank.rank(), rows * width);
        Self {
            // The same on all ranks.
            residual: rank.buf(elements, 3, |at| value(11, 3, at, step)),
            hidden: rank.buf(elements, 3, |at| value(own, rows, at, step)),
            shape: (rows, width),
        }
    }

    /// Writes the values that [`Self::new`] starts from again.
    fn reset<L: Link>(&mut self, rank: &mut Rank<L>, step: f32) {
        let (own, (rows, width)) = (rank.rank(), self.shape);
        let all = |of: &dyn Fn(usize) -> f32| (0..rows * width).map(of).collect::<Vec<f32>>();
        let residual = all(&|at| value(11, 3, at, step));
        let hidden = all(&|at| value(own, rows, at, step));
        rank.cuda.write(&residual, &mut self.residual).unwrap();
        rank.cuda.write(&hidden, &mut self.hidden).unwrap();
    }

    fn at_once<L: Link>(
        &mut self,
        (comm, cuda): (&mut DeviceComm<L>, &mut Cuda),
        weight: &<Cuda as Ops>::Weight,
    ) -> Result<(), CommError> {
        let (norm, shape, why) = ((weight, EPS), self.shape, Purpose::Base);
        comm.all_reduce_add_rms_norm(cuda, &mut self.residual, norm, shape, &mut self.hidden, why)
    }

    fn one_by_one<L: Link>(&mut self, rank: &mut Rank<L>, weight: &<Cuda as Ops>::Weight) {
        let (rows, width) = self.shape;
        rank.sum(&mut self.hidden, rows * width);
        let Self { residual, hidden, .. } = self;
        rank.cuda.add_rms_norm(residual, weight, EPS, rows, hidden).unwrap();
    }

    /// As bits: of NaN too.
    fn read<L: Link>(&self, rank: &mut Rank<L>) -> [Vec<u32>; 2] {
        let elements = self.shape.0 * self.shape.1 + 3;
        [&self.residual, &self.hidden].map(|buf| {
            let found = rank.cuda.read(buf, elements).unwrap();
            found.into_iter().map(f32::to_bits).collect()
        })
    }
}

fn weight<L: Link>(rank: &mut Rank<L>, width: usize) -> <Cuda as Ops>::Weight {
    let value = |at: usize| (at % 31) as f32 * 0.0625 - 0.5;
    let bytes: Vec<u8> = (0..width).flat_map(|at| value(at).to_le_bytes()).collect();
    let (dtype, stride) = (DType::F32, width);
    let view = WeightView { dtype, rows: 1, cols: width, stride, bytes: &bytes };
    rank.cuda.weight(&[view], dtype).unwrap()
}

fn first_difference(found: &[Vec<u32>; 2], expected: &[Vec<u32>; 2]) -> Option<(usize, usize)> {
    let differ = |which: usize| {
        let (found, expected) = (&found[which], &expected[which]);
        (0..expected.len()).find(|at| found[*at] != expected[*at]).map(|at| (which, at))
    };
    differ(0).or_else(|| differ(1))
}

#[test]
fn a_sum_with_its_norm_has_the_bits_of_one_after_the_other() {
    for (dtype, step) in [(DType::F32, 0.1), (DType::Bf16, 0.5)] {
        for ranks in [1, 2, 3, 4, 8] {
            let made = on_ranks::<Peer, _>((ranks, dtype, PATIENCE), |rank| {
                SHAPES.map(|shape| {
                    let weight = weight(rank, shape.1);
                    let mut expected = Rows::new(rank, shape, step);
                    expected.one_by_one(rank, &weight);
                    let expected = expected.read(rank);
                    let mut rows = Rows::new(rank, shape, step);
                    let done = rows.at_once((&mut rank.comm, &mut rank.cuda), &weight);
                    done.unwrap();
                    let found = rows.read(rank);
                    rank.settle();
                    let wrong = first_difference(&found, &expected);
                    assert_eq!(wrong, None, "{dtype}, {ranks} ranks, {shape:?}");
                    found
                })
            });
            assert!(
                made.windows(2).all(|two| two[0] == two[1]),
                "{dtype}, {ranks} ranks: they differ"
            );
        }
    }
}

/// Between sums of one shot and two, so that all take turns in the same posts.
#[test]
fn a_recorded_sum_with_its_norm_does_the_same_again_and_again() {
    const REPLAYS: usize = 20;
    const SUMS: [usize; 2] = [5000, 700_000];
    for (dtype, step) in [(DType::F32, 0.1), (DType::Bf16, 0.5)] {
        for ranks in [1, 2, 3, 4, 8] {
            on_ranks::<Peer, _>((ranks, dtype, PATIENCE), |rank| {
                let shapes = [(1, 8192), (9, 896), (5, 1001), (600, 2048)];
                let weights = shapes.map(|shape| weight(rank, shape.1));
                let mut all = shapes.map(|shape| Rows::new(rank, shape, step));
                let mut between = rank.buf(SUMS[1], 0, |_| 0.0);
                let expected: Vec<_> = all
                    .iter_mut()
                    .zip(&weights)
                    .map(|(rows, weight)| {
                        rows.one_by_one(rank, weight);
                        rows.read(rank)
                    })
                    .collect();
                let graph = record_all(rank, (&mut all, &weights), (&mut between, &SUMS));
                for round in 0..REPLAYS {
                    all.iter_mut().for_each(|rows| rows.reset(rank, step));
                    rank.replay(&graph);
                    for (rows, expected) in all.iter().zip(&expected) {
                        let wrong = first_difference(&rows.read(rank), expected);
                        assert_eq!(
                            wrong, None,
                            "{dtype}, {ranks} ranks, {:?}, {round}",
                            rows.shape
                        );
                    }
                }
                rank.settle();
                let counted = rank.counts.get(Purpose::Base);
                assert_eq!(counted, 3 * shapes.len() as u64, "one by one, at once, between");
            });
        }
    }
}

/// A graph of all of them, with a sum between any two.
fn record_all<L: Link, const N: usize>(
    rank: &mut Rank<L>,
    (all, weights): (&mut [Rows; N], &[<Cuda as Ops>::Weight; N]),
    (between, sums): (&mut Buf, &[usize]),
) -> Graph {
    let Rank { comm, cuda, .. } = rank;
    let mut launch = |comm: &mut DeviceComm<L>, cuda: &mut Cuda| -> Result<(), CommError> {
        for (at, (rows, weight)) in all.iter_mut().zip(weights).enumerate() {
            rows.at_once((comm, cuda), weight)?;
            comm.all_reduce_sum(between, sums[at % sums.len()], Purpose::Base)?;
        }
        Ok(())
    };
    // Once for what is only made at the first call.
    launch(comm, cuda).unwrap();
    let mut launched = Ok(());
    comm.record(true);
    let graph = cuda.record::<kernels::error::Error>(|cuda| {
        launched = launch(comm, cuda);
        Ok(())
    });
    comm.record(false);
    launched.unwrap();
    graph.unwrap()
}

/// The second rank launches nothing, as in [`waiting`].
#[test]
fn no_device_waits_for_ever_for_a_sum_with_its_norm() {
    let patience = Patience { devices: Duration::from_millis(300), ..PATIENCE };
    let results = on_ranks::<Peer, _>((2, DType::F32, patience), |rank| {
        let weight = weight(rank, 1000);
        let Rows { mut residual, mut hidden, shape } = Rows::new(rank, (3, 1000), 0.5);
        rank.cuda.synchronize().unwrap();
        rank.comm.meet().unwrap();
        let start = Instant::now();
        if rank.rank() == 1 {
            thread::sleep(Duration::from_secs(2));
            return None;
        }
        let (link, norm) = (&mut rank.comm.link, (&weight, EPS));
        link.all_reduce_add_rms_norm(&mut residual, norm, shape.0, &mut hidden).unwrap();
        rank.cuda.synchronize().unwrap();
        Some((rank.comm.settle(false).unwrap_err(), start.elapsed()))
    });
    for (error, took) in results.into_iter().flatten() {
        assert!(matches!(error, CommError::Timeout { .. }), "{error}");
        assert!((300..1900).contains(&took.as_millis()), "{took:?}");
    }
}
