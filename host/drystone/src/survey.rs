//! Everything about a deployment that can be known, and found wrong, without loading weights.

use std::sync::Arc;

use adapters::catalogue::{Catalogue, Named, Sources};
use adapters::cut::{Group, PlainSharding};
use adapters::residency::Limits;
use config::settings::{self, Load, Settings};
use contract::tensor::DType;
use engine::text::Text;
use model::hf::ModelConfig;
use model::weights::Weights;

use crate::Failure;

/// A deployment whose model, tokenizer and adapters fit together.
pub struct Survey {
    /// What was configured.
    pub settings: Settings,
    /// The base model.
    pub model: ModelConfig,
    /// Its tokenizer and chat template.
    pub text: Arc<Text>,
    /// The adapters to serve.
    pub catalogue: Arc<Catalogue>,
}

impl Survey {
    /// Reads configs, tokenizer and tensor headers.
    pub fn of(settings: Settings) -> Result<Survey, Failure> {
        let model = ModelConfig::read(&settings.model.path)?;
        if settings.model.load == Load::Weights {
            Weights::open(&settings.model.path, &model)?;
        }
        let text = Text::open(&settings.model.path)?;
        let limits = limits(&settings.adapters);
        let group = Group {
            base: model.shape,
            ranks: settings.parallel.tensor,
            plain_sharding: match settings.adapters.plain_sharding {
                settings::PlainSharding::Replicated => PlainSharding::Replicated,
                settings::PlainSharding::FullySharded => PlainSharding::FullySharded,
            },
        };
        let named: Vec<_> = settings.adapters.named.iter().map(named).collect();
        let sources = Sources { dir: settings.adapters.dir.as_deref(), named: &named };
        let catalogue = Arc::new(Catalogue::open(sources, group, limits)?);
        if catalogue.get(&settings.model.name).is_ok() {
            return Err(Failure::Usage(format!(
                "an adapter and the base model have the name {:?}; set another model.name",
                settings.model.name
            )));
        }
        Ok(Survey { settings, model, text: Arc::new(text), catalogue })
    }

    /// Element type of weights and KV cache.
    pub fn dtype(&self) -> DType {
        self.settings.model.dtype.unwrap_or(self.model.dtype)
    }
}

fn limits(settings: &settings::Adapters) -> Limits {
    let host_bytes_max = usize::try_from(settings.host_bytes).unwrap_or(usize::MAX);
    Limits { slots_max: settings.slots_max, host_bytes_max }
}

fn named(named: &settings::NamedAdapter) -> Named {
    Named { name: named.name.clone(), path: named.path.clone(), pinned: named.pinned }
}
