//! The plugins of a server as chains: who is asked at which hook, about which request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use config::settings::Mode;
use contract::policy::hook::Hook;
use contract::policy::subject::{Route, Subject};

use crate::background::Background;
use crate::plugin::Plugin;
use crate::question::Question;
use crate::scope::Scopes;

/// All plugins in the order of the deployment, and a mask of them for each hook.
pub(crate) struct Chains {
    pub(crate) plugins: Vec<Arc<Plugin>>,
    scopes: Scopes,
    enforced: [AtomicU64; Hook::ALL.len()],
    shadowed: [AtomicU64; Hook::ALL.len()],
    /// Those whose answers to any hook may depend on texts of the request.
    readers: AtomicU64,
    shadows: Background,
}

/// Which plugins see one request at one hook.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    enforced: u64,
    shadowed: u64,
}

impl Chain {
    /// Nobody looks.
    pub(crate) fn is_empty(self) -> bool {
        self.enforced | self.shadowed == 0
    }
}

impl Chains {
    pub(crate) fn new(plugins: Vec<Arc<Plugin>>, scopes: Scopes, shadows: Background) -> Self {
        let chains = Self {
            plugins,
            scopes,
            enforced: Default::default(),
            shadowed: Default::default(),
            readers: AtomicU64::new(0),
            shadows,
        };
        chains.refresh();
        chains
    }

    /// Looks again which hooks the plugins answer.
    pub(crate) fn refresh(&self) {
        for hook in Hook::ALL {
            let of = |mode| self.mask(|plugin| plugin.mode() == mode && plugin.answers(hook));
            self.enforced[hook as usize].store(of(Mode::Enforce), Ordering::Relaxed);
            self.shadowed[hook as usize].store(of(Mode::Shadow), Ordering::Relaxed);
        }
        let reads = |plugin: &Plugin| plugin.answers(Hook::OnRequest) || plugin.reads_messages();
        self.readers.store(self.mask(reads), Ordering::Relaxed);
    }

    fn mask(&self, is_in: impl Fn(&Plugin) -> bool) -> u64 {
        let bits = self.plugins.iter().enumerate();
        bits.fold(0, |mask, (bit, plugin)| mask | (u64::from(is_in(plugin)) << bit))
    }

    /// Who is asked at `hook` about `subject`.
    pub(crate) fn about(&self, hook: Hook, subject: &Subject) -> Chain {
        self.within(hook, || self.scopes.mask(&subject.tenant.0, &subject.model, subject.route))
    }

    /// Who is asked at `hook` while nothing but the API is known.
    pub(crate) fn at(&self, hook: Hook, route: Route) -> Chain {
        self.within(hook, || self.scopes.mask_route(route))
    }

    fn within(&self, hook: Hook, scope: impl FnOnce() -> u64) -> Chain {
        let enforced = self.enforced[hook as usize].load(Ordering::Relaxed);
        let shadowed = self.shadowed[hook as usize].load(Ordering::Relaxed);
        let scope = if enforced | shadowed == 0 { 0 } else { scope() };
        Chain { enforced: enforced & scope, shadowed: shadowed & scope }
    }

    /// Whether somebody may look at the texts of `subject`.
    pub(crate) fn reads_messages(&self, subject: &Subject) -> bool {
        let readers = self.readers.load(Ordering::Relaxed);
        let scope = || self.scopes.mask(&subject.tenant.0, &subject.model, subject.route);
        readers != 0 && readers & scope() != 0
    }

    /// Those of `chain` whose answers count, in order.
    pub(crate) fn enforced(&self, chain: Chain) -> impl Iterator<Item = &Arc<Plugin>> + Send {
        bits(chain.enforced).filter_map(|bit| self.plugins.get(bit))
    }

    /// Those of `chain` whose answers do not count, each after how many whose answers do.
    pub(crate) fn shadowed(&self, chain: Chain) -> impl Iterator<Item = (usize, &Arc<Plugin>)> {
        bits(chain.shadowed).filter_map(move |bit| {
            let before = chain.enforced & ((1 << bit) - 1);
            Some((before.count_ones() as usize, self.plugins.get(bit)?))
        })
    }

    /// Has `work` done where shadows are asked, after all they have to do already; unless that is
    /// too much.
    pub(crate) fn later(&self, work: impl Future<Output = ()> + Send + 'static) -> bool {
        self.shadows.offer(work)
    }

    /// Asks those of `chain` whose answers do not count, later and elsewhere. `differs` tells
    /// whether an answer would have changed something.
    pub(crate) fn shadow<Q: Question + 'static>(
        &self,
        chain: Chain,
        question: impl FnOnce() -> Q,
        differs: impl Fn(&Q::Verdict) -> bool + Send + Sync + 'static,
    ) {
        if chain.shadowed == 0 {
            return;
        }
        let plugins = bits(chain.shadowed).filter_map(|bit| self.plugins.get(bit).cloned());
        let (plugins, question) = (plugins.collect::<Vec<_>>(), question());
        // With too many waiting, shadows miss a request; nobody depends on them.
        self.shadows.offer(async move {
            for plugin in plugins {
                if plugin.ask(&question).await.is_ok_and(|said| said.as_ref().is_some_and(&differs))
                {
                    plugin.hook_metrics[Q::HOOK as usize].differences.inc();
                }
            }
        });
    }
}

/// The places of the ones in `mask`, ascending.
fn bits(mask: u64) -> impl Iterator<Item = usize> + Send {
    let rest = |mask: &u64| Some(mask & mask.checked_sub(1)?);
    let rests = std::iter::successors(Some(mask), rest).take_while(|mask| *mask != 0);
    rests.map(|mask| mask.trailing_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_come_in_order() {
        assert_eq!(bits(0).count(), 0);
        assert_eq!(bits(0b1011).collect::<Vec<_>>(), [0, 1, 3]);
        assert_eq!(bits(1 << 63).collect::<Vec<_>>(), [63]);
        assert_eq!(bits(u64::MAX).count(), 64);
    }
}
