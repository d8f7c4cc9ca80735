"""The console script `gateway`. Only what a verb needs is imported, and when it does: start-up is counted."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway import __version__
from gateway.errors import Refusal

if TYPE_CHECKING:
    from gateway.config.settings import Settings

EXIT_REFUSED = 2
ENOUGH = """A token in GATEWAY_BEARER_TOKEN and a server are enough: OLLAMA_BASE_URL, MLX_BASE_URL, or --backends. The
other settings are environment variables, too: docs/settings.md."""


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; returns the exit code: 0 well, 2 refused with one line per problem on stderr."""
    # Pydantic would look for plugins through all that is installed, at each start.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # One that comes before the server can reload waits for it; by default it ends the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    arguments = _parser().parse_args(argv)
    try:
        settings = _settings(arguments)
        if arguments.verb == "check":
            from gateway.app import App

            App(settings).pages.made()
            print("ok")
        else:
            from gateway.server import serve

            serve(settings)
    except Refusal as refusal:
        for problem in refusal.problems:
            print(f"gateway: {problem}", file=sys.stderr)
        return EXIT_REFUSED
    return 0


def _parser() -> argparse.ArgumentParser:
    from gateway.config.settings import HOME

    parser = argparse.ArgumentParser(prog="gateway", description="OpenAI-compatible API in front of your model servers")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, summary in (
        ("serve", "serve the API until a signal"),
        ("check", "check settings and files, then exit"),
    ):
        verb = verbs.add_parser(name, help=summary, description=summary, epilog=ENOUGH)
        verb.add_argument(
            "--env-file",
            type=Path,
            metavar="FILE",
            help=f"settings, NAME=value lines (default: {HOME}/app/.env if there)",
        )
        verb.add_argument("--backends", type=Path, metavar="FILE", help="backends.yaml (setting GATEWAY_BACKENDS_PATH)")
        verb.add_argument("--aliases", type=Path, metavar="FILE", help="model aliases (setting MODEL_ALIASES_PATH)")
        verb.add_argument("--host", help="address of the API (setting GATEWAY_HOST)")
        verb.add_argument("--port", type=int, help="port of the API (setting GATEWAY_PORT)")
        verb.add_argument(
            "--data-dir", type=Path, metavar="DIR", help="where the request log, the database and images are kept"
        )
    return parser


def _settings(arguments: argparse.Namespace) -> Settings:
    from gateway.app import load_settings
    from gateway.config.settings import HOME

    env_file = arguments.env_file
    if env_file is None and (HOME / "app/.env").is_file():
        env_file = HOME / "app/.env"
    directory = arguments.data_dir
    if directory is not None and not directory.is_dir():
        raise Refusal(f"--data-dir {directory} is not a directory; make it with: mkdir -p {directory}")
    fallback: dict[str, Any] = {}
    given: dict[str, Any] = _data_paths(directory) if directory is not None else {}
    if directory is None and arguments.verb == "serve" and not (HOME / "data").is_dir():
        # Nobody provisioned this host: what has no place yet gets one of this user's.
        fallback = _data_paths(_own_directory())
    return load_settings(
        env_file,
        fallback=fallback,
        gateway_backends_path=arguments.backends,
        model_aliases_path=arguments.aliases,
        gateway_host=arguments.host,
        gateway_port=arguments.port,
        **given,
    )


def _data_paths(directory: Path) -> dict[str, Any]:
    return {
        "request_log_path": directory / "requests.jsonl",
        "gateway_db_path": directory / "gateway.sqlite",
        "ui_image_dir": directory / "ui_images",
    }


def _own_directory() -> Path:
    """Where this user's programs keep their state, as the XDG base directories have it."""
    directory = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "ai-appliance-gateway"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"{directory} cannot be made ({error.strerror}); pass --data-dir DIR") from None
    return directory
