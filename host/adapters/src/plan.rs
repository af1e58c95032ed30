//! Checks an adapter's config and tensors against each other and the base, before any data is read.
//!
//! Everything targeted must have its tensors and every tensor a targeted module, so that no adapter
//! is ever served in part.

use std::collections::BTreeMap;

use contract::adapter::Kind;
use contract::base::BaseShape;

use crate::cut::{Cut, Group};
use crate::error::AdapterError;
use crate::manifest::Manifest;
use crate::module::Module;
use crate::site::{Side, Site, owner};
use crate::weights::Tensor;

/// An adapter that fits the base.
#[derive(Debug)]
pub struct Plan {
    /// What it adds to.
    pub modules: BTreeMap<Site, Module>,
    /// What each tensor is, in the order of the weights file.
    pub owners: Vec<(Site, Side)>,
}

impl Plan {
    /// Classifies every module, or says what does not fit.
    pub fn new(
        manifest: &Manifest,
        tensors: &[Tensor],
        base: &BaseShape,
    ) -> Result<Self, AdapterError> {
        let mut pairs = targeted(manifest, base)?;
        let mut owners = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let (site, side) = owner(&tensor.name, base)?;
            let untargeted = || AdapterError::Untargeted { module: site.to_string() };
            pairs.get_mut(&site).ok_or_else(untargeted)?[side as usize] = Some(tensor);
            owners.push((site, side));
        }
        let modules = pairs
            .into_iter()
            .map(|(site, pair)| Ok((site, Module::new(site, whole(site, pair)?, manifest, base)?)));
        Ok(Self { modules: modules.collect::<Result<_, AdapterError>>()?, owners })
    }

    /// Plain, unless any factor is block-diagonal on disk.
    pub fn kind(&self) -> Kind {
        let blocks = self.modules.values().map(|module| module.a.blocks.max(module.b.blocks));
        match blocks.max() {
            Some(blocks) if blocks > 1 => Kind::BlockDiagonal { blocks },
            _ => Kind::Plain,
        }
    }

    /// Largest full lora rank of any module.
    pub fn lora_rank(&self) -> usize {
        self.modules.values().map(|module| module.a.rows).max().unwrap_or(0)
    }

    /// Host memory that the local pairs of all ranks take, in bytes.
    pub fn bytes(&self, group: &Group) -> usize {
        let cuts = self
            .modules
            .values()
            .flat_map(|module| (0..group.ranks).map(|rank| Cut::new(module, rank, group).shape));
        cuts.map(|shape| (shape.a_len() + shape.b_len()) * size_of::<f32>()).sum()
    }

    /// Tells the log what is served right but was hardly meant so.
    pub fn warn(&self, adapter: &str) {
        let count = |odd: fn(&Module) -> bool| self.modules.values().filter(|it| odd(it)).count();
        let reversed = count(Module::is_reversed);
        if reversed > 0 {
            let why =
                "target_modules_bd_a and _bd_b are the wrong way round for tensor parallelism";
            tracing::warn!(adapter, modules = reversed, "{why}: costs as much as a plain adapter");
        }
        let dense = count(|module| module.dense_after_all);
        if dense > 0 {
            tracing::warn!(adapter, modules = dense, "use_bdlora is set, but factors are dense");
        }
    }
}

/// A place for the tensors of every site that the config targets.
fn targeted<'a>(
    manifest: &Manifest,
    base: &BaseShape,
) -> Result<BTreeMap<Site, [Option<&'a Tensor>; 2]>, AdapterError> {
    for (module, name) in [("lm_head", "lm_head"), ("model.embed_tokens", "embed_tokens")] {
        if manifest.targets.contain(module)? {
            return Err(AdapterError::Target(name));
        }
    }
    let mut pairs = BTreeMap::new();
    for site in Site::all(base) {
        if manifest.targets.contain(&site.to_string())? {
            pairs.insert(site, [None, None]);
        }
    }
    match pairs.is_empty() {
        true => Err(AdapterError::NothingTargeted(manifest.targets.describe())),
        false => Ok(pairs),
    }
}

fn whole(site: Site, pair: [Option<&Tensor>; 2]) -> Result<[&Tensor; 2], AdapterError> {
    let missing = match pair {
        [Some(a), Some(b)] => return Ok([a, b]),
        [None, None] => "tensors",
        [None, _] => "lora_A.weight",
        [_, None] => "lora_B.weight",
    };
    Err(AdapterError::Incomplete { module: site.to_string(), missing })
}
