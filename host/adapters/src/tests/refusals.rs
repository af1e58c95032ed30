//! What does not fit is refused by name, and no bytes make the loader panic.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde_json::json;

use crate::compile::Checked;
use crate::error::AdapterError;
use crate::tests::fixture::*;
use crate::{manifest, weights};

fn load(folder: &Path) -> Result<(), AdapterError> {
    let group = group(LLAMA, 2);
    Checked::open(folder, &group)?.compile("it", &group, None).map(drop)
}

#[track_caller]
fn assert_refused(folder: &Path, fragments: &[&str]) {
    let error = load(folder).expect_err("refused").to_string();
    for fragment in fragments {
        assert!(error.contains(fragment), "{}: {fragment:?} not in {error:?}", folder.display());
    }
}

/// Folders of `goldens/bad-adapters` and what their refusal has to name.
const BAD: &[(&str, &[&str])] = &[
    ("alora", &["alora_invocation_tokens", "[5,6]"]),
    ("blocks-undeclared", &["self_attn.q_proj", "lora_B", "[64, 4]", "[64, 8] would do"]),
    ("config-not-json", &["adapter_config.json", "EOF"]),
    ("dora", &["use_dora = true"]),
    ("embed-tokens", &["embed_tokens", "q, k, v, o, gate, up and down_proj"]),
    ("empty-file", &["adapter_model.safetensors", "0 bytes"]),
    ("extra-tensor", &["q_proj.lora_C.weight", "lora_A.weight"]),
    ("garbage", &["adapter_model.safetensors", "header", "512"]),
    ("integer-tensors", &["I32", "BF16"]),
    ("layer-replication", &["layer_replication"]),
    ("lm-head", &["lm_head", "q, k, v, o, gate, up and down_proj"]),
    ("lora-bias", &["lora_bias = true"]),
    ("missing-b", &["model.layers.1.self_attn.q_proj", "no lora_B"]),
    ("missing-module", &["o_proj", "no tensors"]),
    ("modules-to-save", &["modules_to_save", "norm"]),
    ("nblocks-wrong", &["q_proj", "[64, 4]", "[64, 2] (4 blocks) or [64, 8]"]),
    ("nblocks-zero", &["nblocks = 0", "1 or more"]),
    ("no-config", &["adapter_config.json", "No such file"]),
    ("no-lora-alpha", &["lora_alpha"]),
    ("no-module", &["c_q_proj", "names no module of the model"]),
    ("no-peft-type", &["peft_type"]),
    ("no-r", &["missing field `r`"]),
    ("no-such-layer", &["model.layers.7.self_attn", "2 layers"]),
    ("no-tensors", &["q_proj", "no tensors"]),
    ("no-weights", &["adapter_model.safetensors", "No such file"]),
    ("not-lora", &["peft_type = LOHA", "LORA"]),
    ("other-model", &["q_proj", "lora_A", "[2, 48]", "[2, 64] would do"]),
    ("overlapping-lists", &["\"q_proj\"", "both"]),
    ("overlapping-patterns", &["layers.1.self_attn.q_proj", "both", "layers.1.self_attn\""]),
    ("rank-indivisible", &["q_proj", "lora rank 6", "nblocks 4"]),
    ("rank-wrong", &["lora_A", "[2, 64]", "[8, 64] would do"]),
    ("rank-zero", &["r = 0"]),
    ("truncated", &["not a whole safetensors file", "the file holds"]),
    ("truncated-header", &["not a whole safetensors file", "header"]),
    ("unmatched-strict", &["o_proj", "matches neither list", "match_strict"]),
    ("width-indivisible", &["width 64", "nblocks 3"]),
];

#[test]
fn every_bad_golden_is_refused_by_name() {
    let folders = fs::read_dir(goldens().join("bad-adapters")).unwrap();
    let names = folders.map(|it| it.unwrap().file_name().into_string().unwrap());
    let listed: BTreeSet<_> = BAD.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names.collect::<BTreeSet<_>>(), listed, "a folder without its fragments");
    for (name, fragments) in BAD {
        assert_refused(&goldens().join("bad-adapters").join(name), fragments);
    }
}

