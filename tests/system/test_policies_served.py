"""Token policies as clients meet them, at a real gateway."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import apsw
import httpx
import pytest

from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.upstream import Upstream
from tests.support.waiting import PATIENCE_SEC, until

SHOWN = sha256(TOKEN.encode()).hexdigest()[:8]
USED_A_CHAT, USED_A_STREAM = 2, 8  # tokens, as the test's backend says
PAIR = (
    "test-token-of-a-pair-71532",
    "test-token-of-a-pair-103403",
)  # found by trying 100,000: their hashes begin alike
PAIR_SHOWN = "725e7dd4"
SINGLE = "single-token-0123456789"  # what the list of tokens replaces
HI = [{"role": "user", "content": "Hi"}]
MESSAGES = f'"messages":{json.dumps(HI)}'
WHOLE_STATUS = {"requests_per_minute": 10, "tokens_per_day": 500, "priority": 3, "models_allowlist": "fast,hang"}
POLICIES: Mapping[str, Mapping[str, Any]] = {
    "bound": {"models_allowlist": ["fast"]},
    "minute": {"requests_per_minute": 3},
    "small": {"max_request_bytes": 200},
    "large": {"max_request_bytes": 5000},
    "told": WHOLE_STATUS,
    "admin": {"requests_per_minute": 4, "admin": True},
}


def token(name: str) -> str:
    return f"{name}-token-0123456789abcdefgh"


@contextmanager
def guarded(
    home: Path, backend: Upstream, policies: Mapping[str, Mapping[str, Any]], *others: str, **settings: str
) -> Iterator[Gateway]:
    """A gateway that knows clients by the names of their policies, and TOKEN and others, who have no name."""
    write_files(home, backend.url)
    named = {
        f"sha256:{sha256(token(name).encode()).hexdigest()}": {"name": name, **policies[name]} for name in policies
    }
    named |= {other: {"requests_per_minute": 3} for other in others}
    tokens = ",".join([TOKEN, *map(token, policies), *others])
    settings |= {"GATEWAY_BEARER_TOKENS": tokens, "GATEWAY_TOKEN_POLICIES_JSON": json.dumps(named)}
    with gateway(home, None, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def policed(tmp_path_factory: pytest.TempPathFactory, backend: Upstream) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("policed")
    with guarded(home, backend, POLICIES, *PAIR, MAX_REQUEST_BYTES="1000", GATEWAY_BEARER_TOKEN=SINGLE) as running:
        yield running


@contextmanager
def client(running: Gateway, bearer: str, *, address: str = "127.0.0.1") -> Iterator[httpx.Client]:
    """A client that comes from `address`; no token when it is empty."""
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    transport = httpx.HTTPTransport(local_address=address)
    url = f"http://127.0.0.1:{running.port}"
    with httpx.Client(base_url=url, transport=transport, headers=headers, timeout=PATIENCE_SEC) as made:
        yield made


def chat(asking: httpx.Client, model: str = "fast", content: str = "Hi", **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": content}], **fields}
    return asking.post("/v1/chat/completions", json=body)


def error(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_models_of_a_token(policed: Gateway, seen: Upstream) -> None:
    refused = (403, "model_not_allowed")
    with client(policed, token("bound")) as bot:
        assert chat(bot).status_code == 200
        for model in ("echo", "test:echo", "test:fast", "test", "auto"):
            assert error(chat(bot, model)) == refused, model
        assert error(chat(bot, "hang", stream=True)) == refused
        assert error(bot.post("/v1/embeddings", json={"model": "echo", "input": "x"})) == refused
        for path in ("/v1/completions", "/v1/images/generations"):  # the placeholder draws the image
            assert error(bot.post(path, json={"model": "echo", "prompt": "x"})) == refused, path
        bot.headers["X-Backend"] = "test"
        assert error(chat(bot, "hang")) == refused
        assert chat(bot).json()["model"] == "echo"
        assert policed.chat("echo").status_code == 200
        assert {request.json["model"] for request in seen.seen} == {"echo"}


@pytest.mark.parametrize(
    "field", ['"fallbacks":["echo"]', '"models":["echo"]', '"extra_body":{"model":"echo"}', '"Fallbacks":["x"]']
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/rerank"])
def test_no_field_sends_a_bound_token_to_another_model(policed: Gateway, seen: Upstream, field: str, path: str) -> None:
    body = f'{{"model":"fast",{MESSAGES},"query":"x","documents":["x"],{field}}}'
    with client(policed, token("bound")) as bot:
        answer = bot.post(path, content=body)
    assert error(answer) == (403, "model_not_allowed"), answer.text
    assert answer.json()["error"]["param"].rpartition(".")[2] in field
    assert not seen.seen


def test_unknown_models_tell_a_token_of_its_own_alone(policed: Gateway) -> None:
    asked = {"model": "hand-mid", "input": "x"}
    with client(policed, token("bound")) as bot:
        answers = [chat(bot, "hand-mid"), bot.post("/v1/embeddings", json=asked), bot.get("/v1/models/hand-mid")]
    for answer in answers:
        assert error(answer) == (404, "model_not_found")
        assert "such as fast" in answer.text
        assert "hang" not in answer.text
    assert "did you mean hang-mid" in policed.chat("hand-mid").text


def test_requests_a_minute(policed: Gateway) -> None:
    with client(policed, token("minute")) as bot:
        answers = [bot.get("/v1/models"), chat(bot), chat(bot, stream=True), chat(bot), bot.get("/v1/models")]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        left = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
        assert left == ["2", "1", "0", "0", "0"]
        assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"3"}
        assert error(answers[3]) == (429, "rate_limit_exceeded")
        assert 1 <= int(answers[3].headers["retry-after"]) <= 61
        assert bot.get("/health").status_code == 200
    # Others are not held up, and see nothing of it.
    free = policed.chat("fast")
    assert free.status_code == 200
    assert not [name for name in free.headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize(
    ("bearer", "size", "is_taken"),
    [
        (token("small"), 50, True),
        (token("small"), 300, False),
        (TOKEN, 300, True),
        (TOKEN, 3000, False),
        (token("large"), 3000, True),
        (token("large"), 6000, False),
    ],
)
def test_bodies_may_be_smaller_and_larger_than_the_setting(
    policed: Gateway, bearer: str, size: int, is_taken: bool
) -> None:
    with client(policed, bearer) as asking:
        answer = chat(asking, content="x" * size)
    assert answer.status_code == 200 if is_taken else error(answer) == (413, "request_too_large")
    assert is_taken or ("policy" in answer.text) == (bearer != TOKEN)


def test_limits_outlive_a_restart_and_a_kill(tmp_path: Path, backend: Upstream) -> None:
    """What the files hold a second after a request is what a killed process leaves."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    day = {"tokens_per_day": 2 * USED_A_CHAT - 1, "tools_allow_shell": True}
    policies = {"minute": {"requests_per_minute": 3}, "day": day}
    with (
        guarded(before, backend, policies) as running,
        client(running, token("minute")) as minute,
        client(running, token("day")) as bot,
    ):
        assert [chat(minute).status_code for _ in range(2)] == [200, 200]
        assert chat(bot).headers["x-ratelimit-remaining-tokens"] == "3"
        status = bot.get("/v1/gateway/status").json()
        assert status["token"]["tokens_today"] == USED_A_CHAT
        assert status["token"]["unenforced_policy_keys"] == ["tools_allow_shell"]
        assert status["problems"] == {}
        assert chat(bot, stream=True).status_code == 200
        refused = chat(bot)
        assert error(refused) == (429, "token_quota_exceeded")
        assert 1 <= int(refused.headers["retry-after"]) <= 86_400
        assert bot.get("/v1/gateway/status").json()["token"]["tokens_today"] == USED_A_CHAT + USED_A_STREAM
        assert running.chat("fast").status_code == 200
        until(lambda: stored_tokens(before, "day") == USED_A_CHAT + USED_A_STREAM, "the counts are not stored")
        shutil.copytree(before / "data", after / "data")
    for home in (before, after):
        with guarded(home, backend, policies) as running, client(running, token("day")) as bot:
            assert error(chat(bot)) == (429, "token_quota_exceeded")
            with client(running, token("minute")) as minute:
                assert [chat(minute).status_code for _ in range(2)] == [200, 429]


