"""The appliance's llama.cpp server with a chat template that offers tools, so that SmolLM2 calls them.

usage: llamacpp.py PORT

Its own template has no place for tools. Shown a few calls earlier in the conversation, this model calls, too; with
`tool_choice: required` llama.cpp's grammar holds it to the form.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from xllamacpp import Server

sys.path.insert(0, str(Path(__file__).parents[2] / "roles" / "llamacpp" / "files"))
from llamacpp_server import packaged_model, parameters

if __name__ == "__main__":
    arguments = argparse.Namespace(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        model=packaged_model(),
        model_name="smollm2-135m-instruct",
        parallel=2,
        context_size=4096,
        threads=1,
    )
    settings = parameters(arguments)
    settings.chat_template = Path(__file__).with_name("tools.jinja").read_text()
    settings.sampling.temp = 0  # where a request names none, as OptiLLM's do: the same words each time
    server = Server(settings)
    signal.pause()  # SIGTERM ends it
