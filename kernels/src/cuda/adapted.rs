//! A product and its adapters' shrink as launches of their own, and which of them comes first.

use contract::adapter::Exchange;

use crate::error::Result;
use crate::ops::Ops;

use super::Cuda;
use super::gemm::Operands;
use super::gemm_stream::ROWS_ADAPTED;
use super::lora::Site;
use super::memory::Buf;
use super::step::Step;
use super::weight::Weight;

/// Lora ranks of one pair up to which products of decode stream without what they add. Measured
/// are 16, where that is faster, and 64, where it is not.
const NARROW_RANK_MAX: usize = 32;

impl Cuda {
    /// `out = x weight^T + bias` and `h = x A^T`. In decode, shrink comes behind a product that
    /// streams, its first loads beside the product's last, but only of small lora ranks: of larger
    /// ones the product had better be cuBLASLt's (docs/performance.md).
    pub(super) fn gemm_and_shrink(
        &mut self,
        x: &Buf,
        (weight, bias): (&Weight, Option<&Weight>),
        (site, step, h): (&Site, &Step, &mut Buf),
        out: &mut Buf,
    ) -> Result<()> {
        let mut operands = Operands { x, weight, bias, out };
        let narrow = step.alike.is_some() && site.decode.staged() <= NARROW_RANK_MAX;
        if narrow && self.gemm.stream(&self.device, (step.rows, 1), &mut operands, None)? {
            return self.lora_shrink(x, site, step, Exchange::None, h);
        }
        self.lora_shrink(x, site, step, Exchange::None, h)?;
        match step.rows <= ROWS_ADAPTED {
            true => self.gemm.run(&self.device, step.rows, operands),
            false => self.gemm.run_large(&self.device, step.rows, operands),
        }
    }
}
