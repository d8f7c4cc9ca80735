"""Reads the files that operators and Ansible write; raises a Refusal instead of a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gateway.errors import Refusal


def read_text(path: Path, what: str, hint: str) -> str:
    """The file's text. Raises a Refusal that names the file as `what` and ends with `hint`, what to do."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Refusal(f"{what} {path} does not exist; {hint}") from None
    except UnicodeDecodeError:
        raise Refusal(f"{what} {path} is not UTF-8; {hint}") from None
    except OSError as error:
        raise Refusal(f"{what} {path} cannot be read ({error.strerror}); {hint}") from None


def parse_json(text: str, source: Path | str, pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The JSON text of a file or setting; raises a Refusal that names the source, and the line if known."""
    try:
        return json.loads(text, object_pairs_hook=pairs_hook)
    except json.JSONDecodeError as error:
        raise Refusal(f"{source}: line {error.lineno}: not JSON: {error.msg}; correct it") from None
    except (ValueError, RecursionError):
        raise Refusal(f"{source}: not JSON: a number is too long or the nesting too deep; correct it") from None


def validation_refusal(path: Path | str, error: ValidationError) -> Refusal:
    """One line per problem: file (or setting), place in the file, what is wrong."""
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        place = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            message = "unknown key; remove it or correct its spelling"
        lines.append(f"{path}: {place}: {message}")
    return Refusal(*lines)
