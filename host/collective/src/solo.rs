//! The group of one rank.

use contract::counts::Purpose;
use kernels::ops::{Copied, Ops};

use crate::comm::{Comm, CommError};

/// The only rank of a group. It counts nothing, because it does nothing: a sum over one rank is
/// already there, and a gather from one rank is a copy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

impl<O: Ops<Buf: Copied>> Comm<O> for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn ranks(&self) -> usize {
        1
    }

    fn all_reduce_sum(&mut self, _: &mut O::Buf, _: usize, _: Purpose) -> Result<(), CommError> {
        Ok(())
    }

    fn all_gather(
        &mut self,
        part: &O::Buf,
        whole: &mut O::Buf,
        elements: usize,
        _: Purpose,
    ) -> Result<(), CommError> {
        whole.copy_from(part, elements).map_err(CommError::failed)
    }
}
