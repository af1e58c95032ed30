//! The demo's model, adapters and deployment, which are part of this program.

use std::path::Path;

use config::settings::Settings;
use include_dir::{Dir, include_dir};
use tempfile::TempDir;

use crate::Failure;
use crate::cli::{Backend, Demo};

static MODEL: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../tests/fixtures/demo");
static PLUGINS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../plugins/prebuilt");
const DEPLOYMENT: &str = include_str!("../../../../configs/demo.toml");

/// The demo's files, unpacked; they are gone when this is dropped.
pub struct Files {
    folder: TempDir,
}

impl Files {
    /// Unpacks into a folder of this process's own, laid out as the repository is.
    pub fn unpack() -> Result<Files, Failure> {
        let folder = tempfile::Builder::new().prefix("drystone-demo-").tempdir();
        let folder = folder.map_err(|error| unwritable(&std::env::temp_dir(), &error))?;
        let model = folder.path().join("tests/fixtures/demo");
        let plugins = folder.path().join("plugins/prebuilt");
        std::fs::create_dir_all(&model)
            .and_then(|()| std::fs::create_dir(folder.path().join("configs")))
            .and_then(|()| MODEL.extract(&model))
            .and_then(|()| std::fs::create_dir_all(&plugins))
            .and_then(|()| PLUGINS.extract(&plugins))
            .map_err(|error| unwritable(folder.path(), &error))?;
        Ok(Files { folder })
    }

    /// The deployment in `configs/demo.toml`, where, on what and in how many ranks `options` say.
    pub fn settings(&self, options: &Demo) -> Result<Settings, Failure> {
        let Demo { listen, tensor, backend, .. } = options;
        let backend = match backend {
            Backend::Auto => "auto",
            Backend::Cpu => "cpu",
            Backend::Cuda => "cuda",
        };
        let text = DEPLOYMENT
            .replace("listen = \"127.0.0.1:8080\"", &format!("listen = \"{listen}\""))
            .replace("backend = \"auto\"", &format!("backend = \"{backend}\""))
            .replace("tensor = 2", &format!("tensor = {tensor}"));
        Ok(config::parse(&text, &self.folder.path().join("configs"), "configs/demo.toml")?)
    }
}

fn unwritable(folder: &Path, error: &std::io::Error) -> Failure {
    Failure::Demo(format!(
        "cannot unpack the demo model (8 MB) into {}: {error}; set TMPDIR to a folder with room",
        folder.display()
    ))
}
