//! One decoder block.

use collective::comm::Comm;
use kernels::ops::Ops;

use crate::attention::Attention;
use crate::error::Result;
use crate::loader::Loader;
use crate::lora::LoraSite;
use crate::mlp::Mlp;
use crate::pass::{Activations, Pass};
use crate::tensors::Norm;

/// Attention and feed-forward, each normalised before and added to the residual stream after.
pub struct Layer<O: Ops> {
    attention_norm: O::Weight,
    attention: Attention<O>,
    mlp_norm: O::Weight,
    mlp: Mlp<O>,
    eps: f32,
}

impl<O: Ops> Layer<O> {
    pub fn load(loader: &mut Loader<'_, O>, layer: usize) -> Result<Self> {
        let config = loader.blueprint.config;
        Ok(Self {
            attention_norm: loader.norm(&config.norm(layer, Norm::Attention))?,
            attention: Attention::load(loader, layer)?,
            mlp_norm: loader.norm(&config.norm(layer, Norm::Mlp))?,
            mlp: Mlp::load(loader, layer)?,
            eps: config.norm_eps,
        })
    }

    /// Adds what the block before left in `act.hidden` to the residual stream, and leaves there
    /// this rank's part of what this one adds to it: the sum over ranks, the residual and the norm
    /// that follows are one operation. Nothing is left to add before the `first` block.
    pub fn forward<C: Comm<O>>(
        &mut self,
        pass: &mut Pass<'_, O, C>,
        act: &mut Activations<O>,
        first: bool,
    ) -> Result<()> {
        let (rows, eps, norm) = (pass.rows, self.eps, &self.attention_norm);
        match first {
            true => pass.ops.rms_norm(&act.residual, norm, eps, rows, &mut act.hidden)?,
            false => pass.add_norm(act, norm, eps)?,
        }
        self.attention.forward(pass, act)?;
        pass.add_norm(act, &self.mlp_norm, eps)?;
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
