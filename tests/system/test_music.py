"""Music through a running gateway: pieces that are soon made, jobs that are polled, cancelled and kept, their audio."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import apsw
import httpx
import pytest

from tests.support.faces.heartmula import HeartMula
from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.sockets import connect, read_to_end, send
from tests.support.upstream import running
from tests.support.waiting import PATIENCE_SEC, until

PATH = "/v1/music/generations"
AUDIO = "/ui/heartmula/audio/"
PUBLIC = "http://appliance.lan"
STRANGER = {"Authorization": "Bearer another-token-0123456789abcdef"}  # a test's own
ASYNC = {"Prefer": "respond-async"}
SETTINGS: Any = {
    "GATEWAY_BEARER_TOKENS": f"{TOKEN},{STRANGER['Authorization'].removeprefix('Bearer ')}",
    "PUBLIC_BASE_URL": f"{PUBLIC}/",
    "MUSIC_MAX_JOBS_PER_TOKEN": "2",
    "MUSIC_MAX_JOBS": "3",
    "UPSTREAM_FIRST_BYTE_TIMEOUT_SEC": "0.2",  # a piece may take longer than other answers
    "HEARTMULA_TIMEOUT_SEC": "3",
}


@pytest.fixture(scope="module")
def servers() -> Iterator[list[HeartMula]]:
    with ExitStack() as stack:
        yield [stack.enter_context(running(HeartMula())) for _ in range(2)]


@pytest.fixture
def server(servers: list[HeartMula]) -> HeartMula:
    """The usual class's, with nothing seen yet."""
    for one in servers:
        one.seen.clear()
        one.fetched.clear()
        one.is_released, one.habit = False, ""
    return servers[0]


@pytest.fixture(scope="module")
def playing(tmp_path_factory: pytest.TempPathFactory, servers: list[HeartMula]) -> Iterator[Gateway]:
    """Class `pair` is two hosts; of `narrow` and `queued` one piece is made at a time."""
    home, (one, other) = tmp_path_factory.mktemp("playing"), servers
    queued = {"concurrency_limits": {"music": 1}, "queue": {"max": 4, "timeout_sec": 60}}
    records = {"n": {"class": "narrow", "concurrency_limits": {"music": 1}}, "q": {"class": "queued", **queued}}
    pair = {"p@0": {"class": "pair"}, "p@1": {"class": "pair", "base_url": other.url}}
    write_musicians(home, one, **records, **pair)
    with gateway(home, **SETTINGS) as served:
        yield served


def write_musicians(home: Path, server: HeartMula, **others: dict[str, Any]) -> None:
    """The usual class of music, `m@0`, and others, beside the backend that the gateway's start is known by."""
    common = {"protocol": "heartmula", "supported_capabilities": ["music"], "base_url": server.url}
    musicians = {"m@0": {"class": "heartmula_music"}, **others}
    write_files(home, f"{server.url}/v1", {name: {**common, **record} for name, record in musicians.items()})


