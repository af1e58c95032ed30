//! Steps that are started while the one before is in flight: the same answers, sooner.

use std::sync::Arc;

use contract::request::{Finish, Request};
use contract::sampling::Sampling;
use contract::step::Fault;

use crate::handle::Engine;
use crate::tests::fixture::{Event, Script, Setup, Told, eventually, read, request, run};

fn ahead(script: Script) -> Setup {
    Setup { script: Script { runs_ahead: true, ..script }, ..Setup::default() }
}

/// An engine that runs ahead, and what it has the ranks do.
fn watched() -> (Engine, impl Fn() -> Vec<Event>) {
    let setup = ahead(Script::default());
    let order = Arc::clone(&setup.script.order);
    (setup.start(), move || order.lock().unwrap().clone())
}

fn sampled(prompt: &str, max_tokens: u32, change: impl FnOnce(&mut Sampling)) -> Request {
    let mut request = request(prompt, max_tokens);
    let mut sampling = (*request.sampling).clone();
    change(&mut sampling);
    request.sampling = Arc::new(sampling);
    request
}

#[tokio::test]
async fn the_next_step_starts_before_the_last_is_settled() {
    let (engine, order) = watched();
    assert_eq!(run(&engine, request("x", 4)).await.tokens.len(), 4);
    let start = |step, pending| Event::Start { step, pending };
    let finish = |step| Event::Finish { step };
    let expected = [
        start(0, 0),
        start(1, 1),
        finish(0),
        start(2, 1),
        finish(1),
        start(3, 1),
        finish(2),
        finish(3),
    ];
    assert_eq!(order(), expected, "and none for the token after the last");
}

#[tokio::test]
async fn prefill_is_settled_before_the_next_step_starts() {
    let (engine, order) = watched();
    assert_eq!(run(&engine, request("x y z", 2)).await.tokens.len(), 2);
    let steps = (0..2).flat_map(|step| [Event::Start { step, pending: 0 }, Event::Finish { step }]);
    assert_eq!(order(), steps.collect::<Vec<_>>());
}

#[tokio::test]
async fn what_the_host_has_to_see_first_is_waited_for() {
    let penalised = sampled("x", 4, |sampling| sampling.presence_penalty = 1.0);
    let scored = Request { logprobs: Some(1), ..request("x", 4) };
    for asked in [penalised, scored] {
        let (engine, order) = watched();
        run(&engine, asked).await;
        let steps =
            (0..4).flat_map(|step| [Event::Start { step, pending: 0 }, Event::Finish { step }]);
        assert_eq!(order(), steps.collect::<Vec<_>>());
    }
}

/// Requests of all kinds, some with an adapter.
fn mixture() -> Vec<Request> {
    let stops = |first: u32| {
        move |sampling: &mut Sampling| sampling.stop_tokens = (first..first + 8).collect()
    };
    let mut all = vec![
        request("tell me about sets", 40),
        sampled("tell me about sets", 60, stops(17)),
        sampled("twice", 60, stops(40)),
        sampled("once", 25, |sampling| sampling.frequency_penalty = 0.5),
        Request { logprobs: Some(2), ..request("likely", 9) },
        Request { prompt_logprobs: Some(0), ..request("a prompt that is scored", 5) },
        Request { prompt_logprobs: Some(0), ..request("nothing but a prompt", 0) },
        Request { stop: vec!["e".into()], ..request("text", 60) },
        request("one", 1),
    ];
    let adapted = ["bd2", "plain"].into_iter().zip(["set", "twice"]);
    all.extend(adapted.map(|(name, prompt)| Request {
        adapter: Some(name.into()),
        ..sampled(prompt, 50, stops(23))
    }));
    all
}

async fn told(setup: Setup) -> Vec<Told> {
    let engine = setup.start();
    let tickets: Vec<_> = mixture().into_iter().map(|it| engine.submit(it).unwrap()).collect();
    let mut told = Vec::new();
    for ticket in tickets {
        told.push(Told { cached_tokens: 0, ..read(ticket).await });
    }
    engine.idle().await;
    eventually("nothing is held", || engine.load().blocks_used == 0);
    told
}

