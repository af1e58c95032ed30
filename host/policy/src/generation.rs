//! One immutable loaded version of a plugin.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use config::settings::{Allow, Plugin as Settings};
use contract::policy::hook::Hook;
use prometheus_client::metrics::gauge::Gauge;
use wasmtime::Engine;

use crate::bindings::exports::drystone::policy::plugin::{Description, Setup};
use crate::breaker::Breaker;
use crate::cache::Cache;
use crate::failure::Failure;
use crate::guest::Services;
use crate::instance::Instance;
use crate::keeper::Keeper;
use crate::load::{LoadError, Loaded, load};
use crate::pool::Pool;
use crate::quiet::LogGate;
use crate::recipe::{Kit, Recipe, START};
use crate::schema;
use crate::state::counters::Counters;
use crate::state::kv::Store;
use crate::state::text::Texts;

/// Longest text that may wait for more, in characters.
const HOLD_BACK: u32 = 4096;

/// One version of a plugin, ready to be asked. Its instances end when nobody uses it any more.
pub(crate) struct Generation {
    pub(crate) sha256: String,
    pub(crate) description: Description,
    /// What it is asked, in the order of a request.
    pub(crate) hooks: Vec<Hook>,
    /// Characters of an answer that wait for more.
    pub(crate) hold_back: usize,
    pub(crate) pool: Arc<Pool>,
    /// A new generation starts with a clean record.
    pub(crate) breaker: Breaker,
}

/// What a server has one of, and every generation needs.
#[derive(Clone)]
pub(crate) struct Workshop {
    pub(crate) engine: Engine,
    pub(crate) cache: Option<Arc<Cache>>,
    /// Makes instances and takes them down.
    pub(crate) keeper: Keeper,
    /// So many instances of a generation wait for calls.
    pub(crate) warm: usize,
}

impl Workshop {
    /// Compiles, checks, starts and self-tests `wasm`, in this order; what it returns can be asked.
    pub(crate) async fn make(
        &self,
        settings: &Settings,
        services: Services,
        wasm: &[u8],
    ) -> Result<Generation, LoadError> {
        let loaded = load(&self.engine, self.cache.as_deref(), wasm)?;
        loaded.check_pin(settings.sha256.as_deref())?;
        loaded.check_grants(&settings.allow)?;
        let hooks = loaded.hooks(settings.hooks.as_deref())?;
        let recipe = self.recipe(settings, services, &loaded, &hooks)?;
        let first = || async { Ok::<_, Failure>(first(&recipe, &settings.allow.headers).await) };
        let (description, setup) = recipe.within(START, first).await??;
        let size = self.warm.min(settings.limits.concurrency);
        let pool = Pool::new(recipe, settings.isolation, size, self.keeper.clone());
        pool.look_after().await;
        let hold_back = setup.hold_back as usize;
        let breaker = Breaker::new(settings.breaker);
        Ok(Generation { sha256: loaded.sha256, description, hooks, hold_back, pool, breaker })
    }

    fn recipe(
        &self,
        settings: &Settings,
        services: Services,
        loaded: &Loaded,
        hooks: &[Hook],
    ) -> Result<Recipe, LoadError> {
        let kit = Kit {
            services: Arc::new(services),
            limits: settings.limits,
            config: settings.config.to_string(),
        };
        Recipe::new(&self.engine, loaded, hooks, &settings.allow, kit)
    }
}

/// Lets the first instance describe, start and test itself. The plugin gets the headers that it
/// asks for and that the operator grants.
pub(crate) async fn first(
    recipe: &Recipe,
    granted: &[String],
) -> Result<(Description, Setup), LoadError> {
    let mut instance = Instance::new(recipe).await?;
    let description = instance.describe().await?;
    let asked = description.headers.iter().filter(|name| granted.contains(name)).cloned();
    let _ = recipe.services.headers.set(asked.collect());
    schema::check(&description.config_schema, &recipe.settings())?;
    let setup = instance.init(&recipe.config).await?.map_err(LoadError::Config)?;
    if setup.hold_back > HOLD_BACK {
        let reason = format!("it holds {} characters back, {HOLD_BACK} may be", setup.hold_back);
        return Err(LoadError::Config(reason));
    }
    instance.finish_start();
    instance.self_test().await?.map_err(LoadError::SelfTest)?;
    Ok((description, setup))
}

impl Services {
    /// Services of a plugin that no server runs.
    pub(crate) fn alone(plugin: &str, allow: &Allow) -> Self {
        Self {
            plugin: plugin.into(),
            headers: OnceLock::new(),
            kv: Arc::new(Store::new(allow.kv_bytes)),
            counters: Counters::default(),
            log: Arc::new(LogGate::new(Instant::now())),
            texts: Texts::default(),
            surroundings: Arc::default(),
            instances: Gauge::default(),
            since: Instant::now(),
        }
    }

    /// The same with nothing of a generation in them yet.
    pub(crate) fn renewed(&self) -> Self {
        Self {
            plugin: self.plugin.clone(),
            headers: OnceLock::new(),
            kv: self.kv.clone(),
            counters: self.counters.clone(),
            log: self.log.clone(),
            texts: Texts::default(),
            surroundings: self.surroundings.clone(),
            instances: self.instances.clone(),
            since: Instant::now(),
        }
    }
}

impl Generation {
    /// Whether it is asked at `hook`.
    pub(crate) fn answers(&self, hook: Hook) -> bool {
        self.hooks.contains(&hook)
    }

    /// Headers that it may read.
    pub(crate) fn headers(&self) -> &[String] {
        self.pool.recipe().services.headers.get().map_or(&[], Vec::as_slice)
    }
}
