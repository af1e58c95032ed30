//! Keys, buckets and what is refused.

use std::time::Duration;

use drystone_sdk::{mock, prelude::*};

use crate::TenantQuota;

const CONFIG: &str = r#"{
    "keys": {"k-acme": "acme", "k-free": "free"},
    "tenants": {
        "acme": {"concurrency": 8, "priority": -10},
        "free": {"max_tokens": 100, "tokens_per_minute": 600, "burst": 300}
    }
}"#;
const LOAD: Load = Load { running: 0, waiting: 0, queue_max: 10, kv_used: 0.0 };

fn quota() -> TenantQuota {
    mock::start(CONFIG).unwrap()
}

fn request(tenant: &str, prompt_tokens: u32) -> Request {
    let max_tokens = Some(100);
    Request { tenant: tenant.into(), prompt_tokens, max_tokens, ..Request::default() }
}

#[test]
fn keys_name_tenants() {
    let caller = |key: &str| Caller { key: Some(key.into()), route: Route::Chat };
    let identity = quota().authorize(&caller("k-free")).unwrap();
    assert_eq!(identity.tenant, "free");
    assert_eq!(identity.limits.max_tokens, Some(100));
    assert_eq!(quota().authorize(&caller("guess")).unwrap_err().status, 401);
}

#[test]
fn an_empty_bucket_sheds_until_it_fills_up() {
    let ask = || quota().admit(&request("free", 200), &LOAD);
    assert_eq!(ask(), AdmitVerdict::Admit(Admission::default()));
    let AdmitVerdict::Shed(refused) = ask() else { panic!("admitted") };
    assert_eq!((refused.status, refused.retry_after_s), (429, Some(30)));
    mock::advance(Duration::from_secs(30));
    assert_eq!(ask(), AdmitVerdict::Admit(Admission::default()));
}

#[test]
fn what_never_fits_is_not_told_to_come_back() {
    let AdmitVerdict::Shed(refused) = quota().admit(&request("free", 400), &LOAD) else {
        panic!("admitted");
    };
    assert_eq!((refused.code.as_str(), refused.retry_after_s), ("quota_too_small", None));
}

#[test]
fn paying_tenants_go_first() {
    let usual = Admission { priority: -10, deadline_ms: None };
    assert_eq!(quota().admit(&request("acme", 9000), &LOAD), AdmitVerdict::Admit(usual));
}

#[test]
fn a_key_without_a_tenant_is_refused() {
    let error = mock::start::<TenantQuota>(r#"{"keys": {"k": "lost"}, "tenants": {}}"#);
    assert_eq!(error.map(drop).unwrap_err(), "a key names the tenant `lost`, which has no quota");
}
