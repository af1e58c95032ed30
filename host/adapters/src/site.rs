//! Where a factor belongs, and how PEFT spells that in tensor names.

use std::fmt;

use contract::base::{BaseShape, Projection};

use crate::error::AdapterError;

/// A linear layer of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    /// Decoder block.
    pub layer: usize,
    /// Linear layer in it.
    pub projection: Projection,
}

/// One of a module's two factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that shrinks, `lora_A`.
    A,
    /// The one that expands, `lora_B`.
    B,
}

impl Site {
    /// Every site of a model, in order.
    pub fn all(base: &BaseShape) -> impl Iterator<Item = Self> {
        (0..base.layers).flat_map(|layer| {
            Projection::ALL.into_iter().map(move |projection| Self { layer, projection })
        })
    }

    /// Reads `model.layers.{layer}.{projection}`.
    fn parse(module: &str) -> Option<Self> {
        let (layer, rest) = module.strip_prefix("model.layers.")?.split_once('.')?;
        let projection = Projection::ALL.into_iter().find(|it| it.path() == rest)?;
        let site = Self { layer: layer.parse().ok()?, projection };
        // "01" and "+1" are numbers too, but name no module of a checkpoint.
        (site.to_string() == module).then_some(site)
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.projection.module(self.layer))
    }
}

impl Side {
    /// As PEFT spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::A => "lora_A",
            Self::B => "lora_B",
        }
    }
}

/// Says which factor a tensor is: `base_model.model.{module}.lora_A.weight`, or `lora_B`.
pub fn owner(tensor: &str, base: &BaseShape) -> Result<(Site, Side), AdapterError> {
    let Some((module, side)) = split(tensor) else {
        return Err(AdapterError::UnknownTensor { tensor: tensor.to_owned() });
    };
    let module = module.to_owned();
    match Site::parse(&module) {
        Some(site) if site.layer < base.layers => Ok((site, side)),
        Some(_) => Err(AdapterError::UnknownLayer { module, layers: base.layers }),
        None => Err(AdapterError::UnknownModule { module }),
    }
}

fn split(tensor: &str) -> Option<(&str, Side)> {
    let module = tensor.strip_prefix("base_model.model.")?.strip_suffix(".weight")?;
    let (module, side) = module.rsplit_once('.')?;
    let side = [Side::A, Side::B].into_iter().find(|it| it.name() == side)?;
    Some((module, side))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: BaseShape = BaseShape {
        hidden: 64,
        intermediate: 96,
        layers: 12,
        heads: 8,
        kv_heads: 4,
        head_dim: 8,
        vocab: 101,
    };

    #[test]
    fn names_of_factors_are_read() {
        for site in Site::all(&BASE) {
            let tensor = format!("base_model.model.{site}.lora_B.weight");
            assert_eq!(owner(&tensor, &BASE).unwrap(), (site, Side::B));
        }
    }

    #[test]
    fn names_that_are_nearly_right_are_refused() {
        let refused = |tensor: &str| owner(tensor, &BASE).unwrap_err();
        let q = "base_model.model.model.layers.3.self_attn.q_proj";
        for end in ["lora_C.weight", "lora_A.bias", "lora_A", "lora_A.default.weight"] {
            let error = refused(&format!("{q}.{end}"));
            assert!(matches!(error, AdapterError::UnknownTensor { .. }), "{error}");
        }
        for module in ["model.layers.03.mlp.up_proj", "layers.3.mlp.up_proj", "lm_head"] {
            let error = refused(&format!("base_model.model.{module}.lora_A.weight"));
            assert!(error.to_string().starts_with(module), "{error}");
        }
        let error = refused("base_model.model.model.layers.12.mlp.up_proj.lora_A.weight");
        assert!(error.to_string().contains("12 layers, 0 to 11"), "{error}");
    }
}
