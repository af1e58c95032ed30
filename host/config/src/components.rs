//! The components that a deployment names, for tools that build them before it is checked.

use std::path::{Path, PathBuf};

use crate::{ConfigError, read, typed};

/// The component of one plugin, whether it is there yet or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// The plugin's name.
    pub plugin: String,
    /// Where the component is or will be.
    pub file: PathBuf,
    /// Only the file with a certain SHA-256 would do.
    pub pinned: bool,
}

/// What the deployment in `path` names, in its order.
pub fn components(path: &Path) -> Result<Vec<Component>, ConfigError> {
    let raw = typed(&read(path)?, &path.display().to_string())?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let component = |plugin: crate::raw::Plugin| Component {
        file: folder.join(plugin.source.file),
        pinned: plugin.source.sha256.is_some(),
        plugin: plugin.name,
    };
    Ok(raw.plugin.into_iter().map(component).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_need_not_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dev.toml");
        let text = "model = { path = \"none\" }\n[[plugin]]\nname = \"a\"\nsource = \
                    { file = \"a.wasm\" }\n";
        std::fs::write(&file, text).unwrap();
        let found = components(&file).unwrap();
        let expected =
            Component { plugin: "a".into(), file: folder.path().join("a.wasm"), pinned: false };
        assert_eq!(found, [expected]);
    }
}
