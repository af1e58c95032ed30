//! `drystone check`: says whether a deployment would start, and as what.

use std::path::Path;
use std::sync::Arc;

use contract::adapter::Kind;
use contract::policy::deploy::Plugins;
use model::footprint::block_bytes;

use crate::Failure;
use crate::policies;
use crate::replica;
use crate::survey::Survey;

/// Checks the deployment in `file` and prints what it would serve.
pub fn command(file: &Path) -> Result<(), Failure> {
    let survey = Survey::of(config::load(file)?)?;
    replica::spec(&survey, 0, &Arc::default(), None).check()?;
    println!("{} is good", file.display());
    println!("  model     {}", model(&survey));
    println!("  parallel  {}", parallel(&survey));
    println!("  kv cache  {}", kv_cache(&survey));
    for entry in survey.catalogue.entries() {
        let kind = match entry.kind {
            Kind::Plain => "plain".to_owned(),
            Kind::BlockDiagonal { blocks } => format!("block-diagonal, {blocks} blocks"),
        };
        println!("  adapter   {}: {kind}, lora rank {}", entry.name, entry.lora_rank);
    }
    for refused in survey.catalogue.refused() {
        println!("  refused   {}: {}", refused.name, refused.reason);
    }
    if let Some(host) = policies::host(&survey.settings)? {
        for plugin in host.list() {
            let hooks = plugin.hooks.join(", ");
            println!("  plugin    {}: {hooks}, sha256 {}", plugin.name, plugin.sha256);
        }
    }
    Ok(())
}

fn model(survey: &Survey) -> String {
    let parameters: usize = survey.model.tensors().iter().map(|tensor| tensor.elements()).sum();
    format!(
        "{}: {}, {} layers, {:.1} M parameters, {}",
        survey.settings.model.name,
        survey.model.architecture.name(),
        survey.model.shape.layers,
        parameters as f64 / 1e6,
        survey.dtype(),
    )
}

fn kv_cache(survey: &Survey) -> String {
    let engine = &survey.settings.engine;
    let (ranks, element) = (survey.settings.parallel.tensor, survey.dtype().bytes());
    let position = ranks as u64 * block_bytes(&survey.model.shape, ranks, 1, element);
    let room = match engine.kv_cache_bytes {
        None => "auto: what there is room for".to_owned(),
        Some(bytes) => {
            let gib = bytes as f64 / (1u64 << 30) as f64;
            let blocks = bytes / (position * engine.block_tokens as u64);
            format!("{gib:.2} GiB: {} tokens", blocks * engine.block_tokens as u64)
        }
    };
    format!("{room}, {:.1} KiB a token over all ranks", position as f64 / 1024.0)
}

fn parallel(survey: &Survey) -> String {
    let parallel = &survey.settings.parallel;
    let ranks = parallel.tensor;
    match survey.model.shape.indivisible(ranks) {
        Some(why) => format!("cannot start: {why}"),
        None => {
            let plural = if ranks == 1 { "" } else { "s" };
            format!("{ranks} rank{plural}, backend {:?}", parallel.backend).to_lowercase()
        }
    }
}
