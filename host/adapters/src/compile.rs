//! Reads an adapter and cuts it into the local pairs of every rank.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use contract::adapter::{Generation, LayerPairs, LocalPair};
use sha2::{Digest as _, Sha256};

use crate::cut::{Cut, Group};
use crate::digest::Digest;
use crate::error::AdapterError;
use crate::manifest::{self, Manifest};
use crate::module::Module;
use crate::plan::Plan;
use crate::site::Side;
use crate::weights::{self, Weights};

/// A config with a rank and an alpha for each of 882 modules takes 0.1 MiB.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// A PEFT folder whose config and tensor headers fit the base.
#[derive(Debug)]
pub struct Checked {
    /// What there is to cut.
    pub plan: Plan,
    config: Vec<u8>,
    weights: Weights,
}

impl Checked {
    /// Reads the config and the header of the weights, and checks them against each other.
    pub fn open(folder: &Path, group: &Group) -> Result<Self, AdapterError> {
        let config = read_config(folder)?;
        let manifest = Manifest::parse(&config)?;
        let weights = Weights::open(folder)?;
        let plan = Plan::new(&manifest, &weights.tensors, &group.base)?;
        Ok(Self { plan, config, weights })
    }

    /// Reads every tensor once, in the order of the file, and cuts it for each rank.
    /// Where `sha256` is given, the weights file must hash to it.
    pub fn compile(
        self,
        name: &str,
        group: &Group,
        sha256: Option<&str>,
    ) -> Result<Generation, AdapterError> {
        let Weights { tensors, header, mut data } = self.weights;
        let mut file = sha256.map(|wanted| (Sha256::new_with_prefix(&header), wanted));
        let mut digest = Digest::new(&self.config);
        digest.update(&header);
        let mut ranks = vec![vec![LayerPairs::default(); group.base.layers]; group.ranks];
        let (mut bytes, mut values) = (Vec::new(), Vec::new());
        for (tensor, (site, side)) in tensors.iter().zip(&self.plan.owners) {
            let module = &self.plan.modules[site];
            tensor.read(&mut data, &mut bytes)?;
            digest.update(&bytes);
            if let Some((hash, _)) = &mut file {
                hash.update(&bytes);
            }
            tensor.values(&bytes, scaling(module, *side), &mut values)?;
            for (rank, layers) in ranks.iter_mut().enumerate() {
                let pair = &mut layers[site.layer][site.projection.index()];
                fill(pair, *side, &values, module, &Cut::new(module, rank, group));
            }
        }
        if let Some((hash, wanted)) = file {
            same(&format!("{:x}", hash.finalize()), wanted)?;
        }
        Ok(Generation {
            id: digest.finish(),
            name: name.to_owned(),
            kind: self.plan.kind(),
            lora_rank: self.plan.lora_rank(),
            ranks,
        })
    }
}

/// Reads a weights file and compares its SHA-256, in hex.
pub fn check_sha256(folder: &Path, wanted: &str) -> Result<(), AdapterError> {
    let file = weights::FILE;
    let failed = |source: io::Error| AdapterError::Read { file, source, hint: "" };
    let mut data = File::open(folder.join(file)).map_err(failed)?;
    let mut hash = Sha256::new();
    io::copy(&mut data, &mut hash).map_err(failed)?;
    same(&format!("{:x}", hash.finalize()), wanted)
}

fn same(found: &str, wanted: &str) -> Result<(), AdapterError> {
    match found.eq_ignore_ascii_case(wanted) {
        true => Ok(()),
        false => {
            let (found, wanted) = (found.to_owned(), wanted.to_owned());
            Err(AdapterError::Sha256 { found, wanted })
        }
    }
}

/// Scaling is multiplied into B, so that the hot path knows none.
fn scaling(module: &Module, side: Side) -> f32 {
    match side {
        Side::A => 1.0,
        Side::B => module.scaling as f32,
    }
}

fn fill(pair: &mut Option<LocalPair>, side: Side, values: &[f32], module: &Module, cut: &Cut) {
    let empty = || LocalPair { shape: cut.shape.clone(), a: Vec::new(), b: Vec::new() };
    let pair = pair.get_or_insert_with(empty);
    match side {
        Side::A => pair.a = cut.a.out_of(&module.a, values),
        Side::B => pair.b = cut.b.out_of(&module.b, values),
    }
}

fn read_config(folder: &Path) -> Result<Vec<u8>, AdapterError> {
    let file = manifest::FILE;
    let failed = |source: io::Error| AdapterError::Read { file, source, hint: "" };
    let mut text = Vec::new();
    let config = File::open(folder.join(file)).map_err(failed)?;
    config.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut text).map_err(failed)?;
    let bytes = text.len() as u64;
    match bytes > CONFIG_BYTES_MAX {
        true => Err(AdapterError::TooLarge { file, bytes, bytes_max: CONFIG_BYTES_MAX }),
        false => Ok(text),
    }
}
