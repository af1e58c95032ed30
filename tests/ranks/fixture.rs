//! The tiny models and adapters of `fixtures/goldens`, and what is expected of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use adapters::compile::Checked;
use adapters::cut::{Group as Cut, PlainSharding};
use config::settings::{Backend, CommKind, Engine, Load, Model, Parallel};
use contract::adapter::Generation;
use contract::tensor::DType;
use model::blueprint::Progress;
use model::hf::ModelConfig;
use ranks::error::StartError;
use ranks::group::{Group, GroupSpec};
use safetensors::SafeTensors;

/// All bases.
pub const BASES: [&str; 6] = ["llama", "llama-odd", "llama-tied", "mistral", "qwen2", "qwen3"];

/// One base with its adapters and expectations.
pub struct Fixture {
    folder: PathBuf,
    pub config: ModelConfig,
}

impl Fixture {
    pub fn open(base: &str) -> Self {
        let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/goldens");
        let folder = goldens.join(base);
        let config = ModelConfig::read(&folder.join("base")).unwrap();
        Self { folder, config }
    }

    /// The numbers of ranks, up to 8, that divide the model.
    pub fn rank_counts(&self) -> impl Iterator<Item = usize> {
        [1, 2, 4, 8].into_iter().filter(|ranks| self.config.shape.indivisible(*ranks).is_none())
    }

    pub fn adapters(&self) -> Vec<String> {
        let folders = fs::read_dir(self.folder.join("adapters")).unwrap();
        let names = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        assert!(names.len() >= 2);
        names
    }

    pub fn generation(&self, name: &str, ranks: usize, cut: PlainSharding) -> Arc<Generation> {
        let cut = Cut { base: self.config.shape, ranks, plain_sharding: cut };
        let folder = self.folder.join("adapters").join(name);
        Arc::new(Checked::open(&folder, &cut).unwrap().compile(name, &cut, None).unwrap())
    }

    /// Where its model lies.
    pub fn base(&self) -> PathBuf {
        self.folder.join("base")
    }

    /// `ranks` ranks in f32, with room for a few adapters and sequences.
    pub fn group(&self, ranks: usize) -> Group {
        self.group_of(self.base(), ranks)
    }

    /// The same with weights from another folder.
    pub fn group_of(&self, path: PathBuf, ranks: usize) -> Group {
        self.start(&self.model(path), &parallel(ranks)).unwrap()
    }

    pub fn model(&self, path: PathBuf) -> Model {
        Model {
            path,
            name: "golden".to_owned(),
            dtype: Some(DType::F32),
            load: Load::Weights,
            context_max: None,
        }
    }

    pub fn start(&self, model: &Model, parallel: &Parallel) -> Result<Group, StartError> {
        self.start_with(model, parallel, &ENGINE)
    }

    pub fn start_with(
        &self,
        model: &Model,
        parallel: &Parallel,
        engine: &Engine,
    ) -> Result<Group, StartError> {
        self.start_replica(model, parallel, engine, 0)
    }

    pub fn start_replica(
        &self,
        model: &Model,
        parallel: &Parallel,
        engine: &Engine,
        replica: usize,
    ) -> Result<Group, StartError> {
        Group::start(&GroupSpec {
            config: &self.config,
            model,
            parallel,
            engine,
            slots_max: 8,
            progress: &Arc::new(Progress::default()),
            replica,
            launch: None,
        })
    }

    /// The prompts of the goldens.
    pub fn prompts(&self) -> Vec<Vec<u32>> {
        let (shape, ids) = self.expected("input_ids", |bytes| {
            u32::try_from(i64::from_le_bytes(bytes.try_into().unwrap())).unwrap()
        });
        ids.chunks(shape[1]).map(<[u32]>::to_vec).collect()
    }

    /// `[prompt][position * vocab + token]` with an adapter, or with "base".
    pub fn logprobs(&self, name: &str) -> Vec<Vec<f32>> {
        let (shape, logprobs) = self.expected(&format!("logprobs.{name}"), |bytes| {
            f32::from_le_bytes(bytes.try_into().unwrap())
        });
        logprobs.chunks(shape[1] * shape[2]).map(<[f32]>::to_vec).collect()
    }

    fn expected<T>(&self, name: &str, value: impl Fn(&[u8]) -> T) -> (Vec<usize>, Vec<T>) {
        let bytes = fs::read(self.folder.join("expected.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        let values = tensor.data().chunks(tensor.dtype().bitsize() / 8).map(value);
        (tensor.shape().to_vec(), values.collect())
    }
}

/// Small enough that chunks and blocks matter.
pub const ENGINE: Engine = Engine {
    kv_cache_bytes: Some(1 << 20),
    block_tokens: 16,
    batch_tokens_max: 128,
    sequences_max: 16,
    queue_max: 16,
    prefix_cache: false,
};

pub fn parallel(tensor: usize) -> Parallel {
    Parallel {
        backend: Backend::Cpu,
        tensor,
        replicas: 1,
        threads: Some(1),
        comm: CommKind::Auto,
        devices: Vec::new(),
    }
}

/// An empty folder for a test's files.
pub fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ranks").join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}
