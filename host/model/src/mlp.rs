//! The gated feed-forward block (SwiGLU, arXiv 2002.05202), this rank's features.

use collective::comm::Comm;
use contract::base::Projection;
use kernels::ops::Ops;

use crate::error::Result;
use crate::linear::{ColumnLinear, RowLinear};
use crate::loader::Loader;
use crate::pass::{Activations, Pass};

/// The feed-forward block of one layer.
pub struct Mlp<O: Ops> {
    pub gate_up: ColumnLinear<O>,
    pub down: RowLinear<O>,
    /// Features of this rank.
    width: usize,
}

impl<O: Ops> Mlp<O> {
    pub fn load(loader: &mut Loader<'_, O>, layer: usize) -> Result<Self> {
        let behind = loader.blueprint.config.norm_behind(layer);
        Ok(Self {
            gate_up: ColumnLinear::load(loader, layer, &[Projection::Gate, Projection::Up])?,
            down: RowLinear::load(loader, layer, &[Projection::Down], &behind)?,
            width: loader.blueprint.config.shape.intermediate / loader.ranks,
        })
    }

    /// Adds `down(silu(gate(hidden)) * up(hidden))` to the residual stream.
    pub fn forward<C: Comm<O>>(
        &self,
        pass: &mut Pass<'_, O, C>,
        act: &mut Activations<O>,
    ) -> Result<()> {
        let Activations { hidden, fused, inner, .. } = &mut *act;
        self.gate_up.forward_gated(pass, hidden, (fused, self.width), inner)?;
        self.down.forward(pass, act)
    }
}
