//! The policy of a deployment: its plugins, or the built-in answers where there are none.

use std::sync::Arc;

use config::settings::Settings;
use contract::policy::Policy;
use contract::policy::builtin::Builtin;
use contract::policy::subject::Tenant;
use engine::handle::Root;
use gateway::app::App;
use gateway::surroundings::View;
use policy::host::Host;
use prometheus_client::registry::Registry;

use crate::Failure;

/// The state of a server that has no replica yet. Its plugins are up: nobody gets past them.
pub fn app(settings: &Settings) -> Result<Arc<App>, Failure> {
    let Some(host) = host(settings)? else {
        return Ok(Arc::new(plain(settings, Arc::new(builtin(settings)))?));
    };
    let mut registry = Registry::default();
    host.register(&mut registry);
    let app = plain(settings, Arc::new(host.clone()))?;
    let app = Arc::new(app.with_plugins(Arc::new(host.clone()), registry));
    host.surround(Arc::new(View::new(&app)));
    Ok(app)
}

/// A server under `policy` that nobody can change yet.
fn plain(settings: &Settings, policy: Arc<dyn Policy>) -> Result<App, Failure> {
    let app = App::new(settings.server.clone(), policy, settings.model.name.clone());
    Ok(match &settings.adapters.resolve_root {
        Some(root) => app.with_adapter_root(Root::open(root)?),
        None => app,
    })
}

/// Compiles, checks and starts the plugins, if there are some.
pub fn host(settings: &Settings) -> Result<Option<Host>, Failure> {
    if settings.policy.plugins.is_empty() {
        return Ok(None);
    }
    Ok(Some(Host::start(&settings.policy, builtin(settings))?))
}

fn builtin(settings: &Settings) -> Builtin {
    let keys = settings.server.api_keys.iter();
    let keys = keys.map(|key| (key.key.clone(), Tenant(key.tenant.clone())));
    Builtin::new(&settings.model.name, keys)
}
