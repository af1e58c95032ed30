//! Stop texts, whatever pieces a text comes in.

use proptest::prelude::*;

use crate::text::stop::StopWatch;

/// Feeds a text in pieces; answers with what was shown and the stop that was reached.
fn watch(stops: &[String], include: bool, pieces: &[String]) -> (String, Option<String>) {
    let mut watch = StopWatch::new(stops.to_vec(), include);
    let mut shown = String::new();
    for piece in pieces {
        if let Some(stop) = watch.push(piece, &mut shown) {
            return (shown, Some(stop));
        }
    }
    watch.finish(&mut shown);
    (shown, None)
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(2000))]

    /// Two letters and one of two bytes, so that stops overlap themselves and each other.
    #[test]
    fn pieces_make_no_difference(
        pieces in prop::collection::vec("[abé]{0,4}", 0..12),
        stops in prop::collection::vec("[abé]{1,4}", 1..4),
        include: bool,
    ) {
        let letters: Vec<String> = pieces.concat().chars().map(String::from).collect();
        prop_assert_eq!(watch(&stops, include, &pieces), watch(&stops, include, &letters));
    }

    #[test]
    fn what_is_shown_is_what_stands_before_the_stop(
        pieces in prop::collection::vec("[abé]{0,4}", 0..12),
        stops in prop::collection::vec("[abé]{1,4}", 1..4),
    ) {
        let text = pieces.concat();
        let (shown, reached) = watch(&stops, false, &pieces);
        prop_assert!(stops.iter().all(|stop| !shown.contains(stop.as_str())));
        match reached {
            Some(stop) => prop_assert!(text.starts_with(&(shown + &stop))),
            None => prop_assert_eq!(shown, text),
        }
    }
}

#[test]
fn text_that_cannot_be_a_stop_is_not_held_back() {
    let mut watch = StopWatch::new(vec!["###".into()], false);
    let mut shown = String::new();
    assert_eq!(watch.push("a # b #", &mut shown), None);
    assert_eq!(shown, "a # b ");
    assert_eq!(watch.push("# c", &mut shown), None);
    assert_eq!(shown, "a # b ## c");
}

#[test]
fn an_empty_stop_text_stops_nothing() {
    assert!(StopWatch::new(vec![String::new()], false).is_idle());
}
