//! Changes plugins while the server runs. What cannot be used leaves things as they were.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use config::settings::Mode;
use contract::policy::asked::Asked;
use contract::policy::deploy::{DeployError, PluginStatus, Plugins, Replacement};
use tokio::sync::oneshot;

use crate::background;
use crate::generation::Generation;
use crate::host::{Host, Inner};
use crate::load::LoadError;
use crate::plugin::Plugin;
use crate::start::read;

impl Plugins for Host {
    fn list(&self) -> Vec<PluginStatus> {
        self.0.chains.plugins.iter().map(|plugin| plugin.status()).collect()
    }

    fn replace<'a>(
        &'a self,
        name: &'a str,
        with: Replacement,
    ) -> Asked<'a, Result<PluginStatus, DeployError>> {
        let (inner, name) = (self.0.clone(), name.to_owned());
        Asked::later(async move {
            // Compiling takes long, and goes on if nobody waits for it any more.
            let (done, result) = oneshot::channel();
            let work = move || drop(done.send(inner.replace(&name, with)));
            let failed = |_| DeployError::Refused("the server could not try it".to_owned());
            let thread = std::thread::Builder::new().name("policy-deploy".to_owned());
            thread.spawn(work).map_err(|error| DeployError::Refused(error.to_string()))?;
            result.await.map_err(failed)?
        })
    }

    fn roll_back(&self, name: &str) -> Result<PluginStatus, DeployError> {
        let plugin = self.0.find(name)?;
        let _one = plugin.deploying.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = plugin.history().previous.take();
        let previous = previous.ok_or_else(|| DeployError::NoOlder(name.to_owned()))?;
        previous.pool.wake();
        self.0.swap(plugin, previous, "rolled_back");
        Ok(plugin.status())
    }
}

impl Inner {
    fn find(&self, name: &str) -> Result<&Arc<Plugin>, DeployError> {
        let mut plugins = self.chains.plugins.iter();
        let found = plugins.find(|plugin| plugin.settings.name == name);
        found.ok_or_else(|| DeployError::Unknown(name.to_owned()))
    }

    /// Makes a new generation and swaps it in. Takes as long as the compiler does.
    pub(crate) fn replace(
        &self,
        name: &str,
        with: Replacement,
    ) -> Result<PluginStatus, DeployError> {
        let plugin = self.find(name)?;
        let result = self.bytes(with).and_then(|wasm| self.deploy(plugin, &wasm));
        result.map_err(|error| self.refused(plugin, &error))?;
        Ok(plugin.status())
    }

    /// The same with what is in the deployment's own file now.
    pub(crate) fn reload(&self, plugin: &Arc<Plugin>) {
        if plugin.mode() == Mode::Disabled {
            return;
        }
        let result = read(&plugin.settings.file).and_then(|wasm| self.deploy(plugin, &wasm));
        if let Err(error) = result {
            self.refused(plugin, &error);
        }
    }

    fn deploy(&self, plugin: &Arc<Plugin>, wasm: &[u8]) -> Result<(), LoadError> {
        let host = |error: &dyn std::fmt::Display| LoadError::Host(error.to_string());
        if plugin.mode() == Mode::Disabled {
            return Err(host(&"it is disabled in this deployment"));
        }
        let _one = plugin.deploying.lock().unwrap_or_else(PoisonError::into_inner);
        let make = self.workshop.make(&plugin.settings, plugin.services.renewed(), wasm);
        let generation = background::wait(make).map_err(|error| host(&error))??;
        self.swap(plugin, Arc::new(generation), "ok");
        Ok(())
    }

    /// The one moment at which requests meet another generation.
    fn swap(&self, plugin: &Arc<Plugin>, generation: Arc<Generation>, outcome: &'static str) {
        plugin.metrics.quarantined.set(generation.breaker.is_open().into());
        let sha256 = generation.sha256.clone();
        let old = plugin.current.swap(Some(generation));
        if let Some(old) = &old {
            old.pool.rest();
        }
        let mut history = plugin.history();
        history.number += 1;
        history.previous = old;
        history.last_error = None;
        drop(history);
        self.refresh();
        self.metrics.swapped(&plugin.settings.name, outcome);
        let plugin = &*plugin.settings.name;
        tracing::info!(plugin, sha256, outcome, "another generation of the plugin is asked");
    }

    fn refused(&self, plugin: &Plugin, error: &LoadError) -> DeployError {
        let name = &*plugin.settings.name;
        let message = format!("plugin {name:?}: {error}");
        tracing::warn!(plugin = name, "a new generation is refused, the old one stays: {error}");
        self.metrics.swapped(name, "refused");
        plugin.history().last_error = Some(message.clone());
        DeployError::Refused(message)
    }

    fn bytes(&self, with: Replacement) -> Result<Vec<u8>, LoadError> {
        match with {
            Replacement::Bytes(wasm) => Ok(wasm),
            Replacement::Path(path) => read(&self.below_root(&path)?),
        }
    }

    /// Where `path` really is, if that is below the root.
    fn below_root(&self, path: &Path) -> Result<PathBuf, LoadError> {
        let host = |reason: &str| LoadError::Host(reason.to_owned());
        let root = self.root.as_ref().ok_or_else(|| host("policy.root is not set"))?;
        let at = |path: PathBuf| {
            let real = path.canonicalize();
            real.map_err(|error| LoadError::Read { file: path, error })
        };
        let (root, file) = (at(root.clone())?, at(root.join(path))?);
        if file.starts_with(&root) { Ok(file) } else { Err(host("the path leaves policy.root")) }
    }
}

impl Plugin {
    fn status(&self) -> PluginStatus {
        let history = self.history();
        let current = self.current.load_full();
        let of = |what: fn(&Generation) -> String| current.as_deref().map(what).unwrap_or_default();
        PluginStatus {
            name: self.settings.name.clone(),
            version: of(|generation| generation.description.version.clone()),
            sha256: of(|generation| generation.sha256.clone()),
            hooks: current.iter().flat_map(|one| &one.hooks).map(|hook| hook.name()).collect(),
            mode: mode(self.settings.mode),
            generation: history.number,
            can_roll_back: history.previous.is_some(),
            quarantined: current.as_ref().is_some_and(|one| one.breaker.is_open()),
            last_error: history.last_error.clone(),
        }
    }
}

const fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Shadow => "shadow",
        Mode::Disabled => "disabled",
    }
}
