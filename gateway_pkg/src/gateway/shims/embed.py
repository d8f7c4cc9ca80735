"""gateway-embed: OpenAI's /v1/embeddings around a small sentence model on the CPU, without network.

Texts longer than the model's 256 tokens are cut there, as the model was published to do; the response header
X-Truncated-Inputs says how many were. `usage` counts the tokens that the model has read. Token arrays are
refused, being another tokenizer's, and so are `dimensions` other than the model's own, the only ones it has.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import ApiError, invalid_value, retry_after

if TYPE_CHECKING:
    from gateway.shims.minilm import Ids, MiniLM, Vector

MODEL = "all-minilm-l6-v2"
DIMENSIONS = 384
MAX_TEXTS = 2048  # OpenAI's own limit
MAX_BODY_BYTES = 4_000_000
CLOSE = ((b"connection", b"close"),)
BODY_TIMEOUT_SEC = 30
MAX_REQUESTS = 32
# One call of the model takes about 50 ms: requests take turns, and one that is given up ends soon.
TOKENIZE_TEXTS = 64
BATCH_TOKENS = 256
STOP_TIMEOUT_SEC = 10

FIELDS = {"model", "input", "encoding_format", "dimensions", "user"}

T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """A checked request."""

    texts: list[str]
    base64: bool


@dataclass(frozen=True)
class Embedded:
    """A vector of DIMENSIONS for each text, in order; the tokens read; the number of texts that were cut."""

    vectors: list[Vector]
    tokens: int
    truncated: int


def parse(body: bytes) -> Wanted:
    """Raises ApiError: 400 naming the field, 404 for another model."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "the body is not a JSON object", code="invalid_json")
    for name in sorted(fields.keys() - FIELDS):
        raise invalid_value(name, f"is unknown; known are {', '.join(sorted(FIELDS))}")
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise invalid_value("model", "must be a string")
    check_model(model)
    if fields.get("dimensions") not in (None, DIMENSIONS):
        raise invalid_value("dimensions", f"must be {DIMENSIONS}: {MODEL} has no other size")
    if (encoding := fields.get("encoding_format")) not in (None, "float", "base64"):
        raise invalid_value("encoding_format", "must be `float` or `base64`")
    if not isinstance(fields.get("user"), str | None):
        raise invalid_value("user", "must be a string")
    return Wanted(_texts(fields.get("input")), encoding == "base64")


def _texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise invalid_value("input", "must be a string or a list of strings that is not empty")
    if any(isinstance(text, int | list) for text in texts):
        raise invalid_value("input", "holds token arrays, which are of another tokenizer: send text")
    if not all(isinstance(text, str) and text for text in texts):
        raise invalid_value("input", "every text must be a string that is not empty")
    if len(texts) > MAX_TEXTS:
        raise invalid_value("input", f"has {len(texts)} texts; at most {MAX_TEXTS} go into one request")
    return texts


def check_model(name: str) -> None:
    if name != MODEL:
        message = f"the model `{name}` does not exist; there is `{MODEL}`"
        raise ApiError(404, message, param="model", code="model_not_found")


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Every index, shortest text first; count x longest of a batch is within `budget`, or it is one text."""
    cut: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if cut and (len(cut[-1]) + 1) * lengths[index] <= budget:
            cut[-1].append(index)
        else:
            cut.append([index])
    return cut


class Embedder:
    """The model on a thread of its own. Requests take turns batch by batch; at most MAX_REQUESTS are held."""

    def __init__(self, model: MiniLM) -> None:
        self._model = model
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._held = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place among the requests that are held; raises ApiError 429 when all are taken."""
        if self._held >= MAX_REQUESTS:
            message = f"{MAX_REQUESTS} requests wait already; try again in a second"
            raise ApiError(429, message, code="overloaded", headers=retry_after(1))
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """Cancelling it leaves the batch that runs and drops the rest."""
        ids: list[Ids] = []
        truncated = 0
        for start in range(0, len(texts), TOKENIZE_TEXTS):
            some, cut = await self._run(self._model.tokenize, texts[start : start + TOKENIZE_TEXTS])
            ids += some
            truncated += cut
        lengths = [len(tokens) for tokens in ids]
        vectors: dict[int, Vector] = {}
        for batch in batches(lengths, BATCH_TOKENS):
            rows = await self._run(self._model.embed, [ids[index] for index in batch])
            vectors.update(zip(batch, rows, strict=True))
        return Embedded([vectors[index] for index in range(len(ids))], sum(lengths), truncated)

    async def _run(self, call: Callable[[Any], T], argument: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, argument)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


