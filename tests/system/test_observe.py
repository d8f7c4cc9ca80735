"""Request log, metrics, the second listener."""

import asyncio
import errno
import io
import os
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from gateway.observe.linelog import LineLog

from tests.support.disks import small_disk
from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.upstream import Upstream
from tests.support.waiting import until


def test_request_log_has_the_fields_of_the_contract(tmp_path: Path, backend: Upstream) -> None:
    write_files(tmp_path, backend.url)
    with gateway(tmp_path) as running:
        answers = running.chat("fast"), running.chat("echo", stream=True), running.chat("no such model")
        plain, streamed, failed = map(running.entry_of, answers)
    assert plain["token"] == sha256(TOKEN.encode()).hexdigest()[:8]
    assert {
        k: plain[k] for k in ("method", "path", "status", "stream", "op", "backend", "backend_class", "upstream_model")
    } == {
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "stream": False,
        "op": "chat.completions",
        "backend": "test@here",
        "backend_class": "test",
        "upstream_model": "echo",
    }
    assert plain["router_reason"] == "alias:model"
    assert 0 < plain["upstream_ms"] <= plain["duration_ms"]
    assert streamed["stream"] is True
    assert streamed["chunks_out"] >= 1
    assert streamed["bytes_out"] > 100
    assert 0 < streamed["ttft_ms"] <= streamed["duration_ms"]
    assert streamed["abort_reason"] is None
    assert failed["status"] == 404
    text = (tmp_path / "data/requests.jsonl").read_text()
    assert TOKEN not in text
    assert (tmp_path / "data/requests.jsonl").stat().st_mode & 0o777 == 0o640


def test_metrics_count_routes_and_statuses(served: Gateway, backend: Upstream) -> None:
    def count(path: str, status: int) -> float:
        text = served.observe.get("/metrics").text
        found = re.search(rf'^gateway_requests_total{{path="{path}",status="{status}"}} (\S+)$', text, re.M)
        return float(found.group(1)) if found else 0

    def counts() -> tuple[float, float, float]:
        return count(chat, 200), count(chat, 404), count("other", 404)

    chat = "/v1/chat/completions"
    ok, missing, other = counts()
    served.chat("fast")
    served.chat("nothing")
    served.client.get("/no/such/page/1")
    served.client.get("/no/such/page/2")
    until(lambda: counts() == (ok + 1, missing + 1, other + 2), "not counted")
    text = served.observe.get("/metrics").text
    assert "gateway_request_duration_ms_sum{" in text
    assert 'gateway_request_duration_ms_bucket{le="+Inf"' in text
    assert 'gateway_backend_ready{backend="test@here"} 1.0' in text
    assert "no/such" not in text
    assert served.client.get("/metrics").status_code == 200


def test_observability_listener(served: Gateway) -> None:
    assert served.observe.get("/health").json() == {"ok": True}
    assert served.observe.head("/health").status_code == 200
    assert served.observe.get("/readyz").json()["ok"] is True
    assert served.observe.get("/health/upstreams").json()["upstreams"]["test@here"]["ready"] is True
    assert served.observe.get("/v1/models").status_code == 404
    refused = served.observe.post("/health")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


def test_switched_off(tmp_path: Path, backend: Upstream) -> None:
    write_files(tmp_path, backend.url)
    with gateway(
        tmp_path, OBSERVABILITY_ENABLED="false", METRICS_ENABLED="false", REQUEST_LOG_ENABLED="false"
    ) as running:
        assert running.chat("fast").status_code == 200
        answer = running.client.get("/metrics")
        assert answer.status_code == 404
        assert "METRICS_ENABLED" in answer.json()["error"]["message"]
        assert not (tmp_path / "data/requests.jsonl").exists()


