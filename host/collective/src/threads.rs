//! The group whose ranks are threads of one process and share host memory.
//!
//! A rank *posts* a copy of its buffer where all can read it; after a barrier everybody reads. The
//! posts of consecutive collectives alternate between two areas, so one barrier a collective is
//! enough: whoever posts again into an area has passed the barrier in between, which its peers
//! enter only after reading.

use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use contract::counts::{CollectiveCounts, Purpose};
use kernels::ops::Ops;

use crate::barrier::Barrier;
use crate::comm::{Comm, CommError};

/// Elements that are summed over all ranks before the next ones, so that the sum stays in cache.
const CHUNK: usize = 4096;

/// From this many elements on, more than two ranks share the adding instead of all adding all.
const SHARED_SUM_MIN: usize = 16384;

/// One rank of a group of threads. Dropping it, also by a panic, breaks the group: waiting peers
/// get [`CommError::PeerLost`].
pub struct ThreadComm {
    rank: usize,
    /// Parity of the next collective.
    turn: usize,
    group: Arc<Group>,
}

struct Group {
    counts: Arc<CollectiveCounts>,
    barrier: Barrier,
    posts: [Vec<Area>; 2],
    sums: Vec<Area>,
}

/// Memory that its rank writes and all ranks read, on cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct Area(RwLock<Vec<f32>>);

impl Area {
    /// Replaces the content; never allocates once it has been as long before.
    fn fill(&self, values: &[f32]) {
        let mut area = self.0.write().unwrap_or_else(PoisonError::into_inner);
        area.clear();
        area.extend_from_slice(values);
    }

