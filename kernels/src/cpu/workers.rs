//! The threads of one rank, and the instruction set they compute with.

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};

use super::isa::Isa;

/// Elements below which a row by row operation is not worth another thread's attention.
const PIECE_MIN: usize = 16 << 10;

/// Runs independent pieces of work. One thread means the caller's own, with no pool at all.
pub struct Workers {
    pub isa: Isa,
    pool: Option<ThreadPool>,
}

impl Workers {
    /// `threads` of them; 0 counts as 1.
    pub fn new(threads: usize, isa: Isa) -> Result<Self> {
        let named = ThreadPoolBuilder::new().thread_name(|thread| format!("cpu-{thread}"));
        let pool = (threads > 1).then(|| named.num_threads(threads).build()).transpose();
        let pool =
            pool.map_err(|e| Error::Device(format!("cannot start {threads} threads: {e}")))?;
        Ok(Self { isa, pool })
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.pool.as_ref().map_or(1, ThreadPool::current_num_threads)
    }

    /// Does all pieces, in any order.
    pub fn each<T: Send>(&self, pieces: Vec<T>, work: impl Fn(T) + Sync) {
        match &self.pool {
            Some(pool) if pieces.len() > 1 => {
                pool.install(|| pieces.into_par_iter().for_each(&work));
            }
            _ => pieces.into_iter().for_each(work),
        }
    }

    /// Cuts rows of `width` into one piece a thread; `work` gets the first row's index and rows.
    pub fn rows(&self, rows: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
        let share = (rows.len() / width).div_ceil(self.threads()).max(PIECE_MIN.div_ceil(width));
        let pieces = rows.chunks_mut(share * width).enumerate().collect();
        self.each(pieces, |(piece, rows)| work(piece * share, rows));
    }

    /// Cuts the columns of rows of `width` into one piece a thread, at multiples of `grain`; `work`
    /// gets the first column's index and every row's columns.
    pub fn columns(
        &self,
        rows: &mut [f32],
        width: usize,
        grain: usize,
        work: impl Fn(usize, &mut [&mut [f32]]) + Sync,
    ) {
        let share = width.div_ceil(grain).div_ceil(self.threads()) * grain;
        let mut pieces: Vec<(usize, Vec<&mut [f32]>)> =
            (0..width).step_by(share).map(|first| (first, Vec::new())).collect();
        for row in rows.chunks_exact_mut(width) {
            for ((_, piece), columns) in pieces.iter_mut().zip(row.chunks_mut(share)) {
                piece.push(columns);
            }
        }
        self.each(pieces, |(first, mut columns)| work(first, &mut columns));
    }
}
