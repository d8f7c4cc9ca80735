"""Token policies as clients meet them, at a real gateway."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import apsw
import httpx
import pytest

from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.sockets import connect
from tests.support.upstream import Upstream
from tests.support.waiting import PATIENCE_SEC, until

BOT = "bot-token-0123456789abcdefgh"
SHOWN = sha256(TOKEN.encode()).hexdigest()[:8]
USED_A_CHAT, USED_A_STREAM = 2, 8  # tokens, as the test's backend says


@contextmanager
def guarded(home: Path, backend: Upstream, policy: dict[str, Any], **settings: str) -> Iterator[Gateway]:
    """A gateway that knows BOT by the name `bot`, under a policy, beside TOKEN, which has none."""
    write_files(home, backend.url)
    policies = json.dumps({f"sha256:{sha256(BOT.encode()).hexdigest()}": {"name": "bot"} | policy})
    tokens = f"{TOKEN},{BOT}"
    settings |= {"GATEWAY_BEARER_TOKENS": tokens, "GATEWAY_TOKEN_POLICIES_JSON": policies}
    with gateway(home, None, **settings) as running:
        yield running


@contextmanager
def client(running: Gateway, token: str = BOT, *, address: str = "127.0.0.1", **headers: str) -> Iterator[httpx.Client]:
    """A client that comes from `address`; no token when it is empty."""
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    transport = httpx.HTTPTransport(local_address=address)
    url = f"http://127.0.0.1:{running.port}"
    with httpx.Client(base_url=url, transport=transport, headers=headers, timeout=PATIENCE_SEC) as made:
        yield made


def chat(asking: httpx.Client, model: str = "fast", content: str = "Hi", **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": content}], **fields}
    return asking.post("/v1/chat/completions", json=body)


def error(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_models_of_a_token(tmp_path: Path, seen: Upstream) -> None:
    refused = (403, "model_not_allowed")
    with guarded(tmp_path, seen, {"models_allowlist": ["fast"]}) as running, client(running) as bot:
        assert chat(bot).status_code == 200
        for model in ("echo", "test:echo", "test:fast", "test", "auto"):
            assert error(chat(bot, model)) == refused, model
        assert error(chat(bot, "hang", stream=True)) == refused
        assert error(bot.post("/v1/embeddings", json={"model": "echo", "input": "x"})) == refused
        assert error(bot.post("/v1/completions", json={"model": "echo", "prompt": "x"})) == refused
        bot.headers["X-Backend"] = "test"
        assert error(chat(bot, "hang")) == refused
        assert chat(bot).json()["model"] == "echo"
        assert running.chat("echo").status_code == 200
        assert {request.json["model"] for request in seen.seen} == {"echo"}


def test_unknown_models_tell_a_token_of_its_own_alone(tmp_path: Path, seen: Upstream) -> None:
    asked = {"model": "hand-mid", "input": "x"}
    with guarded(tmp_path, seen, {"models_allowlist": ["fast"]}) as running, client(running) as bot:
        answers = [chat(bot, "hand-mid"), bot.post("/v1/embeddings", json=asked), bot.get("/v1/models/hand-mid")]
        for answer in answers:
            assert error(answer) == (404, "model_not_found")
            assert "such as fast" in answer.text
            assert "hang" not in answer.text
        assert "did you mean hang-mid" in running.chat("hand-mid").text


def test_requests_a_minute(tmp_path: Path, backend: Upstream) -> None:
    with guarded(tmp_path, backend, {"requests_per_minute": 3}) as running, client(running) as bot:
        answers = [bot.get("/v1/models"), chat(bot), chat(bot, stream=True), chat(bot), bot.get("/v1/models")]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        left = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
        assert left == ["2", "1", "0", "0", "0"]
        assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"3"}
        refused = answers[3]
        assert error(refused) == (429, "rate_limit_exceeded")
        assert 1 <= int(refused.headers["retry-after"]) <= 61
        # Others are not held up, and see nothing of it.
        free = running.chat("fast")
        assert free.status_code == 200
        assert not [name for name in free.headers if name.startswith("x-ratelimit")]
        assert bot.get("/health").status_code == 200


def test_a_restart_gives_nobody_another_minute(tmp_path: Path, backend: Upstream) -> None:
    for expected in ([200, 200], [200, 429]):
        with guarded(tmp_path, backend, {"requests_per_minute": 3}) as running, client(running) as bot:
            assert [chat(bot).status_code for _ in range(2)] == expected


def test_bodies_may_be_smaller_and_larger_than_the_setting(tmp_path: Path, backend: Upstream) -> None:
    (tmp_path / "narrow").mkdir()
    with guarded(tmp_path / "narrow", backend, {"max_request_bytes": 200}) as running, client(running) as bot:
        answer = chat(bot, content="x" * 300)
        assert error(answer) == (413, "request_too_large")
        assert "policy" in answer.json()["error"]["message"]
        assert running.chat("fast", user="x" * 300).status_code == 200
    (tmp_path / "wide").mkdir()
    with (
        guarded(tmp_path / "wide", backend, {"max_request_bytes": 5000}, MAX_REQUEST_BYTES="1000") as running,
        client(running) as bot,
    ):
        assert chat(bot, content="x" * 3000).status_code == 200
        assert error(chat(bot, content="x" * 6000)) == (413, "request_too_large")
        assert error(running.chat("fast", user="x" * 3000)) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("address", "token", "forwarded", "expected"),
    [
        ("127.0.0.1", TOKEN, "", 200),
        ("127.0.0.2", TOKEN, "", "IP_ALLOWLIST"),
        ("127.0.0.2", BOT, "", 200),
        ("127.0.0.1", BOT, "", "the token's ip_allowlist"),
        # Whether a token is known is told to nobody outside.
        ("127.0.0.2", "", "", "IP_ALLOWLIST"),
        ("127.0.0.2", "unknown-token-0123456789", "", "IP_ALLOWLIST"),
        ("127.0.0.1", "unknown-token-0123456789", "", 401),
        # 127.0.0.3 is the proxy.
        ("127.0.0.3", BOT, "127.0.0.2", 200),
        ("127.0.0.3", BOT, "127.0.0.1", "the token's ip_allowlist"),
        ("127.0.0.3", TOKEN, "127.0.0.2, 127.0.0.1", 200),
        ("127.0.0.3", TOKEN, "127.0.0.1, 127.0.0.2", "IP_ALLOWLIST"),
        ("127.0.0.3", TOKEN, "", "IP_ALLOWLIST"),
        ("127.0.0.2", TOKEN, "127.0.0.1", "IP_ALLOWLIST"),
    ],
)
def test_addresses(addressed: Gateway, address: str, token: str, forwarded: str, expected: int | str) -> None:
    headers = {"X-Forwarded-For": forwarded} if forwarded else {}
    with client(addressed, token, address=address, **headers) as asking:
        answer = asking.get("/v1/models")
        if isinstance(expected, int):
            assert answer.status_code == expected
        else:
            assert error(answer) == (403, "ip_not_allowed")
            assert answer.json()["error"]["message"].endswith(f"to {expected}")


@pytest.fixture(scope="module")
def addressed(tmp_path_factory: pytest.TempPathFactory, backend: Upstream) -> Iterator[Gateway]:
    settings = {"IP_ALLOWLIST": "127.0.0.1", "TRUST_PROXY_CIDRS": "127.0.0.3"}
    home = tmp_path_factory.mktemp("addressed")
    with guarded(home, backend, {"ip_allowlist": ["127.0.0.2/32"]}, **settings) as running:
        yield running


def test_several_forwarded_lines(addressed: Gateway) -> None:
    with client(addressed, TOKEN, address="127.0.0.3") as asking:
        lines = [("X-Forwarded-For", "127.0.0.1"), ("X-Forwarded-For", "127.0.0.3")]
        assert asking.get("/v1/models", headers=lines).status_code == 200
        lines[0] = ("X-Forwarded-For", "127.0.0.9")
        assert asking.get("/v1/models", headers=lines).status_code == 403


def test_open_paths_heed_the_addresses_too(addressed: Gateway) -> None:
    for address, status in (("127.0.0.1", 200), ("127.0.0.2", 403)):
        with client(addressed, "", address=address) as stranger:
            assert stranger.get("/health").status_code == status


def test_api_key_header(served: Gateway) -> None:
    url = f"http://127.0.0.1:{served.port}/v1/models"
    for _ in range(2):  # the second time it is remembered
        assert httpx.get(url, headers={"x-api-key": TOKEN}).status_code == 200
        for wrong in (
            {"x-api-key": f"{TOKEN}x"},
            {"x-api-key": f"Bearer {TOKEN}"},
            {"x-api-key": TOKEN, "Authorization": "Basic abc"},
            {"x-api-key": TOKEN, "Authorization": "Bearer wrong"},
        ):
            answer = httpx.get(url, headers=wrong)
            assert answer.status_code == 401
            assert TOKEN not in answer.text


def test_tokens_a_day_outlive_a_restart(tmp_path: Path, backend: Upstream) -> None:
    policy = {"tokens_per_day": 2 * USED_A_CHAT - 1, "tools_allow_shell": True}
    with guarded(tmp_path, backend, policy) as running, client(running) as bot:
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
    with guarded(tmp_path, backend, policy) as running, client(running) as bot:
        assert error(chat(bot)) == (429, "token_quota_exceeded")
    with guarded(tmp_path, backend, policy | {"tokens_per_day": 1000}) as running, client(running) as bot:
        assert chat(bot).status_code == 200


def test_tokens_a_day_outlive_a_kill(tmp_path: Path, backend: Upstream) -> None:
    """What the files hold a second after a request is what a killed process leaves."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    with guarded(before, backend, {"tokens_per_day": 1}) as running, client(running) as bot:
        assert chat(bot).status_code == 200
        database = before / "data/gateway.sqlite"
        until(lambda: stored_tokens(database), "nothing was stored")
        shutil.copytree(before / "data", after / "data")
    with guarded(after, backend, {"tokens_per_day": 1}) as running, client(running) as bot:
        assert error(chat(bot)) == (429, "token_quota_exceeded")


