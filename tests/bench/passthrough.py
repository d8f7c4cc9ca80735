"""A bare pass-through on the gateway's server and client: reads no token and no body, logs and counts nothing."""

from __future__ import annotations

import gc
import sys

import uvicorn
import uvloop
from gateway.server import BACKLOG, KEEP_ALIVE_SEC
from gateway.wire.http1 import Pool
from gateway.wire.origin import Origin
from gateway.wire.protocol import EXTENSION, Protocol
from starlette.types import ASGIApp, Receive, Scope, Send

LIMIT = 1_000_000
HEADERS = b"Content-Type: application/json\r\n"


def make_app(pool: Pool) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        response = await pool.request(b"POST", scope["raw_path"], HEADERS, body)
        try:
            content_type = (b"content-type", response.header(b"content-type") or b"")
            length = response.header(b"content-length")
            framing = [content_type] if length is None else [content_type, (b"content-length", length)]
            await send({"type": "http.response.start", "status": response.status, "headers": framing})
            if length is not None:
                await send({"type": "http.response.body", "body": await response.read(LIMIT)})
                return
            # ASGI's `send` says nothing of a client that has left: its stream would go on for ever.
            connection = scope["extensions"][EXTENSION]
            while not connection.transport.is_closing() and (chunk := await response.next_chunk()):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            response.close()

    return app


def main() -> None:
    port, upstream_port = map(int, sys.argv[1:])
    pool = Pool(Origin.parse(f"http://127.0.0.1:{upstream_port}"))
    config = uvicorn.Config(
        make_app(pool),
        host="127.0.0.1",
        port=port,
        backlog=BACKLOG,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SEC,
    )
    gc.collect()
    gc.freeze()
    uvloop.run(uvicorn.Server(config).serve())


if __name__ == "__main__":
    main()
