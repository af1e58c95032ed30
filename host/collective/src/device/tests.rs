//! Collectives of several ranks on the GPUs that are found; one is enough.

mod reduce_norm;

use std::io::Write;
use std::sync::OnceLock;
use std::thread;
use std::time::Instant;

use contract::tensor::DType;
use kernels::cuda::{self, Graph};
use kernels::ops::{Ops, Precision};

use super::*;

const PATIENCE: Patience = Patience {
    threads: Duration::from_secs(60),
    devices: Duration::from_secs(20),
    joining: Duration::from_secs(60),
};

/// A rank and its backend.
struct Rank<L: Link> {
    comm: DeviceComm<L>,
    cuda: Cuda,
    counts: Arc<CollectiveCounts>,
}

/// How ranks come together.
trait Joins: Link + Sized {
    fn join(
        seat: Seat<Self::Shared>,
        cuda: &Cuda,
        sharing: usize,
    ) -> Result<DeviceComm<Self>, CommError>;
}

impl Joins for Peer {
    fn join(
        seat: Seat<PeerArea>,
        cuda: &Cuda,
        sharing: usize,
    ) -> Result<DeviceComm<Self>, CommError> {
        DeviceComm::join_peers(seat, cuda, sharing)
    }
}

impl Joins for Nccl {
    fn join(
        seat: Seat<NcclEnd>,
        cuda: &Cuda,
        sharing: usize,
    ) -> Result<DeviceComm<Self>, CommError> {
        DeviceComm::join_nccl(seat, cuda, (sharing, None))
    }
}

/// How many GPUs there are; says once why there are none.
fn devices() -> Option<usize> {
    static DEVICES: OnceLock<Option<usize>> = OnceLock::new();
    let ask = || match cuda::found() {
        Ok(found) => Some(found.len()),
        Err(why) => {
            // Written past the test's capture: a skipped test has to be seen.
            let _ = writeln!(std::io::stderr(), "skipped collectives on cuda: {why}");
            None
        }
    };
    *DEVICES.get_or_init(ask)
}

fn open(device: usize, dtype: DType) -> Cuda {
    let kernels = std::env::temp_dir().join("drystone-test-kernels");
    Cuda::open(device, dtype, Some(&kernels)).unwrap()
}

/// What all ranks made of it, or the failure that tells most: who was left does not know why.
fn all_of<T>(mut results: Vec<Result<T, CommError>>) -> Result<Vec<T>, CommError> {
    let tells = |result: &Result<T, CommError>| match result {
        Ok(_) | Err(CommError::PeerLost) => false,
        Err(_) => true,
    };
    match results.iter().position(tells) {
        Some(at) => results.swap_remove(at).map(|one| vec![one]),
        None => results.into_iter().collect(),
    }
}

/// Runs `work` on every rank of a new group, on all devices in turn, and returns what each made of
/// it; nothing where there is no GPU, or where they cannot join.
fn on_ranks<L: Joins, T: Send>(
    (ranks, dtype, patience): (usize, DType, Patience),
    work: impl Fn(&mut Rank<L>) -> T + Sync,
) -> Vec<T> {
    let Some(devices) = devices() else { return Vec::new() };
    // Groups that wait at the same time have no room for each other on a card.
    static ONE_GROUP: Mutex<()> = Mutex::new(());
    let _one = ONE_GROUP.lock().unwrap_or_else(PoisonError::into_inner);
    let counts = Arc::default();
    let rank = |seat: Seat<L::Shared>| {
        let own = seat.rank() % devices;
        let cuda = open(own, dtype);
        let sharing = (0..ranks).filter(|rank| rank % devices == own).count();
        let comm = L::join(seat, &cuda, sharing)?;
        Ok(work(&mut Rank { comm, cuda, counts: Arc::clone(&counts) }))
    };
    let results: Result<Vec<T>, CommError> = thread::scope(|scope| {
        let seats = Seat::group(ranks, patience, &counts).into_iter();
        let threads: Vec<_> = seats.map(|seat| scope.spawn(|| rank(seat))).collect();
        // All are joined before one is looked at, or a panic of one would hide the others'.
        let joined: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        all_of(joined.into_iter().map(|joined| joined.unwrap()).collect())
    });
    results.unwrap_or_else(|why| {
        // NCCL lets ranks share a device since 2.30, and only where it is told to.
        assert!(ranks > devices && why.to_string().contains("NCCL_MULTI_RANK_GPU_ENABLE"), "{why}");
        let _ = writeln!(std::io::stderr(), "skipped {ranks} ranks by NCCL on {devices}: {why}");
        Vec::new()
    })
}

