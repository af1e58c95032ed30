//! Checkpoints that are not what they should be, and dummy weights.

use std::collections::HashMap;
use std::fs;

use config::settings::{Load, Model};
use contract::tensor::DType;
use ranks::error::StartError;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::feed::{Feed, distance, logprobs};
use super::fixture::{Fixture, folder, parallel};

type Tensors = HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

const V_PROJ: &str = "model.layers.1.self_attn.v_proj.weight";

fn tensors(fixture: &Fixture) -> Tensors {
    let bytes = fs::read(fixture.base().join("model.safetensors")).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let own =
        |tensor: TensorView<'_>| (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec());
    read.tensors().into_iter().map(|(name, tensor)| (name, own(tensor))).collect()
}

/// What a group of two says about a changed checkpoint.
fn refusal(name: &str, change: impl FnOnce(&mut Tensors)) -> String {
    let fixture = Fixture::open("llama");
    let mut tensors = tensors(&fixture);
    change(&mut tensors);
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let folder = folder(name);
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    refused(&fixture, &fixture.model(folder))
}

fn refused(fixture: &Fixture, model: &Model) -> String {
    match fixture.start(model, &parallel(2)) {
        Err(error @ StartError::Model(_)) => error.to_string(),
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("the checkpoint was taken"),
    }
}

fn assert_says(why: &str, parts: &[&str]) {
    assert!(parts.iter().all(|part| why.contains(part)), "{why:?} does not say {parts:?}");
}

#[test]
fn a_missing_tensor_is_named() {
    let why = refusal("missing", |tensors| drop(tensors.remove(V_PROJ)));
    assert_says(&why, &[V_PROJ, "no file has"]);
}

#[test]
fn a_tensor_that_nobody_would_read_is_named() {
    let why = refusal("extra", |tensors| {
        let bias = (Dtype::F32, vec![32], vec![0; 128]);
        tensors.insert("model.layers.1.self_attn.v_proj.bias".to_owned(), bias);
    });
    assert_says(&why, &["model.layers.1.self_attn.v_proj.bias", "config.json"]);
}

#[test]
fn a_wrong_shape_is_named_with_the_right_one() {
    let why = refusal("shape", |tensors| tensors.get_mut(V_PROJ).unwrap().1 = vec![64, 32]);
    assert_says(&why, &[V_PROJ, "[64, 32]", "[32, 64]", "model.safetensors"]);
}

#[test]
fn an_element_type_without_meaning_here_is_named() {
    let why = refusal("dtype", |tensors| tensors.get_mut(V_PROJ).unwrap().0 = Dtype::I32);
    assert_says(&why, &[V_PROJ, "I32", "BF16"]);
}

#[test]
fn files_cut_short_or_absent_are_named() {
    let fixture = Fixture::open("llama");
    let whole = fs::read(fixture.base().join("model.safetensors")).unwrap();
    for (name, bytes) in [("half", &whole[..whole.len() / 2]), ("head", &whole[..40]), ("no", &[])]
    {
        let folder = folder(&format!("cut-{name}"));
        fs::write(folder.join("model.safetensors"), bytes).unwrap();
        assert_says(&refused(&fixture, &fixture.model(folder)), &["model.safetensors"]);
    }
    let why = refused(&fixture, &fixture.model(folder("none")));
    assert_says(&why, &["model.safetensors.index.json", "neither"]);

    let sharded = Fixture::open("llama-tied");
    let folder = folder("shard-missing");
    let index = "model.safetensors.index.json";
    fs::copy(sharded.base().join(index), folder.join(index)).unwrap();
    assert_says(&refused(&sharded, &sharded.model(folder)), &["model-0000"]);
}

#[test]
fn dummy_weights_are_one_model_however_it_is_cut() {
    let fixture = Fixture::open("qwen2");
    let prompts = fixture.prompts();
    let dummy = |seed, ranks| {
        let load = Load::Dummy { seed };
        let model = Model { load, dtype: Some(DType::F32), ..fixture.model("nowhere".into()) };
        let mut group = fixture.start(&model, &parallel(ranks)).unwrap();
        logprobs(&mut group, &[Feed::new(&prompts[0], 1, None)])
    };
    let whole = dummy(7, 1);
    for ranks in [2, 4, 8] {
        let worst = distance(&whole, &dummy(7, ranks));
        assert!(worst < 1e-4, "off by {worst} on {ranks} ranks");
    }
    assert!(distance(&whole, &dummy(8, 1)) > 1e-3, "another seed is another model");
}
