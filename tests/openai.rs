//! The official OpenAI client library talks to the demo, in a virtual environment of its own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::program::{Server, root};

/// The version that the check was written against.
const CLIENT: &str = "openai==3.54.0";

/// A Python with the client, made once below `target/`.
fn python() -> PathBuf {
    let folder = root().join("target/openai-client");
    let python = folder.join("bin/python");
    let ready = folder.join(CLIENT);
    if !ready.exists() {
        call(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
        call(Command::new(&python).args(["-m", "pip", "install", "--quiet", CLIENT]));
        std::fs::write(ready, "").unwrap();
    }
    python
}

fn call(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}:\n{text}");
    text.into_owned()
}

#[test]
fn the_official_client_is_content() {
    if let Err(why) = Command::new("python3").arg("--version").output() {
        // Written past the test's capture: a skipped test has to be seen.
        let _ = writeln!(std::io::stderr(), "skipped the OpenAI client: python3: {why}");
        return;
    }
    let server = Server::with_keys();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("openai_client.py");
    let told = call(Command::new(python()).arg(script).arg(server.url()).arg(Server::KEY));
    assert!(told.lines().count() >= 8, "{told}");
}