impl<L: Link> Rank<L> {
    fn rank(&self) -> usize {
        self.comm.seat.rank()
    }

    /// A buffer of `f(place)`, and NaN in `more` places after them.
    fn buf(&mut self, elements: usize, more: usize, f: impl Fn(usize) -> f32) -> Buf {
        let mut buf = self.cuda.buf(elements + more, Precision::Activation).unwrap();
        let rest = (0..more).map(|_| f32::NAN);
        let values: Vec<f32> = (0..elements).map(f).chain(rest).collect();
        self.cuda.write(&values, &mut buf).unwrap();
        buf
    }

    /// Asks before anybody leaves, which would give up the group.
    fn settle(&mut self) {
        self.comm.settle(false).unwrap();
        self.comm.meet().unwrap();
    }

    fn replay(&mut self, graph: &Graph) {
        self.comm.meet().unwrap();
        let took = self.cuda.replay(graph, 1);
        self.comm.meet().unwrap();
        took.unwrap();
    }

    fn sum(&mut self, buf: &mut Buf, elements: usize) {
        self.comm.all_reduce_sum(buf, elements, Purpose::Base).unwrap();
    }
}

/// A value that differs by rank, round and place; `step` decides how many bits it needs.
fn value(rank: usize, round: usize, place: usize, step: f32) -> f32 {
    ((rank * 7919 + round * 104_729 + place * 31) % 253) as f32 * step - 126.0 * step
}

fn round_to(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::Bf16 => {
            let bits = x.to_bits();
            f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
        }
        _ => x,
    }
}

/// Ragged sizes, one block and many, several chunks of a block, one shot and two.
const SIZES: [usize; 8] = [1, 7, 2048, 50_001, 12 * 4096, 300_007, 3 << 20, 5];

#[test]
fn sums_are_taken_in_rank_order_and_equal_on_all_ranks() {
    // Products of 0.1 need all bits of an f32, so that the order of a sum shows; bf16 gets
    // what it can hold.
    for (dtype, step) in [(DType::F32, 0.1), (DType::Bf16, 0.5)] {
        for ranks in [2, 3, 4, 8] {
            on_ranks::<Peer, _>((ranks, dtype, PATIENCE), |rank| {
                for (round, elements) in SIZES.into_iter().enumerate() {
                    let own = rank.rank();
                    let mut buf = rank.buf(elements, 3, |at| value(own, round, at, step));
                    rank.sum(&mut buf, elements);
                    let found = rank.cuda.read(&buf, elements + 3).unwrap();
                    rank.settle();
                    let sum = |at| {
                        let of = |rank| value(rank, round, at, step);
                        round_to(dtype, (1..ranks).fold(of(0), |sum, rank| sum + of(rank)))
                    };
                    let wrong = (0..elements).find(|at| found[*at] != sum(*at));
                    assert_eq!(wrong, None, "{dtype}, {ranks} ranks, {elements} elements");
                    assert!(found[elements..].iter().all(|past| past.is_nan()));
                }
            });
        }
    }
}

#[test]
fn gathers_put_ranks_side_by_side() {
    for dtype in [DType::F32, DType::Bf16] {
        for ranks in [2, 4, 8] {
            on_ranks::<Peer, _>((ranks, dtype, PATIENCE), |rank| {
                for (round, elements) in SIZES.into_iter().enumerate() {
                    let own = rank.rank();
                    let part = rank.buf(elements, 1, |at| value(own, round, at, 0.5));
                    let mut whole = rank.buf(0, elements * ranks + 1, |_| 0.0);
                    rank.comm.all_gather(&part, &mut whole, elements, Purpose::Lora).unwrap();
                    let found = rank.cuda.read(&whole, elements * ranks + 1).unwrap();
                    let expected = |at| value(at / elements, round, at % elements, 0.5);
                    let wrong = (0..elements * ranks).find(|at| found[*at] != expected(*at));
                    assert_eq!(wrong, None, "{dtype}, {ranks} ranks, {elements} elements");
                    assert!(found[elements * ranks].is_nan());
                }
            });
        }
    }
}

