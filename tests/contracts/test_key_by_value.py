"""Every key that the gateway looks at, with every kind of value: in requests, and in the answers of backends.

A known field that is wrong is a 400 that names it; an answer that is wrong is a 502. Never a 500, a hang, a slot lost.
"""

from __future__ import annotations

import ast
import base64
import copy
import json
import random
from collections.abc import Callable, Coroutine, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import gateway
import httpx
import pytest
from gateway.backends.health import Prober
from gateway.backends.protocols import comfyui, invokeai

from tests.support.faces.images import png
from tests.support.in_process import InProcess, Told, shared
from tests.support.sampling import SEED, cases
from tests.support.sound import ANSWERS, CALL, PICTURE, PROBLEM, Json, Sound, dump, good, name_of, sound
from tests.support.waiting import PATIENCE_SEC

T = TypeVar("T")
Place = tuple[int | str, ...]
Case = Callable[[random.Random], Coroutine[Any, Any, tuple[str, Json]]]  # what is wrong, and what was asked
ABSENT: Any = object()
PACKAGE = Path(gateway.__file__).parent


def looked_at(*patterns: str) -> list[str]:
    """What may be a key in the package's modules, and the fields of its TypedDicts; the tests keep up with it."""
    found: set[str] = set()
    for pattern in patterns:
        paths = [*PACKAGE.glob(pattern)]
        assert paths, pattern
        for node in (node for path in paths for node in ast.walk(ast.parse(path.read_text()))):
            match node:
                case ast.Constant(value=str(name)) | ast.AnnAssign(target=ast.Name(id=name)):
                    found.add(name)
    return sorted(name for name in found if name.removesuffix("[]").isidentifier() and name[0] != "_")


KEYS = looked_at("api/*.py", "dialects/**/*.py", "features/**/*.py", "backends/**/*.py", "routing/*.py")
# Those of what several routes share: to be tried with each of them.
SHARED = looked_at(
    "backends/call.py", "backends/[tu]*.py", "backends/protocols/ollama/*.py", "routing/body.py", "routing/caps.py"
)
LONG = "lorem ipsum " * 500
DEEP: Json = []
for _ in range(60):
    DEEP = [DEEP]
VALUES: list[Json] = [
    ABSENT, None, True, False, 0, 1, -1, 5, 60, 2**31, 2**53, 2**63, -(2**64), 10**400, 0.5, -0.5, 1e308, float("nan"),
    "", "x", " ", "60", "-1", "auto", "none", "required", "text", "message", "function", "low", "\0", "é🌍", "\ud800",
    LONG, [], [None], [[]], [{}], ["x"], [1], [1e308], [True], [{"type": "function"}], DEEP,
    {}, {"type": 5}, {"type": "text"}, {"type": "function"}, {"type": ["x"]}, {"x": None}, {"": {}}, {"name": []},
    {"text": 5}, {"url": 5}, {"function": {"name": "f"}},
]  # fmt: skip

FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}, "strict": None}
TOOL = {"type": "function", "function": FUNCTION}
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}", "detail": "auto"}}
SAMPLING = {
    "stream_options": {"include_usage": True},
    "temperature": 0.1,
    "max_tokens": 3,
    "n": 1,
    "stop": ["a"],
    "seed": 1,
    "options": {"num_predict": 3, "temperature": 0.1, "stop": ["a"]},
    "extra_body": {"n_predict": 3},
    "n_predict": 3,
    "logprobs": None,
    "user": "u",
    "think": None,
}
CHAT = {
    **SAMPLING,
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}, IMAGE], "name": "n"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "r"},
        {"role": "tool", "tool_call_id": "c1", "content": "18"},
        {"role": "user", "content": "hi"},
    ],
    "max_completion_tokens": 3,
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": True,
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
    "top_logprobs": None,
    "reasoning_effort": "low",
}
MESSAGES = {
    "max_tokens": 2000,
    "n_predict": 3,
    "system": [{"type": "text", "text": "s", "cache_control": None}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "hi"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": ""},
                {"type": "text", "text": "x"},
                {"type": "tool_use", "id": "c1", "name": "f", "input": {}, "caller": {"type": "direct"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "c1",
                    "is_error": False,
                    "content": [{"type": "text", "text": "18"}],
                }
            ],
        },
    ],
    "tools": [{"name": "f", "type": "custom", "input_schema": {"type": "object"}, "allowed_callers": ["direct"]}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "summarized"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}},
    "metadata": {"user_id": "u"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "service_tier": "auto",
    "stop_sequences": ["a"],
    "temperature": 0.1,
    "top_k": 1,
}
RESPONSES = {
    "input": [
        {"type": "message", "role": "developer", "content": "d"},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "hi"},
                {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "auto", "file_id": None},
                {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
            ],
        },
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "t"}], "content": None},
        {"type": "function_call", "id": "fc", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "18"}]},
        {"role": "assistant", "content": "x", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "18"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "x"}, {"type": "refusal", "refusal": "n"}]},
    ],
    "instructions": "i",
    "store": False,
    "stream_options": None,
    "previous_response_id": None,
    "tools": [{"type": "function", **FUNCTION}, TOOL],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    "max_output_tokens": 3,
    "max_tokens": 3,
    "n_predict": 3,
    "temperature": 0.1,
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}},
    "reasoning": {"effort": "low", "summary": "auto", "context": None, "mode": None},
    "metadata": {"a": "b"},
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 1,
    "truncation": "disabled",
}
IMAGES = {
    "prompt": "p",
    "n": 1,
    "size": "64x64",
    "seed": 7,
    "steps": 1,
    "guidance_scale": 1,
    "negative_prompt": "n",
    "scheduler": "normal",
    "response_format": "b64_json",
    "output_format": "png",
    "quality": "auto",
    "background": "auto",
    "moderation": "auto",
}
STREAMS = {"stream": True, "stream_options": {"include_usage": True}}
CHATTING = tuple(f"{name}-{kind}" for name in ("open", "llamacpp", "ollama") for kind in ("plain", "capped"))
EMBEDDING = ("embedder-plain", "embedder-capped", "ollama-plain", "ollama-capped")


class Target(NamedTuple):
    """Where a good request goes; one of `models` is its model, `backend` goes as `X-Backend`."""

    path: str
    body: dict[str, Json]
    models: tuple[str, ...] = ("",)
    backends: tuple[str, ...] = ("",)
    is_form: bool = False


class Request(NamedTuple):
    target: Target
    body: dict[str, Json]
    backend: str


