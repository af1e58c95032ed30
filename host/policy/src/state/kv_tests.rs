//! Tests of what plugins keep.

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_value_stays_until_its_time_is_up_or_it_is_deleted() {
    let (store, now) = (Store::new(1000), Instant::now());
    store.set("a", vec![1], Some(10 * MS), now).unwrap();
    store.set("b", vec![2], None, now).unwrap();
    assert_eq!(store.get("a", now + 9 * MS), Some(vec![1]));
    assert_eq!(store.get("a", now + 10 * MS), None);
    assert_eq!(store.get("b", now + 1000 * MS), Some(vec![2]));
    store.delete("b");
    assert_eq!(store.get("b", now), None);
}

#[test]
fn keys_have_1_to_256_bytes() {
    let (store, now) = (Store::new(1000), Instant::now());
    let long = "k".repeat(257);
    for key in ["", &long] {
        assert_eq!(store.set(key, vec![], None, now), Err(Error::BadKey));
        assert_eq!(store.add(key, 1, None, now), Err(Error::BadKey));
        let bucket = Bucket { capacity: 1, per_second: 1.0 };
        assert_eq!(store.take(key, 1, bucket, now), Err(Error::BadKey));
        assert_eq!(store.take(key, 2, bucket, now), Err(Error::BadKey));
    }
    assert_eq!(store.set(&long[1..], vec![], None, now), Ok(()));
}

#[test]
fn what_has_ended_makes_room() {
    let (store, now) = (Store::new(150), Instant::now());
    store.set("a", vec![0; 50], Some(10 * MS), now).unwrap();
    assert_eq!(store.set("b", vec![0; 50], None, now), Err(Error::Full));
    assert_eq!(store.set("a", vec![0; 60], Some(10 * MS), now), Ok(()), "in its own place");
    assert_eq!(store.set("b", vec![0; 50], None, now + 10 * MS), Ok(()));
    assert_eq!(store.set("c", vec![0; 50], None, now + 20 * MS), Err(Error::Full));
    assert_eq!(store.get("b", now + 20 * MS).map(|value| value.len()), Some(50));
}

#[test]
fn a_sum_ends_after_its_first_addition() {
    let (store, now) = (Store::new(1000), Instant::now());
    assert_eq!(store.add("n", 2, Some(10 * MS), now), Ok(2));
    assert_eq!(store.add("n", -5, Some(10 * MS), now + 9 * MS), Ok(-3));
    assert_eq!(store.get("n", now + 9 * MS), Some((-3i64).to_le_bytes().to_vec()));
    assert_eq!(store.add("n", 1, None, now + 10 * MS), Ok(1));
    assert_eq!(store.add("n", i64::MAX, None, now + 10 * MS), Ok(i64::MAX));
}

#[test]
fn a_bucket_gives_what_it_has_and_says_when_it_has_more() {
    let (store, now) = (Store::new(1000), Instant::now());
    let bucket = Bucket { capacity: 10, per_second: 2.0 };
    assert_eq!(store.take("b", 8, bucket, now), Ok(0));
    assert_eq!(store.take("b", 4, bucket, now), Ok(1000));
    assert_eq!(store.take("b", 4, bucket, now + 999 * MS), Ok(1));
    assert_eq!(store.take("b", 4, bucket, now + 1000 * MS), Ok(0));
    assert_eq!(store.take("b", 11, bucket, now + 60_000 * MS), Ok(u64::MAX));
    assert_eq!(store.take("b", 10, bucket, now + 60_000 * MS), Ok(0));
}

#[test]
fn a_bucket_that_gains_nothing_is_empty_for_good() {
    let (store, now) = (Store::new(1000), Instant::now());
    for (key, per_second) in [("zero", 0.0), ("minus", -1.0), ("nan", f32::NAN)] {
        let bucket = Bucket { capacity: 1, per_second };
        assert_eq!(store.take(key, 1, bucket, now), Ok(0));
        assert_eq!(store.take(key, 1, bucket, now + 86_400_000 * MS), Ok(u64::MAX), "{key}");
    }
}

#[test]
fn full_buckets_make_room() {
    let (store, now) = (Store::new(100), Instant::now());
    let bucket = Bucket { capacity: 10, per_second: 10.0 };
    assert_eq!(store.take("a", 5, bucket, now), Ok(0));
    assert_eq!(store.take("b", 5, bucket, now + 499 * MS), Err(Error::Full));
    assert_eq!(store.take("b", 5, bucket, now + 501 * MS), Ok(0));
}

#[derive(Clone, Debug)]
enum Step {
    Set(String, usize, Option<u64>),
    Add(String, i64),
    Take(String, u32),
    Delete(String),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let key = "[a-e]{1,2}";
    prop_oneof![
        (key, 0..200usize, proptest::option::of(0..50u64)).prop_map(|(k, n, t)| Step::Set(k, n, t)),
        (key, any::<i64>()).prop_map(|(k, n)| Step::Add(k, n)),
        (key, 0..20u32).prop_map(|(k, n)| Step::Take(k, n)),
        key.prop_map(Step::Delete),
        (0..40u64).prop_map(Step::Wait),
    ]
}

fn run(store: &Store, step: Step, now: &mut Instant) {
    let _ = match step {
        Step::Set(key, len, ttl) => {
            store.set(&key, vec![0; len], ttl.map(Duration::from_millis), *now)
        }
        Step::Add(key, delta) => store.add(&key, delta, None, *now).map(drop),
        Step::Take(key, tokens) => {
            let bucket = Bucket { capacity: 10, per_second: 50.0 };
            store.take(&key, tokens, bucket, *now).map(drop)
        }
        Step::Delete(key) => {
            store.delete(&key);
            Ok(())
        }
        Step::Wait(ms) => {
            *now += Duration::from_millis(ms);
            Ok(())
        }
    };
}

proptest! {
    #[test]
    fn the_quota_is_never_exceeded(steps in proptest::collection::vec(step(), 0..200)) {
        let (store, mut now) = (Store::new(600), Instant::now());
        for step in steps {
            run(&store, step, &mut now);
            let map = store.lock();
            let used: usize = map.entries.iter().map(|(key, entry)| cost(key, entry)).sum();
            prop_assert_eq!(map.used, used);
            prop_assert!(used <= 600);
        }
    }
}
