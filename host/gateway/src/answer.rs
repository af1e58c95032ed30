//! Answers: what the engine says, as OpenAI clients read it.

pub mod finish;
pub mod form;
pub mod frame;
pub mod head;
pub mod logprobs;
pub mod opened;
pub mod review;
pub mod source;
pub mod stream;
pub mod tally;
pub mod usage;
pub mod whole;
