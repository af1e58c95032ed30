//! Which rule wins.

use drystone_sdk::{mock, prelude::*};

use crate::Router;

const RULES: &str = r#"{"rules": [
    {"adapter": "beta", "headers": {"x-adapter-route": "beta"}},
    {"adapter": "sql", "tenants": ["acme"], "words": ["select", "join"]},
    {"adapter": "canary", "percent": 20, "sticky_header": "x-user"}
]}"#;

fn ask(tenant: &str, id: &str) -> Selection {
    let request = Request { id: id.into(), tenant: tenant.into(), ..Request::default() };
    mock::start::<Router>(RULES).unwrap().select_adapter(&request)
}

#[test]
fn a_header_chooses() {
    mock::header("x-adapter-route", "beta");
    assert_eq!(ask("acme", "1"), Selection::Adapter("beta".into()));
}

#[test]
fn words_choose_for_their_tenant() {
    mock::messages(&[("user", "Please SELECT the best rows")]);
    assert_eq!(ask("acme", "1"), Selection::Adapter("sql".into()));
    assert_ne!(ask("other", "1"), Selection::Adapter("sql".into()));
}

#[test]
fn a_fifth_of_the_requests_are_canaries() {
    let canary = |id: &u32| ask("other", &id.to_string()) == Selection::Adapter("canary".into());
    let canaries = (0..1000).filter(canary).count();
    assert!((150..250).contains(&canaries), "{canaries} of 1000");
}

#[test]
fn a_user_stays_with_the_draw() {
    mock::header("x-user", "ann");
    let first = ask("other", "1");
    assert!((2..50).all(|id| ask("other", &id.to_string()) == first));
}

#[test]
fn what_cannot_work_is_refused() {
    let start = |config| mock::start::<Router>(config).map(drop).unwrap_err();
    let error = start(r#"{"rules": [{"adapter": "a", "percent": 101}]}"#);
    assert_eq!(error, "percent = 101 is more than all, 100");
    let error = start(r#"{"rules": [{"adapter": "a", "headers": {"cookie": "x"}}]}"#);
    assert!(error.contains("`cookie`"), "{error}");
}