def stored_tokens(home: Path, caller: str) -> int:
    connection = apsw.Connection(str(home / "data/gateway.sqlite"), flags=apsw.SQLITE_OPEN_READWRITE)
    tokens = connection.execute("SELECT sum(tokens) FROM token_usage WHERE caller = ?", (caller,)).get
    connection.close()
    return int(tokens or 0)


@pytest.fixture(scope="module")
def addressed(tmp_path_factory: pytest.TempPathFactory, backend: Upstream) -> Iterator[Gateway]:
    settings = {"IP_ALLOWLIST": "127.0.0.1", "TRUST_PROXY_CIDRS": "127.0.0.3"}
    home = tmp_path_factory.mktemp("addressed")
    with guarded(home, backend, {"bot": {"ip_allowlist": ["127.0.0.2/32"]}}, **settings) as running:
        yield running


BOT = token("bot")


@pytest.mark.parametrize(
    ("address", "bearer", "forwarded", "path", "expected"),
    [
        ("127.0.0.1", TOKEN, [], "/v1/models", 200),
        ("127.0.0.2", TOKEN, [], "/v1/models", "IP_ALLOWLIST"),
        ("127.0.0.2", BOT, [], "/v1/models", 200),
        ("127.0.0.1", BOT, [], "/v1/models", "the token's ip_allowlist"),
        # Whether a token is known is told to nobody outside.
        ("127.0.0.2", "", [], "/v1/models", "IP_ALLOWLIST"),
        ("127.0.0.2", "unknown-token-0123456789", [], "/v1/models", "IP_ALLOWLIST"),
        ("127.0.0.1", "unknown-token-0123456789", [], "/v1/models", 401),
        # 127.0.0.3 is the proxy.
        ("127.0.0.3", BOT, ["127.0.0.2"], "/v1/models", 200),
        ("127.0.0.3", BOT, ["127.0.0.1"], "/v1/models", "the token's ip_allowlist"),
        ("127.0.0.3", TOKEN, ["127.0.0.2, 127.0.0.1"], "/v1/models", 200),
        ("127.0.0.3", TOKEN, ["127.0.0.1, 127.0.0.2"], "/v1/models", "IP_ALLOWLIST"),
        ("127.0.0.3", TOKEN, [], "/v1/models", "IP_ALLOWLIST"),
        ("127.0.0.2", TOKEN, ["127.0.0.1"], "/v1/models", "IP_ALLOWLIST"),
        ("127.0.0.3", TOKEN, ["127.0.0.1", "127.0.0.3"], "/v1/models", 200),
        ("127.0.0.3", TOKEN, ["127.0.0.9", "127.0.0.3"], "/v1/models", "IP_ALLOWLIST"),
        # Open paths heed them too.
        ("127.0.0.1", "", [], "/health", 200),
        ("127.0.0.2", "", [], "/health", "IP_ALLOWLIST"),
    ],
)
def test_addresses(
    addressed: Gateway, address: str, bearer: str, forwarded: list[str], path: str, expected: int | str
) -> None:
    with client(addressed, bearer, address=address) as asking:
        answer = asking.get(path, headers=[("X-Forwarded-For", line) for line in forwarded])
    if isinstance(expected, int):
        assert answer.status_code == expected
    else:
        assert error(answer) == (403, "ip_not_allowed")
        assert answer.json()["error"]["message"].endswith(f"to {expected}")


