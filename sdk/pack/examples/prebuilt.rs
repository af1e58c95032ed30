//! Builds every plugin of `plugins/` into `plugins/prebuilt/`, as `drystone plugin build` would:
//! `cargo run -p pack --example prebuilt`. With files as arguments, says what those components are.

use std::error::Error;
use std::fs;
use std::path::Path;

use pack::{Options, Surface};

fn main() -> Result<(), Box<dyn Error>> {
    let files: Vec<_> = std::env::args().skip(1).collect();
    for file in &files {
        let component = fs::read(file)?;
        describe(file, component.len(), &Surface::of(&component)?);
    }
    if files.is_empty() { build_all() } else { Ok(()) }
}

fn build_all() -> Result<(), Box<dyn Error>> {
    let plugins = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins");
    let mut folders: Vec<_> = fs::read_dir(&plugins)?.flatten().map(|entry| entry.path()).collect();
    folders.retain(|folder| folder.join("Cargo.toml").is_file());
    folders.sort();
    for folder in folders {
        let built = pack::build(&folder, &Options::default())?;
        fs::write(plugins.join(format!("prebuilt/{}.wasm", built.name)), &built.component)?;
        describe(&built.name, built.component.len(), &built.surface);
    }
    Ok(())
}

fn describe(name: &str, bytes: usize, surface: &Surface) {
    let Surface { hooks, imports } = surface;
    println!("{name}: {bytes} bytes, hooks {hooks:?}, asks {imports:?}");
}
