//! How many calls of a tenant are open, for tenants that may have so many at once and no more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use contract::policy::subject::Tenant;
use contract::policy::verdict::{Denied, Identity};

/// Counts open calls by tenant.
#[derive(Clone, Default)]
pub struct Places(Arc<Mutex<HashMap<Tenant, u32>>>);

/// One open call. Dropping it frees the place.
pub struct Place {
    places: Places,
    tenant: Tenant,
}

impl Places {
    /// A place for one more call; none is needed by those who may have as many as they like.
    pub fn enter(&self, identity: &Identity) -> Result<Option<Place>, Denied> {
        let Some(most) = identity.concurrency else { return Ok(None) };
        let mut counts = self.counts();
        let open = counts.get(&identity.tenant).copied().unwrap_or(0);
        if open >= most {
            let message =
                format!("{open} requests of this tenant are open, and it may have {most}");
            return Err(Denied::new(429, "tenant_concurrency", message));
        }
        counts.insert(identity.tenant.clone(), open + 1);
        Ok(Some(Place { places: self.clone(), tenant: identity.tenant.clone() }))
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<Tenant, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.places.counts();
        match counts.get_mut(&self.tenant) {
            Some(open) if *open > 1 => *open -= 1,
            _ => drop(counts.remove(&self.tenant)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_its_call_has_ended() {
        let places = Places::default();
        let identity = Identity { concurrency: Some(2), ..Identity::default() };
        let held = [places.enter(&identity), places.enter(&identity)];
        assert!(places.enter(&identity).is_err());
        drop(held);
        assert!(places.counts().is_empty());
        assert!(places.enter(&Identity::default()).is_ok_and(|place| place.is_none()));
    }
}
