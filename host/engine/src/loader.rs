//! The thread that reads adapters from disk, so that no step waits for one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use adapters::catalogue::{Catalogue, Entry};
use adapters::residency::LOADS_MAX;
use contract::adapter::Generation;

/// The answer to one load.
pub struct Loaded {
    /// What was to be loaded.
    pub entry: Arc<Entry>,
    /// The generation, or why there is none.
    pub result: Result<Arc<Generation>, String>,
    /// How long it took.
    pub elapsed: Duration,
}

/// Asks for loads. The thread ends with it, after the load under way.
pub struct Loader {
    jobs: SyncSender<Arc<Entry>>,
}

impl Loader {
    /// Starts the thread, which calls `answer` once for each load until that says false.
    pub fn start(
        catalogue: Arc<Catalogue>,
        answer: impl Fn(Loaded) -> bool + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, receiver) = sync_channel(LOADS_MAX);
        thread::Builder::new()
            .name("adapter-loader".into())
            .spawn(move || serve(&catalogue, &receiver, answer))?;
        Ok(Self { jobs })
    }

    /// Asks for a load. The residency asks for [`LOADS_MAX`] at once at most.
    pub fn load(&self, entry: &Arc<Entry>) {
        self.jobs.send(Arc::clone(entry)).expect("the loader lives as long as this: this is a bug");
    }
}

fn serve(catalogue: &Catalogue, jobs: &Receiver<Arc<Entry>>, answer: impl Fn(Loaded) -> bool) {
    while let Ok(entry) = jobs.recv() {
        let start = Instant::now();
        // A file that makes the reader panic must not leave its requests waiting for ever.
        let result = catch_unwind(AssertUnwindSafe(|| catalogue.load(&entry)));
        let result = match result {
            Ok(loaded) => loaded.map(Arc::new).map_err(|error| error.to_string()),
            Err(_) => Err("reading it failed inside the server".to_owned()),
        };
        if !answer(Loaded { entry, result, elapsed: start.elapsed() }) {
            return;
        }
    }
}
