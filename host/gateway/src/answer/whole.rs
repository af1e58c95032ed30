//! An answer in one piece, when every choice has ended.

use std::mem;

use axum::http::HeaderMap;
use contract::policy::Policy;
use contract::policy::completion::End;
use contract::request::Scored;
use serde_json::{Value, json};

use crate::answer::finish::Finish;
use crate::answer::form::{Form, Shape};
use crate::answer::logprobs::{self, Columns};
use crate::answer::opened::{Choice, Opened};
use crate::answer::review::review;
use crate::answer::source::{News, release};
use crate::answer::tally::Tally;
use crate::answer::usage::Usage;
use crate::error::ApiError;
use crate::request::job::Prompt;

/// Waits for every choice, and writes the headers that policies set and the response body.
pub async fn whole(
    mut opened: Opened,
    policy: &dyn Policy,
) -> Result<(HeaderMap, Value), ApiError> {
    let mut tally = Tally::new(&opened);
    let choices = mem::take(&mut opened.choices);
    let mut written = Vec::with_capacity(choices.len());
    for (index, choice) in choices.into_iter().enumerate() {
        let choice = collect(index, choice, &mut tally).await;
        written.push(choice.inspect_err(|_| opened.accepted.ended(End::Failed))?);
    }
    let headers = review(policy, &opened.accepted, &mut written, &tally.usage).await?;
    Ok((headers, body(&opened, &written, &tally.usage)))
}

/// All news of a choice as one, which is what its filter gets to see.
async fn collect(index: usize, choice: Choice, tally: &mut Tally) -> Result<News, ApiError> {
    let Choice { mut source, filter } = choice;
    let mut all = News::default();
    let mut first = true;
    while let Some(news) = source.next().await {
        let news = news?;
        tally.count(index, mem::take(&mut first), &news);
        all.append(news);
    }
    if let Some(mut filter) = filter {
        all = release(&mut *filter, all).await?;
    }
    tally.ended(index, &all);
    Ok(all)
}

fn body(opened: &Opened, written: &[News], usage: &Usage) -> Value {
    let Opened { head, form, .. } = opened;
    let choices = written.iter().enumerate().map(|(index, written)| match form.shape {
        Shape::Chat => chat_choice(opened, index, written),
        Shape::Text => text_choice(opened, index, written),
    });
    let mut body = json!({
        "id": head.id, "object": head.object(form.shape), "created": head.created,
        "model": head.model, "choices": choices.collect::<Vec<_>>(), "usage": usage.json(),
    });
    if form.shape == Shape::Chat {
        show_prompt(&mut body, opened, 0, &written[0]);
    }
    body
}

fn chat_choice(opened: &Opened, index: usize, written: &News) -> Value {
    let Opened { form, text, .. } = opened;
    let content = opened.prompt(index).echo.clone().unwrap_or_default() + &written.text;
    let mut choice = json!({
        "index": index,
        "message": {"role": "assistant", "content": content, "refusal": null},
        "logprobs": form.logprobs.then(|| logprobs::chat(text, &written.tokens)),
    });
    show_end(&mut choice, form, written);
    choice
}

fn text_choice(opened: &Opened, index: usize, written: &News) -> Value {
    let Opened { form, text, .. } = opened;
    let prompt = opened.prompt(index);
    let logprobs = form.logprobs.then(|| {
        let echoed = prompt.echo.as_ref().map(|_| prompt_scores(prompt, written));
        let tokens = written.tokens.iter().map(|scored| (scored.token, Some(scored)));
        Columns::default().next(text, echoed.into_iter().flatten().chain(tokens))
    });
    let output = prompt.echo.clone().unwrap_or_default() + &written.text;
    let mut choice = json!({"index": index, "text": output, "logprobs": logprobs});
    show_end(&mut choice, form, written);
    show_prompt(&mut choice, opened, index, written);
    choice
}

/// Prompt tokens with their scores; the first has none.
fn prompt_scores<'a>(
    prompt: &Prompt,
    written: &'a News,
) -> impl Iterator<Item = (u32, Option<&'a Scored>)> + use<'a> {
    let first = prompt.tokens.first().map(|&token| (token, None));
    let others = written.prompt.iter().flatten().map(|scored| (scored.token, Some(scored)));
    first.into_iter().chain(others)
}

fn show_end(choice: &mut Value, form: &Form, written: &News) {
    let finish = written.finish.as_ref();
    choice["finish_reason"] = finish.map(Finish::reason).into();
    choice["stop_reason"] = finish.map(|finish| finish.stop_reason.clone()).into();
    if form.token_ids {
        choice["token_ids"] = written.tokens.iter().map(|scored| scored.token).collect();
    }
}

fn show_prompt(into: &mut Value, opened: &Opened, index: usize, written: &News) {
    let Opened { form, text, .. } = opened;
    if form.prompt_logprobs {
        let scores = written.prompt.as_deref().unwrap_or_default();
        into["prompt_logprobs"] = logprobs::prompt(text, scores);
    }
    if form.token_ids {
        into["prompt_token_ids"] = opened.prompt(index).tokens.iter().copied().collect();
    }
}
