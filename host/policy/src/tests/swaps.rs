//! Generations change under traffic, and no request notices more than another answer.

use contract::policy::deploy::{DeployError, PluginStatus, Plugins, Replacement};

use super::guest::{GOOD, Guest};
use super::rig::{Rig, on_one_thread};

const NEXT: Guest = Guest { bias: 100, ..GOOD };

async fn replace(rig: &Rig, guest: Guest) -> Result<PluginStatus, DeployError> {
    rig.host.replace("guest", Replacement::Bytes(guest.wasm())).await
}

#[test]
fn a_swap_can_be_taken_back() {
    let rig = Rig::new(GOOD, |_| {});
    on_one_thread(async {
        assert!(!rig.status().can_roll_back);
        assert!(matches!(rig.host.roll_back("guest"), Err(DeployError::NoOlder(_))));
        let status = replace(&rig, NEXT).await.expect("it can be used");
        assert_eq!((status.generation, status.can_roll_back), (2, true));
        assert_eq!(rig.scores().await, [101.0, 105.0]);
        rig.host.roll_back("guest").expect("there is an older one");
        assert_eq!(rig.scores().await, [1.0, 5.0]);
        assert!(matches!(rig.host.roll_back("other"), Err(DeployError::Unknown(_))));
    });
}

#[test]
fn what_cannot_be_used_leaves_the_old_one() {
    let rig = Rig::new(GOOD, |_| {});
    on_one_thread(async {
        let refused = replace(&rig, Guest { self_test: 1, ..NEXT }).await;
        assert!(matches!(refused, Err(DeployError::Refused(why)) if why.contains("self-test")));
        assert_eq!(rig.scores().await, [1.0, 5.0]);
        assert!(rig.status().last_error.is_some_and(|why| why.contains("self-test")));
        replace(&rig, NEXT).await.expect("it can be used");
        assert_eq!(rig.status().last_error, None);
    });
}

#[test]
fn paths_stay_below_the_root() {
    let rig = Rig::new(GOOD, |_| {});
    let root = rig.deployment.root.clone().expect("a root");
    std::fs::write(root.join("next.wasm"), NEXT.wasm()).expect("a file");
    let outside = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(outside.path(), NEXT.wasm()).expect("a file");
    on_one_thread(async {
        for path in ["missing.wasm".into(), "..".into(), outside.path().to_owned()] {
            let refused = rig.host.replace("guest", Replacement::Path(path)).await;
            assert!(matches!(refused, Err(DeployError::Refused(_))));
        }
        let path = Replacement::Path("next.wasm".into());
        rig.host.replace("guest", path).await.expect("it can be used");
        assert_eq!(rig.scores().await, [101.0, 105.0]);
    });
}

#[test]
fn a_thousand_swaps_lose_no_call() {
    let rig = Rig::new(GOOD, |_| {});
    on_one_thread(async {
        replace(&rig, NEXT).await.expect("it can be used");
        for _ in 0..1000 {
            rig.host.roll_back("guest").expect("there is an older one");
            let scores = rig.scores().await;
            assert!(scores == [1.0, 5.0] || scores == [101.0, 105.0], "{scores:?}");
        }
    });
    assert_eq!(rig.calls("ok"), 1000);
    assert_eq!(rig.status().generation, 1002);
}
