//! Folders are found, checked, named and loaded.

use std::fs;
use std::path::Path;

use contract::adapter::Kind;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::catalogue::{Catalogue, CatalogueError, ChangeError, Named, Sources, Unavailable};
use crate::residency::Limits;
use crate::tests::fixture::*;

const LIMITS: Limits = Limits { slots_max: 4, host_bytes_max: 1 << 20 };

fn open(dir: Option<&Path>, named: &[Named], limits: Limits) -> Result<Catalogue, CatalogueError> {
    Catalogue::open(Sources { dir, named }, group(LLAMA, 2), limits)
}

/// Moves a written adapter under `dir`.
fn place(dir: &TempDir, name: &str, folder: &Folder) {
    fs::rename(folder.write(), dir.path().join(name)).unwrap();
}

fn named(name: &str, path: &Path, pinned: bool) -> Named {
    Named { name: name.to_owned(), path: path.to_owned(), pinned }
}

#[test]
fn a_folder_is_listed_with_its_reasons() {
    let dir = TempDir::new().unwrap();
    place(&dir, "sql", &Folder::new(&LLAMA, 8, BLOCKS, 2));
    place(&dir, "wide", &Folder::new(&base(80, 96, [8, 4, 10]), 4, PLAIN, 1));
    fs::create_dir(dir.path().join("notes")).unwrap();
    let bare = dir.path().join("no-config");
    fs::create_dir(&bare).unwrap();
    fs::write(bare.join("adapter_model.safetensors"), b"").unwrap();

    let catalogue = open(Some(dir.path()), &[], LIMITS).unwrap();
    let entries: Vec<_> = catalogue.entries().collect();
    assert_eq!(entries.len(), 1);
    let entry = &entries[0];
    assert_eq!((&*entry.name, entry.lora_rank, entry.pinned), ("sql", 8, false));
    assert_eq!(entry.kind, Kind::BlockDiagonal { blocks: 2 });
    let refused: Vec<_> = catalogue.refused().map(|refused| refused.name.clone()).collect();
    assert_eq!(refused, ["no-config", "wide"]);

    assert!(matches!(catalogue.get("notes"), Err(Unavailable::Unknown)));
    let why = catalogue.get("wide").unwrap_err().to_string();
    assert!(why.contains("[4, 80]") && why.contains("[4, 64] would do"), "{why}");
    let generation = catalogue.load(&catalogue.get("sql").unwrap()).unwrap();
    assert_eq!((&*generation.name, generation.bytes()), ("sql", entry.bytes));
}

#[test]
fn a_bad_adapter_that_was_named_ends_the_start() {
    let dir = TempDir::new().unwrap();
    let error = open(None, &[named("sql", dir.path(), false)], LIMITS).unwrap_err().to_string();
    assert!(error.contains("\"sql\"") && error.contains("adapter_config.json"), "{error}");
    let missing = dir.path().join("nothing");
    let error = open(Some(&missing), &[], LIMITS).unwrap_err().to_string();
    assert!(error.contains("adapters.dir") && error.contains("nothing"), "{error}");
}

#[test]
fn a_name_given_by_the_operator_goes_before_one_that_was_found() {
    let dir = TempDir::new().unwrap();
    place(&dir, "sql", &Folder::new(&LLAMA, 8, BLOCKS, 2));
    let path = dir.path().join("sql");
    let pinned = [named("sql", &path, true)];
    let catalogue = open(Some(dir.path()), &pinned, LIMITS).unwrap();
    assert!(catalogue.get("sql").unwrap().pinned);
    assert_eq!(catalogue.entries().count(), 1);

    let twice = [named("sql", &path, true), named("sql", &path, false)];
    let error = open(None, &twice, LIMITS).unwrap_err().to_string();
    assert!(error.contains("\"sql\""), "{error}");
}

#[test]
fn what_could_never_be_resident_is_told_at_start() {
    let dir = TempDir::new().unwrap();
    place(&dir, "one", &Folder::new(&LLAMA, 8, BLOCKS, 2));
    place(&dir, "two", &Folder::new(&LLAMA, 8, PLAIN, 1));
    let [one, two] = ["one", "two"].map(|name| dir.path().join(name));

    let small = Limits { host_bytes_max: 1000, ..LIMITS };
    let catalogue = open(Some(dir.path()), &[], small).unwrap();
    let why = catalogue.get("one").unwrap_err().to_string();
    assert!(why.contains("host_gib") && why.contains("1000"), "{why}");

    let slots = |slots_max, pinned: [bool; 2]| {
        let named = [named("one", &one, pinned[0]), named("two", &two, pinned[1])];
        open(None, &named, Limits { slots_max, ..LIMITS })
    };
    assert!(slots(2, [true, true]).is_ok(), "each has its slot");
    assert!(slots(1, [false, false]).is_ok(), "both take turns");
    let error = slots(1, [true, false]).unwrap_err().to_string();
    assert!(
        error.contains("1 of 2 adapters are pinned") && error.contains("2 would do"),
        "{error}"
    );
    assert!(slots(0, [false, false]).is_err());
}

