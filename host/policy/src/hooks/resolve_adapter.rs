//! A name that nobody loaded: where is its adapter?

use std::path::{Component, Path};

use config::settings::Limits;
use contract::policy::hook::Hook;
use contract::policy::subject::Subject;
use contract::policy::verdict::{Denied, Source};
use serde_json::{Value, json};

use crate::bindings::drystone::policy::types::Request;
use crate::bindings::exports::drystone::policy::resolve_adapter as wit;
use crate::chain::{Chain, Chains};
use crate::check;
use crate::guest::Ambient;
use crate::instance::Instance;
use crate::plugin::Said;
use crate::question::{Question, ambient, request};

/// Asks about one name.
pub(crate) struct ResolveAdapter {
    request: Request,
    name: String,
    ambient: Ambient,
}

impl ResolveAdapter {
    pub(crate) fn new(subject: &Subject, name: &str) -> Self {
        Self { request: request(subject), name: name.to_owned(), ambient: ambient(subject) }
    }
}

impl Question for ResolveAdapter {
    const HOOK: Hook = Hook::ResolveAdapter;
    type Answer = wit::Resolution;
    type Verdict = Result<Option<Source>, Denied>;

    fn ambient(&self) -> Ambient {
        self.ambient.clone()
    }

    async fn ask(&self, instance: &mut Instance) -> wasmtime::Result<Option<Self::Answer>> {
        let Some(hook) = &instance.hooks.resolve_adapter else { return Ok(None) };
        hook.call_resolve_adapter(&mut instance.store, &self.request, &self.name).await.map(Some)
    }

    fn check(&self, answer: Self::Answer, limits: &Limits) -> Result<Self::Verdict, String> {
        Ok(match answer {
            wit::Resolution::NotFound => Ok(None),
            wit::Resolution::Load(found) => {
                check::size([&*found.path], limits.output_bytes)?;
                Ok(Some(source(found)?))
            }
            wit::Resolution::Deny(denial) => {
                check::size(check::denial_texts(&denial), limits.output_bytes)?;
                Err(check::denial(denial)?)
            }
        })
    }

    fn input(&self) -> Value {
        json!({ "request": self.request, "name": self.name })
    }
}

/// A source below the server's root, by its path alone.
fn source(source: wit::Source) -> Result<Source, String> {
    let wit::Source { path, sha256 } = source;
    let mut parts = Path::new(&path).components();
    let below = !path.is_empty()
        && !path.contains(char::is_control)
        && parts.all(|part| matches!(part, Component::Normal(_)));
    if !below {
        return Err(format!("the path {path:?} is not one below the server's root"));
    }
    let digest = |hex: &String| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    if let Some(wrong) = sha256.as_ref().filter(|hex| !digest(hex)) {
        return Err(format!("{wrong:?} is no SHA-256 in hex"));
    }
    Ok(Source { path, sha256: sha256.map(|hex| hex.to_ascii_lowercase()) })
}

impl Chains {
    /// The first source or denial holds.
    pub(crate) async fn resolve_adapter(
        &self,
        chain: Chain,
        subject: &Subject,
        name: &str,
    ) -> Result<Option<Source>, Denied> {
        let question = ResolveAdapter::new(subject, name);
        for plugin in self.enforced(chain) {
            match plugin.hear(&question).await {
                Said::Verdict(Ok(None)) | Said::Nothing => {}
                Said::Verdict(found) => return found,
                Said::Builtin => break,
                Said::Refused(denied) => return Err(denied),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_lie_below_the_root() {
        let at = |path: &str| source(wit::Source { path: path.to_owned(), sha256: None });
        assert!(at("team/sql").is_ok());
        for path in ["", "/etc", "..", "a/../../b", "./a", "a\0b"] {
            assert!(at(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn digests_are_digests() {
        let with =
            |hex: &str| source(wit::Source { path: "a".to_owned(), sha256: Some(hex.to_owned()) });
        let found = with(&"A".repeat(64)).expect("a digest");
        assert_eq!(found.sha256, Some("a".repeat(64)));
        assert!(with("abc").is_err());
        assert!(with(&"g".repeat(64)).is_err());
    }
}
