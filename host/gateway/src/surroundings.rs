//! What policies and operators may look at: replicas, adapters, and the length of texts in tokens.

use std::sync::{Arc, Weak};

use contract::policy::replica::{AdapterRow, ReplicaRow, Surroundings};

use crate::app::App;
use crate::replicas::Replicas;

/// A server as its policies see it. It does not keep the server: the server keeps its policies.
pub struct View(Weak<App>);

impl View {
    /// A view of `app`.
    pub fn new(app: &Arc<App>) -> Self {
        Self(Arc::downgrade(app))
    }
}

impl Surroundings for View {
    fn adapters(&self) -> Vec<AdapterRow> {
        self.0.upgrade().map(|app| adapters(&app)).unwrap_or_default()
    }

    fn adapter_exists(&self, name: &str) -> bool {
        let Some(app) = self.0.upgrade() else { return false };
        app.loaded().is_some_and(|replicas| replicas.serves(name))
    }

    fn replicas(&self) -> Vec<ReplicaRow> {
        self.0.upgrade().map(|app| replicas(&app)).unwrap_or_default()
    }

    fn count_tokens(&self, text: &str) -> u32 {
        let Some(app) = self.0.upgrade() else { return 0 };
        let Some(replicas) = app.loaded() else { return 0 };
        let tokens = replicas.text().encode(text, false);
        tokens.map_or(0, |tokens| tokens.len() as u32)
    }
}

/// Adapters that can be asked for, by name.
pub fn adapters(app: &App) -> Vec<AdapterRow> {
    app.loaded().map(Replicas::adapters).unwrap_or_default()
}

/// Replicas in their order.
pub fn replicas(app: &App) -> Vec<ReplicaRow> {
    app.loaded().map(Replicas::rows).unwrap_or_default()
}
