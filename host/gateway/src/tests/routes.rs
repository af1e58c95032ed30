//! Every route that does not generate.

use serde_json::{Value, json};

use super::client::{get, post};
use super::script::token;
use super::server::{BASE, Server};

#[tokio::test]
async fn models_are_the_base_and_the_adapters_that_can_be_served() {
    let server = Server::start().await;
    let list = get(server.address, "/v1/models").await.ok();
    assert_eq!(list["object"], "list");
    let cards = list["data"].as_array().unwrap();
    let ids: Vec<_> = cards.iter().map(|card| card["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [BASE, "shout", "sql"]);
    let parents: Vec<_> = cards.iter().map(|card| card["parent"].clone()).collect();
    assert_eq!(parents, [Value::Null, json!(BASE), json!(BASE)]);
    for card in cards {
        assert_eq!((&card["object"], &card["root"]), (&json!("model"), &json!(BASE)));
        assert_eq!(card["max_model_len"], 512);
        let path = format!("/v1/models/{}", card["id"].as_str().unwrap());
        assert_eq!(&get(server.address, &path).await.ok(), card);
    }
}

#[tokio::test]
async fn texts_and_conversations_become_tokens_and_tokens_text() {
    let server = Server::start().await;
    let asked = json!({"prompt": "Hi", "return_token_strs": true});
    let answer = post(server.address, "/tokenize", &asked).await.ok();
    let tokens = json!([1, token('H'), token('i')]);
    let expected = json!({
        "count": 3, "max_model_len": 512, "tokens": tokens, "token_strs": ["<s>", "H", "i"],
    });
    assert_eq!(answer, expected);
    let asked = json!({"prompt": "Hi", "add_special_tokens": false});
    let answer = post(server.address, "/tokenize", &asked).await.ok();
    assert_eq!((&answer["count"], &answer["token_strs"]), (&json!(2), &Value::Null));
    let asked = json!({"model": "sql", "messages": [{"role": "user", "content": "Hi"}]});
    let answer = post(server.address, "/tokenize", &asked).await.ok();
    assert_eq!(answer["tokens"], json!([1, 3, token('H'), token('i'), 5, 4]));
    let text = post(server.address, "/detokenize", &json!({"tokens": tokens})).await.ok();
    assert_eq!(text, json!({"prompt": "<s>Hi"}));
}

#[tokio::test]
async fn tokenize_and_detokenize_refuse_what_they_cannot_read() {
    let server = Server::start().await;
    for (path, body, field) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({"prompt": 3}), "prompt"),
        ("/tokenize", json!({"messages": []}), "messages"),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": [-1]}), "tokens"),
        ("/detokenize", json!({"tokens": [101]}), "tokens"),
    ] {
        let (status, message, param, _) = post(server.address, path, &body).await.error();
        assert_eq!((status, param), (400, json!(field)), "{message}");
    }
}

#[tokio::test]
async fn metrics_count_collectives_by_purpose_and_requests() {
    let server = Server::start().await;
    post(server.address, "/v1/completions", &json!({"prompt": "Hi"})).await.ok();
    let reply = get(server.address, "/metrics").await;
    assert!(reply.header("content-type").starts_with("application/openmetrics-text"));
    for line in [
        "# TYPE drystone_collectives counter",
        "drystone_collectives_total{engine=\"0\",purpose=\"base\"} 2",
        "drystone_collectives_total{engine=\"0\",purpose=\"lora\"} 0",
        "vllm:generation_tokens_total{model_name=\"base\",engine=\"0\"} 16",
        "# EOF",
    ] {
        assert!(reply.text.lines().any(|found| found == line), "{line}\n{}", reply.text);
    }
}

#[tokio::test]
async fn the_document_names_fields_that_exist_and_ranges_that_hold() {
    let server = Server::start().await;
    let document = get(server.address, "/openapi.json").await.ok();
    let settings = document["components"]["schemas"]["Settings"]["properties"].as_object().unwrap();
    for (field, schema) in settings {
        let below = schema["minimum"].as_f64().map(|minimum| minimum - 1.0);
        let above = schema["maximum"].as_f64().map(|maximum| maximum + 1.0);
        let exclusive = schema["exclusiveMinimum"].as_f64();
        for outside in [below, above, exclusive].into_iter().flatten() {
            let whole = schema["type"] == "integer";
            let value = if whole { json!(outside as i64) } else { json!(outside) };
            let body = json!({"prompt": "Hi", field: value});
            let (status, message, param, _) =
                post(server.address, "/v1/completions", &body).await.error();
            assert_eq!((status, param), (400, json!(field)), "{message}");
        }
        if let Some(default) = schema.get("default") {
            let body = json!({"prompt": "Hi", field: default});
            post(server.address, "/v1/completions", &body).await.ok();
        }
    }
}
