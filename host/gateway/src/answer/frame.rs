//! Server-sent events of an answer: JSON written straight into one reused buffer.
//!
//! A stream writes thousands of events that differ in a few bytes, so what is constant is made once
//! and only texts and numbers go through serde. The format is the HTML standard's section 9.2.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde_json::Value;

use crate::answer::finish::Finish;
use crate::answer::form::Shape;
use crate::answer::head::Head;

/// Writes the events of one stream.
pub struct Frames {
    out: BytesMut,
    shape: Shape,
    /// From `data: ` up to the first choice.
    opening: Vec<u8>,
}

/// One event's worth of one choice.
#[derive(Default)]
pub struct Piece<'a> {
    /// Which choice.
    pub index: usize,
    /// Begins a chat message.
    pub role: bool,
    /// To append to what came before.
    pub text: &'a str,
    /// In the shape of the route.
    pub logprobs: Option<Value>,
    /// Output tokens behind the text, when they are to be shown.
    pub token_ids: Option<Vec<u32>>,
    /// Prompt tokens, once, when they are to be shown.
    pub prompt_token_ids: Option<&'a [u32]>,
    /// Set on the last piece of a choice.
    pub finish: Option<&'a Finish>,
}

impl Frames {
    /// Prepares the constant parts.
    pub fn new(head: &Head, shape: Shape) -> Self {
        let mut frames = Self { out: BytesMut::with_capacity(1024), shape, opening: Vec::new() };
        frames.text(r#"data: {"id":"#);
        frames.json(&head.id);
        frames.text(r#","object":"#);
        frames.json(&head.chunk_object(shape));
        frames.text(r#","created":"#);
        frames.json(&head.created);
        frames.text(r#","model":"#);
        frames.json(&head.model);
        frames.text(r#","choices":["#);
        frames.opening = frames.out.split().to_vec();
        frames
    }

    /// What was written since the last time.
    pub fn take(&mut self) -> Option<Bytes> {
        (!self.out.is_empty()).then(|| self.out.split().freeze())
    }

    /// An event of one choice. `usage` goes with it where the request asked for that.
    pub fn piece(&mut self, piece: &Piece<'_>, usage: Option<&Value>) {
        self.out.put_slice(&self.opening);
        self.text(r#"{"index":"#);
        self.json(&piece.index);
        match self.shape {
            Shape::Chat => self.delta(piece),
            Shape::Text => self.field("text", &piece.text),
        }
        match &piece.logprobs {
            None => self.text(r#","logprobs":null"#),
            Some(logprobs) => self.field("logprobs", logprobs),
        }
        self.finish(piece.finish);
        if let Some(ids) = &piece.token_ids {
            self.field("token_ids", ids);
        }
        if let (Shape::Text, Some(ids)) = (self.shape, piece.prompt_token_ids) {
            self.field("prompt_token_ids", &ids);
        }
        self.text("}]");
        if let (Shape::Chat, Some(ids)) = (self.shape, piece.prompt_token_ids) {
            self.field("prompt_token_ids", &ids);
        }
        self.close(usage);
    }

    /// The event without choices that reports the usage at the end.
    pub fn usage(&mut self, usage: &Value) {
        self.out.put_slice(&self.opening);
        self.text("]");
        self.close(Some(usage));
    }

    /// The event of a failure after the status went out.
    pub fn error(&mut self, error: &Value) {
        self.text("data: ");
        self.json(error);
        self.text("\n\n");
    }

    /// The last event of every stream.
    pub fn done(&mut self) {
        self.text("data: [DONE]\n\n");
    }

    /// A comment that keeps proxies from closing a quiet connection.
    pub fn keep_alive(&mut self) {
        self.text(": keep-alive\n\n");
    }

    fn delta(&mut self, piece: &Piece<'_>) {
        match piece {
            Piece { role: true, .. } => {
                self.text(r#","delta":{"role":"assistant","content":""#);
                self.text(r#""}"#);
            }
            Piece { text: "", finish: Some(_), .. } => self.text(r#","delta":{}"#),
            Piece { text, .. } => {
                self.text(r#","delta":{"content":"#);
                self.json(text);
                self.text("}");
            }
        }
    }

    fn finish(&mut self, finish: Option<&Finish>) {
        match finish {
            None => self.text(r#","finish_reason":null"#),
            Some(finish) => {
                self.field("finish_reason", &finish.reason());
                self.field("stop_reason", &finish.stop_reason);
            }
        }
    }

    fn close(&mut self, usage: Option<&Value>) {
        if let Some(usage) = usage {
            self.field("usage", usage);
        }
        self.text("}\n\n");
    }

    fn field(&mut self, name: &'static str, value: &impl Serialize) {
        self.text(",\"");
        self.text(name);
        self.text("\":");
        self.json(value);
    }

    fn text(&mut self, text: &'static str) {
        self.out.put_slice(text.as_bytes());
    }

    fn json(&mut self, value: &impl Serialize) {
        serde_json::to_writer((&mut self.out).writer(), value)
            .expect("texts, numbers and JSON values can be written to memory: this is a bug");
    }
}

#[cfg(test)]
mod tests {
    use contract::policy::completion::End;
    use serde_json::json;

    use super::*;

    fn frames(shape: Shape) -> Frames {
        let head = Head { id: "a-1".to_owned(), created: 7, model: "m\"x".to_owned() };
        Frames::new(&head, shape)
    }

    fn written(mut frames: Frames) -> String {
        String::from_utf8(frames.take().expect("an event").to_vec()).expect("UTF-8")
    }

    #[test]
    fn chat_events_are_as_openai_writes_them() {
        let mut frames = frames(Shape::Chat);
        let ids: &[u32] = &[1, 2];
        let role = Piece { role: true, prompt_token_ids: Some(ids), ..Piece::default() };
        frames.piece(&role, None);
        frames.piece(&Piece { index: 1, text: "a\"\n\u{1}é", ..Piece::default() }, None);
        let finish = Some(&Finish { end: End::Stop, stop_reason: 9.into() });
        frames.piece(&Piece { finish, ..Piece::default() }, Some(&Value::Null));
        let head = concat!(
            r#"data: {"id":"a-1","object":"chat.completion.chunk","created":7,"#,
            r#""model":"m\"x","choices":[{"index":"#
        );
        let events = [
            r#"0,"delta":{"role":"assistant","content":""},"logprobs":null,"#,
            r#""finish_reason":null}],"prompt_token_ids":[1,2]}"#,
            "\n\n",
            head,
            r#"1,"delta":{"content":"a\"\n\u0001é"},"logprobs":null,"finish_reason":null}]}"#,
            "\n\n",
            head,
            r#"0,"delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":9}],"#,
            r#""usage":null}"#,
            "\n\n",
        ];
        assert_eq!(written(frames), head.to_owned() + &events.concat());
    }

    #[test]
    fn text_events_are_as_openai_writes_them() {
        let mut frames = frames(Shape::Text);
        frames.piece(
            &Piece {
                text: "b",
                logprobs: Some(json!({"tokens": ["b"]})),
                token_ids: Some(vec![5]),
                prompt_token_ids: Some(&[1]),
                finish: Some(&Finish::plain(End::Length)),
                ..Piece::default()
            },
            None,
        );
        frames.usage(&json!({"total_tokens": 3}));
        frames.error(&json!({"error": {}}));
        frames.keep_alive();
        frames.done();
        let head = concat!(
            r#"data: {"id":"a-1","object":"text_completion","created":7,"#,
            r#""model":"m\"x","choices":["#
        );
        let events = [
            r#"{"index":0,"text":"b","logprobs":{"tokens":["b"]},"finish_reason":"length","#,
            r#""stop_reason":null,"token_ids":[5],"prompt_token_ids":[1]}]}"#,
            "\n\n",
            head,
            "],\"usage\":{\"total_tokens\":3}}\n\ndata: {\"error\":{}}\n\n",
            ": keep-alive\n\ndata: [DONE]\n\n",
        ];
        assert_eq!(written(frames), head.to_owned() + &events.concat());
    }
}