def play(served: Gateway, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    return served.client.post(PATH, json=fields, headers=headers)


def begin(served: Gateway, **fields: Any) -> str:
    """The path of a job that is not waited for."""
    return str(play(served, ASYNC, **{"prompt": "slow", **fields}).headers["location"])


def made(served: Gateway) -> str:
    """The path of a new piece's audio."""
    return str(play(served, prompt="rain").json()["audio_url"].removeprefix(PUBLIC))


def job_once(served: Gateway, location: str, *statuses: str) -> dict[str, Any]:
    """The job, once it has one of the statuses."""

    def job() -> dict[str, Any]:
        told: dict[str, Any] = served.client.get(location).json()
        return told if told["status"] in statuses else {}

    return until(job, f"the job is not {' or '.join(statuses)}")


def code_of(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"]["code"])


def test_a_piece_that_is_soon_made(playing: Gateway, server: HeartMula) -> None:
    answer = play(playing, prompt="rain", model="heartmula_music:heart-3b")
    assert answer.status_code == 200, answer.text
    assert answer.json()["audio_url"] == f"{PUBLIC}{AUDIO}{next(reversed(server.files))}"
    assert answer.json()["_gateway"]["upstream_latency_ms"] > 0
    assert server.seen[0].json == {"prompt": "rain", "model": "heart-3b"}
    names = ("x-backend-used", "x-model-used", "x-router-reason")
    assert [answer.headers[name] for name in names] == ["heartmula_music", "heart-3b", "pinned:model"]
    assert play(playing, prompt="rain").headers["x-router-reason"] == "direct:model"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ("{}", "prompt"),
        ('{"prompt": "", "tags": "piano"}', "prompt"),
        ('{"prompt": "a", "input": "b"}', "input"),
        ('{"prompt": 5}', "prompt"),
        ('{"prompt": "a", "tags": [1]}', "tags"),
        ('{"prompt": "a", "duration": 0}', "duration"),
        ('{"prompt": "a", "duration": 1e9}', "duration"),
        ('{"prompt": "a", "top_p": 1.5}', "top_p"),
        ('{"prompt": "a", "top_k": 1.5}', "top_k"),
        ('{"prompt": "a", "temperature": -1}', "temperature"),
        ('{"prompt": "a", "temperature": 1e999}', "temperature"),  # it would be `null` on its way to the backend
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(playing: Gateway, server: HeartMula, body: str, param: str) -> None:
    answer = playing.client.post(PATH, content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].split(".")[0] == param
    assert server.seen == []


@pytest.mark.parametrize(
    ("prompt", "status", "code"), [("failed", 502, "upstream_error"), ("status-503", 503, "backend_not_ready")]
)
@pytest.mark.parametrize("headers", [None, ASYNC], ids=["waiting", "not waiting"])
def test_a_backend_that_fails(
    playing: Gateway, server: HeartMula, prompt: str, status: int, code: str, headers: dict[str, str] | None
) -> None:
    answer = play(playing, headers, prompt=prompt)
    if answer.status_code == 202:  # not at once
        assert job_once(playing, answer.headers["location"], "failed")["error"]["code"] == code
    else:
        assert code_of(answer, status) == code
    playing.wait_until_idle()


def test_a_piece_that_takes_its_time_is_a_job(playing: Gateway, server: HeartMula) -> None:
    answer = play(playing, {"Prefer": "wait=1"}, prompt="slow")
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    assert int(answer.headers["retry-after"]) > 0
    location, job = answer.headers["location"], answer.json()
    assert location == f"{PATH}/{job['id']}"
    assert (job["object"], job["status"], job["result"], job["error"]) == ("music.generation", "running", None, None)
    assert job["created_at"] <= job["started_at"] <= time.time() < job["expires_at"]
    assert playing.client.get(location).json() == job
    assert playing.inflight() == 1, "a job holds its slot"
    server.is_released = True
    done = job_once(playing, location, "succeeded", "failed")
    assert done["finished_at"] >= done["started_at"]
    assert done["result"]["audio_url"].startswith(f"{PUBLIC}{AUDIO}music_")
    assert done["result"]["_gateway"]["backend"] == "m@0"
    playing.wait_until_idle()
    assert playing.client.delete(location).json() == done, "what is finished stays as it is"
    assert playing.client.get(done["result"]["audio_url"].removeprefix(PUBLIC)).status_code == 200


def test_a_job_is_cancelled(playing: Gateway, server: HeartMula) -> None:
    location = begin(playing)
    server.wait_for(1)
    job = playing.client.delete(location).json()
    assert (job["status"], job["error"], job["result"]) == ("cancelled", None, None)
    server.wait_for(1, left=True)
    playing.wait_until_idle()
    assert playing.client.get(location).json() == playing.client.delete(location).json() == job


def test_jobs_and_audio_are_their_token_s_own(playing: Gateway, server: HeartMula) -> None:
    location, audio = begin(playing), made(playing)
    for method, path in (("GET", location), ("DELETE", location), ("GET", audio)):
        assert code_of(playing.client.request(method, path, headers=STRANGER), 404) == "not_found"
    assert playing.client.get(audio, headers={"Authorization": ""}).status_code == 401
    assert server.fetched == []
    assert playing.client.get(audio).status_code == 200
    server.is_released = True
    job_once(playing, location, "succeeded")


def test_jobs_are_bounded(playing: Gateway, server: HeartMula) -> None:
    locations = [begin(playing), begin(playing)]
    refused = play(playing, prompt="one more")
    assert code_of(refused, 429) == "too_many_jobs"
    assert "MUSIC_MAX_JOBS_PER_TOKEN" in refused.json()["error"]["message"]
    assert refused.headers["retry-after"]
    other = play(playing, STRANGER | ASYNC, prompt="slow").headers["location"]
    refused = play(playing, STRANGER | ASYNC, prompt="one more")
    assert code_of(refused, 429) == "too_many_jobs"
    assert "(MUSIC_MAX_JOBS)" in refused.json()["error"]["message"]
    assert len(server.wait_for(3)) == 3
    for location in locations:
        playing.client.delete(location)
    server.is_released = True
    assert play(playing, prompt="rain").status_code == 200
    playing.client.delete(other, headers=STRANGER)
    playing.wait_until_idle()


def test_backend_sees_its_client_leave(playing: Gateway, server: HeartMula) -> None:
    with send(playing.port, PATH, {"prompt": "hang"}):
        server.wait_for(1)
    server.wait_for(1, left=True)
    playing.wait_until_idle()


def test_a_job_goes_on_without_its_client(playing: Gateway, server: HeartMula) -> None:
    """The connection of the 202 takes another request, whose client leaves: that is not the job's business."""
    with httpx.Client(base_url=playing.client.base_url, headers=playing.client.headers, timeout=20) as client:
        location = client.post(PATH, json={"prompt": "slow"}, headers=ASYNC).headers["location"]
        assert client.get(location).json()["status"] == "running"
    server.is_released = True
    assert job_once(playing, location, "succeeded", "failed", "cancelled")["status"] == "succeeded"


def test_the_queue_of_a_class(playing: Gateway, server: HeartMula) -> None:
    first, second = begin(playing, model="queued"), begin(playing, model="queued")
    assert job_once(playing, first, "running")["started_at"]
    waiting = playing.client.get(second).json()
    assert (waiting["status"], waiting["started_at"]) == ("queued", None)
    assert playing.client.delete(first).json()["status"] == "cancelled"
    assert job_once(playing, second, "running")["started_at"]
    assert playing.client.delete(second).json()["status"] == "cancelled"
    playing.wait_until_idle()


def test_without_a_queue_what_is_too_much_is_told_at_once(playing: Gateway, server: HeartMula) -> None:
    location = begin(playing, model="narrow")
    assert code_of(play(playing, ASYNC, prompt="slow", model="narrow"), 429) == "backend_overloaded"
    playing.client.delete(location)


def test_several_hosts_of_the_class(playing: Gateway, server: HeartMula, servers: list[HeartMula]) -> None:
    slow = begin(playing, model="pair")
    piece = play(playing, prompt="rain", model="pair").json()
    assert piece["_gateway"]["backend"] == "p@1", "the least loaded one"
    answer = playing.client.get(piece["audio_url"].removeprefix(PUBLIC))
    assert answer.content == next(reversed(servers[1].files.values()))
    playing.client.delete(slow)


def test_jobs_outlive_the_process_until_they_expire(tmp_path: Path, server: HeartMula) -> None:
    write_musicians(tmp_path, server)
    with gateway(tmp_path, **SETTINGS) as served:
        audio, stopped = made(served), begin(served)
        server.wait_for(2)
        served.process.send_signal(signal.SIGTERM)
        server.wait_for(1, left=True)
        # A second SIGTERM, from the end of the block, would find a process that no longer heeds it.
        assert served.process.wait(PATIENCE_SEC) == 0
    database = apsw.Connection(str(tmp_path / "data/gateway.sqlite"))
    row = database.execute("SELECT status, error FROM music_jobs WHERE id = ?", (Path(stopped).name,)).fetchone()
    assert row is not None
    assert (row[0], json.loads(row[1])["code"]) == ("failed", "interrupted")
    # As a process that was killed leaves it.
    database.execute("UPDATE music_jobs SET status = 'running', error = NULL WHERE status = 'failed'")
    database.close()
    with gateway(tmp_path, **SETTINGS, MUSIC_JOB_TTL_SEC="1") as served:
        job = served.client.get(stopped).json()
        assert (job["status"], job["error"]["code"]) == ("failed", "interrupted")
        short = made(served)
        until(lambda: served.client.get(short).status_code == 404, "it does not expire")
        assert served.client.get(audio).status_code == 200


def test_the_audio_of_a_piece(playing: Gateway, server: HeartMula) -> None:
    path = made(playing)
    file = path.removeprefix(AUDIO)
    answer = playing.client.get(path)
    assert (answer.status_code, answer.content) == (200, server.files[file])
    assert answer.headers["content-type"] == "audio/x-wav"
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-request-id"]
    assert server.fetched[0].path == f"/audio/{file}"
    assert "authorization" not in server.fetched[0].headers
    server.files.pop(file)
    assert code_of(playing.client.get(path), 404) == "not_found"


def test_a_range_of_the_audio(playing: Gateway, server: HeartMula) -> None:
    path = made(playing)
    audio = server.files[path.removeprefix(AUDIO)]
    answer = playing.client.get(path, headers={"Range": "bytes=10-19", "If-Range": '"x"'})
    assert (answer.status_code, answer.content) == (206, audio[10:20])
    assert answer.headers["content-range"] == f"bytes 10-19/{len(audio)}"
    assert server.fetched[0].headers["if-range"] == '"x"'
    answer = playing.client.get(path, headers={"Range": "bytes=999999-"})
    assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{len(audio)}")
    assert playing.client.get(path, headers={"Range": "lines=1-2"}).content == audio
    assert "range" not in server.fetched[-1].headers, "no range of bytes"


@pytest.mark.parametrize(
    "file", ["music_999.wav", "..", "../health", "..%2fhealth", ".hidden", "a%00b", "%2e%2e%2f", "a/b", "x" * 300, ""]
)
def test_file_that_is_not_the_caller_s_is_not_asked_for(playing: Gateway, server: HeartMula, file: str) -> None:
    with connect(playing.port) as connection:
        head = f"GET {AUDIO}{file} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        answer = read_to_end(connection)
    assert answer.split()[1] in (b"307", b"400", b"404")  # 307: to the same without its last slash
    assert server.seen == server.fetched == []


def test_audio_that_does_not_begin_or_breaks_off(playing: Gateway, server: HeartMula) -> None:
    path = made(playing)
    server.habit = "hang"
    assert code_of(playing.client.get(path), 504) == "upstream_timeout"
    server.habit = "die-mid"
    with pytest.raises(httpx.RemoteProtocolError):
        playing.client.get(path)
    server.habit = "hang-mid"
    with playing.client.stream("GET", path) as answer:
        assert next(answer.iter_raw())
    until(lambda: server.fetched[-1].left_at is not None, "the backend was not left")
