//! Classifies one module: what its factors are by the config, and by their shapes.

use contract::base::{BaseShape, Parallel};

use crate::cut::Factor;
use crate::error::AdapterError;
use crate::manifest::Manifest;
use crate::site::{Side, Site};
use crate::weights::Tensor;

/// One adapted linear layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// Which one.
    pub site: Site,
    /// `[lora rank, input]`.
    pub a: Factor,
    /// `[output, lora rank]`.
    pub b: Factor,
    /// What `B A x` is multiplied by.
    pub scaling: f64,
    /// The config says block-diagonal, the shapes say dense.
    pub dense_after_all: bool,
}

impl Module {
    /// Holds a module's tensors, A and B, against the shapes that would do. Where the config says
    /// block-diagonal, dense ones do too: they are what training on quantised layers leaves.
    pub fn new(
        site: Site,
        tensors: [&Tensor; 2],
        manifest: &Manifest,
        base: &BaseShape,
    ) -> Result<Self, AdapterError> {
        let path = site.to_string();
        let rank = manifest.rank(&path)?;
        let (input, output) = base.features(site.projection);
        let dense = [Factor::dense(rank, input), Factor::dense(output, rank)];
        let is_dense = dense.iter().zip(tensors).all(|(factor, tensor)| factor.fits(tensor));
        let declared = manifest.blocks(&path)?;
        let [a, b] = match declared {
            Some((side, blocks)) if !is_dense => compact(dense, side, blocks, site)?,
            _ => dense,
        };
        for (side, wanted, tensor) in [(Side::A, a, tensors[0]), (Side::B, b, tensors[1])] {
            check(site, side, [wanted, dense[side as usize]], tensor)?;
        }
        let dense_after_all = is_dense && declared.is_some_and(|(_, blocks)| blocks > 1);
        Ok(Self { site, a, b, scaling: manifest.scaling(&path)?, dense_after_all })
    }

    /// Whether both factors are dense.
    pub fn is_plain(&self) -> bool {
        self.a.blocks == 1 && self.b.blocks == 1
    }

    /// Whether the block-diagonal factor is the one that Megatron's cut leaves whole.
    pub fn is_reversed(&self) -> bool {
        match self.site.projection.parallel() {
            Parallel::Column => self.a.blocks > 1,
            Parallel::Row => self.b.blocks > 1,
        }
    }
}

/// The factors with one of them cut into blocks.
fn compact(
    [a, b]: [Factor; 2],
    side: Side,
    blocks: usize,
    site: Site,
) -> Result<[Factor; 2], AdapterError> {
    let width = match side {
        Side::A => ("input width", a.columns),
        Side::B => ("output width", b.rows),
    };
    for (what, size) in [("lora rank", a.rows), width] {
        if !size.is_multiple_of(blocks) {
            return Err(AdapterError::Indivisible { module: site.to_string(), what, size, blocks });
        }
    }
    Ok(match side {
        Side::A => [Factor { blocks, ..a }, b],
        Side::B => [a, Factor { blocks, ..b }],
    })
}

fn check(
    site: Site,
    side: Side,
    [wanted, dense]: [Factor; 2],
    tensor: &Tensor,
) -> Result<(), AdapterError> {
    if wanted.fits(tensor) {
        return Ok(());
    }
    let shape = wanted.stored();
    let would_do = match dense.stored() {
        dense if dense != shape => format!("{shape:?} ({} blocks) or {dense:?}", wanted.blocks),
        _ => format!("{shape:?}"),
    };
    let (module, factor, found) = (site.to_string(), side.name(), tensor.shape.clone());
    Err(AdapterError::Shape { module, factor, found, would_do })
}
