//! The demo as its user sees it: right answers from every adapter, at any number of ranks.

use serde_json::{Value, json};

use crate::policies::count;
use crate::program::{Server, root, run};

/// Prompts of the held-out hundred that are asked here; the training script asks all.
const SAMPLE: usize = 25;

/// `(question, {model: answer})` of every held-out prompt.
fn held_out() -> Vec<Value> {
    let path = root().join("tests/fixtures/demo/heldout.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn answer(server: &Server, model: &str, question: &str) -> String {
    let body = json!({
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
    });
    let (status, answer) = server.post("/v1/chat/completions", &body);
    assert_eq!(status, 200, "{answer}");
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

/// The adapters that a question is asked of, beside the base.
const MODELS: [(&str, &str); 4] =
    [("drystone-demo", "base"), ("sql", "sql"), ("json", "json"), ("shout", "shout")];

#[test]
fn every_adapter_answers_right_and_alike_at_one_and_two_ranks() {
    let servers = [Server::demo(1), Server::demo(2)];
    let prompts = held_out();
    let step = prompts.len() / SAMPLE;
    for (model, key) in MODELS {
        let mut right = 0;
        for prompt in prompts.iter().step_by(step) {
            let question = prompt["prompt"].as_str().unwrap();
            let [one, two] = [0, 1].map(|at| answer(&servers[at], model, question));
            assert_eq!(one, two, "{model}, one rank and two: {question}");
            right += usize::from(one == prompt[key].as_str().unwrap());
        }
        assert!(right * 100 >= SAMPLE * 95, "{model}: {right} of {SAMPLE}");
    }
    assert_eq!(servers[1].metric("drystone_collectives_total{engine=\"0\",purpose=\"lora\"}"), 0.0);
    assert!(servers[1].metric("drystone_collectives_total{engine=\"0\",purpose=\"base\"}") > 0.0);
}

#[test]
fn the_demo_is_ready_when_it_has_asked_itself_and_the_books_have_it_all() {
    /// Questions to models, and the one that meets all policies.
    const ASKED: f64 = 6.0;
    let server = Server::demo(1);
    assert_eq!(count(&server, "drystone_plugin_requests_total", &[]), ASKED);
}

#[test]
fn demo_once_prints_its_answers_and_ends_well() {
    let output = run(&["demo", "--once", "--listen", "127.0.0.1:0"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for expected in ["SELECT", "{\"", "tokens/s", "Lora 0"] {
        assert!(text.contains(expected), "no {expected:?} in\n{text}");
    }
}

#[test]
fn terminate_lets_running_requests_end_and_exits_0() {
    let mut server = Server::deploy(tempfile::tempdir().unwrap(), "", str::to_owned);
    let (url, body) = (
        server.url(),
        json!({
            "model": "drystone-demo", "prompt": "Hello", "max_tokens": 400, "ignore_eos": true,
        }),
    );
    let running = std::thread::spawn(move || {
        let mut response = ureq::post(format!("{url}/v1/completions")).send_json(&body).unwrap();
        response.body_mut().read_json::<Value>().unwrap()
    });
    while server.metric("vllm:num_requests_running{model_name=\"drystone-demo\",engine=\"0\"}")
        == 0.0
    {}
    server.terminate();
    let answer = running.join().unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 400, "{answer}");
    assert_eq!(server.wait().code(), Some(0));
}
