"""Music through a running gateway: pieces that are soon made, jobs that are polled, cancelled and kept, their audio."""

import io
import json
import signal
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import httpx
import pytest
from gateway.features.music.routes import wanted_wait

from tests.support.faces.heartmula import HeartMula
from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.sockets import connect, read_to_end, send
from tests.support.upstream import running
from tests.support.waiting import PATIENCE_SEC, until

PATH = "/v1/music/generations"
AUDIO = "/ui/heartmula/audio/"
OTHER = "another-token-0123456789abcdef"  # a test's own
SETTINGS: Any = {
    "GATEWAY_BEARER_TOKENS": f"{TOKEN},{OTHER}",
    "PUBLIC_BASE_URL": "http://appliance.lan/",
    "MUSIC_MAX_JOBS_PER_TOKEN": "2",
    "MUSIC_MAX_JOBS": "3",
}
ASYNC = {"Prefer": "respond-async"}


@pytest.fixture(scope="module")
def server() -> Iterator[HeartMula]:
    with running(HeartMula()) as double:
        yield double


@pytest.fixture(scope="module")
def playing(tmp_path_factory: pytest.TempPathFactory, server: HeartMula) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("playing")
    write_musician(home, server.url)
    with gateway(home, **SETTINGS) as served:
        yield served


@pytest.fixture(autouse=True)
def nothing_seen(server: HeartMula) -> None:
    server.seen.clear()
    server.fetched.clear()
    server.is_released = False


def write_musician(home: Path, *urls: str, **record: Any) -> None:
    """Backends of the usual class of music, m@0 and so on, beside the one that the gateway's start is known by."""
    common = {"class": "heartmula_music", "protocol": "heartmula", "supported_capabilities": ["music"], **record}
    musicians = {f"m@{number}": {**common, "base_url": url} for number, url in enumerate(urls)}
    write_files(home, f"{urls[0]}/v1", musicians)


def play(served: Gateway, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    return served.client.post(PATH, json=fields, headers=headers)


def job_once(served: Gateway, location: str, *statuses: str) -> dict[str, Any]:
    """The job, once it has one of the statuses."""

    def job() -> dict[str, Any]:
        told: dict[str, Any] = served.client.get(location).json()
        return told if told["status"] in statuses else {}

    return until(job, f"the job is not {' or '.join(statuses)}")


@pytest.mark.proves(
    PATH, "prompt", "lyrics", "style", "tags", "duration", "temperature", "top_k", "top_p", backend="heartmula"
)
def test_a_piece_that_is_soon_made(playing: Gateway, server: HeartMula) -> None:
    fields: Any = {"prompt": "rain", "lyrics": "la", "style": "jazz", "duration": 8.5, "temperature": 0.9, "top_k": 50}
    answer = play(playing, **fields, top_p=0.8, tags=["piano", "calm"], cfg_scale=1.5)
    assert answer.status_code == 200, answer.text
    assert server.seen[0].json == {**fields, "top_p": 0.8, "tags": "piano,calm", "cfg_scale": 1.5}
    piece = answer.json()
    file = next(reversed(server.files))
    assert piece["id"] == file.removesuffix(".wav")
    assert piece["duration"] == 8.5
    assert piece["audio_url"] == f"http://appliance.lan{AUDIO}{file}"
    told = piece["_gateway"]
    assert told.pop("upstream_latency_ms") > 0
    assert told == {
        "backend": "m@0",
        "backend_class": "heartmula_music",
        "upstream_base_url": server.url,
        "upstream_path": PATH,
        "upstream_audio_url": f"/audio/{file}",
    }
    assert answer.headers["x-backend-used"] == "heartmula_music"
    assert answer.headers["x-router-reason"] == "direct:model"


@pytest.mark.proves(PATH, "input", "model", backend="heartmula")
def test_other_names(playing: Gateway, server: HeartMula) -> None:
    assert play(playing, input="rain").status_code == 200
    assert (
        play(playing, prompt="rain", model="heartmula_music:heart-3b", tags="a,b").headers["x-model-used"] == "heart-3b"
    )
    assert [seen.json for seen in server.seen] == [
        {"prompt": "rain"},
        {"prompt": "rain", "model": "heart-3b", "tags": "a,b"},
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "", "tags": "piano"}, "prompt"),
        ({"prompt": "a", "input": "b"}, "input"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "a", "tags": [1]}, "tags"),
        ({"prompt": "a", "duration": 0}, "duration"),
        ({"prompt": "a", "duration": 1e9}, "duration"),
        ({"prompt": "a", "top_p": 1.5}, "top_p"),
        ({"prompt": "a", "top_k": 1.5}, "top_k"),
        ({"prompt": "a", "temperature": -1}, "temperature"),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(
    playing: Gateway, server: HeartMula, fields: dict[str, Any], param: str
) -> None:
    answer = play(playing, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].split(".")[0] == param
    assert server.seen == []


