//! An answer in one piece, when every choice has ended.

use contract::request::{Finish, Progress, Scored};
use engine::handle::Ticket;
use serde_json::{Value, json};

use crate::answer::finish;
use crate::answer::form::{Form, Shape};
use crate::answer::logprobs::{self, Columns};
use crate::answer::opened::Opened;
use crate::answer::usage::Usage;
use crate::error::ApiError;
use crate::request::job::Prompt;

/// Waits for every choice and writes the response body.
pub async fn whole(mut opened: Opened) -> Result<Value, ApiError> {
    let mut usage = Usage { prompt: opened.prompt_tokens(), ..Usage::default() };
    let mut written = Vec::with_capacity(opened.tickets.len());
    for (index, ticket) in opened.tickets.iter_mut().enumerate() {
        let choice = collect(ticket).await?;
        usage.completion += choice.tokens.len();
        usage.cached += if index % opened.n == 0 { choice.cached_tokens as usize } else { 0 };
        written.push(choice);
    }
    Ok(body(&opened, &written, &usage))
}

/// All news of a sequence as one.
async fn collect(ticket: &mut Ticket) -> Result<Progress, ApiError> {
    let mut all = Progress::default();
    while let Some(news) = ticket.next().await {
        all.text += &news.text;
        all.tokens.extend(news.tokens);
        all.prompt = all.prompt.or(news.prompt);
        all.cached_tokens = news.cached_tokens;
        match news.finish {
            Some(Finish::Failed(message)) => return Err(ApiError::Failed(message)),
            finish => all.finish = finish,
        }
    }
    Ok(all)
}

fn body(opened: &Opened, written: &[Progress], usage: &Usage) -> Value {
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

fn chat_choice(opened: &Opened, index: usize, written: &Progress) -> Value {
    let Opened { form, engine, .. } = opened;
    let content = opened.prompt(index).echo.clone().unwrap_or_default() + &written.text;
    let mut choice = json!({
        "index": index,
        "message": {"role": "assistant", "content": content, "refusal": null},
        "logprobs": form.logprobs.then(|| logprobs::chat(engine.text(), &written.tokens)),
    });
    show_end(&mut choice, form, written);
    choice
}

fn text_choice(opened: &Opened, index: usize, written: &Progress) -> Value {
    let Opened { form, engine, .. } = opened;
    let prompt = opened.prompt(index);
    let logprobs = form.logprobs.then(|| {
        let echoed = prompt.echo.as_ref().map(|_| prompt_scores(prompt, written));
        let tokens = written.tokens.iter().map(|scored| (scored.token, Some(scored)));
        Columns::default().next(engine.text(), echoed.into_iter().flatten().chain(tokens))
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
    written: &'a Progress,
) -> impl Iterator<Item = (u32, Option<&'a Scored>)> + use<'a> {
    let first = prompt.tokens.first().map(|&token| (token, None));
    let others = written.prompt.iter().flatten().map(|scored| (scored.token, Some(scored)));
    first.into_iter().chain(others)
}

fn show_end(choice: &mut Value, form: &Form, written: &Progress) {
    let (reason, stop_reason) = written.finish.as_ref().map(finish::reason).unzip();
    choice["finish_reason"] = reason.into();
    choice["stop_reason"] = stop_reason.into();
    if form.token_ids {
        choice["token_ids"] = written.tokens.iter().map(|scored| scored.token).collect();
    }
}

fn show_prompt(into: &mut Value, opened: &Opened, index: usize, written: &Progress) {
    let Opened { form, engine, .. } = opened;
    if form.prompt_logprobs {
        let scores = written.prompt.as_deref().unwrap_or_default();
        into["prompt_logprobs"] = logprobs::prompt(engine.text(), scores);
    }
    if form.token_ids {
        into["prompt_token_ids"] = opened.prompt(index).tokens.iter().copied().collect();
    }
}
