"""What an alias caps reaches no backend above the cap, whatever it is called, and whatever the backend speaks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.in_process import CAPS, InProcess, Told, shared
from tests.support.sound import good

CAP, HOTTEST = CAPS["max_tokens_cap"], CAPS["temperature_cap"]
TOKENS = (
    *("max_tokens", "max_completion_tokens", "max_output_tokens", "max_tokens_to_sample", "n_predict", "num_predict"),
    *("max_new_tokens", "max_length", "min_tokens", "min_new_tokens", "min_length"),
)
TEMPERATURES = (
    *("temperature", "max_temp", "min_temp", "dynatemp_low", "dynatemp_high", "dynatemp_min", "dynatemp_max"),
    "dynatemp_range",
)
PLACES = ("", "options", "extra_body", "parameters", "sampling_params", "chat_template_kwargs")
MANY = (60, -1, 0, 2**63)
TOO_MUCH: dict[str, tuple[float, ...]] = {
    **dict.fromkeys(TOKENS, MANY),
    **dict.fromkeys(TEMPERATURES, (2, 1e308)),
    **dict.fromkeys(("n_predict", "num_predict"), (*MANY, 0.5, 1e308)),  # whose type no schema checks
}
NO_NUMBERS: tuple[Any, ...] = ("60", "x", True, [60], {})
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
    "/v1/responses": {"input": "hi", "store": False},
}
# What the API itself has another word for, or checks more closely.
OWN: dict[str, dict[str, tuple[float, ...]]] = {
    "/v1/messages": {"max_tokens": (60, 2**63)},
    "/v1/responses": dict.fromkeys(TOKENS[:3], (60, 2**63)),
}


class Table:
    """A gateway that all cases of a test share."""

    def __init__(self, runner: asyncio.Runner, gateway: InProcess) -> None:
        self._runner = runner
        self._gateway = gateway

    def post(self, path: str, fields: dict[str, Any]) -> tuple[Told, Any]:
        """The answer, and what reached the backend; None for nothing."""
        seen = self._gateway.double.seen
        seen.clear()
        told = self._runner.run(self._gateway.post(path, json.dumps(fields).encode()))
        assert not self._gateway.alarms.told
        return told, json.loads(seen[-1][1]) if seen else None


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    with shared(tmp_path_factory.mktemp("caps"), good) as (runner, gateway):
        yield Table(runner, gateway)


def above(content: Any, at: str = "") -> list[str]:
    """The fields that are above the caps, or mean that there is no end."""
    if not isinstance(content, dict):
        return []
    found = [f"{at}{name}" for name in TOKENS if name in content and not 1 <= content[name] <= CAP]
    found += [f"{at}{name}" for name in TEMPERATURES if name in content and not content[name] <= HOTTEST]
    return found + [place for name, inner in content.items() for place in above(inner, f"{at}{name}.")]


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("protocol", ["open", "llamacpp", "ollama"])
def test_a_cap_bounds_each_name_wherever_it_stands(table: Table, protocol: str, path: str) -> None:
    asked, own = {"model": f"{protocol}-capped", **ASKED[path]}, OWN.get(path, {})
    for name, values in TOO_MUCH.items():
        for place in PLACES:
            for value in own.get(name, values) if not place else values:
                fields = {name: value} if not place else {place: {name: value}}
                told, reached = table.post(path, asked | fields)
                assert told.status == 200, (fields, told.body)
                assert above(reached) == [], fields
                limits = reached["options"] if protocol == "ollama" else reached
                assert {"max_tokens", "num_predict"} & limits.keys() or fields.keys() == {"max_completion_tokens"}, (
                    fields
                )
                assert path != "/v1/completions" or {"max_tokens", "num_predict"} & limits.keys(), fields


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_what_is_no_number_cannot_be_bounded(table: Table, path: str) -> None:
    asked = {"model": "open-capped", **ASKED[path]}
    for name in (*TOKENS, *TEMPERATURES):
        for value in NO_NUMBERS:
            for place in PLACES:
                told, reached = table.post(path, asked | ({name: value} if not place else {place: {name: value}}))
                assert (told.status, reached) == (400, None), (place, name, value)
                assert json.loads(told.body)["error"]["param"] == (f"{place}.{name}" if place else name)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"N_Predict": 60}, "N_Predict"),  # servers in Go take it in any case
        ({"Options": {"num_predict": 60}}, "Options"),
        ({"options": {"Num_Predict": 60}}, "options.Num_Predict"),
        ({"extra_body": {"extra_body": {"n_predict": 60}}}, "extra_body.extra_body"),
        ({"additional_drop_params": ["max_tokens"]}, "additional_drop_params"),
        ({"fallbacks": [{"model": "m", "max_tokens": 60}]}, "fallbacks"),
        ({"extra_body": {"preset": "hot"}}, "extra_body.preset"),
        ({"auto_max_new_tokens": True}, "auto_max_new_tokens"),
        ({"samplers": []}, "samplers"),
    ],
)
def test_what_would_undo_a_cap_is_refused(table: Table, fields: dict[str, Any], param: str) -> None:
    told, reached = table.post("/v1/completions", {"model": "open-capped", "prompt": "hi", **fields})
    assert (told.status, reached) == (400, None)
    assert json.loads(told.body)["error"]["param"] == param


@pytest.mark.parametrize(
    ("fields", "reached"),
    [
        ({}, {"max_tokens": 5}),
        ({"max_completion_tokens": 3}, {"max_completion_tokens": 3}),
        ({"n_predict": 3}, {"n_predict": 3, "max_tokens": 3}),
        ({"n_predict": None, "temperature": None}, {"n_predict": None, "temperature": None, "max_tokens": 5}),
        ({"extra_body": {"max_tokens": 2}}, {"extra_body": {"max_tokens": 2}, "max_tokens": 2}),
        ({"min_tokens": 2, "temperature": 0.5}, {"min_tokens": 2, "temperature": 0.5, "max_tokens": 5}),
        ({"temperature": 0.25, "dynatemp_range": 2}, {"temperature": 0.25, "dynatemp_range": 0.25, "max_tokens": 5}),
        ({"dynatemp_range": 0.1}, {"dynatemp_range": 0, "max_tokens": 5}),
    ],
)
def test_what_is_within_the_caps_goes_on(table: Table, fields: dict[str, Any], reached: dict[str, Any]) -> None:
    asked = {"model": "open-capped", **ASKED["/v1/chat/completions"]}
    told, got = table.post("/v1/chat/completions", asked | fields)
    assert told.status == 200
    assert got == {**asked, "model": "m", **reached}


def test_ollamas_own_option_below_the_cap_is_kept(table: Table) -> None:
    asked = {"model": "ollama-capped", **ASKED["/v1/chat/completions"], "options": {"num_predict": 2, "num_ctx": 9}}
    _, got = table.post("/v1/chat/completions", asked)
    assert got["options"] == {"num_predict": 2, "num_ctx": 9}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["tools", "functions", "Tools"])
def test_an_alias_without_tools_takes_them_under_no_name(table: Table, name: str, place: str) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    fields = {name: tools} if not place else {place: {name: tools}}
    told, reached = table.post("/v1/chat/completions", {"model": "no-tools", **ASKED["/v1/chat/completions"], **fields})
    assert (told.status, reached) == (400, None)
    param = json.loads(told.body)["error"]["param"]
    assert param.casefold() == (f"{place}.{name}" if place else name).casefold()


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank"])
def test_caps_are_for_answers_that_are_made(table: Table, path: str) -> None:
    """An embedding has no length that could be capped, and its backend gets no field that it does not know."""
    asked = {"input": "x"} if path == "/v1/embeddings" else {"query": "q", "documents": ["d"]}
    told, reached = table.post(path, {"model": "ollama-capped", **asked, "temperature": "x"})
    assert told.status == 200
    assert "max_tokens" not in reached
