//! Which replica runs it?

use config::settings::Limits;
use contract::policy::builtin;
use contract::policy::hook::Hook;
use contract::policy::replica::{Demand, Replica};
use contract::policy::subject::Subject;
use contract::policy::verdict::Denied;
use serde_json::{Value, json};

use crate::bindings::exports::drystone::policy::score_replicas as wit;
use crate::chain::{Chain, Chains};
use crate::guest::Ambient;
use crate::instance::Instance;
use crate::plugin::Said;
use crate::question::{Question, ambient};

/// Asks about one request.
pub(crate) struct ScoreReplicas {
    pub(crate) demand: wit::Demand,
    pub(crate) replicas: wit::Table,
    pub(crate) ambient: Ambient,
}

impl ScoreReplicas {
    pub(crate) fn new(subject: &Subject, demand: &Demand, replicas: &[Replica]) -> Self {
        let demand = wit::Demand {
            prompt_tokens: demand.prompt_tokens,
            max_tokens: demand.max_tokens,
            affinity: demand.affinity,
        };
        Self { demand, replicas: table(replicas), ambient: ambient(subject) }
    }
}

/// Columns of the table, in the order of [`columns`].
const COLUMNS: usize = 6;

/// Replicas as guests see them.
pub(crate) fn table(replicas: &[Replica]) -> wit::Table {
    wit::Table { columns: COLUMNS as u32, numbers: replicas.iter().flat_map(columns).collect() }
}

fn columns(replica: &Replica) -> [f32; COLUMNS] {
    let one_if = |yes| if yes { 1.0 } else { 0.0 };
    [
        replica.running as f32,
        replica.waiting as f32,
        replica.kv_used,
        one_if(replica.adapter_resident),
        replica.prefix_hit,
        one_if(replica.local),
    ]
}

/// What [`table`] was made of.
fn rows(table: &wit::Table) -> Vec<Replica> {
    let (rows, _) = table.numbers.as_chunks::<COLUMNS>();
    let row = |[running, waiting, kv_used, resident, prefix_hit, local]: &[f32; COLUMNS]| Replica {
        running: *running as u32,
        waiting: *waiting as u32,
        kv_used: *kv_used,
        adapter_resident: *resident != 0.0,
        prefix_hit: *prefix_hit,
        local: *local != 0.0,
    };
    rows.iter().map(row).collect()
}

impl Question for ScoreReplicas {
    const HOOK: Hook = Hook::ScoreReplicas;
    type Answer = Vec<f32>;
    type Verdict = Vec<f32>;

    fn ambient(&self) -> Ambient {
        self.ambient.clone()
    }

    async fn ask(&self, instance: &mut Instance) -> wasmtime::Result<Option<Self::Answer>> {
        let Some(hook) = &instance.hooks.score_replicas else { return Ok(None) };
        let store = &mut instance.store;
        hook.call_score_replicas(store, self.demand, &self.replicas).await.map(Some)
    }

    fn check(&self, scores: Vec<f32>, _: &Limits) -> Result<Vec<f32>, String> {
        let replicas = self.replicas.numbers.len() / COLUMNS;
        if scores.len() != replicas {
            let scores = scores.len();
            return Err(format!("it has {scores} scores for {replicas} replicas"));
        }
        match scores.iter().find(|score| !score.is_finite()) {
            Some(score) => Err(format!("the score {score} is not finite")),
            None => Ok(scores),
        }
    }

    fn input(&self) -> Value {
        json!({ "demand": self.demand, "replicas": rows(&self.replicas) })
    }
}

impl Chains {
    /// The scores of all plugins are added up.
    pub(crate) async fn score_replicas(
        &self,
        chain: Chain,
        subject: &Subject,
        demand: &Demand,
        replicas: &[Replica],
    ) -> Result<Vec<f32>, Denied> {
        let question = ScoreReplicas::new(subject, demand, replicas);
        let mut sums: Option<Vec<f32>> = None;
        for plugin in self.enforced(chain) {
            match plugin.hear(&question).await {
                Said::Verdict(scores) => sums = Some(added(sums, scores)),
                Said::Nothing => {}
                Said::Builtin => return Ok(plain(replicas)),
                Said::Refused(denied) => return Err(denied),
            }
        }
        Ok(sums.unwrap_or_else(|| plain(replicas)))
    }
}

/// The server's own scores.
pub(crate) fn plain(replicas: &[Replica]) -> Vec<f32> {
    replicas.iter().map(builtin::score).collect()
}

fn added(sums: Option<Vec<f32>>, scores: Vec<f32>) -> Vec<f32> {
    let Some(mut sums) = sums else { return scores };
    for (sum, score) in sums.iter_mut().zip(scores) {
        *sum = (*sum + score).clamp(f32::MIN, f32::MAX);
    }
    sums
}

/// The place of the lowest score.
pub(crate) fn lowest(scores: &[f32]) -> Option<usize> {
    (0..scores.len()).min_by(|a, b| scores[*a].total_cmp(&scores[*b]))
}