#[test]
fn a_message_has_no_path_of_this_machine() {
    for (name, _) in BAD {
        let error = load(&goldens().join("bad-adapters").join(name)).unwrap_err().to_string();
        assert!(!error.contains("goldens") && !error.contains("/"), "{error}");
    }
}

#[test]
fn tensors_that_are_not_targeted_are_refused() {
    let folder = Folder::new(&LLAMA, 4, PLAIN, 1).with(json!({"target_modules": ["q_proj"]}));
    assert_refused(folder.write(), &["mlp.down_proj has tensors", "does not target it"]);
    let one_layer = json!({"layers_to_transform": [0]});
    let folder = Folder::new(&LLAMA, 4, PLAIN, 1).with(one_layer);
    assert_refused(folder.write(), &["model.layers.1."]);
}

#[test]
fn factors_of_one_axis_are_refused() {
    let mut folder = Folder::new(&LLAMA, 4, PLAIN, 1);
    folder.tensors.values_mut().next().unwrap().shape = vec![4 * 96];
    assert_refused(folder.write(), &["[384]", "[4, 96] would do"]);
}

#[test]
fn elements_that_are_not_finite_are_refused() {
    for bad in [f32::NAN, f32::INFINITY, f32::MAX] {
        let mut folder = Folder::new(&LLAMA, 4, PLAIN, 1);
        let name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight";
        folder.tensors.get_mut(name).unwrap().values[7] = bad; // f32::MAX overflows by scaling
        assert_refused(folder.write(), &[name, "finite"]);
    }
}

#[test]
fn a_pickle_is_not_read_and_says_what_would_do() {
    let folder = Folder::new(&LLAMA, 4, PLAIN, 1);
    folder.write();
    fs::remove_file(folder.path().join(weights::FILE)).unwrap();
    folder.put("adapter_model.bin", b"PK");
    assert_refused(folder.path(), &["adapter_model.bin", "convert it to safetensors"]);
}

#[test]
fn files_beyond_any_sensible_size_are_not_read() {
    let folder = Folder::new(&LLAMA, 4, PLAIN, 1);
    folder.write();
    folder.put(manifest::FILE, &vec![b' '; (1 << 20) + 1]);
    assert_refused(folder.path(), &["adapter_config.json", "1048577 bytes"]);
    folder.write();
    let mut weights = vec![b' '; 17 << 20];
    weights[..8].copy_from_slice(&(16u64 << 20 | 1).to_le_bytes());
    folder.put(weights::FILE, &weights);
    assert_refused(folder.path(), &["header", "16777217 bytes"]);
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_refused() {
    let folder = Folder::new(&LLAMA, 4, PLAIN, 1);
    let group = group(LLAMA, 2);
    let checked = Checked::open(folder.write(), &group).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(folder.path().join(weights::FILE))
        .and_then(|file| file.set_len(9000))
        .unwrap();
    let error = checked.compile("it", &group, None).unwrap_err().to_string();
    assert!(error.contains("adapter_model.safetensors"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn corrupt_bytes_never_panic(
        in_config: bool,
        at in prop::sample::select((0..4000).collect::<Vec<usize>>()),
        bytes in prop::collection::vec(any::<u8>(), 1..5),
        end in prop::option::weighted(0.2, 0usize..20_000),
    ) {
        let folder = Folder::new(&LLAMA, 4, BLOCKS, 2);
        let path = folder.write();
        let name = if in_config { manifest::FILE } else { weights::FILE };
        let mut file = fs::read(path.join(name)).unwrap();
        let first = at % (file.len() - bytes.len());
        file[first..first + bytes.len()].copy_from_slice(&bytes);
        file.truncate(end.unwrap_or(file.len()));
        folder.put(name, &file);
        let _ = load(path);
    }

    #[test]
    fn every_truncation_of_the_weights_is_refused(cut in 1usize..50_000) {
        let folder = Folder::new(&LLAMA, 4, BLOCKS, 2);
        let path = folder.write();
        let mut file = fs::read(path.join(weights::FILE)).unwrap();
        file.truncate(file.len() - 1 - cut % (file.len() - 1));
        folder.put(weights::FILE, &file);
        prop_assert!(load(path).is_err());
    }
}