def test_number_beyond_all_is_refused(playing: Gateway, server: HeartMula) -> None:
    """JSON can say it, and would be `null` on its way to the backend."""
    answer = playing.client.post(PATH, content=b'{"prompt": "rain", "temperature": 1e999}')
    assert answer.json()["error"]["param"] == "temperature", answer.text
    assert server.seen == []


@pytest.mark.parametrize(
    ("prompt", "status", "code"),
    [
        ("failed", 502, "upstream_error"),
        ("no url", 502, "upstream_error"),
        ("elsewhere", 502, "upstream_error"),
        ("status-503", 503, "backend_not_ready"),
    ],
)
@pytest.mark.parametrize("headers", [None, ASYNC], ids=["waiting", "not waiting"])
def test_a_backend_that_fails(
    playing: Gateway, prompt: str, status: int, code: str, headers: dict[str, str] | None
) -> None:
    answer = play(playing, headers, prompt=prompt)
    if answer.status_code == 202:  # not at once
        error = job_once(playing, answer.headers["location"], "failed")["error"]
    else:
        assert answer.status_code == status
        error = answer.json()["error"]
    assert error["code"] == code
    playing.wait_until_idle()


def test_a_piece_that_takes_its_time_is_a_job(playing: Gateway, server: HeartMula) -> None:
    answer = play(playing, ASYNC, prompt="slow")
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    assert int(answer.headers["retry-after"]) > 0
    location = answer.headers["location"]
    job = answer.json()
    assert location == f"{PATH}/{job['id']}"
    assert (job["object"], job["status"], job["result"], job["error"]) == ("music.generation", "running", None, None)
    assert job["created_at"] <= job["started_at"] <= time.time() < job["expires_at"]
    assert playing.client.get(location).json() == job
    assert playing.inflight() == 1, "a job holds its slot"
    server.is_released = True
    done = job_once(playing, location, "succeeded")
    assert done["finished_at"] >= done["started_at"]
    assert done["result"]["audio_url"].startswith(f"http://appliance.lan{AUDIO}music_")
    assert done["result"]["_gateway"]["backend"] == "m@0"
    playing.wait_until_idle()
    assert playing.client.delete(location).json() == done, "what is finished stays as it is"
    assert playing.client.get(done["result"]["audio_url"].removeprefix("http://appliance.lan")).status_code == 200


def test_a_job_is_cancelled(playing: Gateway, server: HeartMula) -> None:
    location = play(playing, {"Prefer": "wait=0"}, prompt="slow").headers["location"]
    server.wait_for(1)
    job = playing.client.delete(location).json()
    assert (job["status"], job["error"], job["result"]) == ("cancelled", None, None)
    server.wait_for(1, left=True)
    playing.wait_until_idle()
    assert playing.client.get(location).json() == job
    assert playing.client.delete(location).json() == job


def test_jobs_and_audio_are_their_token_s_own(playing: Gateway, server: HeartMula) -> None:
    location = play(playing, ASYNC, prompt="slow").headers["location"]
    made = play(playing, prompt="rain").json()["audio_url"].removeprefix("http://appliance.lan")
    stranger = {"Authorization": f"Bearer {OTHER}"}
    for ask in ("GET", "DELETE"):
        answer = playing.client.request(ask, location, headers=stranger)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert playing.client.get(made, headers=stranger).status_code == 404
    assert playing.client.get(made, headers={"Authorization": ""}).status_code == 401
    assert playing.client.get(made).status_code == 200
    assert len(server.fetched) == 1
    server.is_released = True
    job_once(playing, location, "succeeded")


def test_jobs_are_bounded(playing: Gateway, server: HeartMula) -> None:
    stranger = {"Authorization": f"Bearer {OTHER}", **ASYNC}
    locations = [play(playing, ASYNC, prompt="slow").headers["location"] for _ in range(2)]
    refused = play(playing, prompt="one more")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_jobs")
    assert "MUSIC_MAX_JOBS_PER_TOKEN" in refused.json()["error"]["message"]
    assert refused.headers["retry-after"]
    other = play(playing, stranger, prompt="slow").headers["location"]
    refused = play(playing, stranger, prompt="one more")
    assert refused.status_code == 429
    assert "(MUSIC_MAX_JOBS)" in refused.json()["error"]["message"]
    assert len(server.wait_for(3)) == 3
    for location in locations:
        playing.client.delete(location)
    server.is_released = True
    assert play(playing, prompt="rain").status_code == 200
    playing.client.delete(other, headers=stranger)
    playing.wait_until_idle()


