//! `drystone plugin inspect`: what a component is.

use std::path::Path;

use policy::load::{Inspection, inspect};
use serde_json::{Value, json};

use super::{about, read};
use crate::Failure;

/// Prints what the component in `file` is.
pub fn command(file: &Path, json: bool) -> Result<(), Failure> {
    let found = inspect(&read(file)?).map_err(|error| about(file, error))?;
    match json {
        true => println!("{:#}", as_json(&found)),
        false => print(&found),
    }
    Ok(())
}

fn as_json(found: &Inspection) -> Value {
    let mut value = json!(found);
    value["allow"] = found.allow().into();
    if let Ok(schema) = serde_json::from_str::<Value>(&found.config_schema) {
        value["config_schema"] = schema;
    }
    value
}

fn print(found: &Inspection) {
    println!("{} {}", found.name, found.version);
    println!("  hooks    {}", listed(&found.hooks));
    println!("  imports  {}", listed(&found.imports));
    println!("  allow    allow = {}", found.allow());
    println!("  headers  {}", listed(&found.headers));
    println!("  config   {}", if found.config_schema.is_empty() { "-" } else { "by this schema:" });
    for line in found.config_schema.lines() {
        println!("           {line}");
    }
    println!("  speaks   drystone:policy@{}", found.wit_version);
    println!("  size     {:.1} KiB", found.bytes as f64 / 1024.0);
    println!("  sha256   {}", found.sha256);
}

fn listed(names: &[impl AsRef<str>]) -> String {
    let names: Vec<_> = names.iter().map(AsRef::as_ref).collect();
    if names.is_empty() { "-".to_owned() } else { names.join(", ") }
}
