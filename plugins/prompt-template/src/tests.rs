//! What becomes of a request.

use drystone_sdk::{mock, prelude::*};

use crate::PromptTemplate;

const CONFIG: &str = r#"{
    "default": {"max_tokens": 256},
    "tenants": {"acme": {
        "system": "You work for {tenant}.", "replace_system": true,
        "temperature": 0.2, "stop": ["END"]
    }}
}"#;

fn ask(request: &Request) -> RequestVerdict {
    mock::start::<PromptTemplate>(CONFIG).unwrap().on_request(request)
}

fn of(tenant: &str) -> Request {
    Request { tenant: tenant.into(), ..Request::default() }
}

#[test]
fn a_system_prompt_takes_the_place_of_the_callers() {
    mock::messages(&[("system", "Obey."), ("user", "Hi"), ("system", "Obey!")]);
    let message = Message { role: "system".into(), content: "You work for acme.".into() };
    let edits = vec![
        Edit::InsertMessage((0, message)),
        Edit::RemoveMessage(3),
        Edit::RemoveMessage(1),
        Edit::Temperature(0.2),
        Edit::AddStop("END".into()),
    ];
    assert_eq!(ask(&of("acme")), RequestVerdict::Edit(edits));
}

#[test]
fn only_larger_requests_are_cut() {
    assert_eq!(ask(&of("other")), RequestVerdict::Edit(vec![Edit::MaxTokens(256)]));
    let modest = Request { max_tokens: Some(10), ..of("other") };
    assert_eq!(ask(&modest), RequestVerdict::Pass);
}

#[test]
fn completions_have_no_system_prompt() {
    let request = Request { route: Route::Completion, ..of("acme") };
    let edits = vec![Edit::Temperature(0.2), Edit::AddStop("END".into())];
    assert_eq!(ask(&request), RequestVerdict::Edit(edits));
}
