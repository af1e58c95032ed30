//! How fast this machine reads memory: the floor of a decode step.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::error::Result;

use super::isa::Isa;
use super::lines::Lines;
use super::simd::{Kernel, Lanes, Line, Simd};

/// Bytes that each thread reads in one pass: more than any cache holds.
const THREAD_BYTES: usize = 1 << 29;

/// Passes; the median counts.
const PASSES: usize = 5;

/// Memory that `threads` threads read together in a second, in GB (10^9 bytes).
pub fn bandwidth(threads: usize) -> Result<f64> {
    let isa = Isa::best();
    let count = THREAD_BYTES / size_of::<Line>();
    let mut memory = (0..threads).map(|_| Lines::new(count)).collect::<Result<Vec<_>>>()?;
    // Untouched pages are all one page of zeros.
    memory.iter_mut().for_each(|lines| lines.fill(Line([1; 64])));
    let barrier = Barrier::new(threads);
    let slowest = std::thread::scope(|scope| {
        let passes = memory.iter().map(|lines| scope.spawn(|| passes(isa, lines, &barrier)));
        let passes: Vec<_> = passes.collect();
        let passes = passes.into_iter().map(|pass| pass.join().expect("reading cannot fail"));
        passes.reduce(|a, b| std::array::from_fn(|i| a[i].max(b[i])))
    });
    let mut slowest = slowest.unwrap_or([Duration::MAX; PASSES]);
    slowest.sort_unstable();
    Ok((threads * THREAD_BYTES) as f64 / slowest[PASSES / 2].as_secs_f64() / 1e9)
}

/// How long each pass of one thread takes; all threads start a pass together.
fn passes(isa: Isa, lines: &[Line], barrier: &Barrier) -> [Duration; PASSES] {
    std::array::from_fn(|_| {
        barrier.wait();
        let start = Instant::now();
        std::hint::black_box(isa.run(Read(lines)));
        start.elapsed()
    })
}

/// Reads lines and does next to nothing with them.
struct Read<'a>(&'a [Line]);

impl Kernel for Read<'_> {
    type Output = Lanes;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Lanes {
        let mut sums = [simd.splat(0.0); 4];
        for lines in self.0.as_chunks::<4>().0 {
            simd.prefetch((&raw const lines[0]).wrapping_add(64));
            for i in 0..4 {
                sums[i] = simd.fma(simd.line_f32(&lines[i]), simd.splat(1.0), sums[i]);
            }
        }
        let mut out = [0.0; 16];
        let total = sums.into_iter().reduce(|a, b| simd.fma(a, simd.splat(1.0), b));
        simd.store(total.unwrap_or(sums[0]), &mut out);
        out
    }
}
