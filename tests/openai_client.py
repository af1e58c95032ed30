"""The official OpenAI client against a running server: python openai_client.py URL KEY

Prints one line a check and leaves with 1 at the first that fails. Any model will do: what it says
is compared with what it says again.
"""

import sys
import time

import openai

URL, KEY = sys.argv[1:]
QUESTION = [{"role": "user", "content": "Three red cubes and two blue balls. How many cubes?"}]
GREEDY = {"temperature": 0, "max_tokens": 24, "messages": QUESTION}

client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=60)
models = {}


def equal(found, expected, what):
    assert found == expected, f"{what}: {found!r}, expected {expected!r}"


def base():
    return next(name for name, model in models.items() if model.parent is None)


def ask(**more):
    return client.chat.completions.create(**{"model": base(), **GREEDY, **more})


def said(**more):
    return ask(**more).choices[0].message.content


def refused(kind, **more):
    try:
        ask(**more)
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def lists_models():
    models.update({model.id: model for model in client.models.list()})
    equal(sum(model.parent is None for model in models.values()), 1, "bases")
    for model in models.values():
        assert model.parent in (None, base()), f"parent of {model.id}: {model.parent}"


def retrieves_a_model():
    for name, model in models.items():
        equal(client.models.retrieve(name), model, name)


def chats():
    answer = ask()
    equal((answer.object, answer.model), ("chat.completion", base()), "answer")
    equal(len(answer.choices), 1, "choices")
    choice, usage = answer.choices[0], answer.usage
    equal(choice.message.role, "assistant", "role")
    assert choice.message.content, "no text"
    assert choice.finish_reason in ("stop", "length"), choice.finish_reason
    assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 24, usage
    equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens, "total")


def chats_with_every_adapter():
    for name in models:
        answer = ask(model=name)
        equal(answer.model, name, "model")
        assert answer.choices[0].message.content, f"{name} says nothing"


def streams_with_usage():
    whole = ask()
    *chunks, last = ask(stream=True, stream_options={"include_usage": True})
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    equal(text, whole.choices[0].message.content, "streamed text")
    equal(chunks[0].choices[0].delta.role, "assistant", "first role")
    finishes = [chunk.choices[0].finish_reason for chunk in chunks]
    equal(finishes, [None] * (len(chunks) - 1) + [whole.choices[0].finish_reason], "finishes")
    assert all(chunk.usage is None for chunk in chunks), "usage before the end"
    equal(last.choices, [], "choices beside the usage")
    equal(last.usage.completion_tokens, whole.usage.completion_tokens, "usage")


def names_logprobs():
    choice = ask(logprobs=True, top_logprobs=3).choices[0]
    tokens = choice.logprobs.content
    text = b"".join(bytes(token.bytes) for token in tokens).decode()
    assert text.startswith(choice.message.content), (text, choice.message.content)
    for token in tokens:
        equal(len(token.top_logprobs), 3, "top logprobs")
        assert token.logprob <= 0, token
        # Greedy: the drawn token is the likeliest.
        equal(token.logprob, max(top.logprob for top in token.top_logprobs), token.token)


def gives_two_choices():
    seeded = {"n": 2, "seed": 7, "temperature": 1}
    first, again = ask(**seeded), ask(**seeded)
    equal([choice.index for choice in first.choices], [0, 1], "indices")
    texts = [[choice.message.content for choice in answer.choices] for answer in (first, again)]
    equal(texts[0], texts[1], "same seed")
    streamed = ["", ""]
    for chunk in ask(**seeded, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    equal(streamed, texts[0], "streamed choices")


def stops():
    text = said()
    stop = text[len(text) // 2 :][:3]
    answer = ask(stop=[stop]).choices[0]
    equal((answer.message.content, answer.finish_reason), (text[: text.index(stop)], "stop"), stop)
    equal(ask(max_tokens=1).choices[0].finish_reason, "length", "one token")


def completes_and_echoes():
    prompts = ["One red", "Two"]
    answer = client.completions.create(
        model=base(), prompt=prompts, temperature=0, max_tokens=2, echo=True, logprobs=2
    )
    equal(len(answer.choices), len(prompts), "choices")
    for choice, prompt in zip(answer.choices, prompts):
        logprobs = choice.logprobs
        assert choice.text.startswith(prompt), choice.text
        equal(len(logprobs.tokens), len(logprobs.token_logprobs), "logprobs")
        assert logprobs.token_logprobs[0] is None and None not in logprobs.token_logprobs[1:]


def takes_further_fields():
    answer = ask(extra_body={"top_k": 1, "min_p": 0.1, "return_token_ids": True})
    equal(len(answer.choices[0].token_ids), answer.usage.completion_tokens, "token ids")


def refuses_a_wrong_model():
    error = refused(openai.NotFoundError, model="no-such-model")
    equal((error.code, error.param), ("model_not_found", "model"), "code and param")


def refuses_a_wrong_key():
    wrong = client.with_options(api_key=KEY + "x")
    for call in (wrong.models.list, lambda: wrong.completions.create(model=base(), prompt="a")):
        try:
            call()
        except openai.AuthenticationError as error:
            equal(error.code, "invalid_api_key", "code")
        else:
            raise AssertionError("let in")


def refuses_a_wrong_field():
    error = refused(openai.BadRequestError, temperature=3)
    equal((error.param, error.type), ("temperature", "invalid_request_error"), "param and type")
    assert "0 to 2" in error.message, error.message


CHECKS = [
    lists_models,
    retrieves_a_model,
    chats,
    chats_with_every_adapter,
    streams_with_usage,
    names_logprobs,
    gives_two_choices,
    stops,
    completes_and_echoes,
    takes_further_fields,
    refuses_a_wrong_model,
    refuses_a_wrong_key,
    refuses_a_wrong_field,
]

for check in CHECKS:
    began = time.monotonic()
    name = check.__name__.replace("_", " ")
    try:
        check()
    except (AssertionError, openai.OpenAIError) as error:
        sys.exit(f"FAILED  {name}: {error}")
    print(f"ok  {name} ({(time.monotonic() - began) * 1e3:.0f} ms)", flush=True)
