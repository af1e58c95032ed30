//! An adapter merged into the base's weights computes what the applied adapter computes.

use std::fs;
use std::path::PathBuf;

use adapters::cut::PlainSharding;
use contract::adapter::{Generation, LocalPair, Slot};
use contract::base::Projection;
use contract::step::Executor;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::feed::{Feed, distance, logprobs};
use super::fixture::{Fixture, folder};

/// `W += B A`, with the zeros between blocks left out.
fn merge(weight: &mut [f32], input: usize, pair: &LocalPair) {
    let shape = &pair.shape;
    let (a_width, b_width) = (input / shape.a_blocks, shape.expand_rank / shape.b_blocks);
    let (a_rows, b_rows) =
        (shape.shrink_rank / shape.a_blocks, shape.output.len() / shape.b_blocks);
    for output in shape.output.clone() {
        for j in 0..b_width {
            let lora = output / b_rows * b_width + j;
            let first = lora / a_rows * a_width;
            for i in 0..a_width {
                let product = pair.b[output * b_width + j] * pair.a[lora * a_width + i];
                weight[output * input + first + i] += product;
            }
        }
    }
}

/// Writes the llama fixture with an adapter merged into it.
fn merged(fixture: &Fixture, generation: &Generation) -> PathBuf {
    let bytes = fs::read(fixture.base().join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let merge_into = |(name, tensor): (String, TensorView<'_>)| {
        let mut values: Vec<f32> = tensor
            .data()
            .chunks(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
            .collect();
        for layer in 0..fixture.config.shape.layers {
            for projection in Projection::ALL {
                let pair = &generation.ranks[0][layer][projection.index()];
                if name == format!("{}.weight", projection.module(layer)) {
                    pair.iter().for_each(|pair| merge(&mut values, tensor.shape()[1], pair));
                }
            }
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        (name, tensor.shape().to_vec(), bytes)
    };
    let merged: Vec<_> = tensors.tensors().into_iter().map(merge_into).collect();
    let views = merged.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    let folder = folder(&format!("merged-{}", generation.name));
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    folder
}

#[test]
fn a_merged_adapter_computes_what_the_applied_one_does() {
    let fixture = Fixture::open("llama");
    let prompts = fixture.prompts();
    for name in ["plain", "bd2", "bd4", "bd2-mixed", "bd2-reversed"] {
        let whole = fixture.generation(name, 1, PlainSharding::Replicated);
        let mut group = fixture.group_of(merged(&fixture, &whole), 2);
        let merged = logprobs(&mut group, &[Feed::new(&prompts[0], 1, None)]);

        let mut group = fixture.group(2);
        let generation = fixture.generation(name, 2, PlainSharding::Replicated);
        group.load(Slot(0), generation).unwrap();
        let applied = logprobs(&mut group, &[Feed::new(&prompts[0], 1, Some(0))]);
        let worst = distance(&merged, &applied);
        assert!(worst < 1e-4, "{name}: off by {worst}");
    }
}
