"""OpenAI's Python SDK, unmodified, against the provisioned appliance and its real models."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
from dataclasses import replace
from typing import Any

import openai
import pytest
from pydantic import BaseModel, Field

from tests.clients.appliance import Appliance

HELLO: Any = [{"role": "user", "content": "Say hello to the world."}]
EMBEDDER = "all-minilm-l6-v2"
RELATED = ("A cat sleeps on the warm sofa.", "A kitten naps on the couch.")
UNRELATED = "The central bank raised its interest rate by a quarter of a percent."


def test_models_and_aliases_are_listed(client: openai.OpenAI) -> None:
    ids = [model.id for model in client.models.list()]
    assert {"default", "fast"} <= set(ids)
    assert any("smollm2-135m-instruct" in name for name in ids)
    assert any(EMBEDDER in name for name in ids)
    assert {client.models.retrieve(name).id for name in ids} == set(ids)


@pytest.mark.proves("/v1/chat/completions", "messages", "max_tokens", backend="llamacpp")
def test_chat(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="default", messages=HELLO, max_tokens=16)
    answer = raw.parse()
    assert (answer.choices[0].message.content or "").strip()
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0
    assert 0 < answer.usage.completion_tokens <= 16
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert raw.headers["x-backend-used"] == "llamacpp"
    assert raw.headers["x-model-used"] == "smollm2-135m-instruct"
    assert raw.headers["x-router-reason"] == "alias:model"
    assert raw.headers["x-request-id"]


def test_every_name_of_the_model_answers(client: openai.OpenAI) -> None:
    for model in ("default", "fast", "smollm2-135m-instruct", "llamacpp:smollm2-135m-instruct", "llamacpp"):
        answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=4)
        assert answer.usage is not None, model


@pytest.mark.proves("/v1/chat/completions", "temperature", "seed", backend="llamacpp")
def test_parameters_reach_the_model(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model="default", messages=HELLO, max_tokens=24, temperature=1.5, seed=seed
        )
        return answer.choices[0].message.content

    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in range(2, 6)}) > 1


@pytest.mark.proves("/v1/chat/completions", "stream", backend="llamacpp")
def test_stream(client: openai.OpenAI) -> None:
    common: Any = {"model": "default", "messages": HELLO, "max_tokens": 24, "stream": True}
    chunks = list(client.chat.completions.create(**common))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(pieces) > 1
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert all(chunk.usage is None for chunk in chunks), "usage that nobody asked for"
    with client.chat.completions.with_streaming_response.create(**common) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        lines = [line for line in response.iter_lines() if line]
    assert lines.index("data: [DONE]") == len(lines) - 1


@pytest.mark.proves("/v1/chat/completions", "stream_options.include_usage", backend="llamacpp")
def test_stream_tells_its_usage_when_asked(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="default", messages=HELLO, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    (usage,) = [chunk.usage for chunk in stream if chunk.usage]
    assert 0 < usage.completion_tokens <= 8


@pytest.mark.proves("/v1/completions", "prompt", "max_tokens", "stream", backend="llamacpp")
def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="default", prompt="Once upon a time", max_tokens=12)
    assert answer.choices[0].text.strip()
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 12
    stream = client.completions.create(model="default", prompt="Once upon a time", max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices).strip()


@pytest.mark.proves("/v1/chat/completions", "stop", backend="llamacpp")
def test_stop(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="default", messages=HELLO, max_tokens=24, temperature=0)
    text = whole.choices[0].message.content or ""
    stop = text.split()[2]
    cut = client.chat.completions.create(model="default", messages=HELLO, max_tokens=24, temperature=0, stop=[stop])
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


@pytest.mark.proves("/v1/chat/completions", "logprobs", "top_logprobs", "n", backend="llamacpp")
def test_several_choices_with_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default", messages=HELLO, max_tokens=4, n=2, logprobs=True, top_logprobs=3
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.logprobs is not None and choice.logprobs.content
        assert {len(token.top_logprobs) for token in choice.logprobs.content} == {3}


class City(BaseModel):
    """Bounded, since a small model may go on with a name for ever."""

    name: str = Field(max_length=40)
    inhabitants: int = Field(ge=0, le=100_000_000)


@pytest.mark.proves("/v1/chat/completions", "response_format", backend="llamacpp")
def test_structured_output(client: openai.OpenAI) -> None:
    asked: list[Any] = [{"role": "user", "content": "Name a city and how many people live there."}]
    answer = client.chat.completions.parse(model="default", messages=asked, response_format=City, max_tokens=200)
    assert isinstance(answer.choices[0].message.parsed, City)


@pytest.mark.proves("/v1/responses", "input", "max_output_tokens", "stream", backend="llamacpp")
def test_a_response(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="default", input="Say hello.", max_output_tokens=16)
    assert answer.output_text.strip()
    assert answer.usage is not None and 0 < answer.usage.output_tokens <= 16
    with client.responses.stream(model="default", input="Say hello.", max_output_tokens=16) as stream:
        types = [event.type for event in stream]
    assert types[0] == "response.created"
    assert types.count("response.output_text.delta") > 1
    assert types[-1] in ("response.completed", "response.incomplete")


@pytest.mark.proves("/v1/responses", "previous_response_id", "instructions", backend="llamacpp")
def test_a_response_continues_another(client: openai.OpenAI) -> None:
    first = client.responses.create(model="default", input="My name is Ada.", max_output_tokens=8)
    alone, second = (
        client.responses.create(
            model="default",
            input="What is my name?",
            instructions="Be brief.",
            previous_response_id=previous,
            max_output_tokens=8,
        )
        for previous in (None, first.id)
    )
    assert alone.usage is not None and second.usage is not None
    assert second.usage.input_tokens > alone.usage.input_tokens + 8, "the first turn was not in the prompt"
    items = client.responses.input_items.list(second.id)
    assert "What is my name?" in items.to_json()


@pytest.mark.proves("/v1/images/generations", "prompt", "response_format", backend="mock")
def test_an_image_without_a_gpu(client: openai.OpenAI) -> None:
    answer = client.images.generate(model="default", prompt="A lighthouse", response_format="b64_json")
    assert answer.data is not None
    assert base64.b64decode(answer.data[0].b64_json or "").startswith(b"\x89PNG")


def cosine(one: list[float], other: list[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / (math.hypot(*one) * math.hypot(*other))


@pytest.mark.proves("/v1/embeddings", "input", backend="gateway_embed")
def test_related_sentences_score_higher(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model=EMBEDDER, input=[*RELATED, UNRELATED])
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert answer.usage.total_tokens > 0
    cat, kitten, bank = (item.embedding for item in answer.data)
    assert len(cat) == 384
    assert cosine(cat, kitten) > 0.5 > cosine(cat, bank)


@pytest.mark.proves("/v1/embeddings", "encoding_format", backend="gateway_embed")
def test_embeddings_as_floats_and_as_base64(client: openai.OpenAI) -> None:
    floats = client.embeddings.create(model=EMBEDDER, input=RELATED[0], encoding_format="float").data[0].embedding
    packed: Any = client.embeddings.create(model=EMBEDDER, input=RELATED[0], encoding_format="base64").data[0].embedding
    data = base64.b64decode(packed) if isinstance(packed, str) else struct.pack(f"<{len(packed)}f", *packed)
    assert list(struct.unpack(f"<{len(floats)}f", data)) == pytest.approx(floats, abs=1e-6)


def test_a_wrong_token_is_a_401(appliance: Appliance) -> None:
    with (
        replace(appliance, token="not-the-token-of-this-appliance").sdk() as stranger,
        pytest.raises(openai.AuthenticationError) as error,
    ):
        stranger.models.list()
    assert error.value.response.headers["www-authenticate"] == "Bearer"
    assert error.value.type == "authentication_error"
    assert appliance.token not in str(error.value)


REFUSED: list[tuple[dict[str, Any], int, str, str | None, str | None]] = [
    ({"model": "defualt"}, 404, "default", "model_not_found", "model"),  # with the nearest names
    ({"temperature": "warm"}, 400, "temperature", None, "temperature"),
    ({"messages": [{"content": "x"}]}, 400, "messages", None, "messages.0.role"),
    ({"model": EMBEDDER}, 400, "does not support chat", "capability_not_supported", "model"),
    ({"messages": [{"role": "user", "content": "x" * 1_100_000}]}, 413, "MAX_REQUEST_BYTES", "request_too_large", None),
]


@pytest.mark.parametrize(("body", "status", "words", "code", "param"), REFUSED)
def test_refusals_say_what_is_wrong(
    client: openai.OpenAI, body: dict[str, Any], status: int, words: str, code: str | None, param: str | None
) -> None:
    with pytest.raises(openai.APIStatusError, match=words) as error:
        client.chat.completions.create(**{"model": "default", "messages": HELLO, **body})
    assert (error.value.status_code, error.value.param) == (status, param)
    assert code is None or error.value.code == code


@pytest.mark.proves("/v1/embeddings", "model", backend="gateway_embed")
def test_default_is_the_embedder_where_texts_are_embedded(client: openai.OpenAI) -> None:
    named = client.embeddings.create(model=EMBEDDER, input=RELATED[0]).data[0].embedding
    default = client.embeddings.create(model="default", input=RELATED[0]).data[0].embedding
    assert default == pytest.approx(named, abs=1e-6)


async def in_parallel(appliance: Appliance) -> list[int]:
    """Tokens of four requests at once, streams and answers mixed: as many as the model takes at a time."""

    common: Any = {"model": "default", "messages": HELLO, "extra_body": {"ignore_eos": True}}

    async def answered(client: openai.AsyncOpenAI, tokens: int) -> int:
        answer = await client.chat.completions.create(**common, max_tokens=tokens)
        return answer.usage.completion_tokens if answer.usage else 0

    async def streamed(client: openai.AsyncOpenAI, tokens: int) -> int:
        stream = await client.chat.completions.create(
            **common, max_tokens=tokens, stream=True, stream_options={"include_usage": True}
        )
        return sum([chunk.usage.completion_tokens async for chunk in stream if chunk.usage])

    async with openai.AsyncOpenAI(base_url=appliance.url, api_key=appliance.token, max_retries=0) as client:
        return await asyncio.gather(*(ask(client, 5 + n) for n, ask in enumerate([answered, streamed] * 2)))


def test_requests_in_parallel_each_get_their_own_answer(appliance: Appliance) -> None:
    assert asyncio.run(in_parallel(appliance)) == [5, 6, 7, 8]
