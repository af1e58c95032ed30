//! Messages, whole answers, and answers in pieces.

use drystone_sdk::{mock, prelude::*};

use crate::Redactor;

fn redactor() -> Redactor {
    mock::start("{}").unwrap()
}

/// What a caller sees of an answer in these pieces, with the host's hold-back.
fn streamed(pieces: &[&str]) -> String {
    let redactor = redactor();
    let hold = redactor.hold_back() as usize;
    let (mut pending, mut seen) = (String::new(), String::new());
    for (i, piece) in pieces.iter().enumerate() {
        pending += piece;
        let last = i + 1 == pieces.len();
        let chunk =
            Chunk { choice: 0, pending: pending.clone(), released: seen.len() as u64, last };
        match redactor.on_chunk(&chunk) {
            ChunkVerdict::Replace(text) => pending = text,
            ChunkVerdict::Hold => continue,
            _ => {}
        }
        let release = if last { pending.len() } else { pending.len().saturating_sub(hold) };
        seen.extend(pending.drain(..release));
    }
    seen
}

#[test]
fn messages_are_cleaned() {
    mock::messages(&[("system", "Be kind."), ("user", "I am ann@example.org")]);
    let verdict = redactor().on_request(&Request::default());
    let clean = Edit::SetContent((1, "I am [redacted]".into()));
    assert_eq!(verdict, RequestVerdict::Edit(vec![clean]));
}

#[test]
fn clean_requests_pass() {
    mock::messages(&[("user", "What is 4 times 1234?")]);
    assert_eq!(redactor().on_request(&Request::default()), RequestVerdict::Pass);
}

#[test]
fn every_kind_is_found_in_pieces() {
    let filler = "word ".repeat(60);
    for secret in ["ann@example.org", "4111 1111 1111 1111", "sk-abcdefghijklmnop1234"] {
        let text = format!("{filler}{secret} {filler}");
        for size in [1, 3, 7] {
            let pieces: Vec<_> = text.as_bytes().chunks(size).collect();
            let pieces: Vec<_> = pieces.iter().map(|p| str::from_utf8(p).unwrap()).collect();
            assert_eq!(streamed(&pieces), format!("{filler}[redacted] {filler}"));
        }
    }
}

#[test]
fn a_domain_is_redacted_to_its_last_label() {
    let filler = "word ".repeat(60);
    for pieces in [
        ["bob@mail.net", ".a-label-as-long-as-any", ".example", ".com"],
        ["bob@mail", ".com.a-label-as-long-as-an", "y.exampl", "e.com"],
    ] {
        let text = [&pieces[..], &[" ", &filler]].concat();
        assert_eq!(streamed(&text), format!("[redacted] {filler}"));
    }
}

#[test]
fn a_long_list_of_matches_does_not_pile_up() {
    let list = "ann@example.org,".repeat(200);
    let redactor = redactor();
    let hold = redactor.hold_back() as usize;
    let (mut pending, mut longest) = (String::new(), 0);
    for piece in list.as_bytes().chunks(3) {
        pending += str::from_utf8(piece).unwrap();
        longest = longest.max(pending.len());
        let chunk = Chunk { choice: 0, pending: pending.clone(), released: 0, last: false };
        match redactor.on_chunk(&chunk) {
            ChunkVerdict::Replace(text) => pending = text,
            ChunkVerdict::Hold => continue,
            _ => {}
        }
        pending.drain(..pending.len().saturating_sub(hold));
    }
    assert!(longest < 3 * hold, "{longest}");
}

#[test]
fn more_patterns_can_be_given() {
    let config = r#"{"patterns": ["TICKET-[0-9]+"], "replacement": "<>", "longest": 200}"#;
    let redactor: Redactor = mock::start(config).unwrap();
    assert_eq!(redactor.hold_back(), 201);
    assert_eq!(redactor.redact("see TICKET-12"), Some("see <>".into()));
    assert!(mock::start::<Redactor>(r#"{"patterns": ["("]}"#).is_err());
}
