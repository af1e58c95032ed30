//! Keeps what a plugin was asked and what it said, one line of JSON a call.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use config::settings::Record;
use contract::policy::hook::Hook;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Lines that may wait for the disk. More are dropped: requests never wait for it.
const WAITING_LINES: usize = 1024;
/// Keys whose strings are somebody's text, key or header value. Variants of verdicts are keys too.
const PRIVATE: [&str; 16] = [
    "content",
    "text",
    "pending",
    "key",
    "message",
    "value",
    "reason",
    "headers",
    "add-stop",
    "released",
    "replace",
    "respond",
    "set-content",
    "set-header",
    "set-text",
    "state",
];

/// Adds lines to a file in a thread of its own, which ends, all written, when this is dropped.
#[derive(Debug)]
pub struct Recorder {
    redact: bool,
    lines: Option<SyncSender<String>>,
    dropped: Arc<AtomicU64>,
    writer: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Goes on at the end of the file, which it makes if there is none.
    pub fn open(settings: &Record) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(&settings.file)?;
        let room = settings.bytes_max.saturating_sub(file.metadata()?.len());
        let (lines, waiting) = sync_channel(WAITING_LINES);
        let dropped = Arc::new(AtomicU64::new(0));
        let (name, count) = (settings.file.display().to_string(), Arc::clone(&dropped));
        let write = move || write(file, room, &waiting, &name, &count);
        let writer = std::thread::Builder::new().name("policy-record".to_owned()).spawn(write)?;
        let (lines, writer) = (Some(lines), Some(writer));
        Ok(Self { redact: settings.redact, lines, dropped, writer })
    }

    /// Keeps one call, or counts it as dropped.
    pub fn keep(&self, plugin: &str, hook: Hook, input: &Value, verdict: &Value) {
        let (input, verdict) = match self.redact {
            true => (&redacted(input), &redacted(verdict)),
            false => (input, verdict),
        };
        let line = json!({
            "at_ms": now_ms(), "plugin": plugin, "hook": hook.name(), "redacted": self.redact,
            "input": input, "verdict": verdict,
        });
        let sent = self.lines.as_ref().map(|lines| lines.try_send(format!("{line}\n")));
        if !matches!(sent, Some(Ok(()))) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Calls that are not in the file.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.lines = None;
        if let Some(writer) = self.writer.take() {
            // It cannot panic; if it did, its lines are lost and there is nobody to tell.
            let _ = writer.join();
        }
    }
}

/// Writes until the file is full or broken, which is said once; then counts.
fn write(mut file: File, mut room: u64, lines: &Receiver<String>, name: &str, dropped: &AtomicU64) {
    let mut stopped = false;
    for line in lines {
        if !stopped && line.len() as u64 > room {
            stopped = true;
            tracing::warn!(file = name, "recording stops: the file has its largest size");
        } else if !stopped && let Err(error) = file.write_all(line.as_bytes()) {
            stopped = true;
            tracing::warn!(file = name, %error, "recording stops: the file cannot be written");
        }
        match stopped {
            true => _ = dropped.fetch_add(1, Ordering::Relaxed),
            false => room -= line.len() as u64,
        }
    }
}

/// `value` with a digest in place of every private string: equal texts stay equal.
pub fn redacted(value: &Value) -> Value {
    redacted_under(false, value)
}

/// What is below a private key, such as headers with their names, is as private as it is.
fn redacted_under(private: bool, value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let redact = |(key, value): (&String, &Value)| {
                (key.clone(), redacted_under(private || PRIVATE.contains(&key.as_str()), value))
            };
            Value::Object(fields.iter().map(redact).collect())
        }
        // Bytes that are no text.
        Value::Array(items) if private && !items.is_empty() && items.iter().all(Value::is_u64) => {
            digest(&value.to_string())
        }
        Value::Array(items) => {
            Value::Array(items.iter().map(|item| redacted_under(private, item)).collect())
        }
        Value::String(text) if private => digest(text),
        other => other.clone(),
    }
}

fn digest(text: &str) -> Value {
    let digest = Sha256::digest(text);
    let hex: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    json!({ "sha256-8": hex, "chars": text.chars().count() })
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(folder: &tempfile::TempDir, redact: bool, bytes_max: u64) -> Record {
        Record { file: folder.path().join("calls.ndjson"), redact, bytes_max }
    }

    fn lines(settings: &Record) -> Vec<Value> {
        let text = std::fs::read_to_string(&settings.file).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn calls_are_lines_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(&folder, false, 1 << 20);
        for run in 0..2 {
            let recorder = Recorder::open(&settings).unwrap();
            for i in 0..3 {
                let input = json!({ "i": 3 * run + i });
                recorder.keep("guard", Hook::OnChunk, &input, &json!("pass"));
            }
            assert_eq!(recorder.dropped(), 0);
        }
        let lines = lines(&settings);
        assert!(lines.iter().enumerate().all(|(i, line)| line["input"]["i"] == i));
        assert_eq!(lines.len(), 6);
        assert_eq!(lines[0]["plugin"], "guard");
        assert_eq!(lines[0]["hook"], "on-chunk");
        assert_eq!(lines[0]["verdict"], "pass");
    }

    #[test]
    fn private_strings_become_digests_wherever_they_are() {
        let input = json!({
            "tenant": "acme", "key": "sk-1", "messages": [{ "role": "user", "content": "héé" }],
            "message": { "text": "x" }, "value": 7,
        });
        let redacted = redacted(&input);
        assert_eq!(redacted["tenant"], "acme");
        assert_eq!(redacted["messages"][0]["role"], "user");
        assert_eq!(redacted["messages"][0]["content"]["chars"], 3);
        assert_eq!(redacted["value"], 7);
        assert_eq!(redacted["message"]["text"]["sha256-8"], "2d711642b726b044");
        assert!(!redacted.to_string().contains("sk-1"));
        let kept = super::redacted(&json!({ "state": [255, 1], "released": "abc" })).to_string();
        assert!(!kept.contains("255") && !kept.contains("abc"), "{kept}");
    }

    #[test]
    fn texts_in_verdicts_are_private_too() {
        let verdict = json!({ "edit": [
            { "set-content": [0, "secret"] }, { "model": "sql" }, { "set-header": ["x", "secret"] },
            { "insert-message": [0, { "role": "user", "content": "secret" }] },
        ] });
        let text = redacted(&verdict).to_string();
        assert!(!text.contains("secret") && text.contains("sql") && text.contains("user"));
        for verdict in [json!({ "respond": "secret" }), json!({ "stop": { "text": "secret" } })] {
            assert!(!redacted(&verdict).to_string().contains("secret"));
        }
    }

    #[test]
    fn a_full_file_stays_as_it_is_and_the_rest_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(&folder, true, 400);
        let recorder = Recorder::open(&settings).unwrap();
        (0..10).for_each(|i| recorder.keep("p", Hook::Admit, &json!(i), &json!(null)));
        let count = Arc::clone(&recorder.dropped);
        drop(recorder);
        let kept = lines(&settings).len() as u64;
        assert!((1..10).contains(&kept));
        assert_eq!(kept + count.load(Ordering::Relaxed), 10);
        assert!(std::fs::metadata(&settings.file).unwrap().len() <= 400);
    }
}