#[test]
fn many_rounds_never_mix_in_a_replayed_graph_either() {
    const REPLAYS: usize = 50;
    const GROWTH: [usize; 3] = [4096, 40_000, 700_000];
    for ranks in [2, 4] {
        on_ranks::<Peer, _>((ranks, DType::F32, PATIENCE), |rank| {
            let mut buf = rank.buf(GROWTH[2], 0, |_| 1.0);
            let graph = record(rank, &mut buf, &GROWTH);
            let ones = vec![1.0; GROWTH[2]];
            for round in 0..REPLAYS {
                rank.cuda.write(&ones, &mut buf).unwrap();
                rank.replay(&graph);
                let found = rank.cuda.read(&buf, GROWTH[2]).unwrap();
                let sums = [3, 2, 1].map(|times| (ranks as f32).powi(times));
                let expected = |at| sums[GROWTH.iter().position(|end| at < *end).unwrap()];
                let wrong = (0..GROWTH[2]).find(|at| found[*at] != expected(*at));
                assert_eq!(wrong, None, "{ranks} ranks, round {round}");
            }
        });
    }
}

/// A graph of sums over these many elements of one buffer.
fn record(rank: &mut Rank<impl Link>, buf: &mut Buf, sizes: &[usize]) -> Graph {
    // Once for what is only made at the first call.
    sizes.iter().for_each(|elements| rank.sum(buf, *elements));
    let Rank { comm, cuda, .. } = rank;
    let mut sums = Vec::new();
    comm.record(true);
    let graph = cuda.record::<kernels::error::Error>(|_| {
        let sum = |elements: &usize| comm.all_reduce_sum(buf, *elements, Purpose::Base);
        sums.extend(sizes.iter().map(sum));
        Ok(())
    });
    comm.record(false);
    sums.into_iter().for_each(|sum| sum.unwrap());
    graph.unwrap()
}

/// The values are such that a sum is the same in any order.
#[test]
fn nccl_sums_and_gathers_in_a_replayed_graph_too() {
    if let Err(why) = cuda::nccl_version() {
        let _ = writeln!(std::io::stderr(), "skipped collectives by NCCL: {why}");
        return;
    }
    for (ranks, dtype) in [(2, DType::F32), (2, DType::Bf16), (4, DType::F32)] {
        on_ranks::<Nccl, _>((ranks, dtype, PATIENCE), |rank| {
            let own = rank.rank();
            for (round, elements) in [1, 7, 2048, 50_001, 3 << 18].into_iter().enumerate() {
                let mut buf = rank.buf(elements, 3, |at| value(own, round, at, 0.5));
                let mut whole = rank.buf(0, elements * ranks + 1, |_| 0.0);
                rank.comm.all_gather(&buf, &mut whole, elements, Purpose::Base).unwrap();
                rank.sum(&mut buf, elements);
                let of = |rank, at| value(rank, round, at, 0.5);
                let sum = |at| round_to(dtype, (0..ranks).map(|rank| of(rank, at)).sum());
                let found = rank.cuda.read(&buf, elements).unwrap();
                assert_eq!((0..elements).find(|at| found[*at] != sum(*at)), None);
                let found = rank.cuda.read(&whole, elements * ranks).unwrap();
                let wrong = |at: &usize| found[*at] != of(at / elements, at % elements);
                assert_eq!((0..elements * ranks).find(wrong), None);
                rank.settle();
            }
            let mut buf = rank.buf(4096, 0, |_| 1.0);
            let graph = record(rank, &mut buf, &[4096, 4096]);
            for _ in 0..20 {
                rank.cuda.write(&[1.0; 4096], &mut buf).unwrap();
                rank.replay(&graph);
                let found = rank.cuda.read(&buf, 4096).unwrap();
                assert!(found.iter().all(|sum| *sum == (ranks * ranks) as f32));
            }
        });
    }
}