#[test]
fn a_folder_written_again_is_another_generation_or_refused() {
    let dir = TempDir::new().unwrap();
    let mut folder = Folder::new(&LLAMA, 8, BLOCKS, 2);
    place(&dir, "sql", &folder);
    let catalogue = open(Some(dir.path()), &[], LIMITS).unwrap();
    let entry = catalogue.get("sql").unwrap();
    let before = catalogue.load(&entry).unwrap();

    let replace = |folder: &Folder| {
        fs::remove_dir_all(dir.path().join("sql")).unwrap();
        fs::create_dir_all(folder.path()).unwrap();
        place(&dir, "sql", folder);
    };
    folder.tensors.values_mut().next().unwrap().values[0] += 1.0;
    replace(&folder);
    assert_ne!(catalogue.load(&entry).unwrap().id, before.id);
    replace(&Folder::new(&LLAMA, 16, BLOCKS, 2));
    let error = catalogue.load(&entry).unwrap_err().to_string();
    assert!(error.contains("restart"), "{error}");
}

#[test]
fn adapters_come_and_go_while_the_catalogue_serves() {
    let dir = TempDir::new().unwrap();
    place(&dir, "sql", &Folder::new(&LLAMA, 8, BLOCKS, 2));
    place(&dir, "chat", &Folder::new(&LLAMA, 16, PLAIN, 1));
    place(&dir, "wide", &Folder::new(&base(80, 96, [8, 4, 10]), 4, PLAIN, 1));
    let [sql, chat, wide] = ["sql", "chat", "wide"].map(|name| dir.path().join(name));
    let catalogue = open(None, &[named("a", &sql, true)], LIMITS).unwrap();

    let added = catalogue.add("b", &chat, false, None).unwrap();
    assert_eq!(catalogue.get("b").unwrap(), added);
    assert!(matches!(catalogue.add("b", &sql, false, None), Err(ChangeError::Taken(_))));
    let error = catalogue.add("b", &wide, true, None).unwrap_err().to_string();
    assert!(error.contains("[4, 64] would do"), "{error}");
    assert!(catalogue.serves(&added), "a bad one replaces nothing");

    let replaced = catalogue.add("b", &sql, true, None).unwrap();
    assert!(catalogue.serves(&replaced) && !catalogue.serves(&added));
    assert_eq!((replaced.lora_rank, replaced.pinned), (8, false));
    assert!(catalogue.add("a", &chat, true, None).unwrap().pinned, "it stays pinned");
    catalogue.remove("b").unwrap();
    assert!(matches!(catalogue.remove("b"), Err(ChangeError::Unknown(_))));
    assert!(!catalogue.serves(&replaced));
    assert_eq!(catalogue.load(&replaced).unwrap().lora_rank, 8, "who has it can use it");
}

#[test]
fn an_adapter_that_could_get_no_slot_is_not_added() {
    let dir = TempDir::new().unwrap();
    place(&dir, "sql", &Folder::new(&LLAMA, 8, BLOCKS, 2));
    let path = dir.path().join("sql");
    let limits = Limits { slots_max: 1, ..LIMITS };
    let catalogue = open(None, &[named("a", &path, true)], limits).unwrap();
    assert!(matches!(
        catalogue.add("b", &path, false, None),
        Err(ChangeError::Slots { slots_max: 1 })
    ));
    catalogue.add("a", &path, true, None).unwrap();
    catalogue.remove("a").unwrap();
    catalogue.add("b", &path, false, None).unwrap();
}

#[test]
fn weights_that_hash_to_something_else_are_not_served() {
    let dir = TempDir::new().unwrap();
    place(&dir, "sql", &Folder::new(&LLAMA, 8, BLOCKS, 2));
    let path = dir.path().join("sql");
    let catalogue = open(None, &[], LIMITS).unwrap();
    let file = path.join("adapter_model.safetensors");
    let sha256 = format!("{:X}", Sha256::digest(fs::read(&file).unwrap()));
    let error = catalogue.add("sql", &path, false, Some(&sha256[1..])).unwrap_err().to_string();
    assert!(error.contains("SHA-256"), "{error}");
    let entry = catalogue.add("sql", &path, false, Some(&sha256)).unwrap();
    catalogue.load(&entry).unwrap();
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let error = catalogue.load(&entry).unwrap_err().to_string();
    assert!(error.contains("SHA-256"), "it was changed after it was checked: {error}");
}