def application(embedder: Embedder) -> Starlette:
    async def embeddings(request: Request) -> Response:
        async with embedder.place():
            wanted = parse(await read(request))
            embedded = await unless_gone(request, embedder.embed(wanted.texts))
        return answer(wanted, embedded)

    started = int(time.time())
    served = {"id": MODEL, "object": "model", "created": started, "owned_by": "sentence-transformers"}

    async def models(_: Request) -> Response:
        return json({"object": "list", "data": [served]})

    async def model(request: Request) -> Response:
        check_model(request.path_params["id"])
        return json(served)

    async def health(_: Request) -> Response:
        # Nothing is answered before the model has loaded and embedded: living and being ready are one.
        return json({"ok": True})

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        embedder.close()

    return Starlette(
        routes=[
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{id:path}", model),
            Route("/health", health),
            Route("/readyz", health),
        ],
        exception_handlers=dict.fromkeys((ApiError, HTTPException, ClientDisconnect), refuse),
        lifespan=lifespan,
    )


async def read(request: Request) -> bytes:
    """The body; raises ApiError 413 and 408, ClientDisconnect."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_SEC):
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > MAX_BODY_BYTES:
                    message = f"the body is longer than {MAX_BODY_BYTES} bytes"
                    raise ApiError(413, message, code="request_too_large", headers=CLOSE)
    except TimeoutError:
        message = f"the body took longer than {BODY_TIMEOUT_SEC} s"
        raise ApiError(408, message, code="request_timeout", headers=CLOSE) from None
    return b"".join(parts)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves; raises ClientDisconnect then."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.create_task(work), asyncio.create_task(left())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


def answer(wanted: Wanted, embedded: Embedded) -> Response:
    data = []
    for index, vector in enumerate(embedded.vectors):
        value = base64.b64encode(vector.astype("<f4").tobytes()).decode() if wanted.base64 else vector
        data.append({"object": "embedding", "index": index, "embedding": value})
    usage = {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens}
    response = json({"object": "list", "data": data, "model": MODEL, "usage": usage})
    if embedded.truncated:
        response.headers["X-Truncated-Inputs"] = str(embedded.truncated)
    return response


def json(content: Any) -> Response:
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json")


async def refuse(request: Request, error: Exception) -> Response:
    match error:
        case ApiError():
            refusal = error
        case HTTPException():
            message = f"there is no {request.method} {request.url.path}; try POST /v1/embeddings"
            refusal = ApiError(error.status_code, message, code="unknown_route")
        case _:  # the client has left, and nobody reads this
            return Response(status_code=499)
    response = Response(refusal.body(), refusal.status, media_type="application/json")
    response.raw_headers.extend(refusal.headers)
    return response


def main(argv: Sequence[str] | None = None) -> None:
    """Exits 0 when told to stop, 1 with one line when it cannot start, 2 on wrong arguments."""
    parser = argparse.ArgumentParser(prog="gateway-embed", description="OpenAI's /v1/embeddings on the CPU")
    parser.add_argument("--host", required=True, help="address to listen on")
    parser.add_argument("--port", required=True, type=_number(1, 65535), help="TCP port to listen on")
    # Half of the cores: a language model usually runs beside it.
    threads = parser.add_argument("--threads", type=_number(1, 256), default=max(1, (os.cpu_count() or 1) // 2))
    threads.help = "cores for the model (%(default)s)"
    arguments = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn takes them while it serves and raises them again when it is done.
        signal.signal(number, lambda *_: sys.exit(0))
    listener = listen(arguments.host, arguments.port)
    app = application(Embedder(load(arguments.threads)))
    config = uvicorn.Config(app, access_log=False, timeout_graceful_shutdown=STOP_TIMEOUT_SEC)
    uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        sys.exit(f"gateway-embed: cannot listen on {host} port {port}: {reason}; choose another --port")


def load(threads: int) -> MiniLM:
    """The model, after it has embedded one text."""
    try:
        from gateway.shims.minilm import MiniLM

        model = MiniLM(threads)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        sys.exit(f"gateway-embed: {error}; install the gateway with its extra `embed`")
    model.embed(model.tokenize(["ready"])[0])
    return model


def _number(lowest: int, highest: int) -> Callable[[str], int]:
    def parse_number(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) <= highest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {lowest} to {highest}")
        return int(text)

    return parse_number


if __name__ == "__main__":
    main()
