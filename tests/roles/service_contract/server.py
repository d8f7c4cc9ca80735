"""The product of the contract test: answers every GET with its process id, its environment and the text of a file.

It reads the file when it starts and at SIGHUP. Usage: server.py PORT FILE
"""

import http.server
import json
import os
import signal
import sys
from pathlib import Path

text = ""


def read(*_: object) -> None:
    global text
    text = Path(sys.argv[2]).read_text()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"pid": os.getpid(), "environment": dict(os.environ), "text": text}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


read()
signal.signal(signal.SIGHUP, read)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