def test_first_good_credential_counts(policed: Gateway) -> None:
    url = f"http://127.0.0.1:{policed.port}/v1/models"
    for _ in range(2):  # the second time it is remembered
        for good in (
            {"x-api-key": TOKEN},
            {"api-key": TOKEN},
            {"x-api-key": TOKEN, "Authorization": "Basic abc"},
            {"x-api-key": TOKEN, "Authorization": "Bearer wrong"},
            {"x-api-key": "wrong", "Authorization": f"Bearer {TOKEN}"},
        ):
            assert httpx.get(url, headers=good).status_code == 200
        for wrong in (
            {"x-api-key": f"{TOKEN}x"},
            {"x-api-key": f"Bearer {TOKEN}"},
            {"x-api-key": SINGLE},
            {"x-api-key": "wrong", "Authorization": "Bearer wrong"},
        ):
            answer = httpx.get(url, headers=wrong)
            assert answer.status_code == 401
            assert TOKEN not in answer.text


def test_status(policed: Gateway) -> None:
    assert policed.chat("fast").status_code == 200
    policed.wait_until_idle()
    with client(policed, token("told")) as bot:
        assert chat(bot, "hang-mid").status_code == 403
        body = {"model": "hang-mid", "messages": HI, "stream": True}
        with policed.client.stream("POST", "/v1/chat/completions", json=body) as stream:
            chunks = stream.iter_raw()
            assert next(chunks)
            mine = bot.get("/v1/gateway/status").json()
            everybodys = policed.client.get("/v1/gateway/status").json()
    assert mine["admission_control"]["test.chat"] == {"limit": 64, "available": 63, "inflight": 1, "queued": 0}
    embeddings = {"limit": None, "available": None, "inflight": 0, "queued": 0}
    assert mine["admission_control"]["test.embeddings"] == embeddings
    health = mine["backend_health"]["test"]
    assert (health["healthy"], health["ready"], health["error"]) == (True, True, None)
    assert health["hosts"]["test@here"]["last_check"] == health["last_check"] > 0
    assert mine["tokens"] == [mine["token"]]
    used = {"requests_last_minute": 2, "tokens_today": 0, "unenforced_policy_keys": [], "admin": False}
    assert mine["token"] == {"name": "told", **WHOLE_STATUS, **used, "models_allowlist": ["fast", "hang"]}
    assert [one["name"] for one in everybodys["tokens"]] == sorted([SHOWN, *POLICIES, PAIR_SHOWN, PAIR_SHOWN])
    assert everybodys["token"]["name"] == SHOWN
    assert everybodys["token"]["tokens_today"] >= USED_A_CHAT


