//! Which replica runs a request: the policy scores those that could, and the best that has room
//! takes it.

use contract::policy::Policy;
use contract::policy::replica::{Demand, Replica as Columns};
use contract::policy::subject::Subject;
use contract::policy::verdict::Denied;
use engine::handle::{Engine, SubmitError};

use crate::answer::source::Source;
use crate::error::ApiError;
use crate::replicas::upstream::Refusal;
use crate::replicas::{Member, Replicas, Wanted};
use crate::request::job::{Asker, Job};

/// The replica that took a job, and the sources of its choices.
pub struct Taken {
    /// Its name.
    pub replica: String,
    /// One a choice, in the order of their indices.
    pub sources: Vec<Source>,
}

/// Hands a job to the best replica that takes it.
pub async fn submit(
    replicas: &Replicas,
    policy: &dyn Policy,
    subject: &Subject,
    job: &Job,
    asker: &Asker<'_>,
) -> Result<Taken, ApiError> {
    let mut first = None;
    for at in ranked(replicas, policy, subject, job, asker).await? {
        let begun = match replicas.member(at) {
            Member::Local(engine) => begin(engine, job, asker),
            Member::Upstream(upstream) => {
                let requests = job.requests(asker, replicas.context_max());
                let begun = upstream.begin(requests, replicas.model_name(), replicas.text()).await;
                begun.map(|relays| relays.into_iter().map(Source::upstream).collect())
            }
        };
        match begun {
            Ok(sources) => return Ok(Taken { replica: replicas.name(at), sources }),
            Err(Refusal::Elsewhere(error)) => first = first.or(Some(error)),
            Err(Refusal::Final(error)) => return Err(error),
        }
    }
    Err(first.unwrap_or(ApiError::NoReplica))
}

fn begin(engine: &Engine, job: &Job, asker: &Asker<'_>) -> Result<Vec<Source>, Refusal> {
    use SubmitError as E;
    let tickets = job.submit(engine, asker).map_err(|error| match error {
        ApiError::Submit(E::QueueFull { .. } | E::Dead { .. } | E::Draining) => {
            Refusal::Elsewhere(error)
        }
        error => Refusal::Final(error),
    })?;
    Ok(tickets.into_iter().map(Source::Local).collect())
}

/// The replicas that could run a job, the best first.
async fn ranked(
    replicas: &Replicas,
    policy: &dyn Policy,
    subject: &Subject,
    job: &Job,
    asker: &Asker<'_>,
) -> Result<Vec<usize>, Denied> {
    let prompt = job.prompts.first().map_or(&[][..], |prompt| &prompt.tokens);
    let adapter = asker.adapter.as_deref();
    let (places, columns) = replicas.candidates(Wanted {
        adapter,
        prompt,
        shows_tokens: job.form.token_ids || job.logprobs.is_some() || job.prompt_logprobs.is_some(),
    });
    if places.len() < 2 {
        return Ok(places);
    }
    let context_max = replicas.context_max();
    let demand = Demand {
        prompt_tokens: subject.prompt_tokens,
        max_tokens: job.max_tokens(context_max),
        affinity: affinity(&subject.tenant.0, adapter),
    };
    let scores = policy.score_replicas(subject, &demand, &columns).await?;
    let order = order(&columns, &scores, demand.affinity);
    Ok(order.into_iter().map(|at| places[at]).collect())
}

/// Indices by score, the lowest first. Those without a finite score come last, by load. Of equals,
/// the same one goes first for the same tenant and adapter: it likely has their prefixes.
fn order(columns: &[Columns], scores: &[f32], affinity: u64) -> Vec<usize> {
    let count = columns.len();
    let home = (affinity % count as u64) as usize;
    let score = |at: usize| scores.get(at).copied().filter(|score| score.is_finite());
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&a, &b| {
        let key = |at: usize| {
            let load = columns[at].running + columns[at].waiting;
            (score(at).is_none(), if score(at).is_none() { load } else { 0 })
        };
        let distance = |at: usize| (at + count - home) % count;
        let scores = score(a).unwrap_or(0.0).total_cmp(&score(b).unwrap_or(0.0));
        key(a).cmp(&key(b)).then(scores).then(distance(a).cmp(&distance(b)))
    });
    order
}

/// FNV-1a over tenant and adapter: the same in every process and release.
fn affinity(tenant: &str, adapter: Option<&str>) -> u64 {
    let adapter = adapter.map(str::bytes).into_iter().flatten();
    let bytes = tenant.bytes().chain([0xFF]).chain(adapter);
    bytes.fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_finite_score_goes_first() {
        let columns = [3, 2, 1, 0].map(|running| Columns { running, ..Columns::default() });
        assert_eq!(order(&columns, &[0.5, -1.0, 2.0, 0.0], 0), [1, 3, 0, 2]);
        assert_eq!(order(&columns, &[f32::NAN, 9.0, f32::INFINITY, 8.0], 0), [3, 1, 2, 0]);
        assert_eq!(order(&columns, &[], 0), [3, 2, 1, 0], "no answer: by load");
    }

    #[test]
    fn equals_go_by_affinity() {
        let columns = [Columns::default(); 3];
        assert_eq!(order(&columns, &[0.0; 3], 7), [1, 2, 0]);
        let some = affinity("acme", Some("sql"));
        assert_eq!(some, affinity("acme", Some("sql")));
        assert_ne!(some, affinity("acme", None));
        assert_ne!(affinity("acmes", Some("ql")), some);
    }
}