def stored_tokens(database: Path) -> int:
    connection = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READWRITE)
    tokens = connection.execute("SELECT sum(tokens) FROM token_usage").get
    connection.close()
    return int(tokens or 0)


def test_ten_thousand_unknown_tokens(served: Gateway) -> None:
    """They are refused, nothing is kept of them, and who is known is served all the same."""
    unknown_tokens(served, 500, "warm-")
    before = served.resident_kb()
    unknown_tokens(served, 10_000, "cold-")
    # The tokens alone are 40 MB.
    assert served.resident_kb() - before < 15_000
    assert served.chat("fast").status_code == 200


def unknown_tokens(running: Gateway, count: int, prefix: str) -> None:
    with connect(running.port) as connection, connection.makefile("rb") as answers:
        for batch in range(0, count, 10):  # what waits to be read may be 64 KiB
            numbers = range(batch, batch + 10)
            names = ("Authorization: Bearer ", "x-api-key: ")
            requests = (
                f"GET /v1/models HTTP/1.1\r\nHost: x\r\n{names[number % 2]}{prefix}{number:04000}\r\n\r\n"
                for number in numbers
            )
            connection.sendall("".join(requests).encode())
            for _ in numbers:
                assert answers.readline() == b"HTTP/1.1 401 Unauthorized\r\n"
                length = 0
                while (line := answers.readline()) != b"\r\n":
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                assert b"Invalid bearer token" in answers.read(length)


