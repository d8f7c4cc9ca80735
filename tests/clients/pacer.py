"""A model server of the standard library alone, for hosts that have nothing else. It says its own name in paced events.

usage: pacer.py PORT
"""

import json
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = socket.gethostname()
PACE = 0.1  # seconds between events
EVENTS = 600


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer({"object": "list", "data": [{"id": "pacer", "object": "model"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if request.get("stream"):
            self.stream()
        else:
            message = {"role": "assistant", "content": NAME}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self.answer({"id": "c", "object": "chat.completion", "choices": [choice]})

    def answer(self, content: dict[str, object]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        choice = {"index": 0, "delta": {"content": NAME}, "finish_reason": None}
        event = {"id": "c", "object": "chat.completion.chunk", "choices": [choice]}
        for _ in range(EVENTS):
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            time.sleep(PACE)
        self.wfile.write(b"data: [DONE]\n\n")


if __name__ == "__main__":
    ThreadingHTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
