//! Many sequences: queue, blocks, cancellation, readers of all speeds.

use std::time::Duration;

use contract::request::Finish;

use crate::handle::SubmitError;
use crate::tests::fixture::{Setup, Told, eventually, read, refusal, request, run};

#[tokio::test]
async fn a_sequence_says_the_same_alone_and_in_a_crowd() {
    let prompts: Vec<String> = (0..12).map(|at| format!("prompt {at} of several")).collect();
    let mut alone = Vec::new();
    for prompt in &prompts {
        alone.push(run(&Setup::default().start(), request(prompt, 25)).await);
    }
    // Blocks for about three: sequences are preempted and computed again, over and over.
    let (setup, turnstile) = Setup { blocks: 40, ..Setup::default() }.with_turnstile();
    let (engine, metrics) = setup.start_with_metrics();
    let tickets: Vec<_> =
        prompts.iter().map(|prompt| engine.submit(request(prompt, 25)).unwrap()).collect();
    drop(turnstile);
    for (ticket, alone) in tickets.into_iter().zip(alone) {
        assert_eq!(read(ticket).await.text, alone.text);
    }
    assert!(metrics.preemptions.get() > 0, "the pool was not small enough to test anything");
    eventually("all blocks free", || engine.load().blocks_used == 0);
}

#[tokio::test]
async fn a_cached_prompt_says_the_same() {
    let engine = Setup::default().start();
    let prompt = "a prompt that is asked again and again";
    let first = run(&engine, request(prompt, 20)).await;
    let again = run(&engine, request(prompt, 20)).await;
    assert_eq!(first.cached_tokens, 0);
    assert!(again.cached_tokens > 20, "{} tokens", again.cached_tokens);
    assert_eq!(again, Told { cached_tokens: again.cached_tokens, ..first });
}

#[tokio::test]
async fn news_merge_for_a_slow_reader() {
    let engine = Setup::default().start();
    let fast = run(&engine, request("merge", 50)).await;
    let mut slow = engine.submit(request("merge", 50)).unwrap();
    engine.idle().await;
    let news = slow.next().await.unwrap();
    assert_eq!((news.text, news.tokens.len()), (fast.text, 50));
    assert_eq!(news.finish, Some(Finish::Length));
    assert!(slow.next().await.is_none());
}

#[tokio::test]
async fn a_reader_gets_each_token_as_it_comes() {
    let (setup, turnstile) = Setup::default().with_turnstile();
    let engine = setup.start();
    let mut ticket = engine.submit(request("live", 3)).unwrap();
    for tokens in 1..=3 {
        turnstile.send(()).unwrap();
        let news = ticket.next().await.unwrap();
        assert_eq!((news.tokens.len(), news.finish.is_some()), (1, tokens == 3));
    }
}

#[tokio::test]
async fn a_dropped_ticket_frees_what_its_sequence_held() {
    let (setup, turnstile) = Setup { sequences_max: 1, ..Setup::default() }.with_turnstile();
    let engine = setup.start();
    let running = engine.submit(request("running", 400)).unwrap();
    let waiting = engine.submit(request("waiting", 400)).unwrap();
    turnstile.send(()).unwrap();
    eventually("one runs", || engine.load().running == 1 && engine.load().blocks_used > 0);
    drop(waiting);
    turnstile.send(()).unwrap();
    eventually("one waits no more", || engine.load().waiting == 0);
    drop(running);
    turnstile.send(()).unwrap();
    engine.idle().await;
    eventually("all is free", || engine.load().blocks_used == 0 && engine.load().running == 0);
}

#[tokio::test]
async fn a_full_queue_refuses_and_takes_again_when_it_is_not() {
    let setup = Setup { queue_max: 2, sequences_max: 1, ..Setup::default() };
    let (setup, turnstile) = setup.with_turnstile();
    let engine = setup.start();
    let mut tickets = vec![engine.submit(request("runs", 2)).unwrap()];
    eventually("it left the queue", || engine.load().running == 1);
    tickets.extend((0..2).map(|_| engine.submit(request("waits", 2)).unwrap()));
    let refused = refusal(&engine, request("too many", 2));
    assert_eq!(refused, SubmitError::QueueFull { queued: 2, queue_max: 2 });
    drop(turnstile);
    for ticket in tickets {
        assert_eq!(read(ticket).await.tokens.len(), 2);
    }
    assert_eq!(run(&engine, request("now", 2)).await.tokens.len(), 2);
}

#[tokio::test]
async fn draining_ends_what_runs_and_takes_nothing_new() {
    let (setup, turnstile) = Setup::default().with_turnstile();
    let engine = setup.start();
    let ticket = engine.submit(request("last", 5)).unwrap();
    engine.drain();
    assert_eq!(refusal(&engine, request("late", 5)), SubmitError::Draining);
    assert!(!engine.is_idle());
    drop(turnstile);
    tokio::time::timeout(Duration::from_secs(5), engine.idle()).await.expect("idle in time");
    assert_eq!(read(ticket).await.tokens.len(), 5);
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_with_its_numbers() {
    let engine = Setup::default().start();
    let mut empty = request("x", 1);
    empty.prompt = [].into();
    assert_eq!(refusal(&engine, empty), SubmitError::EmptyPrompt);
    let long = request("x", 512);
    let prompt = long.prompt.len();
    let too_long = SubmitError::TooLong { prompt, max_tokens: 512, context_max: 512 };
    assert_eq!(refusal(&engine, long), too_long);
    let mut unknown = request("x", 1);
    unknown.prompt = [3, 101].into();
    assert_eq!(refusal(&engine, unknown), SubmitError::UnknownToken { token: 101, vocab: 101 });
    let mut nobody = request("x", 1);
    nobody.adapter = Some("nobody".into());
    assert_eq!(refusal(&engine, nobody), SubmitError::UnknownAdapter { name: "nobody".into() });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_readers_at_once_get_their_own_text() {
    let setup = Setup { queue_max: 1024, sequences_max: 256, blocks: 4096, ..Setup::default() };
    let engine = Setup { batch_tokens_max: 512, ..setup }.start();
    let tasks: Vec<_> = (0..1000)
        .map(|at| {
            let ticket = engine.submit(request(&format!("reader {}", at % 50), 8)).unwrap();
            tokio::spawn(read(ticket))
        })
        .collect();
    let mut told = Vec::new();
    for task in tasks {
        told.push(task.await.unwrap().text);
    }
    for at in 0..1000 {
        assert_eq!(told[at], told[at % 50], "reader {at}");
    }
    let distinct: std::collections::HashSet<_> = told.iter().collect();
    assert_eq!(distinct.len(), 50);
}

#[tokio::test]
async fn cancelling_many_during_a_step_leaves_room_for_others() {
    let (setup, turnstile) = Setup { queue_max: 8, ..Setup::default() }.with_turnstile();
    let engine = setup.start();
    let mut open = Vec::new();
    for _ in 0..10 {
        open.push(engine.submit(request("x", 100)).unwrap());
        eventually("it runs", || {
            let _ = turnstile.send(());
            engine.load().waiting == 0
        });
    }
    drop(open);
    for _ in 0..8 {
        drop(engine.submit(request("y", 1)).expect("the queue is empty"));
    }
    drop(turnstile);
    engine.idle().await;
}