def test_status(tmp_path: Path, backend: Upstream) -> None:
    policy = {"requests_per_minute": 10, "tokens_per_day": 500, "priority": 3, "models_allowlist": "fast,hang"}
    with guarded(tmp_path, backend, policy) as running, client(running) as bot:
        running.chat("fast")
        assert chat(bot, "hang-mid").status_code == 403
        with running.client.stream(
            "POST", "/v1/chat/completions", json={"model": "hang-mid", "messages": [{"role": "user"}], "stream": True}
        ) as stream:
            chunks = stream.iter_raw()
            assert next(chunks)
            mine = bot.get("/v1/gateway/status").json()
            everybodys = httpx.get(
                f"http://127.0.0.1:{running.port}/v1/gateway/status", headers={"x-api-key": TOKEN}
            ).json()
    assert mine["admission_control"]["test.chat"] == {"limit": 64, "available": 63, "inflight": 1, "queued": 0}
    embeddings = {"limit": None, "available": None, "inflight": 0, "queued": 0}
    assert mine["admission_control"]["test.embeddings"] == embeddings
    health = mine["backend_health"]["test"]
    assert (health["healthy"], health["ready"], health["error"]) == (True, True, None)
    assert health["hosts"]["test@here"]["last_check"] == health["last_check"] > 0
    assert mine["tokens"] == [mine["token"]]
    assert mine["token"] == {
        "name": "bot",
        "admin": False,
        "models_allowlist": ["fast", "hang"],
        "requests_per_minute": 10,
        "requests_last_minute": 2,
        "tokens_per_day": 500,
        "tokens_today": 0,
        "priority": 3,
        "unenforced_policy_keys": [],
    }
    assert [token["name"] for token in everybodys["tokens"]] == sorted([SHOWN, "bot"])
    assert everybodys["token"]["name"] == SHOWN
    assert everybodys["token"]["tokens_today"] == USED_A_CHAT


def test_tokens_are_shown_nowhere(tmp_path: Path, backend: Upstream) -> None:
    with guarded(tmp_path, backend, {"requests_per_minute": 4, "admin": True}) as running, client(running) as bot:
        answers = [chat(bot), bot.post("/v1/gateway/reload"), bot.get("/v1/gateway/status"), bot.get("/v1/models")]
        answers += [chat(bot), running.client.get("/v1/gateway/status"), running.observe.get("/metrics")]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 429, 200, 200]
        entries = running.log_entries(6)
    assert {entry["token"] for entry in entries} == {"bot", SHOWN}
    told = json.dumps(entries) + "".join(f"{answer.headers}{answer.text}" for answer in answers)
    for token in (BOT, TOKEN, sha256(BOT.encode()).hexdigest()):
        assert token not in told