def test_optional_backend_that_is_down_is_reported_not_fatal(tmp_path: Path, backend: Upstream) -> None:
    gone = {"base_url": "http://127.0.0.1:9/v1", "supported_capabilities": ["embeddings"], "optional": True}
    write_files(tmp_path, backend.url, {"gone@here": gone})
    with gateway(tmp_path) as running:
        report = running.observe.get("/readyz")
        assert report.status_code == 200
        assert report.json()["backends"]["gone@here"]["optional"] is True
        answer = running.client.post("/v1/embeddings", json={"model": "gone:x", "input": "x"})
        assert answer.status_code == 503


def test_log_is_rotated_and_bounded(tmp_path: Path) -> None:
    async def run() -> LineLog:
        log = LineLog(tmp_path / "log", max_bytes=1000, keep=2)
        for _ in range(5):
            for _ in range(60):
                log.write(b"x" * 19 + b"\n")
            while log._pending or log._writing is not None:  # noqa: ASYNC110 - nothing tells that they are out
                await asyncio.sleep(0.01)
        await log.close()
        return log

    assert asyncio.run(run()).dropped == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.1", "log.2"]


@pytest.mark.parametrize("missing", [True, False])
def test_unwritable_log_drops_lines_and_nothing_else(tmp_path: Path, missing: bool) -> None:
    async def run() -> LineLog:
        log = LineLog(tmp_path / "missing/log" if missing else tmp_path, max_bytes=1000, keep=2)
        log.write(b"line\n")
        await log.close()
        return log

    assert asyncio.run(run()).dropped == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="a small tmpfs needs root")
def test_on_a_full_disk_a_line_is_whole_or_absent_and_counted(tmp_path: Path) -> None:
    lines = [b"%d %s\n" % (number, b"x" * (number * 37 % 400)) for number in range(300)]

    async def run(log: LineLog) -> None:
        for number, line in enumerate(lines):
            log.write(line)
            if number % 10 == 0 or number == 200:
                while log._pending or log._writing is not None:
                    if log._timer is not None:
                        log._timer.cancel()
                        log._flush()
                    await asyncio.sleep(0.001)
            if number == 200:
                filler.unlink()
        await log.close()

    with small_disk(tmp_path / "small", 64):
        filler = tmp_path / "small/filler"
        filler.write_bytes(b"x" * 44 * 1024)
        log = LineLog(tmp_path / "small/log", max_bytes=10**6, keep=2)
        asyncio.run(run(log))
        written = (tmp_path / "small/log").read_bytes().splitlines(keepends=True)
    assert set(written) <= set(lines)
    assert lines[-1] in written
    assert 0 < log.dropped == len(lines) - len(written)


@pytest.mark.parametrize("is_cut", [True, False])
def test_a_write_that_stops_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_cut: bool) -> None:
    """Where what was written of a line cannot be taken back, the next begins a line of its own."""
    log = LineLog(tmp_path / "log", max_bytes=1000, keep=2)

    class Half:
        def __init__(self, file: io.FileIO) -> None:
            self.file, self.rest = file, 7

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            if not self.rest:
                raise OSError(errno.ENOSPC, "No space left on device")
            written, self.rest = self.file.write(data[: self.rest]), 0
            return written

        def truncate(self, size: int) -> None:
            if not is_cut:
                raise PermissionError
            self.file.truncate(size)

    def write_out(*lines: bytes) -> None:
        log._write_out(list(lines))

    write_out(b"one\n")
    assert log._file is not None
    log._file = Half(log._file)  # type: ignore[assignment]
    write_out(b"two\n", b"three\n", b"four\n")
    write_out(b"five\n")
    log._close_file()
    assert log.dropped == 2
    assert (tmp_path / "log").read_bytes() == (b"one\ntwo\nfive\n" if is_cut else b"one\ntwo\nthr\nfive\n")


def test_what_a_killed_process_left_torn_stays_a_line_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b'{"torn": ')
    log = LineLog(tmp_path / "log", max_bytes=1000, keep=2)
    log._write_out([b"{}\n"])
    log._close_file()
    assert (tmp_path / "log").read_bytes() == b'{"torn": \n{}\n'