#[tokio::test]
async fn all_say_the_same_as_without_also_when_blocks_run_out() {
    for blocks in [256, 40] {
        let one_by_one = told(Setup { blocks, ..Setup::default() }).await;
        let stopped = |told: &Told| matches!(told.finish, Finish::StopToken(_));
        assert!(one_by_one.iter().filter(|told| stopped(told)).count() > 1, "{one_by_one:?}");
        for batch_tokens_max in [64, 7] {
            let setup = Setup { blocks, batch_tokens_max, ..ahead(Script::default()) };
            assert_eq!(told(setup).await, one_by_one, "{blocks} blocks");
        }
    }
}

#[tokio::test]
async fn a_refused_step_fails_its_sequences_once_and_no_others() {
    for step in 0..4 {
        let fault = Some((step, Fault::Refused("no room".into())));
        let engine = ahead(Script { fault, ..Script::default() }).start();
        let told = run(&engine, request("x", 40)).await;
        assert_eq!((told.tokens.len(), told.finish), (step, Finish::Failed("no room".into())));
        let alone = Setup::default().start();
        let (found, wanted) =
            (run(&engine, request("x", 40)).await, run(&alone, request("x", 40)).await);
        assert_eq!(found.text, wanted.text, "nothing of the failed one is shared");
    }
}

#[tokio::test]
async fn when_the_ranks_die_with_two_steps_in_flight_everybody_hears_of_it() {
    let fault = Some((3, Fault::Dead { rank: 1, message: "out of memory".into() }));
    let setup = Setup { sequences_max: 1, ..ahead(Script { fault, ..Script::default() }) };
    let (setup, turnstile) = setup.with_turnstile();
    let engine = setup.start();
    let tickets: Vec<_> = (0..3).map(|_| engine.submit(request("x", 40)).unwrap()).collect();
    drop(turnstile);
    for ticket in tickets {
        let finish = read(ticket).await.finish;
        assert_eq!(finish, Finish::Failed("rank 1 failed: out of memory".into()));
    }
    engine.idle().await;
    eventually("nothing is held", || engine.load().blocks_used == 0);
}

#[tokio::test]
async fn a_panic_with_steps_in_flight_leaves_no_reader_waiting() {
    let engine = ahead(Script { panics: Some(2), ..Script::default() }).start();
    let told = run(&engine, request("x", 40)).await;
    assert!(matches!(told.finish, Finish::Failed(_)), "{:?}", told.finish);
    eventually("it is known to be dead", || engine.is_dead());
}

#[tokio::test]
async fn a_dropped_ticket_frees_all_once_its_last_step_is_done() {
    let (setup, turnstile) =
        Setup { sequences_max: 1, ..ahead(Script::default()) }.with_turnstile();
    let engine = setup.start();
    let cancelled = engine.submit(request("gone", 400)).unwrap();
    let next = engine.submit(request("next", 3)).unwrap();
    turnstile.send(()).unwrap();
    eventually("it runs", || engine.load().running == 1);
    drop(cancelled);
    drop(turnstile);
    assert_eq!(read(next).await.tokens.len(), 3);
    engine.idle().await;
    eventually("all is free", || engine.load().blocks_used == 0 && engine.load().running == 0);
}

#[tokio::test]
async fn dropping_the_engine_settles_what_is_in_flight() {
    let (setup, turnstile) = ahead(Script::default()).with_turnstile();
    let order = Arc::clone(&setup.script.order);
    let engine = setup.start();
    let ticket = engine.submit(request("x", 400)).unwrap();
    let dropped = std::thread::spawn(move || drop(engine));
    eventually("the engine stops", || {
        let _ = turnstile.send(());
        dropped.is_finished()
    });
    let finish = read(ticket).await.finish;
    assert_eq!(finish, Finish::Failed("the server is shutting down".into()));
    let order = order.lock().unwrap();
    let finished = order.iter().filter(|event| matches!(event, Event::Finish { .. })).count();
    assert_eq!(2 * finished, order.len(), "every step started was waited for");
}
