//! A guest that changes nothing: what is left is the cost of asking it.

use drystone_sdk::prelude::*;

/// Answers two hooks.
#[derive(Debug)]
pub struct Passes;

#[policy]
impl Policy for Passes {
    type Config = NoConfig;

    fn new(_config: NoConfig, _setup: &Setup) -> Result<Self, String> {
        Ok(Self)
    }

    fn on_request(&self, _request: &Request) -> RequestVerdict {
        RequestVerdict::Pass
    }

    fn on_chunk(&self, _chunk: &Chunk) -> ChunkVerdict {
        ChunkVerdict::Pass
    }
}
