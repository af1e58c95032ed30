//! Answers in one piece.

use serde_json::{Value, json};

use super::client::{post, post_request, send};
use super::script::{END, SENTENCE, token};
use super::server::{BASE, Server};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// A greedy request with `more` fields.
fn greedy(mut body: Value, more: Value) -> Value {
    body["temperature"] = 0.into();
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn chat(more: Value) -> Value {
    greedy(json!({"model": BASE, "messages": [{"role": "user", "content": "Hi"}]}), more)
}

fn text(more: Value) -> Value {
    greedy(json!({"model": BASE, "prompt": "Hi"}), more)
}

async fn choice(path: &str, body: Value) -> Value {
    let server = Server::start().await;
    post(server.address, path, &body).await.ok()["choices"][0].clone()
}

#[tokio::test]
async fn a_chat_answer_has_all_its_parts() {
    let server = Server::start().await;
    let mut request = post_request(CHAT, chat(json!({})).to_string());
    request.headers_mut().insert("x-request-id", "mine".parse().unwrap());
    let reply = send(server.address, request).await;
    assert_eq!(reply.header("x-request-id"), "mine");
    let mut answer = reply.ok();
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    answer["created"] = 0.into();
    let message = json!({"role": "assistant", "content": SENTENCE, "refusal": null});
    // `<s><|user|>Hi\n<|assistant|>` is 6 tokens, the sentence and its end are 45.
    let expected = json!({
        "id": "chatcmpl-mine", "object": "chat.completion", "created": 0, "model": BASE,
        "choices": [{
            "index": 0, "message": message, "logprobs": null,
            "finish_reason": "stop", "stop_reason": null,
        }],
        "usage": {
            "prompt_tokens": 6, "completion_tokens": 45, "total_tokens": 51,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    });
    assert_eq!(answer, expected);
}

#[tokio::test]
async fn the_model_field_chooses_the_adapter() {
    let server = Server::start().await;
    for (model, said) in [("sql", "THE QUIC"), ("shout", "THE QUIC"), (BASE, "The quic")] {
        let body = text(json!({"model": model, "max_tokens": 8}));
        let answer = post(server.address, TEXT, &body).await.ok();
        assert_eq!(
            (&answer["choices"][0]["text"], &answer["model"]),
            (&said.into(), &model.into())
        );
    }
}

#[tokio::test]
async fn a_completion_is_cut_at_16_tokens_unless_it_says_more() {
    let choice = choice(TEXT, text(json!({}))).await;
    assert_eq!(
        (&choice["text"], &choice["finish_reason"]),
        (&json!("The quick brown "), &json!("length"))
    );
}

#[tokio::test]
async fn prompts_come_in_four_forms_and_answers_in_their_order() {
    let server = Server::start().await;
    let ids: Vec<u32> = "Hi".chars().map(token).collect();
    let forms = [
        (json!("Hi"), 3, vec!["Hi"]),
        (json!(["Hi", "You"]), 7, vec!["Hi", "You"]),
        (json!(ids), 2, vec!["Hi"]),
        (json!([ids, [token('a')]]), 3, vec!["Hi", "a"]),
    ];
    for (prompt, tokens, echoes) in forms {
        let body = text(json!({"prompt": prompt, "n": 2, "max_tokens": 3, "echo": true}));
        let answer = post(server.address, TEXT, &body).await.ok();
        assert_eq!(answer["usage"]["prompt_tokens"], tokens, "{prompt}");
        assert_eq!(answer["usage"]["completion_tokens"], 6 * echoes.len());
        let choices = answer["choices"].as_array().unwrap();
        let texts: Vec<_> = choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
        let expected: Vec<_> =
            echoes.iter().flat_map(|echo| [format!("{echo}The"), format!("{echo}The")]).collect();
        assert_eq!(texts, expected);
        assert!((0..).zip(choices).all(|(index, choice)| choice["index"] == index));
    }
}

#[tokio::test]
async fn choices_count_on_from_the_seed() {
    let server = Server::start().await;
    let body = json!({"n": 3, "seed": 4, "temperature": 1, "max_tokens": 5});
    let answer = post(server.address, CHAT, &chat(body)).await.ok();
    let said: Vec<_> = (0..3).map(|at| &answer["choices"][at]["message"]["content"]).collect();
    assert_eq!(said, ["quick", "uick ", "ick b"]);
}

#[tokio::test]
async fn what_ends_a_choice_is_told() {
    let ends = [
        (json!({"stop": "qui"}), "The ", "stop", json!("qui")),
        (json!({"stop": ["zzz", " quick"]}), "The", "stop", json!(" quick")),
        (
            json!({"stop": "qui", "include_stop_str_in_output": true}),
            "The qui",
            "stop",
            json!("qui"),
        ),
        (json!({"stop_token_ids": [token('q')]}), "The ", "stop", json!(token('q'))),
        (json!({"max_tokens": 6}), "The qu", "length", Value::Null),
        (json!({"max_completion_tokens": 6, "max_tokens": 1}), "The qu", "length", Value::Null),
        (json!({"stop": "e", "min_tokens": 5, "max_tokens": 7}), "The qui", "length", Value::Null),
        (json!({}), SENTENCE, "stop", Value::Null),
    ];
    let server = Server::start().await;
    for (fields, said, reason, stop) in ends {
        let answer = post(server.address, CHAT, &chat(fields.clone())).await.ok();
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"]["content"], said, "{fields}");
        assert_eq!(
            (&choice["finish_reason"], &choice["stop_reason"]),
            (&json!(reason), &stop),
            "{fields}"
        );
    }
    let body = chat(json!({"ignore_eos": true, "max_tokens": 60, "skip_special_tokens": false}));
    let answer = post(server.address, CHAT, &body).await.ok();
    let expected = format!("{SENTENCE}</s>{}", &format!("{SENTENCE}{SENTENCE}")[45..60]);
    assert_eq!(answer["choices"][0]["message"]["content"], expected);
}

#[tokio::test]
async fn chat_logprobs_name_the_likeliest_tokens() {
    let body = chat(json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 2}));
    let choice = choice(CHAT, body).await;
    let entry = |token: &str, logprob: f64| {
        let bytes = token.as_bytes();
        json!({"token": token, "logprob": logprob, "bytes": bytes})
    };
    let mut first = entry("T", -0.25);
    first["top_logprobs"] = json!([entry("T", -0.25), entry("U", -1.25)]);
    let mut second = entry("h", -0.25);
    second["top_logprobs"] = json!([entry("h", -0.25), entry("i", -1.25)]);
    assert_eq!(choice["logprobs"], json!({"content": [first, second], "refusal": null}));
}