def test_backend_sees_its_client_leave(playing: Gateway, server: HeartMula) -> None:
    with send(playing.port, PATH, {"prompt": "hang"}):
        server.wait_for(1)
    server.wait_for(1, left=True)
    playing.wait_until_idle()
    assert play(playing, prompt="rain").status_code == 200


def test_a_job_goes_on_without_its_client(playing: Gateway, server: HeartMula) -> None:
    """The connection of the 202 takes another request, whose client leaves: that is not the job's business."""
    with httpx.Client(base_url=str(playing.client.base_url), headers=playing.client.headers, timeout=20) as client:
        location = client.post(PATH, json={"prompt": "slow"}, headers=ASYNC).headers["location"]
        assert client.get(location).json()["status"] == "running"
    server.is_released = True
    assert job_once(playing, location, "succeeded", "failed", "cancelled")["status"] == "succeeded"


def test_the_queue_of_a_class(tmp_path: Path, server: HeartMula) -> None:
    record: Any = {"concurrency_limits": {"music": 1}, "queue": {"max": 4, "timeout_sec": 60}}
    write_musician(tmp_path, server.url, **record)
    with gateway(tmp_path, **SETTINGS) as served:
        first, second = (play(served, ASYNC, prompt="slow").headers["location"] for _ in range(2))
        assert job_once(served, first, "running")["started_at"]
        assert served.client.get(second).json()["status"] == "queued"
        assert served.client.get(second).json()["started_at"] is None
        assert served.client.delete(first).json()["status"] == "cancelled"
        assert job_once(served, second, "running")["started_at"]
        assert served.client.delete(second).json()["status"] == "cancelled"
        served.wait_until_idle()


def test_without_a_queue_what_is_too_much_is_told_at_once(tmp_path: Path, server: HeartMula) -> None:
    write_musician(tmp_path, server.url, concurrency_limits={"music": 1})
    with gateway(tmp_path, **SETTINGS) as served:
        location = play(served, ASYNC, prompt="slow").headers["location"]
        refused = play(served, ASYNC, prompt="slow")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "backend_overloaded")
        served.client.delete(location)


def test_a_piece_may_take_longer_than_other_answers(tmp_path: Path, server: HeartMula) -> None:
    write_musician(tmp_path, server.url)
    with gateway(tmp_path, **SETTINGS, UPSTREAM_FIRST_BYTE_TIMEOUT_SEC="0.2", HEARTMULA_TIMEOUT_SEC="1") as served:
        location = play(served, {"Prefer": "wait=1"}, prompt="slow").headers["location"]
        assert job_once(served, location, "running", "failed")["status"] == "running"
        server.is_released = True
        assert job_once(served, location, "succeeded", "failed")["status"] == "succeeded"


def test_jobs_outlive_the_process(tmp_path: Path, server: HeartMula) -> None:
    write_musician(tmp_path, server.url)
    with gateway(tmp_path, **SETTINGS) as served:
        made = play(served, prompt="rain").json()["audio_url"].removeprefix("http://appliance.lan")
        stopped = play(served, ASYNC, prompt="slow").headers["location"]
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
    with gateway(tmp_path, **SETTINGS) as served:
        job = served.client.get(stopped).json()
        assert (job["status"], job["error"]["code"]) == ("failed", "interrupted")
        assert served.client.get(made).status_code == 200


def test_jobs_expire(tmp_path: Path, server: HeartMula) -> None:
    write_musician(tmp_path, server.url)
    with gateway(tmp_path, **SETTINGS, MUSIC_JOB_TTL_SEC="1") as served:
        made = play(served, prompt="rain").json()["audio_url"].removeprefix("http://appliance.lan")
        until(lambda: served.client.get(made).status_code != 200, "it does not expire")
        assert served.client.get(made).status_code == 404
        assert play(served, prompt="rain").status_code == 200
    database = apsw.Connection(str(tmp_path / "data/gateway.sqlite"))
    assert database.execute("SELECT count(*) FROM music_jobs").get == 1


@pytest.fixture(scope="module")
def made(playing: Gateway, server: HeartMula) -> tuple[str, bytes]:
    """The path of a piece's audio, and the audio."""
    path = play(playing, prompt="rain").json()["audio_url"].removeprefix("http://appliance.lan")
    return path, server.files[path.removeprefix(AUDIO)]