    fn read<T>(&self, reader: impl FnOnce(&[f32]) -> T) -> T {
        reader(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ThreadComm {
    /// All ranks of a new group, in order. Nobody waits for a peer longer than `timeout`.
    pub fn group(
        ranks: usize,
        timeout: Duration,
        counts: &Arc<CollectiveCounts>,
    ) -> Vec<ThreadComm> {
        let areas = || (0..ranks).map(|_| Area::default()).collect();
        let group = Arc::new(Group {
            counts: Arc::clone(counts),
            barrier: Barrier::new(ranks, timeout),
            posts: [areas(), areas()],
            sums: areas(),
        });
        (0..ranks).map(|rank| ThreadComm { rank, turn: 0, group: Arc::clone(&group) }).collect()
    }

    /// Shows `values` to all ranks; everybody's are in the posts that it returns the index of.
    fn post(&mut self, values: &[f32], why: Purpose) -> Result<usize, CommError> {
        let turn = self.turn;
        self.turn = 1 - turn;
        self.group.posts[turn][self.rank].fill(values);
        self.group.barrier.wait()?;
        if self.rank == 0 {
            self.group.counts.add(why);
        }
        Ok(turn)
    }
}

impl Drop for ThreadComm {
    fn drop(&mut self) {
        self.group.barrier.break_up();
    }
}

impl<O: Ops<Buf: AsRef<[f32]> + AsMut<[f32]>>> Comm<O> for ThreadComm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.group.sums.len()
    }

    fn all_reduce_sum(
        &mut self,
        buf: &mut O::Buf,
        elements: usize,
        why: Purpose,
    ) -> Result<(), CommError> {
        let buf = &mut buf.as_mut()[..elements];
        let turn = self.post(buf, why)?;
        let (rank, group) = (self.rank, &*self.group);
        let (ranks, posts) = (group.sums.len(), &group.posts[turn]);
        if ranks <= 2 || elements < SHARED_SUM_MIN {
            sum(posts, 0..elements, buf);
            return Ok(());
        }
        let part = |rank| rank * elements / ranks..(rank + 1) * elements / ranks;
        sum(posts, part(rank), &mut buf[part(rank)]);
        group.sums[rank].fill(&buf[part(rank)]);
        group.barrier.wait()?;
        for (rank, area) in group.sums.iter().enumerate() {
            area.read(|sum| buf[part(rank)].copy_from_slice(sum));
        }
        Ok(())
    }

    fn all_gather(
        &mut self,
        part: &O::Buf,
        whole: &mut O::Buf,
        elements: usize,
        why: Purpose,
    ) -> Result<(), CommError> {
        let turn = self.post(&part.as_ref()[..elements], why)?;
        let posts = self.group.posts[turn].iter();
        for (post, whole) in posts.zip(whole.as_mut().chunks_exact_mut(elements)) {
            post.read(|part| whole.copy_from_slice(part));
        }
        Ok(())
    }
}

/// Writes the sum of `range` over all posts to `out`, adding in rank order.
fn sum(posts: &[Area], range: Range<usize>, out: &mut [f32]) {
    for (index, out) in out.chunks_mut(CHUNK).enumerate() {
        let start = range.start + index * CHUNK;
        let end = start + out.len();
        posts[0].read(|post| out.copy_from_slice(&post[start..end]));
        for post in &posts[1..] {
            post.read(|post| add(out, &post[start..end]));
        }
    }
}

fn add(sum: &mut [f32], values: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    use contract::tensor::DType;
    use kernels::ops::WeightView;
    use kernels::reference::Reference;

    /// By [`Comm::all_reduce_sum`]; a thread's group is the same for all backends on the CPU.
    fn all_reduce(
        comm: &mut ThreadComm,
        buf: &mut Vec<f32>,
        elements: usize,
    ) -> Result<(), CommError> {
        Comm::<Reference>::all_reduce_sum(comm, buf, elements, Purpose::Base)
    }

    fn all_gather(comm: &mut ThreadComm, part: &Vec<f32>, whole: &mut Vec<f32>, why: Purpose) {
        Comm::<Reference>::all_gather(comm, part, whole, part.len(), why).unwrap();
    }

    /// Runs `work` on every rank of a new group and returns what each made of it.
    fn on_ranks<T: Send>(ranks: usize, work: impl Fn(ThreadComm) -> T + Sync) -> Vec<T> {
        let group = ThreadComm::group(ranks, Duration::from_secs(20), &Arc::default());
        thread::scope(|scope| {
            let work = &work;
            let threads: Vec<_> =
                group.into_iter().map(|comm| scope.spawn(move || work(comm))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// A value that differs by rank, round and place, and whose sum depends on the order.
    fn value(rank: usize, round: usize, place: usize) -> f32 {
        ((rank * 7919 + round * 104_729 + place * 31) % 1009) as f32 * 0.1 - 50.0
    }

    #[test]
    fn sums_are_taken_in_rank_order_and_equal_on_all_ranks() {
        for ranks in [2, 3, 4, 8] {
            on_ranks(ranks, |mut comm| {
                // Both ways of adding, ragged parts and chunks, and shrinking buffers.
                for (round, elements) in
                    [1, 2048, 50_001, SHARED_SUM_MIN, 7].into_iter().enumerate()
                {
                    let mine = |place| value(comm.rank, round, place);
                    let mut buf: Vec<f32> = (0..elements + 3).map(mine).collect();
                    let untouched = buf[elements..].to_vec();
                    all_reduce(&mut comm, &mut buf, elements).unwrap();
                    let sum = |place| {
                        (1..ranks).fold(value(0, round, place), |sum, rank| {
                            sum + value(rank, round, place)
                        })
                    };
                    let expected: Vec<f32> = (0..elements).map(sum).collect();
                    assert!(buf[..elements] == expected, "{ranks} ranks, {elements} elements");
                    assert_eq!(buf[elements..], untouched);
                }
            });
        }
    }

    #[test]
    fn a_sum_is_normalised_and_counts_once() {
        let (rows, width) = (3, 50);
        let all = |f: &dyn Fn(usize) -> f32| (0..rows * width).map(f).collect::<Vec<f32>>();
        let made = on_ranks(4, |mut comm| {
            let mut ops = Reference;
            let weight = norm_weight(&mut ops, width);
            let (norm, shape) = ((&weight, 1e-5), (rows, width));
            let own = comm.rank;
            let (mut x, mut residual) = (all(&|at| value(own, 0, at)), all(&|at| value(9, 1, at)));
            let done = comm.all_reduce_add_rms_norm(
                &mut ops,
                &mut residual,
                norm,
                shape,
                &mut x,
                Purpose::Base,
            );
            done.unwrap();
            (residual, x, Arc::clone(&comm.group.counts))
        });
        let mut ops = Reference;
        let weight = norm_weight(&mut ops, width);
        let mut x = all(&|at| (1..4).fold(value(0, 0, at), |sum, rank| sum + value(rank, 0, at)));
        let mut residual = all(&|at| value(9, 1, at));
        ops.add_rms_norm(&mut residual, &weight, 1e-5, rows, &mut x).unwrap();
        assert!(made.iter().all(|made| (&made.0, &made.1) == (&residual, &x)));
        assert_eq!(made[0].2.get(Purpose::Base), 1);
    }

    fn norm_weight(ops: &mut Reference, width: usize) -> <Reference as Ops>::Weight {
        let bytes: Vec<u8> = (0..width).flat_map(|at| (at as f32 * 0.1).to_le_bytes()).collect();
        let (dtype, stride) = (DType::F32, width);
        let view = WeightView { dtype, rows: 1, cols: width, stride, bytes: &bytes };
        ops.weight(&[view], dtype).unwrap()
    }

    #[test]
    fn many_rounds_never_mix() {
        on_ranks(4, |mut comm| {
            let mut whole = vec![0.0; 4 * 3];
            for round in 0..2000 {
                let part = vec![value(comm.rank, round, 0); 3];
                all_gather(&mut comm, &part, &mut whole, Purpose::Base);
                let expected = (0..4).flat_map(|rank| [value(rank, round, 0); 3]);
                assert!(whole.iter().copied().eq(expected), "round {round}");
            }
        });
    }

    #[test]
    fn a_collective_counts_once_and_under_its_purpose() {
        let counts = on_ranks(4, |mut comm| {
            let (part, mut whole) = (vec![1.0; 5], vec![0.0; 20]);
            all_gather(&mut comm, &part, &mut whole, Purpose::Lora);
            all_reduce(&mut comm, &mut whole, 20).unwrap();
            all_reduce(&mut comm, &mut whole, 3).unwrap();
            Arc::clone(&comm.group.counts)
        });
        assert_eq!((counts[0].get(Purpose::Base), counts[0].get(Purpose::Lora)), (2, 1));
    }

    #[test]
    fn peers_of_a_rank_that_leaves_are_released() {
        let results = on_ranks(3, |mut comm| {
            let mut buf = vec![1.0; 10];
            all_reduce(&mut comm, &mut buf, 10).unwrap();
            if comm.rank == 1 {
                return Ok(());
            }
            all_reduce(&mut comm, &mut buf, 10)
        });
        assert!(matches!(results[0], Err(CommError::PeerLost)), "{results:?}");
        assert!(matches!(results[2], Err(CommError::PeerLost)), "{results:?}");
    }

    #[test]
    fn nobody_waits_for_ever() {
        let mut group = ThreadComm::group(2, Duration::from_millis(20), &Arc::default());
        let mut buf = vec![1.0];
        let first = all_reduce(&mut group[0], &mut buf, 1);
        assert!(matches!(first, Err(CommError::Timeout { .. })), "{first:?}");
        let late = all_reduce(&mut group[1], &mut buf, 1);
        assert!(matches!(late, Err(CommError::PeerLost)), "{late:?}");
    }
}
