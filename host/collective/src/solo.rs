//! The group of one rank.

use contract::counts::Purpose;

use crate::comm::{Comm, CommError};

/// The only rank of a group. It counts nothing, because it does nothing: a sum over one rank is
/// already there, and a gather from one rank is a copy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

impl<B: AsRef<[f32]> + AsMut<[f32]>> Comm<B> for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn ranks(&self) -> usize {
        1
    }

    fn all_reduce_sum(&mut self, _: &mut B, _: usize, _: Purpose) -> Result<(), CommError> {
        Ok(())
    }

    fn all_gather(
        &mut self,
        part: &B,
        whole: &mut B,
        elements: usize,
        _: Purpose,
    ) -> Result<(), CommError> {
        whole.as_mut()[..elements].copy_from_slice(&part.as_ref()[..elements]);
        Ok(())
    }
}
