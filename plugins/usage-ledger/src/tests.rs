//! Sums.

use drystone_sdk::host::kv;
use drystone_sdk::{mock, prelude::*};

use crate::UsageLedger;

fn complete(adapter: Option<&str>, completion_tokens: u32) {
    let completion = Completion {
        status: 200,
        adapter: adapter.map(str::to_owned),
        replica: Some("local".into()),
        finish: Some(Finish::Stop),
        usage: Usage { prompt_tokens: 10, cached_tokens: 0, completion_tokens },
        first_token_ms: Some(5),
        total_ms: 50,
    };
    let request = Request { tenant: "acme".into(), ..Request::default() };
    mock::start::<UsageLedger>("").unwrap().on_complete(&request, &completion);
}

#[test]
fn usage_adds_up_by_tenant_and_adapter() {
    complete(Some("sql"), 7);
    complete(Some("sql"), 5);
    complete(None, 3);
    let counted = |kind, adapter| mock::counter(kind, &[("tenant", "acme"), ("adapter", adapter)]);
    assert_eq!(counted("completion_tokens", "sql"), 12);
    assert_eq!(counted("completion_tokens", "base"), 3);
    assert_eq!(counted("requests", "sql"), 2);
    assert_eq!(kv::add("prompt_tokens/acme/sql", 0, None), Ok(20));
    assert!(mock::logs().is_empty());
}
