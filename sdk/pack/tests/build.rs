//! Builds the misbehaving guest, and folders that are no plugins.

use std::path::Path;

use pack::{Options, PackError};

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

#[test]
fn a_component_exports_its_hooks_and_imports_what_it_calls() {
    let guest = repository().join("tests/guests/misbehave");
    let built = pack::build(&guest, &Options::default()).unwrap();
    assert_eq!(built.name, "misbehave");
    assert_eq!(
        built.surface.hooks,
        [
            "admit",
            "authorize",
            "on-chunk",
            "on-complete",
            "on-request",
            "on-response",
            "resolve-adapter",
            "score-replicas",
            "select-adapter",
        ]
    );
    assert_eq!(built.surface.imports, ["answer", "log"]);
    assert!(built.component.len() < 200_000, "{} bytes", built.component.len());
}

#[test]
fn a_folder_without_a_crate_is_refused() {
    let error = pack::build(&repository().join("docs"), &Options::default()).unwrap_err();
    assert!(matches!(error, PackError::Manifest { .. }), "{error}");
}

#[test]
fn a_crate_without_a_module_is_refused() {
    let error = pack::build(&repository().join("sdk"), &Options::default()).unwrap_err();
    assert!(error.to_string().contains("cdylib"), "{error}");
}
