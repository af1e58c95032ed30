//! Chat templates: Hugging Face's dialect of Jinja on minijinja.
//!
//! Five things differ from plain minijinja: Python's methods on values, `tojson` as Python's
//! `json.dumps` writes it (minijinja's escapes `<>&'` and leaves out spaces), the functions
//! `raise_exception` and `strftime_now`, the `{% generation %}` block, which marks text for
//! training and means nothing here, and strings that go on after a backslash at the end of a line.

use minijinja::value::{Kwargs, Rest};
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::{Map, json};

use crate::text::{ChatPrompt, TextError};

const NAME: &str = "chat_template";

/// Instructions that one rendering may take; a template sent by a caller must not spin. Llama 3.1's
/// takes about 60 a message.
const FUEL: u64 = 20_000_000;

/// A compiled chat template.
pub struct Template {
    environment: Environment<'static>,
    special_tokens: Map<String, serde_json::Value>,
}

impl Template {
    pub fn new(
        source: &str,
        special_tokens: Map<String, serde_json::Value>,
    ) -> Result<Self, TextError> {
        let mut environment = dialect();
        let source = translate(source);
        environment.add_template_owned(NAME, source).map_err(refused)?;
        Ok(Self { environment, special_tokens })
    }

    /// Renders a conversation. [`ChatPrompt::chat_template`] is compiled anew each time.
    pub fn render(&self, prompt: &ChatPrompt) -> Result<String, TextError> {
        let variables = self.variables(prompt);
        let rendered = match &prompt.chat_template {
            None => self.environment.get_template(NAME).and_then(|it| it.render(variables)),
            Some(source) => self.environment.render_str(&translate(source), variables),
        };
        let rendered = rendered.map_err(refused)?;
        if prompt.continue_final_message { reopen(rendered, prompt) } else { Ok(rendered) }
    }

    fn variables(&self, prompt: &ChatPrompt) -> Value {
        let mut variables = self.special_tokens.clone();
        variables.insert("messages".into(), json!(prompt.messages));
        variables.insert("tools".into(), json!(prompt.tools));
        variables.insert("add_generation_prompt".into(), json!(prompt.add_generation_prompt));
        variables.extend(prompt.kwargs.clone());
        Value::from_serialize(variables)
    }
}

fn dialect() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment
}

/// Writes a template for minijinja: tags change, the text between them stays.
fn translate(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%").into_iter().chain(rest.find("{{")).min() {
        let close = if rest[open..].starts_with("{%") { "%}" } else { "}}" };
        let Some(length) = rest[open..].find(close) else { break };
        let (text, tag) = (&rest[..open], &rest[open..open + length]);
        out.push_str(text);
        out.push_str(&translate_tag(tag));
        rest = &rest[open + length..];
    }
    out + rest
}

fn translate_tag(tag: &str) -> String {
    // A block that is always taken, so that whitespace around its tags is still trimmed as the
    // author saw it.
    match tag[2..].trim_matches(['-', '+', ' ', '\n']) {
        "generation" => tag.replace("generation", "if true"),
        "endgeneration" => tag.replace("endgeneration", "endif"),
        _ => tag.replace("\\\n", ""),
    }
}

/// Cuts what the template wrote after the last message, as transformers does: templates that trim
/// the message lose its trailing space, others keep it.
fn reopen(mut rendered: String, prompt: &ChatPrompt) -> Result<String, TextError> {
    let text = prompt.messages.last().and_then(|message| text_of(&message["content"]));
    let text = text.ok_or_else(|| TextError::Template("no final message to continue".into()))?;
    let start = rendered.rfind(text.trim()).ok_or_else(|| {
        TextError::Template("it does not write the final message, which cannot be continued".into())
    })?;
    let untrimmed = rendered[start..].starts_with(text.trim_start());
    let kept = if untrimmed { text.trim_start() } else { text.trim() };
    rendered.truncate(start + kept.len());
    Ok(rendered)
}

/// Content is a text, or parts of which the last text counts.
fn text_of(content: &serde_json::Value) -> Option<&str> {
    let parts = content.as_array().into_iter().flatten().rev();
    content.as_str().or_else(|| parts.filter_map(|part| part["text"].as_str()).next())
}

fn tojson(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = match positional.first() {
        Some(indent) => Some(usize::try_from(indent.clone())?),
        None => named.get("indent")?,
    };
    // `ensure_ascii`, `separators` and `sort_keys` are accepted: templates pass the defaults.
    let mut out = Vec::new();
    let indent = indent.map(|columns| " ".repeat(columns.min(16)));
    match indent {
        None => dump(value, &mut out, PythonFormatter),
        Some(indent) => {
            let pretty = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            dump(value, &mut out, pretty)
        }
    }
    .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Value::from_safe_string(String::from_utf8_lossy(&out).into_owned()))
}

fn dump(
    value: &Value,
    out: &mut Vec<u8>,
    formatter: impl serde_json::ser::Formatter,
) -> serde_json::Result<()> {
    value.serialize(&mut serde_json::Serializer::with_formatter(out, formatter))
}

/// `", "` and `": "` between items, as `json.dumps` writes by default.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now())
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// What the template says for callers: its own message without minijinja's name for the kind.
fn refused(error: Error) -> TextError {
    let line = error.line().map(|line| format!(" (template line {line})")).unwrap_or_default();
    match error.detail() {
        Some(detail) => TextError::Template(format!("{detail}{line}")),
        None => TextError::Template(format!("{}{line}", error.kind())),
    }
}
