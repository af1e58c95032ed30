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
    hidden: usize,
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
            hidden: config.shape.hidden,
            eps: config.norm_eps,
        })
    }

    pub fn forward<C: Comm<O::Buf>>(
        &mut self,
        pass: &mut Pass<'_, O, C>,
        act: &mut Activations<O>,
    ) -> Result<()> {
        let (rows, elements) = (pass.rows, pass.rows * self.hidden);
        let norm = &self.attention_norm;
        pass.ops.rms_norm(&act.residual, norm, self.eps, rows, &mut act.hidden)?;
        self.attention.forward(pass, act)?;
        pass.ops.add(&act.hidden, elements, &mut act.residual)?;

        pass.ops.rms_norm(&act.residual, &self.mlp_norm, self.eps, rows, &mut act.hidden)?;
        self.mlp.forward(pass, act)?;
        pass.ops.add(&act.hidden, elements, &mut act.residual)?;
        Ok(())
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
