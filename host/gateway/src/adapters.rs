//! Adapters that come and go while the server runs: vLLM's routes for operators, and loads that a
//! policy asks for.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::State;
use contract::policy::verdict::Source;
use engine::handle::{ChangeError, Root, RootError};
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;

use crate::app::App;
use crate::error::ApiError;
use crate::gate::JsonBytes;
use crate::replicas::Replicas;
use crate::request::fields::Fields;

/// Why an adapter was not loaded or unloaded, in vLLM's words where it has some.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdapterError {
    /// The deployment does not allow it.
    #[error("adapters cannot be loaded here: set adapters.resolve_root to allow it")]
    Closed,
    /// A load needs both.
    #[error("Both 'lora_name' and 'lora_path' must be provided.")]
    Incomplete,
    /// An unload needs a name.
    #[error("'lora_name' needs to be provided to unload a LoRA adapter.")]
    Nameless,
    /// The name is the base model's.
    #[error("The lora adapter '{0}' conflicts with a served base model.")]
    Base(String),
    /// The name is taken.
    #[error(
        "The lora adapter '{0}' has already been loaded. If you want to load the adapter in place, \
         set 'load_inplace' to True."
    )]
    Taken(String),
    /// Nothing has the name.
    #[error("The lora adapter '{0}' cannot be found.")]
    Unknown(String),
    /// The path leads to no adapter that may be loaded.
    #[error(transparent)]
    Root(#[from] RootError),
    /// It cannot be served.
    #[error("{0}")]
    Refused(String),
}

impl From<ChangeError> for AdapterError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Taken(name) => Self::Taken(name),
            ChangeError::Unknown(name) => Self::Unknown(name),
            other => Self::Refused(other.to_string()),
        }
    }
}

type Loaded = Result<(), AdapterError>;

/// Loads that policies asked for and that did not end yet.
#[derive(Default)]
pub struct Loads {
    root: Option<Arc<Root>>,
    /// By name. Whoever comes later waits for the load under way; there are never more than there
    /// are open calls.
    under_way: Mutex<HashMap<String, Arc<OnceCell<Loaded>>>>,
}

/// What to load.
struct Load {
    name: String,
    path: String,
    replace: bool,
    sha256: Option<String>,
}

impl Loads {
    /// Adapters may be loaded from below `root`.
    pub fn below(root: Root) -> Self {
        Self { root: Some(Arc::new(root)), under_way: Mutex::default() }
    }

    /// Loads one adapter once, however many ask for it at the same time.
    async fn once(&self, app: &App, name: &str, source: Source) -> Loaded {
        let cell = Arc::clone(self.lock().entry(name.to_owned()).or_default());
        let Source { path, sha256 } = source;
        let load = Load { name: name.to_owned(), path, replace: false, sha256 };
        let loaded = cell.get_or_init(|| async {
            match add(app, load).await {
                Err(AdapterError::Taken(_)) => Ok(()),
                other => other,
            }
        });
        let loaded = loaded.await.clone();
        if let Entry::Occupied(known) = self.lock().entry(name.to_owned())
            && Arc::ptr_eq(known.get(), &cell)
        {
            known.remove();
        }
        loaded
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<OnceCell<Loaded>>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl App {
    /// Loads the adapter `name` from where a policy says it lies.
    pub async fn load_adapter(&self, name: &str, source: Source) -> Result<(), ApiError> {
        Ok(self.loads.once(self, name, source).await?)
    }
}

/// `POST /v1/load_lora_adapter`
pub async fn load(
    State(app): State<Arc<App>>,
    JsonBytes(body): JsonBytes,
) -> Result<String, ApiError> {
    let fields = Fields::parse(&body)?;
    let (name, path) = (name(&fields)?, text(&fields, "lora_path")?);
    let replace = fields.flag("load_inplace")?;
    let (Some(name), Some(path)) = (name, path) else { Err(AdapterError::Incomplete)? };
    add(&app, Load { name: name.clone(), path, replace, sha256: None }).await?;
    Ok(format!("Success: LoRA adapter '{name}' added successfully."))
}

/// `POST /v1/unload_lora_adapter`
pub async fn unload(
    State(app): State<Arc<App>>,
    JsonBytes(body): JsonBytes,
) -> Result<String, ApiError> {
    let name = name(&Fields::parse(&body)?)?.ok_or(AdapterError::Nameless)?;
    let replicas = app.replicas()?;
    replicas.catalogue().remove(&name).map_err(AdapterError::from)?;
    replicas.catalogue_changed();
    tracing::info!(adapter = name, "unloaded");
    Ok(format!("Success: LoRA adapter '{name}' removed successfully."))
}

fn name(fields: &Fields<'_>) -> Result<Option<String>, ApiError> {
    text(fields, "lora_name")
}

fn text(fields: &Fields<'_>, name: &'static str) -> Result<Option<String>, ApiError> {
    let text: Option<String> = fields.get(name, "a text", |_| true)?;
    Ok(text.filter(|text| !text.is_empty()))
}

/// Checks an adapter beside the runtime, then serves it.
async fn add(app: &App, load: Load) -> Loaded {
    let root = app.loads.root.clone().ok_or(AdapterError::Closed)?;
    if load.name == app.model_name {
        return Err(AdapterError::Base(load.name));
    }
    let replicas = app.replicas().map_err(|error| AdapterError::Refused(error.to_string()))?;
    let replicas = Replicas::clone(replicas);
    let permit = app.heavy.clone().acquire_owned().await;
    let work = move || {
        let _permit = permit;
        let path = root.find(&load.path)?;
        serve(&replicas, &load, &path)
    };
    let done = spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(AdapterError::Refused(error.to_string())))
}

fn serve(replicas: &Replicas, load: &Load, path: &Path) -> Loaded {
    let Load { name, replace, sha256, .. } = load;
    replicas.catalogue().add(name, path, *replace, sha256.as_deref())?;
    replicas.catalogue_changed();
    tracing::info!(adapter = name, replace, "loaded");
    Ok(())
}
