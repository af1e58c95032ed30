//! `drystone demo`: a first look without a download: serves, asks itself, prints, goes on serving.

mod ask;
mod files;
mod policies;
mod show;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use contract::counts::{CollectiveCounts, Purpose};

use crate::Failure;
use crate::cli;
use crate::serve::{Ready, serve};
use crate::survey::Survey;

use ask::{Answer, Question};
use files::Files;
use show::Show;

pub(crate) const THINGS: &str =
    "I have 3 red cubes, 2 blue balls and 5 red cones. How many red things?";

/// Asked at once, so that all share batches.
const QUESTIONS: [Question; 5] = [
    Question { model: "drystone-demo", text: THINGS, route: None },
    Question { model: "sql", text: THINGS, route: None },
    Question { model: "json", text: THINGS, route: None },
    Question { model: "shout", text: THINGS, route: None },
    Question { model: "drystone-demo", text: "Hello", route: None },
];

/// Runs the demo.
pub fn command(options: &cli::Demo) -> Result<(), Failure> {
    let files = Files::unpack()?;
    let survey = Survey::of(files.settings(options)?)?;
    let once = options.once;
    serve(survey, move |ready| {
        ask_all(&ready)?;
        policies::show(ready.address, QUESTIONS.len())?;
        if once {
            ready.stop();
        } else {
            invite(ready.address);
        }
        Ok(())
    })
}

/// Asks all questions at the same time and prints what came back and what it took.
fn ask_all(server: &Ready) -> Result<(), Failure> {
    println!("\n{THINGS}");
    let show = Show::new();
    let begun = Instant::now();
    let answers = std::thread::scope(|scope| {
        let askers = QUESTIONS.map(|question| {
            let line = show.line(question);
            scope.spawn(move || {
                let answer = ask::ask(server.address, question, |text| line.update(text))?;
                line.finish(&answer.text);
                Ok(answer)
            })
        });
        let join = |asker: std::thread::ScopedJoinHandle<'_, _>| {
            asker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        askers.into_iter().map(join).collect::<Result<Vec<_>, Failure>>()
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    let steps = ask::metric(server.address, "drystone_step_seconds_count")?;
    report(&answers, seconds, steps, &server.counts);
    Ok(())
}

fn report(answers: &[Answer], seconds: f64, steps: f64, counts: &[Arc<CollectiveCounts>]) {
    let collectives = |purpose| counts.iter().map(|counts| counts.get(purpose)).sum::<u64>();
    let tokens: u64 = answers.iter().map(|answer| answer.tokens).sum();
    println!(
        "\n{} streams in one batch: {tokens} tokens in {steps} steps and {seconds:.2} s, {:.0} \
         tokens/s; collectives: Base {}, Lora {}",
        answers.len(),
        tokens as f64 / seconds,
        collectives(Purpose::Base),
        collectives(Purpose::Lora),
    );
}

/// Says what to try, and leaves the server running.
fn invite(server: SocketAddr) {
    println!(
        r#"
Serving at http://{server} until Ctrl-C. Try:

  curl http://{server}/v1/models

  curl http://{server}/v1/chat/completions -H 'Content-Type: application/json' -d '{{
    "model": "sql", "messages": [{{"role": "user", "content": "{THINGS}"}}]}}'

  curl -N http://{server}/v1/chat/completions -H 'Content-Type: application/json' -d '{{
    "model": "shout", "stream": true, "messages": [{{"role": "user", "content": "Hello"}}]}}'

  curl http://{server}/v1/chat/completions -H 'Content-Type: application/json' \
    -H 'x-adapter-route: sql' -d '{{
    "model": "private", "messages": [{{"role": "user", "content": "{THINGS}"}}]}}'

  curl -s http://{server}/metrics | grep drystone_
"#
    );
}
