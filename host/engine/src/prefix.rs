//! Names for the contents of KV blocks.
//!
//! The keys and values of a block depend on every token before its end and on the adapter that
//! computed them, so a block's name is a hash chain over all of these, begun with the generation.
//! SHA-256, because a collision would show one tenant another tenant's prompt.

use contract::adapter::GenerationId;
use sha2::{Digest as _, Sha256};

/// Names the contents of one full block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// What a sequence's first block is chained to; `None` is the base.
    pub fn root(generation: Option<GenerationId>) -> Self {
        match generation {
            None => Self([0; 32]),
            Some(id) => {
                Self(Sha256::new().chain_update(b"adapter").chain_update(id.0).finalize().into())
            }
        }
    }

    /// The name of a block with these tokens after the block `self`, or after the root.
    pub fn after(self, tokens: &[u32]) -> Self {
        let mut hash = Sha256::new_with_prefix(self.0);
        for token in tokens {
            hash.update(token.to_le_bytes());
        }
        Self(hash.finalize().into())
    }
}