AS_URL = {"image_url": f"data:image/png;base64,{base64.b64encode(png(64, 64)).decode()}"}
REQUESTS = (
    Target("/v1/chat/completions", CHAT, (*CHATTING, "", "auto")),
    Target("/v1/chat/completions", {"messages": CHAT["messages"]}, ("no-tools",)),
    Target("/v1/chat/completions", {**CHAT, **STREAMS}, (*CHATTING, "")),
    Target("/v1/completions", {**SAMPLING, "prompt": ["x"], "echo": None, "suffix": "s"}, (*CHATTING, "")),
    Target("/v1/completions", {**SAMPLING, "prompt": "x", **STREAMS}, (*CHATTING, "")),
    Target("/v1/embeddings", {"input": ["x"], "encoding_format": "float", "dimensions": 2, "user": "u"}, EMBEDDING),
    Target("/v1/messages", MESSAGES, CHATTING),
    Target("/v1/messages", {**MESSAGES, "stream": True}, CHATTING),
    Target("/v1/messages/count_tokens", MESSAGES, (*CHATTING, "auto")),
    Target("/v1/responses", RESPONSES, (*CHATTING, "")),
    Target("/v1/responses", {**RESPONSES, "stream": True}, CHATTING),
    Target("/v1/responses/input_tokens", RESPONSES, CHATTING),
    Target("/v1/responses/compact", RESPONSES, CHATTING),
    Target(
        "/v1/rerank",
        {"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1, "return_documents": True, "rank_fields": None},
        (*CHATTING, *EMBEDDING[:2], ""),
    ),
    Target("/v1/rerank", {"query": "q", "documents": ["a"]}, backends=("nexa",)),
    Target("/v2/rerank", {"query": "q", "documents": ["a"]}, EMBEDDING[:2]),
    Target("/rerank", {"query": "q", "documents": ["a"]}, EMBEDDING[:2]),
    Target("/v1/images/generations", IMAGES, backends=("open", "a1111", "comfyui", "invokeai")),
    Target("/v1/images/generations", {"prompt": "p", "n": 1, "size": "64x64"}, backends=("nexa",)),
    Target("/v1/images/edits", IMAGES, backends=("open", "a1111", "comfyui", "invokeai"), is_form=True),
    Target("/v1/images/edits", {**IMAGES, "images": [AS_URL], "mask": AS_URL}, backends=("open", "a1111", "comfyui")),
    Target("/v1/audio/speech", {"input": "hi", "voice": "v", "response_format": "wav", "speed": 1, "text": None}),
    Target("/v1/tts/generations", {"text": "hi", "format": "wav", "stream_format": "sse"}),
    Target("/v1/audio/transcriptions", {"response_format": "json", "language": "en", "stream": "false"}, is_form=True),
    Target("/v1/audio/translations", {"response_format": "text", "prompt": "p", "temperature": "0"}, is_form=True),
    Target("/v1/music/generations", {"prompt": "p", "tags": ["a"], "duration": 1, "lyrics": "l", "input": None}),
)


def places(content: Json, at: Place = ()) -> Iterator[Place]:
    """Where something stands in a JSON value, but for the whole."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from places(value, (*at, key))


def put(content: Json, at: Place, value: Json) -> None:
    """Sets what stands there, where the way there still is."""
    *way, last = at
    try:
        for step in way:
            content = content[step]
        if value is ABSENT:
            del content[last]
        elif isinstance(content, dict) or last != "":
            content[last] = copy.deepcopy(value)
    except (KeyError, IndexError, TypeError):
        pass


def mutated(content: Json, chance: random.Random) -> tuple[Json, list[tuple[Place, str]]]:
    """Another content with one or two of its values changed, and what was changed."""
    content = copy.deepcopy(content)
    changes = []
    for _ in range(chance.choice((1, 1, 2))):
        at = some_place(content, chance)
        if not at:
            return chance.choice(VALUES[1:]), [((), "the whole")]
        value = chance.choice(VALUES)
        put(content, at, value)
        changes.append((at, "absent" if value is ABSENT else repr(value)[:80]))
    return content, changes


def some_place(content: Json, chance: random.Random) -> Place:
    """One that there is, of all or nearer to the top; or a key that may not be there."""
    known = list(places(content))
    how = chance.random()
    if isinstance(content, dict) and (not known or how < 0.3):
        objects = [place for place in known if isinstance(at_place(content, place), dict)]
        where = chance.choice(objects or [()])
        return (chance.choice(SHARED),) if how < 0.15 else (*where, chance.choice(KEYS))
    if how < 0.6:
        return chance.choice(known) if known else ()
    at: Place = ()
    while isinstance(content, dict | list) and content and (not at or chance.random() < 0.5):
        key = chance.choice(list(content) if isinstance(content, dict) else range(len(content)))
        at, content = (*at, key), content[key]
    return at


def at_place(content: Json, at: Place) -> Json:
    for step in at:
        content = content[step]
    return content


async def post(gateway: InProcess, target: Target, content: Json, backend: str) -> Told:
    headers = [(b"x-backend", backend.encode())] if backend else []
    if not target.is_form:
        return await gateway.post(target.path, dump(content), headers)
    texts = {name: value if isinstance(value, str) else dump(value).decode() for name, value in content.items()}
    fields: Any = {name: text.encode("utf-8", "replace") for name, text in texts.items()}
    files = {"image" if "images" in target.path else "file": png(64, 64)}
    form = httpx.Request("POST", "http://x", data=fields, files=files)
    headers.append((b"content-type", form.headers["content-type"].encode()))
    return await gateway.post(target.path, form.read(), headers)


def problem(gateway: InProcess, told: Told) -> str:
    """What is wrong with an answer, "" where nothing is."""
    said = told.body[:300].decode("utf-8", "replace")
    if gateway.alarms.told:
        said += "\n" + gateway.alarms.told.pop()
        gateway.alarms.told.clear()
        return said
    if not told.status or told.status == 500 or b':"internal_error"}' in told.body:
        return f"status {told.status}: {said}"
    if not told.is_complete and not told.is_cut:
        return f"no end: {said}"
    if taken := gateway.settle():
        return f"{taken} slots taken"
    return ""


async def bases(gateway: InProcess) -> list[list[Request]]:
    """By target: good requests, each also with all fields of other routes that it takes without a word."""
    everything: dict[str, Json] = {}
    for target in REQUESTS:
        everything = {**target.body, **everything}
    found: list[list[Request]] = []
    for target in REQUESTS:
        taken: dict[str, dict[str, Json]] = {}
        found.append([])
        for model, backend in product(target.models, target.backends):
            found[-1].append(Request(target, {**target.body, "model": model}, backend))
            kind = backend or model.partition("-")[0]
            if kind not in taken and not target.is_form:
                taken[kind] = found[-1][-1].body
                for name, value in {**everything, **STREAMS}.items():
                    more = {name: value, **taken[kind]}
                    if len(more) > len(taken[kind]) and (await post(gateway, target, more, backend)).status == 200:
                        taken[kind] = more
            found[-1].append(Request(target, {**taken.get(kind, {}), **target.body, "model": model}, backend))
    gateway.settle()
    return found


async def requests_tried(gateway: InProcess) -> Case:
    good_ones = await bases(gateway)

    async def case(chance: random.Random) -> tuple[str, Json]:
        target, body, backend = chance.choice(chance.choice(good_ones))
        content, changes = mutated(body, chance)
        if target.is_form and not isinstance(content, dict):
            return "", None
        told = await post(gateway, target, content, backend)
        wrong = problem(gateway, told)
        if not wrong and told.status == 400 and not names_a_field(told):
            wrong = f"no field is named: {told.body[:300]!r}"
        return wrong, (target.path, body["model"], backend, changes)

    return case


def names_a_field(told: Told) -> bool:
    error = json.loads(told.body)["error"]
    if "param" not in error:  # Anthropic's: the message begins with it
        return True
    return error["param"] is not None or error["code"] in ("invalid_json", "invalid_multipart")


async def asked_for(gateway: InProcess) -> dict[str, list[tuple[Target, str, str]]]:
    """By the name of a backend's answer: the good requests that need it."""
    found: dict[str, list[tuple[Target, str, str]]] = {}
    for target in REQUESTS:
        for model, backend in product(target.models, target.backends):
            gateway.double.seen.clear()
            await post(gateway, target, {**target.body, "model": model}, backend)
            for name in {name_of(path) for path, _ in gateway.double.seen}:
                found.setdefault(name, []).append((target, model, backend))
    return dict(sorted(found.items()))


class Wrong:
    """Answers of which those with these names are wrong; `changes` tell how."""

    def __init__(self, chance: random.Random, *names: str) -> None:
        self.changes: list[Json] = []
        self._chance = chance
        self._names = names

    def __call__(self, method: str, path: str, body: bytes) -> bytes:
        kind, content = sound(path, body)
        if self._names and name_of(path) not in self._names:
            return good(method, path, body)
        status = 200
        if self._names and self._chance.random() < 0.1:
            kind, content, status = "json", PROBLEM, self._chance.choice((201, 400, 404, 422, 429, 500, 503))
        content, changed = mutated(content, self._chance)
        self.changes.append((path, status, changed))
        return Sound(kind, content).http(status)


async def answers_tried(gateway: InProcess) -> Case:
    asked = await asked_for(gateway)

    async def case(chance: random.Random) -> tuple[str, Json]:
        name = chance.choice(list(asked))
        target, model, backend = chance.choice(asked[name])
        # The second one is asked for, if at all, because the first is wrong.
        gateway.double.answer = wrong = Wrong(chance, name, chance.choice(list(ANSWERS)))
        told = await post(gateway, target, {**target.body, "model": model}, backend)
        return problem(gateway, told), (target.path, model, backend, wrong.changes)

    return case


async def probes_tried(gateway: InProcess) -> Case:
    """What a backend tells of itself: it is ready or it is not, and the gateway goes on either way."""
    prober = Prober(gateway.app.registry, 60, PATIENCE_SEC)

    async def case(chance: random.Random) -> tuple[str, Json]:
        gateway.double.answer = wrong = Wrong(chance)
        try:
            await prober._probe(chance.choice(gateway.app.registry.backends))
        except Exception as error:
            return repr(error), wrong.changes
        return "", None

    return case


def run(home: Path, test: Callable[[InProcess], Coroutine[Any, Any, T]], **settings: Any) -> T:
    with shared(home, good, **settings) as (runner, gateway):
        return runner.run(test(gateway))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (invokeai, comfyui):
        monkeypatch.setattr(module, "POLL_SEC", 0.001)


# What was a 500 once, with the field that is wrong.
ONCE: list[tuple[str, dict[str, Json], str]] = [
    ("/v1/messages", {"model": "open-capped", "max_completion_tokens": "x"}, "max_completion_tokens"),
    ("/v1/rerank", {"model": "embedder-plain", "stream": True, "stream_options": "x"}, "stream"),
    ("/v1/messages/count_tokens", {"model": "open-plain", "metadata": "x"}, "metadata"),
    ("/v1/messages/count_tokens", {"model": "open-plain", "service_tier": []}, "service_tier"),
    ("/v1/messages/count_tokens", {"model": "open-plain", "max_tokens": "x"}, "max_tokens"),
    ("/v1/messages", {"model": "open-plain", "context_management": {"edits": 5}}, "context_management.edits"),
]
# Fields that a route does not know go on as they came, though another route knows them.
FOREIGN: list[tuple[str, dict[str, Json]]] = [
    ("/v1/completions", {"model": "", "prompt": "x", "messages": "abc"}),
    ("/v1/completions", {"model": "llamacpp-plain", "prompt": "x", "tool_choice": {}, "tools": ["a"]}),
    ("/v1/embeddings", {"model": "open-capped", "input": "x", "temperature": "x", "max_completion_tokens": "x"}),
    ("/v1/rerank", {"model": "ollama-capped", "query": "q", "documents": ["d"], "temperature": "x", "n_predict": "x"}),
]


def test_what_once_was_a_500_names_its_field(tmp_path: Path) -> None:
    bodies = {target.path: target.body for target in REQUESTS}

    async def ask(gateway: InProcess) -> list[tuple[int, bool]]:
        answers = [await gateway.post(path, dump({**bodies[path], **fields})) for path, fields, _ in ONCE]
        told = [
            (answer.status, param.encode() in answer.body) for answer, (*_, param) in zip(answers, ONCE, strict=True)
        ]
        return told + [((await gateway.post(path, dump(body))).status, True) for path, body in FOREIGN]

    assert run(tmp_path, ask) == [(400, True)] * len(ONCE) + [(200, True)] * len(FOREIGN)


def test_each_route_and_each_answer_is_tried(tmp_path: Path) -> None:
    async def look(gateway: InProcess) -> tuple[set[str], set[str]]:
        return {endpoint.path for endpoint, _ in gateway.app.endpoints}, set(await asked_for(gateway))

    paths, names = run(tmp_path, look)
    assert {target.path for target in REQUESTS} == paths
    # These are asked for by a prober, or when something has gone wrong.
    others = {"/models", "/api/tags", "/api/ps", "/queue", "/interrupt", "/internal/progress", "/cancel_by_batch_ids"}
    assert set(ANSWERS) - names == others


@pytest.mark.parametrize(
    ("tried", "count", "full", "settings"),
    [
        (requests_tried, 2_000, 80_000, {}),
        (answers_tried, 2_000, 80_000, {"images_http_timeout_sec": 0.05}),
        (probes_tried, 200, 8_000, {}),
    ],
)
def test_each_key_with_each_value(tmp_path: Path, tried: Any, count: int, full: int, settings: dict[str, Any]) -> None:
    print(f"TEST_SEED={SEED}")

    async def test(gateway: InProcess) -> list[str]:
        case, found = await tried(gateway), []
        for number in range(cases(count, full=full)):
            wrong, what = await case(random.Random(f"{SEED} {number}"))  # noqa: S311 - repeatable, not secret
            if wrong:
                found.append(f"case {number}: {what}: {wrong}")
        return found

    found = run(tmp_path, test, **settings)
    assert not found, f"{len(found)}:\n" + "\n".join(found[:30])
