//! One sequence: tokens, text, stops, logprobs.

use std::sync::Arc;

use contract::request::Finish;
use contract::sampling::Sampling;

use crate::tests::fixture::{Setup, request, run, text_side};

#[tokio::test]
async fn text_is_that_of_the_tokens_and_ends_at_max_tokens() {
    let engine = Setup::default().start();
    let told = run(&engine, request("tell me about sets", 40)).await;
    let tokens: Vec<u32> = told.tokens.iter().map(|scored| scored.token).collect();
    assert_eq!(tokens.len(), 40);
    assert_eq!(told.text, text_side().decode(&tokens, true));
    assert_eq!(told.finish, Finish::Length);
}

#[tokio::test]
async fn a_sequence_fills_the_context_to_the_last_token() {
    let engine = Setup::default().start();
    let prompt = request("a", 1).prompt.len();
    let told = run(&engine, request("a", (engine.context_max() - prompt) as u32)).await;
    assert_eq!(told.tokens.len(), engine.context_max() - prompt);
    assert_eq!(told.finish, Finish::Length);
}

#[tokio::test]
async fn a_pool_smaller_than_the_context_bounds_it() {
    let engine = Setup { blocks: 5, ..Setup::default() }.start();
    assert_eq!(engine.context_max(), 20);
    let told = run(&engine, request("a", 19)).await;
    assert_eq!(told.finish, Finish::Length);
}

#[tokio::test]
async fn equal_seeds_say_the_same_and_others_something_else() {
    let engine = Setup::default().start();
    let first = run(&engine, request("once", 20)).await;
    let again = run(&engine, request("once", 20)).await;
    let other = run(&engine, {
        let mut it = request("once", 20);
        it.seed = 8;
        it
    })
    .await;
    assert_eq!(first.text, again.text);
    assert_ne!(first.text, other.text);
}

#[tokio::test]
async fn a_stop_text_ends_it_wherever_tokens_begin() {
    let says = "the answer is 42. and more";
    for (stop, include, shown) in [
        (" is 4", false, "the answer"),
        (" is 4", true, "the answer is 4"),
        (". and", false, "the answer is 42"),
        ("the answer is 42. and more", false, ""),
    ] {
        let engine = Setup::saying(says).start();
        let mut request = request("q", 100);
        (request.stop, request.include_stop) = (vec!["nowhere".into(), stop.into()], include);
        let told = run(&engine, request).await;
        assert_eq!(told.text, shown, "stop at {stop:?}");
        assert_eq!(told.finish, Finish::StopText(stop.into()));
    }
}

#[tokio::test]
async fn a_stop_text_that_never_completes_hides_nothing() {
    let engine = Setup::saying("abcabcabd").start();
    let mut request = request("q", 9);
    request.stop = vec!["abcabcabz".into(), "abdx".into()];
    let told = run(&engine, request).await;
    let tokens: Vec<u32> = told.tokens.iter().map(|scored| scored.token).collect();
    assert_eq!(told.text, text_side().decode(&tokens, true));
    assert_eq!(told.finish, Finish::Length);
}

#[tokio::test]
async fn a_stop_token_ends_it_and_only_the_callers_own_is_named() {
    let text = text_side();
    let [end, own] = [text.end_tokens()[0], text.encode("!", false).unwrap()[0]];
    for (last, finish) in [(end, Finish::StopToken(None)), (own, Finish::StopToken(Some(own)))] {
        let mut setup = Setup::saying("yes");
        setup.script.says.push(last);
        let engine = setup.start();
        let mut request = request("q", 100);
        let stop_tokens = vec![end, own];
        request.sampling = Arc::new(Sampling { stop_tokens, ..Sampling::default() });
        let told = run(&engine, request).await;
        assert_eq!(told.text, "yes", "a stop token shows no text");
        assert_eq!(told.tokens.last().unwrap().token, last);
        assert_eq!(told.finish, finish);
    }
}

#[tokio::test]
async fn stop_texts_do_not_count_before_min_tokens() {
    let engine = Setup::saying("no no no no no no no no no no no no").start();
    let mut request = request("q", 40);
    request.stop = vec!["no".into()];
    request.sampling = Arc::new(Sampling { min_tokens: 6, ..Sampling::default() });
    let told = run(&engine, request).await;
    assert!(told.tokens.len() > 6, "{} tokens", told.tokens.len());
    assert_eq!(told.finish, Finish::StopText("no".into()));
}

#[tokio::test]
async fn special_tokens_show_when_they_are_asked_for() {
    for (skip, shown) in [(true, "ab"), (false, "<|user|>ab")] {
        let mut setup = Setup::saying("ab");
        setup.script.says.insert(0, 3);
        let engine = setup.start();
        let mut request = request("q", engine.text().encode("ab", false).unwrap().len() as u32 + 1);
        request.skip_special_tokens = skip;
        assert_eq!(run(&engine, request).await.text, shown);
    }
}

#[tokio::test]
async fn logprobs_come_with_every_token_when_asked_for() {
    let engine = Setup::default().start();
    let mut asked = request("q", 5);
    asked.logprobs = Some(1);
    let told = run(&engine, asked).await;
    assert!(told.tokens.iter().all(|scored| scored.top.len() == 1 && scored.place == 1));
    let told = run(&engine, request("q", 5)).await;
    assert!(told.tokens.iter().all(|scored| scored.top.is_empty() && scored.place == 0));
}

#[tokio::test]
async fn prompt_logprobs_cover_the_prompt_but_for_its_first_token() {
    let prompt = "a long prompt that takes several steps to be computed, ".repeat(4);
    for max_tokens in [0, 3] {
        let engine = Setup { batch_tokens_max: 16, ..Setup::default() }.start();
        // A first pass fills the prefix cache, which must not swallow positions.
        run(&engine, request(&prompt, 1)).await;
        let mut scored = request(&prompt, max_tokens);
        scored.prompt_logprobs = Some(1);
        let wanted: Vec<u32> = scored.prompt[1..].to_vec();
        let told = run(&engine, scored).await;
        let found = told.prompt.expect("prompt logprobs").into_iter().map(|scored| scored.token);
        assert_eq!(found.collect::<Vec<_>>(), wanted);
        assert_eq!(told.tokens.len(), max_tokens as usize);
        assert_eq!(told.finish, Finish::Length);
    }
}

#[tokio::test]
async fn a_prompt_of_one_token_has_no_logprobs_but_says_so() {
    let engine = Setup::default().start();
    let mut one = request("a", 2);
    one.prompt = one.prompt[..1].into();
    one.prompt_logprobs = Some(0);
    assert_eq!(run(&engine, one).await.prompt, Some(Vec::new()));
}

#[tokio::test]
async fn penalties_see_prompt_and_output() {
    let engine = Setup::default().start();
    let plain = run(&engine, request("history", 10)).await;
    let mut penalised = request("history", 10);
    let sampling = Sampling { presence_penalty: 0.5, ..Sampling::clone(&penalised.sampling) };
    penalised.sampling = Arc::new(sampling);
    let told = run(&engine, penalised).await;
    // The script hashes the history it is given, which is none without penalties.
    assert_ne!(plain.text, told.text);
}