#[test]
fn a_collective_counts_once_and_under_its_purpose() {
    let counted = on_ranks::<Peer, _>((4, DType::F32, PATIENCE), |rank| {
        let (part, mut whole) = (rank.buf(5, 0, |_| 1.0), rank.buf(20, 0, |_| 1.0));
        rank.comm.all_gather(&part, &mut whole, 5, Purpose::Lora).unwrap();
        rank.sum(&mut whole, 20);
        rank.comm.count(Purpose::Base, 10);
        rank.comm.meet().unwrap();
        Purpose::ALL.map(|purpose| rank.counts.get(purpose))
    });
    assert!(counted.iter().all(|counted| *counted == [11, 1]), "{counted:?}");
}

#[test]
fn peers_of_a_rank_that_leaves_are_released() {
    let results = on_ranks::<Peer, _>((3, DType::F32, PATIENCE), |rank| {
        let mut buf = rank.buf(100_000, 0, |_| 1.0);
        rank.sum(&mut buf, 100_000);
        if rank.rank() == 1 {
            return None;
        }
        Some(rank.comm.all_reduce_sum(&mut buf, 100_000, Purpose::Base))
    });
    let lost = |result: &Option<_>| matches!(result, Some(Err(CommError::PeerLost)) | None);
    assert!(results.iter().all(lost), "{results:?}");
}

/// The second rank launches nothing; the others' devices wait for it, and nothing else would
/// end that but `end` or their patience.
fn waiting(patience: Patience, end: impl Fn() + Sync) -> Vec<Option<(CommError, Duration)>> {
    on_ranks::<Peer, _>((2, DType::F32, patience), |rank| {
        let mut buf = rank.buf(100_000, 0, |_| 1.0);
        rank.cuda.synchronize().unwrap();
        rank.comm.meet().unwrap();
        let start = Instant::now();
        if rank.rank() == 1 {
            end();
            return None;
        }
        rank.comm.link.all_reduce_sum(&mut buf, 100_000).unwrap();
        rank.cuda.synchronize().unwrap();
        Some((rank.comm.settle(false).unwrap_err(), start.elapsed()))
    })
}

#[test]
fn a_device_that_waits_for_a_rank_that_leaves_is_released() {
    let results = waiting(PATIENCE, || thread::sleep(Duration::from_millis(200)));
    for (error, took) in results.into_iter().flatten() {
        assert!(matches!(error, CommError::PeerLost), "{error}");
        assert!(took < PATIENCE.devices / 2, "{took:?}");
    }
}

#[test]
fn no_device_waits_for_ever() {
    let patience = Patience { devices: Duration::from_millis(300), ..PATIENCE };
    let results = waiting(patience, || thread::sleep(Duration::from_secs(2)));
    for (error, took) in results.into_iter().flatten() {
        assert!(matches!(error, CommError::Timeout { .. }), "{error}");
        assert!((300..1900).contains(&took.as_millis()), "{took:?}");
    }
}

/// Of two ranks only this one joins, by NCCL: how that ended, and when.
fn joining(patience: Patience, end: impl Fn(&dyn Fn()) + Send) -> Option<(CommError, Duration)> {
    let (Some(_), Ok(name)) = (devices(), NcclName::new()) else { return None };
    let seat = Seat::<NcclEnd>::part(0..1, 2, patience, &Arc::default()).remove(0);
    let (give_up, cuda) = (seat.give_up(), open(0, DType::F32));
    thread::scope(|scope| {
        let start = Instant::now();
        scope.spawn(move || end(&give_up));
        let joined = DeviceComm::join_nccl(seat, &cuda, (1, Some(name)));
        Some((joined.err().unwrap(), start.elapsed()))
    })
}

#[test]
fn nobody_waits_for_ever_for_ranks_to_join() {
    let patience = Patience { joining: Duration::from_secs(1), ..PATIENCE };
    let Some((error, took)) = joining(patience, |_| {}) else { return };
    assert!(matches!(error, CommError::Timeout { seconds: 1 }), "{error}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn joining_ends_when_the_group_is_given_up() {
    let end = |give_up: &dyn Fn()| {
        thread::sleep(Duration::from_millis(300));
        give_up();
    };
    let Some((error, took)) = joining(PATIENCE, end) else { return };
    assert!(matches!(error, CommError::PeerLost), "{error}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}
