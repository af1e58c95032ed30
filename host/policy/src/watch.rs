//! Tells when the file of a plugin has changed and rests again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

/// A file that did not change for so long is taken to be whole.
const REST: Duration = Duration::from_millis(5);

/// Watches until it is dropped; a change under way may still be told then.
#[derive(Debug)]
pub struct Watch {
    _watcher: RecommendedWatcher,
}

/// Size and time of a file's last change; `None` while there is no file.
type Print = Option<(u64, SystemTime)>;

/// Calls `changed`, in a thread of its own, with the index of every file that has new content.
///
/// The folders of the files are watched and not the files: editors and package managers put a new
/// file in the place of the old one.
pub fn watch(
    files: Vec<PathBuf>,
    changed: impl Fn(usize) + Send + 'static,
) -> notify::Result<Watch> {
    let (send, events) = channel();
    let notice = move |_: notify::Result<notify::Event>| _ = send.send(());
    let mut watcher = notify::recommended_watcher(notice)?;
    let folders: BTreeSet<&Path> = files.iter().map(|file| folder(file)).collect();
    for folder in folders {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
    }
    let mut known = prints(&files);
    let follow = move || {
        while let Some(now) = rested(&events, &files) {
            for i in news(&known, &now) {
                known[i] = now[i];
                changed(i);
            }
        }
    };
    let thread = std::thread::Builder::new().name("policy-watch".to_owned());
    thread.spawn(follow).map_err(notify::Error::io)?;
    Ok(Watch { _watcher: watcher })
}

fn folder(file: &Path) -> &Path {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// How the files look when they rest after the next event; `None` once nobody watches.
fn rested(events: &Receiver<()>, files: &[PathBuf]) -> Option<Vec<Print>> {
    events.recv().ok()?;
    let mut before = prints(files);
    loop {
        std::thread::sleep(REST);
        while events.try_recv().is_ok() {}
        let now = prints(files);
        if now == before {
            return Some(now);
        }
        before = now;
    }
}

/// Files that are there and look different.
fn news(known: &[Print], now: &[Print]) -> Vec<usize> {
    (0..now.len()).filter(|&i| now[i].is_some() && now[i] != known[i]).collect()
}

fn prints(files: &[PathBuf]) -> Vec<Print> {
    files.iter().map(|file| print(file)).collect()
}

fn print(file: &Path) -> Print {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.len(), metadata.modified().ok()?))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::mpsc::RecvTimeoutError;
    use std::time::Instant;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);
    const QUIET: Duration = Duration::from_millis(150);

    fn watched(names: &[&str]) -> (tempfile::TempDir, Receiver<usize>, Watch) {
        let folder = tempfile::tempdir().unwrap();
        let files: Vec<_> = names.iter().map(|name| folder.path().join(name)).collect();
        files.iter().for_each(|file| fs::write(file, "old").unwrap());
        let (send, changes) = channel();
        let watch = watch(files, move |i| send.send(i).unwrap_or_default()).unwrap();
        (folder, changes, watch)
    }

    #[test]
    fn a_written_and_a_renamed_file_are_told_once_and_others_never() {
        let (folder, changes, _watch) = watched(&["a", "b"]);
        fs::write(folder.path().join("other"), "x").unwrap();
        assert_eq!(changes.recv_timeout(QUIET), Err(RecvTimeoutError::Timeout));
        fs::write(folder.path().join("b"), "newer").unwrap();
        assert_eq!(changes.recv_timeout(SOON), Ok(1));
        fs::write(folder.path().join("tmp"), "newest").unwrap();
        fs::rename(folder.path().join("tmp"), folder.path().join("a")).unwrap();
        assert_eq!(changes.recv_timeout(SOON), Ok(0));
        assert_eq!(changes.recv_timeout(QUIET), Err(RecvTimeoutError::Timeout));
    }

    #[test]
    fn a_file_that_is_still_written_is_not_told() {
        let (folder, changes, _watch) = watched(&["a"]);
        let (mut text, mut rests) = (String::new(), 0);
        let mut last = Instant::now();
        for _ in 0..40 {
            let begin = Instant::now();
            text.push('x');
            fs::write(folder.path().join("a"), &text).unwrap();
            // On a busy machine the writer itself may pause for as long as a file has to rest.
            rests += usize::from(last.elapsed() >= REST);
            last = begin;
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(changes.recv_timeout(SOON), Ok(0));
        let mut told = 1;
        while changes.recv_timeout(QUIET).is_ok() {
            told += 1;
        }
        assert!(told <= rests + 1, "told {told} times of {rests} rests and an end");
    }

    #[test]
    fn a_removed_file_is_told_when_it_is_back() {
        let (folder, changes, watch) = watched(&["a"]);
        fs::remove_file(folder.path().join("a")).unwrap();
        assert_eq!(changes.recv_timeout(QUIET), Err(RecvTimeoutError::Timeout));
        fs::write(folder.path().join("a"), "back").unwrap();
        assert_eq!(changes.recv_timeout(SOON), Ok(0));
        drop(watch);
        assert_eq!(changes.recv_timeout(SOON), Err(RecvTimeoutError::Disconnected));
    }
}