def test_the_audio_of_a_piece(playing: Gateway, server: HeartMula, made: tuple[str, bytes]) -> None:
    path, audio = made
    answer = playing.client.get(path)
    assert answer.status_code == 200
    assert answer.content == audio
    assert answer.headers["content-type"] == "audio/x-wav"
    assert answer.headers["content-length"] == str(len(audio))
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-request-id"]
    with wave.open(io.BytesIO(answer.content)) as file:
        assert file.getnframes() > 0
    assert server.fetched[0].path == f"/audio/{path.removeprefix(AUDIO)}"
    assert "authorization" not in server.fetched[0].headers


def test_a_range_of_the_audio(playing: Gateway, server: HeartMula, made: tuple[str, bytes]) -> None:
    path, audio = made
    answer = playing.client.get(path, headers={"Range": "bytes=10-19", "If-Range": '"x"'})
    assert (answer.status_code, answer.content) == (206, audio[10:20])
    assert answer.headers["content-range"] == f"bytes 10-19/{len(audio)}"
    assert server.fetched[0].headers["if-range"] == '"x"'
    answer = playing.client.get(path, headers={"Range": "bytes=999999-"})
    assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{len(audio)}")
    assert playing.client.get(path, headers={"Range": "lines=1-2"}).content == audio


@pytest.mark.parametrize(
    "file", ["music_999.wav", "..", "../health", "..%2fhealth", ".hidden", "a%00b", "%2e%2e%2f", "a/b", "x" * 300, ""]
)
def test_what_is_no_file_of_the_caller_s_is_not_asked_for(playing: Gateway, server: HeartMula, file: str) -> None:
    with connect(playing.port) as connection:
        head = f"GET {AUDIO}{file} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        answer = read_to_end(connection)
    assert answer.split()[1] in (b"307", b"400", b"404")  # 307: to the same without its last slash
    assert server.seen == server.fetched == []


def test_audio_that_the_backend_no_longer_has(playing: Gateway, server: HeartMula) -> None:
    path = play(playing, prompt="rain").json()["audio_url"].removeprefix("http://appliance.lan")
    server.files.pop(path.removeprefix(AUDIO))
    answer = playing.client.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_audio_that_does_not_begin_in_time(tmp_path: Path) -> None:
    with running(HeartMula()) as server:
        write_musician(tmp_path, server.url)
        with gateway(tmp_path, **SETTINGS) as served:
            path = play(served, prompt="rain").json()["audio_url"].removeprefix("http://appliance.lan")
        server.habit = "hang"
        with gateway(tmp_path, None, **SETTINGS, HEARTMULA_TIMEOUT_SEC="0.2") as served:
            answer = served.client.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_timeout")


@pytest.mark.parametrize("habit", ["die-mid", "hang-mid"])
def test_audio_that_breaks_off(tmp_path: Path, habit: str) -> None:
    with running(HeartMula()) as server:
        write_musician(tmp_path, server.url)
        with gateway(tmp_path, **SETTINGS) as served:
            path = play(served, prompt="rain").json()["audio_url"].removeprefix("http://appliance.lan")
            server.habit = habit
            if habit == "die-mid":
                with pytest.raises(httpx.RemoteProtocolError):
                    served.client.get(path)
                return
            with served.client.stream("GET", path) as answer:
                assert next(answer.iter_raw())
            until(lambda: server.fetched[-1].left_at is not None, "the backend was not left")


def test_several_hosts_of_the_class(tmp_path: Path) -> None:
    with running(HeartMula()) as one, running(HeartMula()) as two:
        write_musician(tmp_path, one.url, two.url)
        with gateway(tmp_path, **SETTINGS) as served:
            slow = play(served, ASYNC, prompt="slow").headers["location"]
            piece = play(served, prompt="rain").json()
            assert piece["_gateway"]["backend"] == "m@1", "the least loaded one"
            answer = served.client.get(piece["audio_url"].removeprefix("http://appliance.lan"))
            assert answer.content == two.files["music_1.wav"]
            served.client.delete(slow)


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (b"", 120),
        (b"respond-async", 0),
        (b"wait=10", 10),
        (b"Respond-Async, wait=10", 10),
        (b"wait = 300", 120),
        (b"return=minimal; respond-async", 0),
        (b"wait=-1", 120),
        (b"wait=1e9", 120),
        (b"\xff", 120),
    ],
)
def test_how_long_a_client_wants_to_wait(prefer: bytes, seconds: float) -> None:
    assert wanted_wait(prefer, 120) == seconds
