//! Steps in flight, and when the next may be started behind one.
//!
//! Where the ranks run ahead, step n + 1 is planned and started while they compute step n; the host
//! then settles n while they compute n + 1. The plan supposes that every sequence that draws in n
//! goes on, with a token that only the ranks know yet. Why that is right:
//!
//! - *One that goes on* gets the row that it would have got: its token is handed over where it was
//!   drawn, and the next draw hangs on its seed and index, not on what the host knows.
//! - *One that is to end by its length* in n is known to, and has no row in n + 1.
//! - *One that ends otherwise* (a stop, a cancelled request) has a row in n + 1 for nothing. Its
//!   answer is dropped. The row writes one position of the last block of its own table. That block
//!   is not full, so it has no name and nobody shares it; and a sequence keeps its blocks and its
//!   lease until no step in flight has a row of it, so nobody else has them before the row is
//!   computed.
//! - *Blocks are named* when the step that filled them is settled: their contents are there, and
//!   the tokens that name them are known. Those of a sequence that has ended get no names any
//!   more.
//! - *Slots* are loaded and emptied in the order of commands, behind what is in flight.

use std::time::Instant;

use contract::step::{Batch, Query};

use crate::scheduler::{Scheduler, Share};
use crate::sequence::Sequence;

/// A step that the ranks were given and that is not settled yet.
pub struct Flight {
    /// What it does, in the order of its queries.
    pub shares: Vec<Share>,
    /// Rows and queries of its batch.
    pub rows: usize,
    pub queries: usize,
    /// When it was started.
    pub started: Instant,
    /// Whether a step may be started behind it.
    followed: bool,
}

impl Flight {
    /// The step of these shares, which are taken, that starts now.
    pub fn new(shares: &[Share], batch: &Batch) -> Self {
        Self {
            shares: shares.to_vec(),
            rows: batch.tokens.len(),
            queries: batch.queries.len(),
            started: Instant::now(),
            followed: is_decode(batch) && batch.queries.iter().all(Query::is_followed),
        }
    }

    /// Whether the next step can be planned behind this one. Where not, this one is settled first:
    /// the ranks need the host to answer it, somebody has to give blocks back, a draw reads the
    /// very token that is pending, or it is prefill, whose launches fill a device's queue: the next
    /// step would wait for room in there, and with it this one's answers.
    pub fn may_be_followed(&self, scheduler: &Scheduler) -> bool {
        let reads = |it: &Sequence| it.pending > 0 && it.request.sampling.reads_history();
        self.followed && scheduler.has_blocks() && !scheduler.running().iter().any(reads)
    }
}

/// Whether every sequence has one row.
fn is_decode(batch: &Batch) -> bool {
    batch.spans.len() == batch.tokens.len()
}
