//! What ends an engine or holds it up, and what callers are told then.

use contract::request::Finish;
use contract::step::Fault;

use crate::handle::SubmitError;
use crate::tests::fixture::{Script, Setup, eventually, read, refusal, request, run};

fn failing(step: usize, fault: Fault) -> Setup {
    let script = Script { fault: Some((step, fault)), ..Script::default() };
    Setup { script, ..Setup::default() }
}

#[tokio::test]
async fn when_the_ranks_die_every_sequence_fails_and_later_ones_are_refused() {
    let fault = Fault::Dead { rank: 1, message: "out of memory".into() };
    let setup = Setup { sequences_max: 1, ..failing(3, fault) };
    let (setup, turnstile) = setup.with_turnstile();
    let (engine, metrics) = setup.start_with_metrics();
    let tickets: Vec<_> = (0..3).map(|_| engine.submit(request("x", 40)).unwrap()).collect();
    drop(turnstile);
    for ticket in tickets {
        let finish = read(ticket).await.finish;
        assert_eq!(finish, Finish::Failed("rank 1 failed: out of memory".into()));
    }
    engine.idle().await;
    let message = "rank 1 failed: out of memory".to_owned();
    assert_eq!(refusal(&engine, request("x", 1)), SubmitError::Dead { message });
    assert!(engine.is_dead());
    assert_eq!(metrics.dead.get(), 1);
    eventually("nothing is held", || engine.load().blocks_used == 0);
}

#[tokio::test]
async fn a_refused_step_fails_its_sequences_and_no_others() {
    let engine = failing(2, Fault::Refused("no room".into())).start();
    let told = run(&engine, request("x", 40)).await;
    assert_eq!((told.tokens.len(), told.finish), (2, Finish::Failed("no room".into())));
    assert_eq!(run(&engine, request("x", 40)).await.tokens.len(), 40);
}

#[tokio::test]
async fn a_panic_in_the_engine_leaves_no_reader_waiting() {
    let script = Script { panics: Some(2), ..Script::default() };
    let engine = Setup { script, ..Setup::default() }.start();
    let told = read(engine.submit(request("x", 40)).unwrap()).await;
    assert!(matches!(told.finish, Finish::Failed(_)), "{:?}", told.finish);
    eventually("it is known to be dead", || engine.is_dead());
    assert!(matches!(refusal(&engine, request("x", 1)), SubmitError::Dead { .. }));
    engine.idle().await;
}

#[tokio::test]
async fn dropping_the_engine_fails_what_is_open() {
    let (setup, turnstile) = Setup { sequences_max: 1, ..Setup::default() }.with_turnstile();
    let engine = setup.start();
    let tickets: Vec<_> = (0..2).map(|_| engine.submit(request("x", 400)).unwrap()).collect();
    let dropped = std::thread::spawn(move || drop(engine));
    // Steps go on until the engine hears that it should stop; it is gone before 400.
    eventually("the engine stops", || {
        let _ = turnstile.send(());
        dropped.is_finished()
    });
    for ticket in tickets {
        let finish = read(ticket).await.finish;
        assert_eq!(finish, Finish::Failed("the server is shutting down".into()));
    }
}
