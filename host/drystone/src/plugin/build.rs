//! `drystone plugin build`: from a crate to a component, and what the operator should know of it.

use std::fs;
use std::path::PathBuf;

use pack::{Built, Options};

use crate::Failure;
use crate::cli::PluginBuild;

pub fn command(build: &PluginBuild) -> Result<(), Failure> {
    let built = pack::build(&build.folder, &Options::default())?;
    let output = build.output.clone().unwrap_or_else(|| default_output(build, &built));
    fs::write(&output, &built.component)
        .map_err(|source| Failure::Write { path: output.clone(), source })?;
    println!("{}", report(&built, &output.display().to_string()));
    Ok(())
}

/// `NAME.wasm` beside the crate's manifest.
fn default_output(build: &PluginBuild, built: &Built) -> PathBuf {
    build.folder.join(format!("{}.wasm", built.name))
}

fn report(built: &Built, output: &str) -> String {
    let list = |names: &[String]| match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    };
    format!(
        "{output}\n  size    {:.1} KiB\n  hooks   {}\n  asks    {}\n  sha256  {}",
        built.component.len() as f64 / 1024.0,
        list(&built.surface.hooks),
        list(&built.surface.imports),
        built.sha256,
    )
}

#[cfg(test)]
mod tests {
    use pack::{Built, Surface};

    #[test]
    fn the_report_has_what_an_operator_asks() {
        let surface = Surface { hooks: vec!["admit".into()], imports: Vec::new() };
        let built =
            Built { name: "quota".into(), component: vec![0; 2048], sha256: "ab".into(), surface };
        let expected =
            "quota.wasm\n  size    2.0 KiB\n  hooks   admit\n  asks    none\n  sha256  ab";
        assert_eq!(super::report(&built, "quota.wasm"), expected);
    }
}
