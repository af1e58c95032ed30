//! `drystone plugin new`: a project that builds and tests at once.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Failure;
use crate::cli::PluginNew;

/// `(where it goes, what it says)`; `{name}` and `{sdk}` are filled in.
const FILES: &[(&str, &str)] = &[
    ("Cargo.toml", include_str!("template/Cargo.toml.in")),
    ("src/lib.rs", include_str!("template/src/lib.rs.in")),
    ("README.md", include_str!("template/README.md.in")),
    ("cases/first.toml", include_str!("template/cases/first.toml.in")),
    (".gitignore", include_str!("template/gitignore.in")),
];

pub fn command(new: &PluginNew) -> Result<(), Failure> {
    let name = project_name(&new.folder)?;
    let sdk = match &new.sdk {
        Some(folder) => checked(folder)?,
        None => find_sdk(&new.folder).ok_or_else(|| usage(NO_SDK))?,
    };
    if is_in_workspace(&new.folder, &sdk) {
        return Err(usage("`plugins/` is of Drystone's own workspace; any other folder would do"));
    }
    write_all(&new.folder, name, &sdk)?;
    let folder = new.folder.display();
    println!("{folder}: a plugin that depends on the SDK at {}", sdk.display());
    println!("next: cd {folder} && cargo test && drystone plugin build");
    Ok(())
}

const NO_SDK: &str = "no drystone-sdk in the folders above; `--sdk PATH` to the folder `sdk` of a \
                      Drystone checkout would do";

fn usage(why: impl Into<String>) -> Failure {
    Failure::Usage(why.into())
}

/// The last part of the path, if a crate can have that name.
fn project_name(folder: &Path) -> Result<&str, Failure> {
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(letter) {
        true => Ok(name),
        false => Err(usage(format!(
            "`{name}` is no name for a plugin; small letters, digits and `-` would do"
        ))),
    }
}

/// The folder of the SDK in the repository that the new project is in.
fn find_sdk(folder: &Path) -> Option<PathBuf> {
    let folder = std::path::absolute(folder).ok()?;
    folder.ancestors().map(|above| above.join("sdk")).find(|sdk| is_sdk(sdk))
}

fn checked(sdk: &Path) -> Result<PathBuf, Failure> {
    let absolute = sdk.canonicalize().ok().filter(|sdk| is_sdk(sdk));
    absolute.ok_or_else(|| usage(format!("{} is not the folder of drystone-sdk", sdk.display())))
}

fn is_sdk(folder: &Path) -> bool {
    let manifest = fs::read_to_string(folder.join("Cargo.toml"));
    manifest.is_ok_and(|text| text.contains("name = \"drystone-sdk\""))
}

/// The project is a workspace of its own, and cargo refuses one inside another.
fn is_in_workspace(folder: &Path, sdk: &Path) -> bool {
    let parent = std::path::absolute(folder).ok();
    let parent = parent.as_deref().and_then(Path::parent).and_then(|path| path.canonicalize().ok());
    parent.is_some() && parent == sdk.with_file_name("plugins").canonicalize().ok()
}

fn write_all(folder: &Path, name: &str, sdk: &Path) -> Result<(), Failure> {
    if folder.exists() {
        return Err(usage(format!("{} is there already", folder.display())));
    }
    // The debug form is a string of TOML, quotes and all.
    let sdk = format!("{:?}", sdk.display().to_string());
    for (path, text) in FILES {
        let path = folder.join(path);
        let parent = path.parent().unwrap_or(folder);
        let text = text.replace("{name}", name).replace("{sdk}", &sdk);
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, text))
            .map_err(|source| Failure::Write { path: path.clone(), source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_is_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let project = folder.path().join("my-plugin");
        let sdk = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../sdk"));
        let new = PluginNew { folder: project.clone(), sdk: Some(sdk.into()) };
        command(&new).unwrap();
        let manifest = fs::read_to_string(project.join("Cargo.toml")).unwrap();
        assert!(manifest.contains("name = \"my-plugin\""), "{manifest}");
        let again = command(&new).unwrap_err().to_string();
        assert!(again.contains("is there already"), "{again}");
    }

    #[test]
    fn without_an_sdk_the_flag_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let new = PluginNew { folder: folder.path().join("lost"), sdk: None };
        assert!(command(&new).unwrap_err().to_string().contains("--sdk PATH"));
    }

    #[test]
    fn the_folder_of_drystones_own_plugins_is_refused() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../plugins/mine"));
        let error = command(&PluginNew { folder: folder.into(), sdk: None }).unwrap_err();
        assert!(error.to_string().contains("workspace"), "{error}");
    }

    #[test]
    fn names_are_those_of_crates() {
        assert_eq!(project_name(Path::new("a/my-plugin2")).unwrap(), "my-plugin2");
        assert!(project_name(Path::new("My Plugin")).is_err());
    }
}
