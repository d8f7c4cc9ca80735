"""A well-behaved client and its backend, in a process of their own, so that whoever stands still shows in them.

usage: python -m tests.support.neighbour

The first line that it prints is the backend's port. Then each line it reads is an order, a JSON object, and each line
it prints the answer to one: `{"do": "begin", …}` starts to ask a gateway, `{"do": "end"}` tells how that went,
`{"do": "count"}` how often the backend was asked for each model.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import uvloop

from tests.support.upstream import ANSWER, DONE, EVENT, EVENT_STREAM
from tests.support.waiting import PATIENCE_SEC

ROOT = Path(__file__).resolve().parents[2]
PACE_SEC = 0.005  # between an answer and the next question
SLOW_SEC = 0.02  # what the model `slow` takes for an answer
STREAM = b"".join(EVENT % number for number in range(3)) + DONE
MODELS = ["echo", "slow", "poison", "hang", "hang-mid"]


@dataclass
class Report:
    """How a well-behaved client fared: its answers, what was wrong with any, and how late the worst was.

    `worst_cpu_ms` is what the gateway's process computed from one question to its answer, less what this process
    waited for a core; `worst_wall_ms` is that answer's time on a clock, which the machine has a part in.
    """

    answers: int = 0
    problems: list[str] = field(default_factory=list)
    worst_cpu_ms: float = 0.0
    worst_wall_ms: float = 0.0


class Neighbour:
    """The test's side of the process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.port = int(self._read())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @contextmanager
    def asking(self, port: int, pid: int, token: str, model: str) -> Iterator[Report]:
        """Asks the gateway on `port`, the process `pid`, until the end of the block; then the report is filled in."""
        report = Report()
        self._order(do="begin", port=port, pid=pid, token=token, model=model)
        try:
            yield report
        finally:
            report.__dict__.update(self._order(do="end"))

    def count(self, model: str) -> int:
        """How often the backend was asked for a model."""
        return int(self._order(do="count").get(model, 0))

    def _order(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._read())
        return answer

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextmanager
def neighbour() -> Iterator[Neighbour]:
    """Runs one until the end of the block."""
    argv = [sys.executable, "-m", "tests.support.neighbour"]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Neighbour(process)
        process.communicate()


# The process itself


class Backend(asyncio.Protocol):
    """One connection from the gateway; requests come one after the other."""

    asked: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"content-length: ")
        if not end or len(body) < int(length.split(b"\r\n")[0] or 0):
            return
        self._received = b""
        if head.startswith(b"GET"):
            self._answer({"object": "list", "data": [{"id": model, "object": "model"} for model in MODELS]})
            return
        request = json.loads(body)
        self.asked[request["model"]] += 1
        if request["model"] == "slow":
            asyncio.get_running_loop().call_later(SLOW_SEC, self._serve, request)
        else:
            self._serve(request)

    def _serve(self, request: dict[str, Any]) -> None:
        if request["model"] == "poison":
            self._transport.abort()
        elif request["model"] == "hang":
            pass
        elif request["model"] == "hang-mid":
            event = EVENT % 0
            self._transport.write(EVENT_STREAM + b"%x\r\n%b\r\n" % (len(event), event))
        elif request.get("stream"):
            self._transport.write(EVENT_STREAM + b"%x\r\n%b\r\n0\r\n\r\n" % (len(STREAM), STREAM))
        else:
            self._answer(ANSWER)

    def _answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        self._transport.write(head + body)


class Client:
    """Asks in turn for a whole answer and for a stream, each kind on a connection that it keeps."""

    def __init__(self, port: int, pid: int, token: str, model: str, **_: Any) -> None:
        self.report = Report()
        self._port, self._token, self._model = port, token, model
        self._gateway_clock = (~pid << 3) | 2  # Linux: the clock of a process's CPU time, all threads
        self._task = asyncio.create_task(self._ask())
        self._is_over = False

    async def end(self) -> Report:
        self._is_over = True
        await self._task
        return self.report

    async def _ask(self) -> None:
        connections = [await asyncio.open_connection("127.0.0.1", self._port) for _ in range(2)]
        while not self._is_over:
            for is_stream, (reader, writer) in enumerate(connections):
                cpu, wall = self._gateway_cpu(), time.monotonic()
                try:
                    async with asyncio.timeout(PATIENCE_SEC):
                        writer.write(self._request(bool(is_stream)))
                        problem = await self._problem(bool(is_stream), reader)
                except (OSError, EOFError, TimeoutError) as error:
                    problem = f"no answer: {error!r}"
                if problem:
                    self.report.problems.append(problem)
                    writer.transport.abort()
                    connections[is_stream] = await asyncio.open_connection("127.0.0.1", self._port)
                self._note(self._gateway_cpu() - cpu, time.monotonic() - wall)
                await asyncio.sleep(PACE_SEC)
        for _, writer in connections:
            writer.close()

    def _request(self, is_stream: bool) -> bytes:
        messages = [{"role": "user", "content": "Hi"}]
        body = json.dumps({"model": self._model, "messages": messages, "stream": is_stream}).encode()
        return (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self._token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    async def _problem(self, is_stream: bool, reader: asyncio.StreamReader) -> str:
        """What is wrong with the answer that comes; empty where nothing is."""
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        _, is_framed, length = head.partition(b"content-length: ")
        if is_framed:
            body = await reader.readexactly(int(length.split(b"\r\n")[0]))
        else:
            body = b""
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        if not head.startswith(b"http/1.1 200 "):
            return (head.partition(b"\r\n")[0] + b" " + body[:300]).decode()
        is_right = body == STREAM if is_stream else json.loads(body)["choices"] == ANSWER["choices"]
        return "" if is_right else f"not the answer: {body[:300]!r}"

    def _gateway_cpu(self) -> float:
        """Seconds, less those that this process was ready and had no core: meanwhile the gateway may do as it likes."""
        with suppress(OSError):  # its end is another's to find
            waited_ns = int(Path("/proc/self/schedstat").read_text().split()[1])
            return time.clock_gettime(self._gateway_clock) - waited_ns / 1e9
        return 0.0

    def _note(self, cpu: float, wall: float) -> None:
        self.report.answers += 1
        self.report.worst_cpu_ms = max(self.report.worst_cpu_ms, round(cpu * 1000, 1))
        self.report.worst_wall_ms = max(self.report.worst_wall_ms, round(wall * 1000, 1))


async def obey() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Backend, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    client: Client | None = None
    while line := await orders.readline():
        order = json.loads(line)
        answer: dict[str, Any] = {}
        if order["do"] == "begin":
            client = Client(**order)
        elif order["do"] == "end" and client is not None:
            answer = (await client.end()).__dict__
        elif order["do"] == "count":
            answer = Backend.asked
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    uvloop.run(obey())
