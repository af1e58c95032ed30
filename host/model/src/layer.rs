//! One decoder block.

use collective::comm::Comm;
use kernels::ops::Ops;

use crate::attention::Attention;
use crate::error::Result;
use crate::loader::Loader;
use crate::lora::LoraSite;
use crate::mlp::Mlp;
use crate::pass::{Activations, Pass};

/// Attention and feed-forward. Both find the residual stream normalised, and add to it.
pub struct Layer<O: Ops> {
    attention: Attention<O>,
    mlp: Mlp<O>,
}

impl<O: Ops> Layer<O> {
    pub fn load(loader: &mut Loader<'_, O>, layer: usize) -> Result<Self> {
        Ok(Self { attention: Attention::load(loader, layer)?, mlp: Mlp::load(loader, layer)? })
    }

    /// Leaves the residual stream normalised for what comes behind, in `act.hidden`.
    pub fn forward<C: Comm<O>>(
        &mut self,
        pass: &mut Pass<'_, O, C>,
        act: &mut Activations<O>,
    ) -> Result<()> {
        self.attention.forward(pass, act)?;
        self.mlp.forward(pass, act)
    }

    /// Where adapters add to this block.
    pub fn sites(&mut self) -> [&mut LoraSite<O>; 4] {
        let (attention, mlp) = (&mut self.attention, &mut self.mlp);
        [
            &mut attention.qkv.lora,
            &mut attention.output.lora,
            &mut mlp.gate_up.lora,
            &mut mlp.down.lora,
        ]
    }
}