def test_tokens_are_shown_nowhere(policed: Gateway) -> None:
    with client(policed, token("admin")) as bot:
        answers = [chat(bot), bot.post("/v1/gateway/reload"), bot.get("/v1/gateway/status"), bot.get("/v1/models")]
        answers += [chat(bot), policed.client.get("/v1/gateway/status"), policed.observe.get("/metrics")]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 429, 200, 200]
    entries = list(map(policed.entry_of, answers[:6]))
    assert [entry["token"] for entry in entries] == ["admin"] * 5 + [SHOWN]
    told = json.dumps(entries) + "".join(f"{answer.headers}{answer.text}" for answer in answers)
    for secret in (token("admin"), TOKEN, sha256(token("admin").encode()).hexdigest()):
        assert secret not in told


def test_two_tokens_are_two_callers_though_they_look_like_one(policed: Gateway) -> None:
    with client(policed, PAIR[0]) as one, client(policed, PAIR[1]) as other:
        made = one.post("/v1/responses", json={"model": "fast", "input": "x"})
        path = f"/v1/responses/{made.json()['id']}"
        assert one.get(path).status_code == 200
        assert other.get(path).status_code == 404
        assert [one.get(path).status_code for _ in range(2)] == [200, 429]
        status = policed.client.get("/v1/gateway/status").json()
        assert [token["name"] for token in status["tokens"]].count(PAIR_SHOWN) == 2
        assert other.get("/v1/gateway/status").json()["token"]["requests_last_minute"] == 2
    assert policed.entry_of(made)["token"] == PAIR_SHOWN
    assert sha256(PAIR[0].encode()).hexdigest() not in policed.observe.get("/metrics").text
