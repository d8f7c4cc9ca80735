"""Anthropic's Python SDK, unmodified, against the provisioned appliance and its real model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.clients.appliance import Appliance

ROUTE = "/v1/messages"
HELLO: list[Any] = [{"role": "user", "content": "Say hello to the world."}]
SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Bern", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture
def claude(appliance: Appliance) -> Iterator[anthropic.Anthropic]:
    """The SDK as users set it up: the appliance's address, its token as the key."""
    url = appliance.url.removesuffix("/v1")
    with anthropic.Anthropic(base_url=url, api_key=appliance.token, max_retries=0, timeout=60) as client:
        yield client


@pytest.mark.proves(ROUTE, "model", "messages", "max_tokens", "system", backend="llamacpp")
def test_a_message(claude: anthropic.Anthropic) -> None:
    raw = claude.messages.with_raw_response.create(
        model="default", max_tokens=16, messages=HELLO, system=[{"type": "text", "text": "You are friendly."}]
    )
    message = raw.parse()
    (block,) = message.content
    assert block.type == "text"
    assert block.text.strip()
    assert message.stop_reason in ("end_turn", "max_tokens")
    assert message.model == "smollm2-135m-instruct"
    assert 0 < message.usage.output_tokens <= 16
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) > 10
    assert raw.headers["x-backend-used"] == "llamacpp"
    assert raw.headers["x-router-reason"] == "alias:model"


@pytest.mark.proves(ROUTE, "max_tokens", backend="llamacpp")
def test_the_limit_of_tokens_is_the_reason_to_stop(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(model="default", max_tokens=3, messages=HELLO, extra_body={"ignore_eos": True})
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 3)


@pytest.mark.proves(ROUTE, "stream", backend="llamacpp")
def test_a_stream(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(model="default", max_tokens=24, messages=HELLO) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert len(pieces) > 1
    assert message.content[0].type == "text"
    assert message.content[0].text == "".join(pieces)
    assert message.stop_reason in ("end_turn", "max_tokens")
    assert 0 < message.usage.output_tokens <= 24
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) > 10


@pytest.mark.proves(ROUTE, "temperature", "top_k", "top_p", backend="llamacpp")
def test_parameters_reach_the_model(claude: anthropic.Anthropic) -> None:
    def ask(**fields: Any) -> str:
        message = claude.messages.create(model="default", max_tokens=16, messages=HELLO, extra_body=fields)
        return "".join(block.text for block in message.content if block.type == "text")

    greedy = ask(temperature=0)
    assert ask(temperature=2, top_k=1, seed=5) == greedy
    assert len({ask(temperature=2, top_p=1, seed=seed) for seed in range(4)}) > 1


@pytest.mark.proves(ROUTE, "stop_sequences", backend="llamacpp")
def test_a_stop_sequence_ends_the_answer(claude: anthropic.Anthropic) -> None:
    def text(*stop: str) -> str:
        message = claude.messages.create(
            model="default", max_tokens=24, messages=HELLO, stop_sequences=stop, extra_body={"temperature": 0}
        )
        return "".join(block.text for block in message.content if block.type == "text")

    whole = text()
    stop = whole[len(whole) // 2 :][:4]
    assert text(stop) == whole[: whole.index(stop)]


@pytest.mark.proves(ROUTE, "output_config.format", backend="llamacpp")
def test_a_schema_of_the_answer_is_kept_to(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(
        model="default",
        max_tokens=32,
        messages=[{"role": "user", "content": "Name a city."}],
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
        extra_body={"temperature": 0},
    )
    assert message.content[0].type == "text"
    assert message.content[0].text.replace(" ", "").replace("\n", "") in ('{"city":"Bern"}', '{"city":"Oslo"}')


def test_an_answer_goes_on_from_the_words_it_was_given(claude: anthropic.Anthropic) -> None:
    history = [*HELLO, {"role": "assistant", "content": "Hello, wo"}]
    common: Any = {"model": "default", "max_tokens": 8, "messages": history, "extra_body": {"temperature": 0}}
    with claude.messages.stream(**common) as stream:
        streamed = stream.get_final_message().content
    whole = claude.messages.create(**common).content
    assert [block.to_dict() for block in whole] == [block.to_dict() for block in streamed]
    assert not any(block.text.startswith("Hello, wo") for block in whole if block.type == "text")


@pytest.mark.proves("/v1/messages/count_tokens", "model", "messages", "system", backend="llamacpp")
def test_a_count_of_tokens_is_what_the_answer_tells_of_its_prompt(claude: anthropic.Anthropic) -> None:
    conversation: Any = {"model": "default", "messages": HELLO, "system": "You are friendly."}
    usage = claude.messages.create(**conversation, max_tokens=1).usage
    counted = claude.messages.count_tokens(**conversation).input_tokens
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_failures_are_the_sdks_own_exceptions(claude: anthropic.Anthropic, appliance: Appliance) -> None:
    with pytest.raises(anthropic.NotFoundError, match="default") as missing:
        claude.messages.create(model="defualt", max_tokens=4, messages=HELLO)
    assert missing.value.type == "not_found_error"
    assert missing.value.request_id
    with pytest.raises(anthropic.BadRequestError, match="does not support chat"):
        claude.messages.create(model="all-minilm-l6-v2", max_tokens=4, messages=HELLO)
    with pytest.raises(anthropic.BadRequestError, match="document"):
        document: Any = {"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}}
        claude.messages.create(model="default", max_tokens=4, messages=[{"role": "user", "content": [document]}])
    with pytest.raises(anthropic.ContentTooLargeError, match="MAX_REQUEST_BYTES"):
        claude.messages.create(model="default", max_tokens=4, messages=[{"role": "user", "content": "x" * 1_100_000}])
    url = appliance.url.removesuffix("/v1")
    with (
        anthropic.Anthropic(base_url=url, api_key="not-the-token-of-this-appliance", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError) as error,
    ):
        stranger.messages.create(model="default", max_tokens=4, messages=HELLO)
    assert appliance.token not in str(error.value)
