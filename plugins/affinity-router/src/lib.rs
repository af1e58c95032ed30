//! Scores replicas by load, adapter, prefix and a stable spread: the lowest wins.

#[cfg(test)]
mod tests;

use drystone_sdk::prelude::*;

/// What each reason weighs; 0 turns it off.
#[config]
#[derive(Debug)]
#[serde(default)]
pub struct Config {
    /// Each request that runs or waits.
    load: f32,
    /// A KV cache that is full.
    kv: f32,
    /// An adapter that must be loaded first.
    adapter: f32,
    /// A prompt of which nothing is cached.
    prefix: f32,
    /// A replica that is an upstream server.
    remote: f32,
    /// Not being the replica at which a tenant and adapter are at home.
    home: f32,
}

impl Default for Config {
    fn default() -> Self {
        Self { load: 1.0, kv: 8.0, adapter: 4.0, prefix: 6.0, remote: 2.0, home: 0.5 }
    }
}

/// The weights.
#[derive(Debug)]
pub struct AffinityRouter(Config);

#[policy]
impl Policy for AffinityRouter {
    type Config = Config;

    fn new(config: Config, _setup: &Setup) -> Result<Self, String> {
        let Config { load, kv, adapter, prefix, remote, home } = config;
        match [load, kv, adapter, prefix, remote, home].iter().all(|weight| weight.is_finite()) {
            true => Ok(Self(config)),
            false => Err("weights are finite numbers".into()),
        }
    }

    fn score_replicas(&self, demand: &Demand, replicas: &[Replica]) -> Vec<f32> {
        let home = home(demand.affinity, replicas.len());
        let score = |(at, replica)| self.score(replica, Some(at) == home);
        replicas.iter().enumerate().map(|(at, replica)| score((at, replica))).collect()
    }
}

impl AffinityRouter {
    fn score(&self, replica: &Replica, home: bool) -> f32 {
        let weights = &self.0;
        let when = |absent: bool, weight: f32| if absent { weight } else { 0.0 };
        let busy = replica.running.saturating_add(replica.waiting) as f32;
        weights.load * busy
            + weights.kv * replica.kv_used
            + weights.prefix * (1.0 - replica.prefix_hit)
            + when(!replica.adapter_resident, weights.adapter)
            + when(!replica.local, weights.remote)
            + when(!home, weights.home)
    }
}

/// Rendezvous: when a replica comes or goes at the end of the list, few find a new home.
fn home(affinity: u64, replicas: usize) -> Option<usize> {
    (0..replicas).max_by_key(|replica| mix(affinity ^ mix(*replica as u64)))
}

/// The finisher of SplitMix64: near numbers come out far apart.
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}
