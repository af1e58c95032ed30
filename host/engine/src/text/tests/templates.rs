//! Chat templates as transformers renders them.

use serde_json::{Value, json};

use crate::text::tests::fixture::{Folder, byte_level};
use crate::text::{ChatPrompt, TextError};

/// Renders with the template in `tokenizer_config.json`.
fn render(template: &str, prompt: &ChatPrompt) -> Result<String, TextError> {
    let config = json!({"chat_template": template, "bos_token": "<s>", "eos_token": "</s>"});
    let folder = byte_level().with("tokenizer_config.json", &config.to_string());
    folder.open().unwrap().chat(prompt)
}

fn messages(messages: &Value) -> ChatPrompt {
    ChatPrompt { messages: messages.as_array().unwrap().clone(), ..ChatPrompt::default() }
}

const TURNS: &str = "{{ bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' and not loop.first %}
        {{ raise_exception('Only the first message may be a system message') }}
    {%- endif %}
    {{- '[' + message.role.upper() + ']' + message['content'].strip() + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[ASSISTANT]' }}
{%- endif %}";

#[test]
fn turns_and_whitespace_are_as_in_jinja() {
    let mut prompt = messages(&json!([
        {"role": "system", "content": "Be brief. "},
        {"role": "user", "content": "<b> & 'c'"},
    ]));
    prompt.add_generation_prompt = true;
    let wanted = "<s>[SYSTEM]Be brief.</s>[USER]<b> & 'c'</s>[ASSISTANT]";
    assert_eq!(render(TURNS, &prompt).unwrap(), wanted);
}

#[test]
fn a_template_that_raises_is_quoted() {
    let turns = json!([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]);
    let error = render(TURNS, &messages(&turns)).err().unwrap().to_string();
    assert!(error.contains("Only the first message may be a system message"), "{error}");
}

#[test]
fn tojson_writes_as_python_does() {
    let template = "{{ tools | tojson }}\n{{ messages[0] | tojson(indent=2) }}";
    let mut prompt = messages(&json!([{"role": "user", "n": [1, 2]}]));
    prompt.tools = Some(vec![json!({"name": "é<b>'&", "x": [1, 2.5, null, true]})]);
    let wanted = "[{\"name\": \"é<b>'&\", \"x\": [1, 2.5, null, true]}]\n\
        {\n  \"role\": \"user\",\n  \"n\": [\n    1,\n    2\n  ]\n}";
    assert_eq!(render(template, &prompt).unwrap(), wanted);
}

#[test]
fn generation_blocks_are_transparent() {
    let template = "a\n  {% generation %}\nb\n  {%- endgeneration -%}\n c";
    assert_eq!(render(template, &ChatPrompt::default()).unwrap(), "a\nbc");
}

#[test]
fn strings_go_on_after_a_backslash_at_the_end_of_a_line() {
    let template = "{%- set a = \"one, \\\ntwo\" %}{{ a + \", \\\nthree\" }} \\\nfour";
    assert_eq!(render(template, &ChatPrompt::default()).unwrap(), "one, two, three \\\nfour");
}

#[test]
fn python_methods_loop_controls_and_dates_are_there() {
    let template = "{% for m in messages[::-1] %}{% if loop.index > 1 %}{% break %}{% endif %}\
        {{ m.content.split('-')[0] }}{{ m.get('x', 'none') }}{% endfor %}\
        {{ strftime_now('%Y') | length }}";
    let prompt = messages(&json!([{"content": "a-b"}, {"content": "c-d"}]));
    assert_eq!(render(template, &prompt).unwrap(), "cnone4");
}

#[test]
fn kwargs_reach_the_template() {
    let mut prompt = ChatPrompt::default();
    prompt.kwargs.insert("enable_thinking".into(), json!(false));
    let template = "{{ 'no' if enable_thinking is defined and not enable_thinking else 'yes' }}";
    assert_eq!(render(template, &prompt).unwrap(), "no");
}

#[test]
fn a_final_message_is_left_open_to_be_continued() {
    for (content, template, wanted) in [
        ("Sure, ", TURNS, "<s>[ASSISTANT]Sure,"),
        ("Sure, ", "{{ messages[0].content }}</s>", "Sure, "),
        (" Sure", "{{ messages[0].content }}</s>", " Sure"),
    ] {
        let mut prompt = messages(&json!([{"role": "assistant", "content": content}]));
        prompt.continue_final_message = true;
        assert_eq!(render(template, &prompt).unwrap(), wanted);
    }
}

#[test]
fn a_caller_may_bring_a_template() {
    let mut prompt = messages(&json!([{"role": "user", "content": "hi"}]));
    prompt.chat_template = Some("<{{ messages[0].content }}>".into());
    assert_eq!(render(TURNS, &prompt).unwrap(), "<hi>");
    prompt.chat_template = Some("{% for".into());
    assert!(matches!(render(TURNS, &prompt), Err(TextError::Template(_))));
}

#[test]
fn a_template_that_spins_is_ended() {
    let spin = "{% for i in range(9999) %}{% for j in range(9999) %}.{% endfor %}{% endfor %}";
    let prompt = ChatPrompt { chat_template: Some(spin.into()), ..ChatPrompt::default() };
    let error = render(TURNS, &prompt).err().unwrap().to_string();
    assert!(error.contains("fuel"), "{error}");
}

#[test]
fn the_file_beside_comes_before_the_one_in_the_config() {
    let config = json!({"chat_template": [{"name": "default", "template": "in config"}]});
    let folder = byte_level().with("tokenizer_config.json", &config.to_string());
    let chat = |folder: &Folder| folder.open().unwrap().chat(&ChatPrompt::default()).unwrap();
    assert_eq!(chat(&folder), "in config");
    let folder = folder.with("chat_template.jinja", "beside");
    assert_eq!(chat(&folder), "beside");
}

#[test]
fn a_model_without_a_template_says_so() {
    let text = byte_level().open().unwrap();
    assert!(matches!(text.chat(&ChatPrompt::default()), Err(TextError::NoTemplate)));
}