#[tokio::test]
async fn chat_logprobs_without_a_count_name_none() {
    let choice = choice(CHAT, chat(json!({"logprobs": true, "max_tokens": 1}))).await;
    assert_eq!(choice["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

#[tokio::test]
async fn completion_logprobs_cover_an_echoed_prompt() {
    let body = text(json!({"logprobs": 1, "max_tokens": 2, "echo": true}));
    let choice = choice(TEXT, body).await;
    assert_eq!(choice["text"], "HiTh");
    let expected = json!({
        "tokens": ["<s>", "H", "i", "T", "h"],
        "token_logprobs": [null, -0.5, -0.5, -0.25, -0.25],
        "top_logprobs": [
            null, {"H": -0.5}, {"i": -0.5}, {"T": -0.25}, {"h": -0.25},
        ],
        "text_offset": [0, 3, 4, 5, 6],
    });
    assert_eq!(choice["logprobs"], expected);
}

#[tokio::test]
async fn a_prompt_is_scored_without_generating() {
    let body = text(json!({"logprobs": 0, "max_tokens": 0, "echo": true}));
    let choice = choice(TEXT, body).await;
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("Hi"), &json!("length")));
    assert_eq!(choice["logprobs"]["token_logprobs"], json!([null, -0.5, -0.5]));
}

#[tokio::test]
async fn prompt_logprobs_are_told_as_vllm_does() {
    let server = Server::start().await;
    let scored = |token: char, logprob: f64, rank: u32| {
        let token = token.to_string();
        json!({"logprob": logprob, "rank": rank, "decoded_token": token})
    };
    let (h, i) = (token('H').to_string(), token('i').to_string());
    let expected = json!([null, {h: scored('H', -0.5, 2)}, {i: scored('i', -0.5, 2)}]);
    let fields = json!({"prompt_logprobs": 1, "max_tokens": 1});
    let answer = post(server.address, TEXT, &text(fields.clone())).await.ok();
    assert_eq!(answer["choices"][0]["prompt_logprobs"], expected);
    let answer = post(server.address, CHAT, &chat(fields)).await.ok();
    assert_eq!(answer["prompt_logprobs"].as_array().unwrap().len(), 6);
    assert_eq!(answer["prompt_logprobs"][2], expected[1]);
}

#[tokio::test]
async fn token_ids_are_shown_when_asked_for() {
    let server = Server::start().await;
    let fields = json!({"return_token_ids": true, "stop_token_ids": [token('e')]});
    let said: Vec<u32> = "The".chars().map(token).collect();
    let answer = post(server.address, TEXT, &text(fields.clone())).await.ok();
    assert_eq!(answer["choices"][0]["token_ids"], json!(said));
    assert_eq!(answer["choices"][0]["prompt_token_ids"], json!([1, token('H'), token('i')]));
    let answer = post(server.address, CHAT, &chat(fields)).await.ok();
    assert_eq!(answer["choices"][0]["token_ids"], json!(said));
    assert_eq!(answer["prompt_token_ids"], json!([1, 3, token('H'), token('i'), 5, 4]));
}

#[tokio::test]
async fn the_end_of_sequence_is_a_token_without_text() {
    let choice = choice(CHAT, chat(json!({"return_token_ids": true}))).await;
    let ids = choice["token_ids"].as_array().unwrap();
    assert_eq!((ids.len(), &ids[44]), (45, &json!(END)));
    assert_eq!(choice["message"]["content"], SENTENCE);
}

#[tokio::test]
async fn messages_may_be_parts_continued_and_echoed() {
    let server = Server::start().await;
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let messages =
        json!([{"role": "user", "content": parts}, {"role": "assistant", "content": "Well: "}]);
    let body = json!({
        "messages": messages, "continue_final_message": true, "echo": true, "max_tokens": 3,
        "return_token_ids": true, "add_special_tokens": false,
    });
    let answer = post(server.address, CHAT, &chat(body)).await.ok();
    assert_eq!(answer["choices"][0]["message"]["content"], "Well: The");
    let prompt: Vec<u32> = [1, 3]
        .into_iter()
        .chain("a\nb\n".chars().map(id))
        .chain([4])
        .chain("Well: ".chars().map(id))
        .collect();
    assert_eq!(answer["prompt_token_ids"], json!(prompt));
}

fn id(character: char) -> u32 {
    if character == '\n' { 5 } else { token(character) }
}

#[tokio::test]
async fn a_template_of_the_caller_is_used() {
    let body = json!({
        "chat_template": "{{ messages[0].content }}{{ mood }}", "return_token_ids": true,
        "chat_template_kwargs": {"mood": "!"}, "max_tokens": 1,
    });
    let server = Server::start().await;
    let answer = post(server.address, CHAT, &chat(body)).await.ok();
    assert_eq!(answer["prompt_token_ids"], json!([token('H'), token('i'), token('!')]));
}

#[tokio::test]
async fn cached_tokens_are_counted() {
    let server = Server::start().await;
    let body = text(json!({"prompt": "0123456789".repeat(10), "max_tokens": 1}));
    let cached = async || {
        let answer = post(server.address, TEXT, &body).await.ok();
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].clone()
    };
    assert_eq!(cached().await, 0);
    // 101 tokens are 6 full blocks of 16.
    assert_eq!(cached().await, 96);
}

#[tokio::test]
async fn a_large_body_is_answered_like_a_small_one() {
    let server = Server::start().await;
    let padding = "x".repeat(100_000);
    let answer = post(server.address, CHAT, &chat(json!({"user": padding, "max_tokens": 3}))).await;
    assert_eq!(answer.ok()["choices"][0]["message"]["content"], "The");
}

#[tokio::test]
async fn equal_prompts_without_a_seed_go_different_ways() {
    let server = Server::start().await;
    let body = text(json!({"prompt": vec!["Hi"; 4], "temperature": 1, "max_tokens": 9}));
    let answer = post(server.address, TEXT, &body).await.ok();
    let said: Vec<_> = (0..4).map(|at| answer["choices"][at]["text"].as_str().unwrap()).collect();
    assert!(said.windows(2).all(|pair| pair[0] != pair[1]), "{said:?}");
}
