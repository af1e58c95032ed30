//! `drystone check`: says whether a deployment would start, and as what.

use std::path::Path;

use contract::adapter::Kind;
use contract::policy::deploy::Plugins;

use crate::Failure;
use crate::policies;
use crate::survey::Survey;

/// Checks the deployment in `file` and prints what it would serve.
pub fn command(file: &Path) -> Result<(), Failure> {
    let survey = Survey::of(config::load(file)?)?;
    println!("{} is good", file.display());
    println!("  model     {}", model(&survey));
    println!("  parallel  {}", parallel(&survey));
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

fn parallel(survey: &Survey) -> String {
    let parallel = &survey.settings.parallel;
    let ranks = parallel.tensor;
    match survey.model.shape.indivisible(ranks) {
        Some(why) => format!("cannot start: {why}"),
        None => format!("{ranks} ranks, backend {:?}", parallel.backend).to_lowercase(),
    }
}
