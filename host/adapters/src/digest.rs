//! Names a generation by what it is made of.

use contract::adapter::GenerationId;
use sha2::{Digest as _, Sha256};

/// SHA-256 over the config's length in 8 bytes, the config and the weights file.
#[derive(Debug)]
pub struct Digest(Sha256);

impl Digest {
    /// Begins with the text of `adapter_config.json`.
    pub fn new(config: &[u8]) -> Self {
        let length = (config.len() as u64).to_le_bytes();
        Self(Sha256::new().chain_update(length).chain_update(config))
    }

    /// Takes the next bytes of the weights file.
    pub fn update(&mut self, weights: &[u8]) {
        self.0.update(weights);
    }

    /// The name.
    pub fn finish(self) -> GenerationId {
        GenerationId(self.0.finalize().into())
    }
}
