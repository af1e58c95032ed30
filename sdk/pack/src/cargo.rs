//! Calls of rustup and cargo.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::{Options, PackError};

pub(crate) const TARGET: &str = "wasm32-unknown-unknown";
/// Bytes of a plugin's stack. Every byte of an instance's memory costs time when it is taken down,
/// and Rust's own choice for the target is a megabyte. Below the stack lies nothing, so that to
/// overflow it is a trap. A build script of the plugin can ask for more in the same way.
const STACK: &str = "link-arg=-zstack-size=65536";
/// Named in the workspace of the plugin; `drystone plugin new` writes it.
const PROFILE: &str = "plugin";

/// A crate that makes a plugin.
pub(crate) struct Crate {
    pub name: String,
    manifest: PathBuf,
    /// Name of the library, and so of the module.
    library: String,
    target_dir: PathBuf,
}

/// Finds the crate of a folder by asking cargo.
pub(crate) fn locate(folder: &Path) -> Result<Crate, PackError> {
    let manifest = folder.join("Cargo.toml");
    let wrong = |why: String| PackError::Manifest { manifest: manifest.clone(), why };
    let path = manifest.canonicalize().map_err(|error| wrong(error.to_string()))?;
    let mut cargo = Command::new("cargo");
    cargo.args(["metadata", "--format-version=1", "--no-deps", "--manifest-path"]).arg(&path);
    let asked = output("cargo", &mut cargo)?;
    if !asked.status.success() {
        return Err(wrong(String::from_utf8_lossy(&asked.stderr).trim().to_owned()));
    }
    let metadata: Value =
        serde_json::from_slice(&asked.stdout).map_err(|error| wrong(error.to_string()))?;
    read(&metadata, &path).map_err(|why| wrong(why.to_owned()))
}

fn read(metadata: &Value, manifest: &Path) -> Result<Crate, &'static str> {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let mut packages = packages.filter(|package| {
        package["manifest_path"].as_str().is_some_and(|path| Path::new(path) == manifest)
    });
    let package = packages.next().ok_or("has no [package]")?;
    let mut targets = package["targets"].as_array().into_iter().flatten();
    let cdylib = |target: &&Value| {
        target["crate_types"]
            .as_array()
            .is_some_and(|types| types.iter().any(|crate_type| crate_type == "cdylib"))
    };
    let library = targets.find(cdylib);
    let library = library.ok_or("is no plugin: [lib] needs crate-type = [\"cdylib\", \"rlib\"]")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(Crate {
        name: text(&package["name"]),
        manifest: manifest.to_owned(),
        library: text(&library["name"]).replace('-', "_"),
        target_dir: text(&metadata["target_directory"]).into(),
    })
}

/// Sees to it that the compiler can build for WebAssembly.
pub(crate) fn ensure_target() -> Result<(), PackError> {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", TARGET]);
    let asked = output("rustc", &mut rustc)?;
    let folder = String::from_utf8_lossy(&asked.stdout).trim().to_owned();
    if asked.status.success() && Path::new(&folder).is_dir() {
        return Ok(());
    }
    let added = output("rustup", Command::new("rustup").args(["target", "add", TARGET]))?;
    if added.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&added.stderr).trim().to_owned();
    Err(PackError::Target { target: TARGET, why })
}

/// Compiles the crate and says where the module is.
pub(crate) fn compile(krate: &Crate, options: &Options) -> Result<PathBuf, PackError> {
    let target_dir = options.target_dir.clone().unwrap_or_else(|| krate.target_dir.join("plugins"));
    let mut cargo = Command::new("cargo");
    cargo.args(["rustc", "--lib", "--target", TARGET, "--profile", PROFILE, "--manifest-path"]);
    cargo.arg(&krate.manifest).arg("--target-dir").arg(&target_dir);
    if options.locked {
        cargo.arg("--locked");
    }
    cargo.args(["--", "-C", STACK]);
    let status = cargo.status().map_err(|source| PackError::Start { program: "cargo", source })?;
    if !status.success() {
        return Err(PackError::Compile);
    }
    let module = format!("{}.wasm", krate.library);
    Ok(target_dir.join(TARGET).join(PROFILE).join(module))
}

fn output(program: &'static str, command: &mut Command) -> Result<Output, PackError> {
    command.output().map_err(|source| PackError::Start { program, source })
}
